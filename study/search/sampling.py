"""Samplers and seeds of a study, by name."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from search_spaces import SearchSpace
from search_spaces.space import Choice, Integer, Params
from study.errors import UserError

N_STARTUP_TRIALS = 10
"""Finished trials before TPE stops sampling at random."""

MAX_COMPARED = 1_000
"""Trials of the worse group that TPE compares the better one with; of more, the newest, which weigh most anyway."""

CHANGED_SHARE = 0.2
"""Of the dimensions that a neighbour draws anew."""


def sampler_seed(base: int, slot: int, attempt: int) -> int:
    """Seed of the sampler that draws a slot's parameters; the same after any restart."""
    return int(np.random.SeedSequence([base, slot, attempt]).generate_state(1)[0])


def training_seed(base: int, slot: int) -> int:
    """Seed of a slot's weights, image order and augmentations."""
    return int(np.random.SeedSequence([base, slot]).generate_state(1)[0] >> 1)


def is_neighbour(slot: int, n_finished: int) -> bool:
    """Whether an "anchored" study draws `slot` near a known good point; else TPE samples it.

    All slots of the start-up, where plain TPE samples uniformly, and every second one after it.
    """
    return n_finished < N_STARTUP_TRIALS or slot % 2 == 0


def neighbour(space: SearchSpace, centre: Params, seed: int) -> dict[str, Any]:
    """`centre` with a fifth of its dimensions drawn anew.

    A space has some thirty dimensions, and its default is good in most of them. A uniform sample is bad in some, so
    of ten none comes near the default, and for a few dozen trials TPE has nothing good to go by. Trusting a known good
    point at the start is what samplers with priors do (Souza et al. 2021), and returning to the best one is what
    PriorBand does (Mallik et al. 2023); here a draw changes few dimensions instead of all of them a little.
    """
    rng = random.Random(seed)
    drawn = space.sample(rng)
    changed = set(rng.sample(list(drawn), math.ceil(CHANGED_SHARE * len(drawn))))
    return {name: value if name in changed else centre[name] for name, value in drawn.items()}


class SlotSampler(optuna.samplers.TPESampler):
    """A TPE sampler for one slot after another that gives each what a fresh sampler with its seed would.

    A fresh one compares the dimensions of all finished trials, and turns all their parameters into numbers, for
    every slot again. Finished trials never change, so this one does it once for each. Of more than `MAX_COMPARED`
    worse ones it knows only the newest, which is where it differs from a fresh one: its time stops growing there.
    """

    def __init__(self) -> None:
        super().__init__(seed=0, n_startup_trials=N_STARTUP_TRIALS)
        self._distributions: dict[str, Any] = {}
        self._rows: dict[int, list[float] | None] = {}

    def begin(self, seed: int) -> optuna.samplers.TPESampler:
        """The sampler for a slot: this one, its random numbers now those of a fresh one."""
        fresh = optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS)
        if not all(name in vars(fresh) for name in ("_rng", "_random_sampler", "_search_space")):
            return fresh  # another Optuna keeps its random numbers elsewhere
        self._rng, self._random_sampler = fresh._rng, fresh._random_sampler
        return self

    def _get_internal_repr(
        self, trials: list[optuna.trial.FrozenTrial], search_space: dict[str, Any], study: optuna.Study
    ) -> dict[str, np.ndarray]:
        """One array a dimension, of the trials that have all of them; as Optuna's, but finished trials are kept."""
        trials = trials[-MAX_COMPARED:]
        if search_space != self._distributions:
            self._distributions, self._rows = dict(search_space), {}
        rows = []
        for trial in trials:
            if trial.number in self._rows:
                row = self._rows[trial.number]
            else:
                params = self._get_params(trial, study)
                row = None
                if search_space.keys() <= params.keys():
                    row = [each.to_internal_repr(params[name]) for name, each in search_space.items()]
                if trial.state.is_finished():
                    self._rows[trial.number] = row
            if row is not None:
                rows.append(row)
        columns = np.array(rows, dtype=float).reshape(-1, len(search_space)).T
        return dict(zip(search_space, columns, strict=True))


def make_sampler(
    name: str, seed: int, fixed: Mapping[str, Any] | None = None, kept: SlotSampler | None = None
) -> optuna.samplers.BaseSampler:
    """A sampler that draws what a fresh one seeded by `seed` draws; with `fixed`, exactly these parameters.

    "anchored" is TPE here: neighbours are not the sampler's to draw (see `is_neighbour`).
    `kept` is used again for TPE: with thousands of trials it is several times as fast.
    """
    sampler: optuna.samplers.BaseSampler
    is_tpe = name in ("anchored", "tpe")
    if is_tpe and kept is not None:
        sampler = kept.begin(seed)
    elif is_tpe:
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
