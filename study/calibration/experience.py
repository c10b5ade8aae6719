"""What trials really took on this machine: it corrects what was predicted before anything was trained.

Kept in the user's cache beside the calibration, and better with every run. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from search_spaces.architecture import identifier
from search_spaces.fields import Within, check_fields, from_fields
from study.machine import cache
from study.machine.hardware import versions

START_S = 12.0
"""Of a run, before its first trial and after its last: workers that load torch, the report."""
LONG_S = 10.0
"""Of predicted epochs: beside shorter ones the choice of kernels in the first step weighs too much."""
ENOUGH = 10
"""Trials that tell how fast they are."""
NUMBERS = (1, 2, 4, 8)
"""Of trials at once that machines have."""
MEMORY = 50
"""Trials that count as the past: older ones are forgotten as new ones come."""


@dataclass(frozen=True)
class Experience:
    """Averages of the trials so far.

    Attributes:
        factor: Seconds that their epochs took, over those predicted.
        beside_s: Seconds that a trial takes beside its epochs: it is asked for, built, started, drawn and written down.
        n_trials: How many they were.
    """

    factor: Annotated[float, Within(0.05, 20)] = 1.0
    beside_s: Annotated[float, Within(0, 3600)] = 3.0
    n_trials: Annotated[int, Within(0, MEMORY)] = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def seconds(self, n_trials: int, epochs_s: float, jobs: int, gain: float) -> float:
        """Of a run of so many trials.

        Args:
            n_trials: Trials to run.
            epochs_s: Predicted seconds of the epochs of one, alone on the machine.
            jobs: Trials at once.
            gain: How much faster all are for it than one after another.
        """
        if n_trials == 0:
            return 0.0
        return START_S + n_trials * (self.factor * epochs_s / gain + self.beside_s / min(jobs, n_trials))

    def after(self, n_trials: int, elapsed_s: float, epochs_s: float, predicted_s: float, jobs: int) -> Experience:
        """With a run of `n_trials` more.

        Args:
            n_trials: Trials that it finished.
            elapsed_s: Seconds from its beginning to its end.
            epochs_s: Seconds of all their epochs.
            predicted_s: Seconds predicted for these, as slow as trials at once make each other.
            jobs: Trials at once.
        """
        factor = epochs_s / predicted_s if predicted_s >= LONG_S * n_trials else self.factor
        beside_s = ((elapsed_s - START_S) * min(jobs, n_trials) - factor * predicted_s) / n_trials
        share = n_trials / (n_trials + self.n_trials)

        def mixed(old: float, new: float, least: float, most: float) -> float:
            return (1 - share) * old + share * min(max(new, least), most)

        return Experience(
            factor=mixed(self.factor, factor, 0.05, 20),
            beside_s=mixed(self.beside_s, beside_s, 0, 3600),
            n_trials=min(MEMORY, n_trials + self.n_trials),
        )


def experience(hardware: dict[str, Any], jobs: int) -> Experience:
    """Of the machine with this `hardware` with so many trials at once.

    Where none were, a guess by those of other numbers: prices that were too low for them are too low for these.
    """
    own = _recalled(hardware, jobs)
    if own is not None:
        return own
    others = [found.factor for number in NUMBERS if (found := _recalled(hardware, number)) is not None]
    return Experience(factor=statistics.mean(others)) if others else Experience()


def keep(hardware: dict[str, Any], jobs: int, found: Experience) -> None:
    """Keeps what was found for later runs."""
    cache.keep(_name(hardware, jobs), dataclasses.asdict(found))


def reached(hardware: dict[str, Any], measured: Mapping[int, float]) -> dict[int, float]:
    """`measured`, images per second by trials at once, as trials really reached them.

    What is unknown of a number is taken to be as the others are: the prices may be wrong, and not the comparison.
    """
    known = {jobs: experience(hardware, jobs) for jobs in measured}
    factors = [found.factor for found in known.values() if found.n_trials >= ENOUGH]
    other = statistics.mean(factors) if factors else 1.0
    return {
        jobs: rate / (known[jobs].factor if known[jobs].n_trials >= ENOUGH else other)
        for jobs, rate in measured.items()
    }


def _recalled(hardware: dict[str, Any], jobs: int) -> Experience | None:
    return cache.recall(_name(hardware, jobs), lambda kept: from_fields(Experience, kept))


def _name(hardware: dict[str, Any], jobs: int) -> str:
    return f"trials-{identifier([hardware, versions(), jobs])}"
