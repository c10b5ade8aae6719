"""What a bundle keeps of its test and its training, for whoever shows it: evaluation.npz. No torch here.

A bundle may come from a stranger: the file is read as plain numbers and words, and everything is held to its shape.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from study.errors import first_line
from study.machine.files import DamagedFileError, read_arrays

EVALUATION = "evaluation.npz"
CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
N_BINS = 15
"""Of confidence, in a reliability diagram (Guo et al. 2017)."""
N_MISSED = 40
_MOST_BYTES, _MOST_CLASSES, _MOST_EPOCHS, _MOST_SIDE = 2**28, 2**12, 2**16, 512


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts int64 [n_classes, n_classes]: rows are true classes, columns predicted ones."""
    counts = np.bincount(labels * n_classes + predictions, minlength=n_classes * n_classes)
    return counts.reshape(n_classes, n_classes)


@dataclass(frozen=True)
class Evaluation:
    """The answers of a network to N test images, and how it came to them.

    Attributes:
        classes: Names of the C classes.
        labels, predictions: Class of every image, int64 [N].
        logits: float32 [N, C], rounded to half precision.
        curves: float64 [E, 4], one row an epoch, columns as in `CURVES`; NaN where nothing was tested.
        missed: The most confident mistakes, int64 [M], rows of the test images.
        missed_pixels: Their images, uint8 [M, S, S, 3].
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    predictions: np.ndarray
    logits: np.ndarray
    curves: np.ndarray
    missed: np.ndarray
    missed_pixels: np.ndarray

    @property
    def confusion(self) -> np.ndarray:
        """Counts int64 [C, C]: rows are true classes, columns predicted ones."""
        return confusion_matrix(self.labels, self.predictions, len(self.classes))

    @property
    def confidences(self) -> np.ndarray:
        """Probability of the predicted class, float64 [N]."""
        return np.asarray(softmax(self.logits)[np.arange(len(self.labels)), self.predictions])


@dataclass(frozen=True)
class Reliability:
    """How often answers of a certain confidence are right; bins without an answer are left out.

    Attributes:
        error: Expected calibration error: mean distance of confidence and accuracy, weighted by the bins' images.
        confidence, accuracy: Means of each bin.
        counts: Images of each bin.
    """

    error: float
    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray


def evaluation_of(
    classes: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    curves: Sequence[Mapping[str, Any]],
    missed: np.ndarray,
    pixels: np.ndarray,
) -> Evaluation:
    """What is kept.

    Args:
        classes: Names of the C classes.
        labels: int64 [N].
        logits: float [N, C].
        curves: One mapping an epoch with what `CURVES` names, None where nothing was tested.
        missed: Rows of misclassified images, the most confident mistake first.
        pixels: uint8 [N, S, S, 3].
    """
    rows = [[math.nan if epoch.get(name) is None else epoch[name] for name in CURVES] for epoch in curves]
    return Evaluation(
        classes=tuple(classes),
        labels=np.asarray(labels, dtype=np.int64),
        predictions=logits.argmax(1),
        logits=logits,
        curves=np.array(rows, dtype=np.float64).reshape(-1, len(CURVES)),
        missed=missed[:N_MISSED],
        missed_pixels=pixels[missed[:N_MISSED]],
    )


def evaluation_as_bytes(found: Evaluation) -> bytes:
    """The content of evaluation.npz."""
    small = np.min_scalar_type(len(found.classes))
    stream = io.BytesIO()
    np.savez(
        stream,
        classes=np.array(found.classes, dtype=np.str_),
        labels=found.labels.astype(small),
        predictions=found.predictions.astype(small),
        # Half precision moves a probability by a thousandth at most; the predictions are those of the full one.
        logits=np.clip(found.logits, -60_000, 60_000).astype(np.float16),
        curves=found.curves,
        missed=found.missed.astype(np.int32),
        missed_pixels=found.missed_pixels,
    )
    return stream.getvalue()


def read_evaluation(folder: Path) -> Evaluation:
    """What evaluation.npz in `folder` holds.

    Raises:
        DamagedFileError: It is not there, damaged, too large, or its arrays do not fit each other.
    """
    file = folder / EVALUATION
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise DamagedFileError(f"it is larger than {_MOST_BYTES:,} bytes")
        found = read_arrays(file)
        classes, labels, predictions, logits = (found[key] for key in ("classes", "labels", "predictions", "logits"))
        curves, missed, pixels = (found[key] for key in ("curves", "missed", "missed_pixels"))
        _require(classes.ndim == 1 and classes.dtype.kind == "U" and len(classes) >= 1, "classes")
        if len(classes) > _MOST_CLASSES:  # the confusion is a table of all against all
            raise DamagedFileError(f"it is of more than {_MOST_CLASSES:,} classes")
        n_images, n_classes = len(labels), len(classes)
        _require(n_images > 0, "labels")
        for name, indices, most in (
            ("labels", labels, n_classes), ("predictions", predictions, n_classes), ("missed", missed, n_images),
        ):  # fmt: skip
            _require(indices.ndim == 1 and indices.dtype.kind in "iu", name)
            _require(not len(indices) or (indices.min() >= 0 and indices.max() < most), name)
        _require(len(predictions) == n_images, "predictions")
        _require(logits.shape == (n_images, n_classes) and logits.dtype.kind == "f", "logits")
        _require(bool(np.isfinite(logits).all()), "logits")
        _require(curves.ndim == 2 and curves.shape[1] == len(CURVES) and len(curves) <= _MOST_EPOCHS, "curves")
        _require(curves.dtype.kind == "f", "curves")
        side = pixels.shape[1] if pixels.ndim == 4 else 0
        _require(pixels.shape == (len(missed), side, side, 3) and pixels.dtype == np.uint8, "missed_pixels")
        _require(1 <= side <= _MOST_SIDE and len(missed) <= N_MISSED, "missed")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(first_line(error)) from error
    return Evaluation(
        classes=tuple(str(name) for name in classes),
        labels=labels.astype(np.int64),
        predictions=predictions.astype(np.int64),
        logits=logits.astype(np.float32),
        curves=curves.astype(np.float64),
        missed=missed.astype(np.int64),
        missed_pixels=pixels,
    )


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise DamagedFileError(f"its {name} do not fit the rest")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 [N, n_classes] of logits [N, n_classes]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


def reliability(right: np.ndarray, confidences: np.ndarray, n_bins: int = N_BINS) -> Reliability:
    """Of answers, bool [N], and their confidences, float [N] in [0, 1], in bins of equal width."""
    place = np.minimum((confidences * n_bins).astype(int), n_bins - 1)
    counts = np.bincount(place, minlength=n_bins)
    some = counts > 0
    confidence, accuracy = (
        np.bincount(place, values, n_bins)[some] / counts[some] for values in (confidences, right.astype(float))
    )
    error = float((counts[some] / len(right) * np.abs(accuracy - confidence)).sum())
    return Reliability(error, confidence, accuracy, counts[some])
