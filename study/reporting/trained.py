"""What a report reads of the retrained network: the files of its bundle, whoever wrote them. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from search_spaces.candidate import Candidate
from search_spaces.fields import DescriptionError
from study.bundle.evaluation import EVALUATION, Evaluation, read_evaluation
from study.bundle.files import AUGMENTED, CANDIDATE, CONFUSION_CSV, CURVES, MISSES, read_confusion
from study.bundle.metrics import METRICS, read_metrics
from study.bundle.preprocessing import CIFAR_10, CONFIG, read_preprocessing
from study.machine.files import DamagedFileError, is_file, read_json

T = TypeVar("T")

_PICTURES = {
    CURVES: "Loss and accuracy by epoch",
    MISSES: "Misclassified test images",
}
"""What an older bundle has in place of evaluation.npz."""
_MOST_PICTURE = 2**22
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Trained:
    """A bundle as far as it can be read.

    Attributes:
        metrics: Contents of metrics.json; empty if they cannot be read.
        candidate: What was trained.
        evaluation: Its test.
        classes: Names of the C classes.
        confusion: Counts [C, C] of the test images: rows are true classes, columns predicted ones.
        augmented: PNG of augmented images.
        pictures: PNGs by what they show, where `evaluation` is missing.
        damaged: What could not be read, each with the cause.
    """

    metrics: Mapping[str, Any]
    candidate: Candidate | None
    evaluation: Evaluation | None
    classes: tuple[str, ...]
    confusion: np.ndarray | None
    augmented: bytes | None
    pictures: Mapping[str, bytes]
    damaged: tuple[str, ...]

    @property
    def n_test(self) -> int | None:
        """Test images, if it is known how many."""
        stored = self.metrics.get("test_images")
        return int(self.confusion.sum()) if stored is None and self.confusion is not None else stored


def read_trained(folder: Path) -> Trained | None:
    """The bundle in `folder`; None if there is none. Whatever of it is damaged is left out."""
    if not is_file(folder / METRICS):
        return None
    damaged: list[str] = []

    def known(name: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read() if is_file(folder / name) else otherwise
        except (DamagedFileError, DescriptionError) as error:
            damaged.append(f"{name} ({error})")
            return otherwise

    metrics: dict[str, Any] = known(METRICS, lambda: read_metrics(folder), {})
    candidate = known(CANDIDATE, lambda: Candidate.from_json(read_json(folder / CANDIDATE)), None)
    evaluation = known(EVALUATION, lambda: read_evaluation(folder), None)
    classes = known(CONFIG, lambda: read_preprocessing(folder), CIFAR_10).classes
    confusion = known(CONFUSION_CSV, lambda: read_confusion(folder, classes), None)
    if evaluation is not None:
        classes, confusion = evaluation.classes, evaluation.confusion
    pictures = {} if evaluation else {words: _png(folder / name) for name, words in _PICTURES.items()}
    return Trained(
        metrics=metrics,
        candidate=candidate,
        evaluation=evaluation,
        classes=classes,
        confusion=confusion,
        augmented=_png(folder / AUGMENTED),
        pictures={words: png for words, png in pictures.items() if png is not None},
        damaged=tuple(damaged),
    )


def _png(file: Path) -> bytes | None:
    """The picture in `file`, if there is one of a size that a page can hold."""
    try:
        if not is_file(file) or file.stat().st_size > _MOST_PICTURE:
            return None
        content = file.read_bytes()
    except OSError:
        return None
    return content if content.startswith(_PNG) else None
