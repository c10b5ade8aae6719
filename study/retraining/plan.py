"""What a retrain is asked to do: made once from the command's options, handed on, never changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from study.command_line.options import ClusterOptions

SEEDS = {"cpu": 1, "cuda": 5}


@dataclass(frozen=True)
class RetrainPlan:
    """A candidate to train on all training images.

    Attributes:
        url, name: Storage and name of the study.
        out: Its folder.
        what: "best" (the re-ranking's, else the search's), "reference" or "yardstick".
        trial: Number of the trial to take in place of the best one.
        epochs, n_seeds: None: as many as the device affords.
        jobs: Seeds at once; None: as many as are measured to be fastest.
        device: "auto", "cpu" or "cuda".
        data: Name or folder of the data set; None: CIFAR-10, where it is looked for.
        n_train: So many training images only; None: all.
        augmentation: "lengthened", to the length of the training, on a CPU with smaller images first, or "stored": as
            the search trained it, or the re-ranking, whose winner it is.
        teacher: Whether a larger network is trained first, to learn from.
        teacher_epochs: Its epochs; None: as many as `epochs`.
        target_accuracy: A fraction; None: the study's, or the default.
        cluster: Where to train; None: on this machine.
        command: What the user typed, without secrets; kept with the bundle.
    """

    url: str
    name: str
    out: Path
    what: str = "best"
    trial: int | None = None
    epochs: int | None = None
    n_seeds: int | None = None
    jobs: int | None = None
    device: str = "auto"
    data: str | None = None
    n_train: int | None = None
    augmentation: str = "lengthened"
    teacher: bool = False
    teacher_epochs: int | None = None
    target_accuracy: float | None = None
    cluster: ClusterOptions | None = None
    command: str = ""
