"""What became of a trial."""

from __future__ import annotations

from enum import StrEnum, auto


class Outcome(StrEnum):
    """What became of a trial, as its attribute `outcome` says; the last two until it has one."""

    COMPLETE = auto()
    PRUNED = auto()
    FAILED = auto()
    INTERRUPTED = auto()
    INFEASIBLE = auto()
    RUNNING = auto()
    WAITING = auto()
