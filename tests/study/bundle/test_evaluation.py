"""What a bundle keeps of its test: the figures made of it, and files of strangers."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.bundle.evaluation import (
    EVALUATION,
    Evaluation,
    evaluation_as_bytes,
    evaluation_of,
    read_evaluation,
    reliability,
)
from study.machine.files import DamagedFileError

CURVES: list[dict[str, Any]] = [
    {"epoch": 0, "train_loss": 2.3, "train_accuracy": 0.1, "test_loss": None, "test_accuracy": None},
    {"epoch": 1, "train_loss": 2.1, "train_accuracy": 0.5, "test_loss": 2.2, "test_accuracy": 0.125},
]


@pytest.fixture
def made() -> Evaluation:
    """Twelve images of three classes, of which the first two are misclassified."""
    labels = np.arange(12) % 3
    logits = np.eye(3)[labels] * 4
    logits[:2] = np.roll(logits[:2], 1, axis=1)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    return evaluation_of(("cat", "dog", "ü"), labels, logits, CURVES, np.array([1, 0]), pixels)


def test_round_trip(made: Evaluation, tmp_path: Path) -> None:
    (tmp_path / EVALUATION).write_bytes(evaluation_as_bytes(made))
    found = read_evaluation(tmp_path)
    for each in dataclasses.fields(Evaluation):
        np.testing.assert_array_equal(getattr(found, each.name), getattr(made, each.name), each.name)
    assert found.confusion.tolist() == [[3, 1, 0], [0, 3, 1], [0, 0, 4]]
    assert found.confidences == pytest.approx(np.exp(4) / (np.exp(4) + 2), abs=1e-6)
    assert np.isnan(found.curves[0, 2:]).all()


WRONG: dict[str, dict[str, Any]] = {
    "objects": {"classes": np.array(["cat", {}, None], dtype=object)},
    "no classes": {"classes": np.array([], dtype=np.str_)},
    "a class too few": {"classes": np.array(["cat", "dog"])},
    "labels out of range": {"labels": np.full(12, 3)},
    "negative predictions": {"predictions": np.full(12, -1)},
    "labels that are no integers": {"labels": np.zeros(12)},
    "fewer predictions": {"predictions": np.zeros(11, int)},
    "logits of another shape": {"logits": np.zeros((12, 4))},
    "NaN": {"logits": np.full((12, 3), np.nan)},
    "curves of another shape": {"curves": np.zeros((2, 3))},
    "pictures of floats": {"missed_pixels": np.zeros((2, 8, 8, 3))},
    "pictures that are not square": {"missed_pixels": np.zeros((2, 8, 4, 3), np.uint8)},
    "fewer pictures": {"missed_pixels": np.zeros((1, 8, 8, 3), np.uint8)},
    "mistakes that are no image": {"missed": np.array([0, 12])},
    "a word": {"labels": np.array("x")},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str, made: Evaluation, tmp_path: Path) -> None:
    with np.load(io.BytesIO(evaluation_as_bytes(made))) as arrays:
        changed = {**arrays, **WRONG[name]}
    np.savez(tmp_path / EVALUATION, **changed)
    with pytest.raises(DamagedFileError) as caught:
        read_evaluation(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("n_classes", "fits"), [(1_100, True), (4_097, False)])
def test_many_classes(n_classes: int, fits: bool, tmp_path: Path) -> None:
    classes, nothing = [f"class {i}" for i in range(n_classes)], np.zeros(0, np.int64)
    made = evaluation_of(
        classes, np.array([3]), np.zeros((1, n_classes)), [], nothing, np.zeros((1, 8, 8, 3), np.uint8)
    )
    (tmp_path / EVALUATION).write_bytes(evaluation_as_bytes(made))
    if fits:
        assert len(read_evaluation(tmp_path).classes) == n_classes
    else:
        with pytest.raises(DamagedFileError, match="it is of more than 4,096 classes"):
            read_evaluation(tmp_path)


def test_damaged_packed_and_missing_files_are_refused(made: Evaluation, tmp_path: Path) -> None:
    file, content = tmp_path / EVALUATION, evaluation_as_bytes(made)
    middle = len(content) // 2
    for damaged in (b"", b"nonsense", content[:-40], content[:middle] + b"\xff\x00" + content[middle + 2 :]):
        file.write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            read_evaluation(tmp_path)
    with file.open("wb") as stream:  # small in the file and large in memory
        np.savez_compressed(stream, classes=np.zeros(10**6))
    with pytest.raises(DamagedFileError, match="more than its size"):
        read_evaluation(tmp_path)
    file.unlink()
    with pytest.raises(DamagedFileError):
        read_evaluation(tmp_path)


def test_calibration_error() -> None:
    confidences = np.repeat([0.95, 0.55], 100)
    right = np.concatenate([np.arange(100) < 95, np.arange(100) < 55])
    assert reliability(right, confidences).error == pytest.approx(0)
    sure = reliability(right, np.repeat([1.0, 0.55], 100))  # 1 is in the last bin
    assert sure.error == pytest.approx(0.5 * 0.05)
    assert sure.counts.tolist() == [100, 100]
    assert sure.accuracy.tolist() == pytest.approx([0.55, 0.95])
