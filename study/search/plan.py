"""What a search is asked to do: made once from a command's options, handed on, never changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.command_line.options import CHECKPOINT_S, ClusterOptions
from study.command_line.own import OwnLimits

SAMPLERS = ("anchored", "tpe", "random", "gp")
DEFAULT_SAMPLER = "anchored"
PRUNERS = ("halving", "percentile", "hyperband", "median", "none")
DEFAULT_PRUNER = "halving"


@dataclass(frozen=True)
class SearchPlan:
    """A study to bring to its end.

    Attributes:
        url, name: Storage and name of the study.
        out: Its folder.
        space: What a new study searches.
        settings: Fields of its fingerprint that the user gave; an existing study must agree with them.
        limits: Limits that the user gave; likewise.
        own: Those of them that the user brought along, with what measures them.
        trials: Finished trials to reach.
        jobs: Trials at once; None: as many as are measured to be fastest.
        timeout_s: No trial is started after so long; None: whenever.
        device: "auto", "cpu" or "cuda".
        data: Name or folder of the data set; None: CIFAR-10, where it is looked for.
        target_accuracy: Test accuracy to pass, a fraction; None: as stored, or the default.
        checkpoint_s: Seconds between two checkpoints of a trial, which an interrupted one goes on from.
        cluster: Where to train; None: on this machine.
        command: What the user typed, without secrets; kept with the study.
        next_commands: What the user is told to do next.
        shared: Folder of the dashboard's files, if it is not the study's own.
    """

    url: str
    name: str
    out: Path
    space: str
    next_commands: Sequence[str]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own: OwnLimits = dataclasses.field(default_factory=OwnLimits)
    trials: int = 50
    jobs: int | None = None
    timeout_s: float | None = None
    device: str = "auto"
    data: str | None = None
    target_accuracy: float | None = None
    checkpoint_s: float = CHECKPOINT_S
    cluster: ClusterOptions | None = None
    command: str = ""
    shared: Path | None = None

    @property
    def artifacts(self) -> Path:
        """Folder of the dashboard's files: it takes one for all studies of a storage."""
        return self.shared or self.out / "artifacts"


@dataclass(frozen=True)
class Given:
    """A candidate that a slot is to train, instead of sampling one.

    Attributes:
        name: For people; stored as the trial's anchor.
        params: Its parameters in the space.
        candidate: The candidate itself, as JSON.
        measured: What was measured of it for limits of the user's own.
    """

    name: str
    params: dict[str, Any]
    candidate: dict[str, Any]
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)
