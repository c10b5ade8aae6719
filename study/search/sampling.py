"""Samplers and seeds of a study, by name."""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from search_spaces.space import Choice, Dimension, Domain, Integer, Params, Real
from study.errors import UserError

N_STARTUP_TRIALS = 10
"""Finished trials before TPE samples."""

MAX_COMPARED = 1_000
"""Trials that a sampler sees, but for the best of the older ones."""

FORGOTTEN_AT_ONCE = 250
"""Copying a study anew takes longer than a draw: it is done once for so many trials."""

N_BEST = 25
"""As many as TPE ever takes for the better group."""

CHANGED_SHARE = 0.2
"""Of the dimensions that a neighbour draws anew."""


def sampler_seed(base: int, slot: int, attempt: int, redraw: int = 0) -> int:
    """Seed of the sampler that draws a slot's parameters; the same after any restart."""
    entropy = [base, slot, attempt, *([redraw] if redraw else [])]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def training_seed(base: int, slot: int) -> int:
    """Seed of a slot's weights, image order and augmentations."""
    return int(np.random.SeedSequence([base, slot]).generate_state(1)[0] >> 1)


def neighbour(space: Domain, centre: Params, seed: int) -> dict[str, Any]:
    """`centre` with a fifth of its dimensions drawn anew: what "anchored" draws in the start-up, near the default.

    A space has some thirty dimensions, and its default is good in most of them. A uniform sample is bad in some, so
    of ten none comes near the default, and for a few dozen trials TPE has nothing good to go by. Trusting a known good
    point at the start is what samplers with priors do (Souza et al. 2021); here a draw changes few dimensions instead
    of all of them a little.
    """
    rng = random.Random(seed)
    drawn = space.sample(rng)
    changed = set(rng.sample(list(drawn), _n_changed(space)))
    return {name: value if name in changed else centre[name] for name, value in drawn.items()}


def near_is_better(space: Domain, centre: Params, tried: Sequence[FrozenTrial], nth: int) -> bool:
    """Whether the next draw of an "anchored" start-up is to be a neighbour of `centre`, or a uniform sample like TPE's.

    The first is a neighbour and the second a sample; from then on it is what has the higher median so far. So a default
    that is worse than most of its space, as a user's own may be, costs a draw or two: results/tables.

    Args:
        space: Of both.
        centre: The default.
        tried: The finished trials of the start-up, without known points. A pruned one is worse than any complete one.
        nth: How many draws were begun before.
    """
    values: dict[bool, list[float]] = {True: [], False: []}
    for trial in tried:
        is_near = sum(trial.params.get(name) != value for name, value in centre.items()) <= _n_changed(space)
        complete = trial.state == TrialState.COMPLETE and trial.value is not None
        values[is_near].append(trial.value if complete else -math.inf)  # type: ignore[arg-type]
    near, far = values[True], values[False]
    if not far:
        return nth != 1
    return not near or statistics.median(near) >= statistics.median(far)


def _n_changed(space: Domain) -> int:
    """Dimensions of a neighbour that are drawn anew."""
    return math.ceil(CHANGED_SHARE * len(space.dimensions))


class _Tpe(optuna.samplers.TPESampler):
    """A fresh TPE that need not look at every trial to find out which parameters all of them have."""

    def __init__(self, seed: int, common: IntersectionSearchSpace) -> None:
        super().__init__(seed=seed, n_startup_trials=N_STARTUP_TRIALS)
        self._common = common

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        common = self._common.calculate(study)
        return {name: distribution for name, distribution in common.items() if not distribution.single()}


def make_sampler(name: str, seed: int, common: IntersectionSearchSpace | None = None) -> optuna.samplers.BaseSampler:
    """The sampler `name`, fresh.

    "anchored" is TPE here: neighbours are not the sampler's to draw (see `neighbour`).

    Args:
        name: Of `study.search.plan.SAMPLERS`.
        seed: Of its draws.
        common: Knows which parameters all trials of the study have, pruned ones included; kept from draw to draw.
    """
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS)
    return _Tpe(seed, common or IntersectionSearchSpace(include_pruned=True))


def fixed_sampler(params: Mapping[str, Any]) -> optuna.samplers.BaseSampler:
    """A sampler that draws exactly `params`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.PartialFixedSampler(dict(params), optuna.samplers.RandomSampler())


class Draws:
    """Draws the parameters of one slot after another, each by a fresh sampler with the slot's seed.

    They are drawn in a copy of the study in memory, and given to the stored trial as fixed ones. So a sampler sees
    finished trials of ours only, never a foreign or an unfinished one, and what it costs does not grow with the study:
    of more than MAX_COMPARED trials the copy holds the best, and the newest, which a sampler weighs most anyway.
    """

    def __init__(self, space: Domain, sampler: str) -> None:
        self.distributions = distributions(space)
        self._sampler = sampler
        self._known: set[int] = set()
        self._copy, self._common = _new_copy()

    def draw(self, finished: Sequence[FrozenTrial], seed: int) -> dict[str, Any]:
        """Parameters for a slot, after these finished trials, by number."""
        self._remember(finished)
        self._copy.sampler = make_sampler(self._sampler, seed, self._common)
        trial = self._copy.ask(self.distributions)
        self._copy.tell(trial, state=TrialState.FAIL)  # what becomes of it, the finished trials will say
        return trial.params

    def _remember(self, finished: Sequence[FrozenTrial]) -> None:
        wanted = {trial.number: trial for trial in compared(finished)}
        if not self._known <= wanted.keys():
            self._known, (self._copy, self._common) = set(), _new_copy()
        self._copy.add_trials([self._essence(trial) for number, trial in wanted.items() if number not in self._known])
        self._known = set(wanted)

    def _essence(self, trial: FrozenTrial) -> FrozenTrial:
        """What a sampler reads of a trial."""
        known = {name: trial.params[name] for name in self.distributions if name in trial.params}
        return optuna.trial.create_trial(
            state=trial.state,
            value=trial.value,
            params=known,
            distributions={name: self.distributions[name] for name in known},
            intermediate_values=trial.intermediate_values,
        )


def _new_copy() -> tuple[optuna.Study, IntersectionSearchSpace]:
    return optuna.create_study(direction="maximize"), IntersectionSearchSpace(include_pruned=True)


def compared(finished: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that a sampler gets to see: all, or the best of the older ones and the newest.

    What is left out changes only with every FORGOTTEN_AT_ONCE trials, and depends on nothing but the trials.
    """
    first = FORGOTTEN_AT_ONCE * max(0, math.ceil((len(finished) - MAX_COMPARED) / FORGOTTEN_AT_ONCE))
    complete = [trial for trial in finished[:first] if trial.state == TrialState.COMPLETE]
    best = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))[:N_BEST]
    return [*sorted(best, key=lambda trial: trial.number), *finished[first:]]


def check_names(sampler: str, pruner: str) -> None:
    """Refuses combinations that would mislead the search.

    Raises:
        UserError: The Gaussian process is asked to work with a pruner.
    """
    if sampler == "gp" and pruner != "none":
        raise UserError(f"--sampler gp ignores pruned trials, so it needs --pruner none: --pruner {pruner}.")


def distributions(space: Domain) -> dict[str, BaseDistribution]:
    """The dimensions of `space` as Optuna takes them; one name, one fixed distribution."""
    return {name: _distribution(dimension) for name, dimension in space.dimensions.items()}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if isinstance(dimension, Integer):
        return IntDistribution(dimension.low, dimension.high)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def dimension_of(distribution: BaseDistribution) -> Dimension:
    """What `distributions` made the distribution of."""
    if isinstance(distribution, CategoricalDistribution):
        return Choice(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return Integer(distribution.low, distribution.high)
    assert isinstance(distribution, FloatDistribution)
    return Real(distribution.low, distribution.high, distribution.log, distribution.step)
