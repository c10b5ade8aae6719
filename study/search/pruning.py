"""Pruners by name, and the epochs after which they compare."""

from __future__ import annotations

from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from study.search.plan import DEFAULT_PRUNER
from study.storage.known import KnownTrials


def make_pruner(name: str, epochs: int, first_step: int = 0) -> optuna.pruners.BasePruner:
    """The pruner for trials of `epochs` epochs, the first of which is reported as step `first_step`.

    The first third of the schedule never prunes: the learning rate is still high there. Successive halving stops three
    of four after half of it. After a third, accuracies say too little where optimizers and batch sizes differ: on the
    recorded curves of three studies it then loses 0.2 to 3.6 points, after half of them 0 to 0.4
    (scripts/experiments/pruners.py, results/pruners).
    """
    warmup = max(1, epochs // 3)
    if name == "percentile":
        return optuna.pruners.PercentilePruner(25.0, n_startup_trials=5, n_warmup_steps=warmup + first_step)
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=warmup + first_step)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=_first_rung(epochs) + first_step, reduction_factor=4)
    if name == "hyperband":
        # The number of its brackets follows from the ratio of both, which stays.
        least, most = warmup + first_step, epochs + first_step * (epochs // warmup)
        return optuna.pruners.HyperbandPruner(min_resource=least, max_resource=most, reduction_factor=3)
    return optuna.pruners.NopPruner()


class Judge:
    """Asks a study's pruner, which gets to see the trials that are known, without the failed ones.

    Successive halving counts every trial that ever reached a rung, and a trial that was cut off after it reaches it
    again as another trial: it would count twice. Hyperband makes a study of its own for every bracket, which this
    cannot look into; a few cut-off trials more make it a little stricter.
    """

    def __init__(self, study: optuna.Study, known: KnownTrials) -> None:
        self._study, self._known = study, known
        self._asked: dict[int, FrozenTrial] = {}

    def __call__(self, number: int) -> bool:
        """Whether trial `number` is to be stopped after what was reported last."""
        # Asked again because the storage did not answer: as it was then, without rungs that were noted meanwhile.
        trial = self._asked.get(number) or self._known.read(number)
        self._asked[number] = trial
        stops = self._study.pruner.prune(cast(optuna.Study, self), trial)
        if not isinstance(self._study.pruner, optuna.pruners.PercentilePruner):  # which notes nothing
            self._known.read(number)  # with the rungs that it reached
        del self._asked[number]
        return stops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        return [trial for trial in self._known.get_trials(*args, **kwargs) if trial.state != TrialState.FAIL]


def _first_rung(epochs: int) -> int:
    """The epoch, from zero, after which halving first asks: half of them are done then."""
    return max(1, epochs // 2 - 1)


def compared_epochs(pruner: str, epochs: int) -> tuple[int, ...] | None:
    """The epochs (from zero) whose accuracy decides anything: halving's one rung before the end, and the last.

    None: all of them. The other pruners look at whole curves, and "none" is there to record them.
    """
    if pruner != "halving":
        return None
    return tuple(sorted({min(_first_rung(epochs), epochs - 1), epochs - 1}))


def default_pruner(sampler: str) -> str:
    """The pruner that goes with a sampler: Optuna's Gaussian process sees only whole trials."""
    return "none" if sampler == "gp" else DEFAULT_PRUNER
