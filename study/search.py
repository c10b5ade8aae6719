"""Samplers, pruners and seeds of a study, by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from search_spaces import SearchSpace
from search_spaces.space import Choice, Integer
from study.errors import UserError

SAMPLERS = ("tpe", "random", "gp")
PRUNERS = ("halving", "percentile", "hyperband", "median", "none")
DEFAULT_PRUNER = "halving"

N_STARTUP_TRIALS = 10
"""Finished trials before TPE stops sampling at random."""


def sampler_seed(base: int, slot: int, attempt: int) -> int:
    """Seed of the sampler that draws a slot's parameters; the same after any restart."""
    return int(np.random.SeedSequence([base, slot, attempt]).generate_state(1)[0])


def training_seed(base: int, slot: int) -> int:
    """Seed of a slot's weights, image order and augmentations."""
    return int(np.random.SeedSequence([base, slot]).generate_state(1)[0] >> 1)


def make_sampler(name: str, seed: int, fixed: Mapping[str, Any] | None = None) -> optuna.samplers.BaseSampler:
    """A fresh sampler; with `fixed`, one that returns exactly these parameters."""
    sampler: optuna.samplers.BaseSampler
    if name == "tpe":
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS)
    elif name == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS)
    if fixed is None:
        return sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.PartialFixedSampler(dict(fixed), sampler)


def make_pruner(name: str, epochs: int) -> optuna.pruners.BasePruner:
    """The pruner for trials of `epochs` epochs.

    The first third of the schedule never prunes: the learning rate is still rising there. Successive halving
    then stops three of four; on the curves of a whole study it spends the fewest epochs of 32 settings
    that lose at most 0.1 points (scripts/pruners.py, results/pruners).
    """
    warmup = max(1, epochs // 3)
    if name == "percentile":
        return optuna.pruners.PercentilePruner(25.0, n_startup_trials=5, n_warmup_steps=warmup)
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=warmup)
    if name == "halving":
        # It asks at step min_resource and counts from zero, so this is after a third of the epochs.
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, warmup - 1), reduction_factor=4)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=warmup, max_resource=epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()


def check_names(sampler: str, pruner: str) -> None:
    """Refuses combinations that would mislead the search.

    Raises:
        UserError: The Gaussian process is asked to work with a pruner.
    """
    if sampler == "gp" and pruner != "none":
        raise UserError(f"--sampler gp ignores pruned trials, so it needs --pruner none: --pruner {pruner}.")


def suggest(trial: optuna.Trial, space: SearchSpace) -> dict[str, Any]:
    """Samples every dimension of `space`; one name, one fixed distribution."""
    params: dict[str, Any] = {}
    for name, dimension in space.dimensions.items():
        if isinstance(dimension, Choice):
            params[name] = trial.suggest_categorical(name, dimension.values)
        elif isinstance(dimension, Integer):
            params[name] = trial.suggest_int(name, dimension.low, dimension.high)
        else:
            params[name] = trial.suggest_float(
                name, dimension.low, dimension.high, log=dimension.log, step=dimension.step
            )
    return params
