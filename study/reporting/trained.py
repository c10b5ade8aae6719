"""What a report reads of the retrained network: the files of its bundle, whoever wrote them. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.candidate import Candidate
from search_spaces.fields import DescriptionError
from study.bundle.evaluation import EVALUATION, Evaluation, read_evaluation
from study.bundle.files import AUGMENTED, CANDIDATE, CONFUSION_PNG, CURVES, MISSES
from study.bundle.metrics import METRICS, read_metrics
from study.machine.files import DamagedFileError, is_file, read_json

_PICTURES = {
    CURVES: "Loss and accuracy by epoch",
    CONFUSION_PNG: "Confusion matrix of the test images",
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
        augmented: PNG of augmented images.
        pictures: PNGs by what they show, where `evaluation` is missing.
        damaged: What could not be read, each with the cause.
    """

    metrics: Mapping[str, Any]
    candidate: Candidate | None
    evaluation: Evaluation | None
    augmented: bytes | None
    pictures: Mapping[str, bytes]
    damaged: tuple[str, ...]


def read_trained(folder: Path) -> Trained | None:
    """The bundle in `folder`; None if there is none. Whatever of it is damaged is left out."""
    if not is_file(folder / METRICS):
        return None
    metrics: dict[str, Any] = {}
    candidate = evaluation = None
    damaged = []
    try:
        metrics = read_metrics(folder)
    except DamagedFileError as error:
        damaged.append(f"{METRICS} ({error})")
    if is_file(folder / CANDIDATE):
        try:
            candidate = Candidate.from_json(read_json(folder / CANDIDATE))
        except (DamagedFileError, DescriptionError) as error:
            damaged.append(f"{CANDIDATE} ({error})")
    if is_file(folder / EVALUATION):
        try:
            evaluation = read_evaluation(folder)
        except DamagedFileError as error:
            damaged.append(f"{EVALUATION} ({error})")
    pictures = {} if evaluation else {words: _png(folder / name) for name, words in _PICTURES.items()}
    return Trained(
        metrics=metrics,
        candidate=candidate,
        evaluation=evaluation,
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
