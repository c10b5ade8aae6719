"""What a supervisor, its executor and the workers say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from search_spaces.candidate import Candidate
from study.training.records import EpochRecord, TrainingConfig


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to start.

    Attributes:
        data: Source of the data set (`study.data.opening`).
        train_images, val_images: Sizes of the stratified subsets to train and to validate on. Where `val_images` is
            None nothing is validated, and `train_images` of all training images are trained on.
        device: "cpu" or "cuda".
        n_threads: Threads of torch in this worker.
        checkpoint_s: Seconds between two checkpoints of a training.
        gpu: What CUDA_VISIBLE_DEVICES is to say in this worker; None leaves it as it is.
        digest: Of the data set, to refuse images that were changed since.
    """

    data: str
    train_images: int
    val_images: int | None
    device: str
    n_threads: int
    checkpoint_s: float
    gpu: str | None = None
    digest: str = ""


@dataclass(frozen=True)
class Work:
    """One candidate to train.

    Attributes:
        key: Names it in every message about it.
        candidate: What to train.
        config: How.
        asks_after: Epochs (from zero) after which the worker waits for an answer before it goes on.
        checkpoint: Where its progress is kept; an interrupted training goes on from there.
        title: Of its pictures.
        keeps_result: Whether the trained network is wanted: it is left in `checkpoint`, and no picture is drawn.
        teacher: The finished training of a network to learn from, if there is one.
    """

    key: int
    candidate: Candidate
    config: TrainingConfig
    asks_after: frozenset[int]
    checkpoint: Path
    title: str
    keeps_result: bool = False
    teacher: Work | None = None


@dataclass(frozen=True)
class EpochEnded:
    """An epoch ended, now or, as its checkpoint says, before an interruption.

    Attributes:
        asks: Whether the worker waits to hear if it shall go on.
    """

    key: int
    record: EpochRecord
    asks: bool


@dataclass(frozen=True)
class Ended:
    """The training is over, and its worker free.

    Attributes:
        stopped: It was told not to go on.
        wall_s: Seconds it took, those before an interruption included.
        memory: MiB that the worker held before it began, by kind (`study.machine.hardware.memory`).
        pictures: Files for the dashboard, by name.
    """

    key: int
    stopped: bool
    wall_s: float
    memory: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The training cannot give a value: it diverged, or memory ran out."""

    key: int
    reason: str
    wall_s: float
    memory: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Died:
    """The worker is gone, and the training with it, up to its checkpoint.

    Attributes:
        traceback: Of a bug; empty if it was killed.
        machine_lost: Its machine is gone, too: no fault of the training's.
        in_capture: It could not capture a CUDA graph, and its process must train no more; another one may.
        for_all: Every other worker would end so, too; `reason` is whole.
    """

    key: int
    reason: str
    traceback: str = ""
    machine_lost: bool = False
    in_capture: bool = False
    for_all: bool = False


Message = EpochEnded | Ended | Failed | Died


SAVING_S = 20.0
"""For a worker to finish its step and save its progress, before it is killed."""


class Executor(Protocol):
    """Starts workers, hands work to them and listens; a supervisor does not know where they run."""

    def prepare(self, n: int) -> None:
        """Starts up to `n` workers that have nothing to do yet, without waiting for them."""

    def submit(self, work: Work) -> None:
        """Gives `work` to a worker that is free, or will be."""

    def answer(self, key: int, go_on: bool) -> None:
        """Answers the worker that asked after an epoch of `key`."""

    def wait(self, timeout_s: float) -> list[Message]:
        """What workers said since the last call, in order; waits for at most `timeout_s` if that is nothing."""

    def withdraw(self, key: int) -> None:
        """Ends the work `key` at once; nothing more is heard of it."""

    def close(self) -> list[Message]:
        """Lets every worker save its progress and end; returns what was said meanwhile."""
