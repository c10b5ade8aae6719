"""A bundle as a retrain leaves it, without a network: what a report reads of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search_spaces.reference import REFERENCE
from study.bundle import figures
from study.bundle.evaluation import EVALUATION, evaluation_as_bytes, evaluation_of
from study.bundle.files import AUGMENTED, CANDIDATE, METRICS
from study.data.cifar10 import CLASSES

N_TEST = 2_000


def _made_bundle(folder: Path, **changed: Any) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, N_TEST)
    logits = rng.normal(0, 1.5, (N_TEST, 10)) + 4 * np.eye(10)[labels]
    pixels = rng.integers(0, 256, (N_TEST, 32, 32, 3), dtype=np.uint8)
    curves = [
        {
            "epoch": epoch, "train_loss": 2 / (1 + epoch), "train_accuracy": 1 - 0.8 / (1 + epoch),
            "test_loss": 2.1 / (1 + epoch) if epoch % 2 else None,
            "test_accuracy": 1 - 0.9 / (1 + epoch) if epoch % 2 else None,
        }
        for epoch in range(20)
    ]  # fmt: skip
    accuracy = float((logits.argmax(1) == labels).mean())
    metrics = {
        "study": "dilated", "trial": 1, "candidate_id": REFERENCE.candidate_id,
        "params": REFERENCE.architecture.params, "receptive_field": REFERENCE.architecture.receptive_field,
        "macs": REFERENCE.architecture.macs, "epochs": 20, "seeds": [0], "test_images": N_TEST,
        "test_accuracy": [accuracy], "test_accuracy_mean": accuracy, "shipped_seed": 0,
        "test_accuracy_shipped": accuracy, "target_accuracy": 0.85, "target_met": accuracy > 0.85, "device": "cpu",
        "latency_ms": {"cpu": {"1": 1.25, "256": 128.0}},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / METRICS).write_text(json.dumps({**metrics, **changed}))
    (folder / CANDIDATE).write_text(json.dumps(REFERENCE.to_json()))
    missed = figures.confident_misses(labels, logits)
    kept = evaluation_of(CLASSES, labels, logits, curves, missed, pixels)
    (folder / EVALUATION).write_bytes(evaluation_as_bytes(kept))
    figures.draw_augmented(pixels[:12].reshape(3, 4, 32, 32, 3), folder / AUGMENTED)


@pytest.fixture(scope="session")
def made_bundle() -> Callable[..., None]:
    """Writes a bundle into a folder; what is given besides is what its metrics.json says."""
    return _made_bundle
