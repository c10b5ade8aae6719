"""Retrained networks are compared over the same test images, seed by seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import finals
from study.data import opening
from study.data.cifar10 import CIFAR10, Images
from study.errors import UserError


def test_a_lead_is_paired_over_images_and_seeds() -> None:
    rng = np.random.default_rng(0)
    others = rng.random((2, 4000)) < 0.8
    correct = others | (rng.random((2, 4000)) < 0.05)  # never wrong where the others are right
    found = finals.lead(correct, others)
    assert found["by_seed"] == pytest.approx((correct.mean(1) - others.mean(1)).tolist(), abs=1e-6)
    low, high = found["interval_95"]
    assert 0 < low < found["mean"] < high
    unpaired = 1.96 * np.sqrt(2 * 0.8 * 0.2 / 4000 / 2)
    assert high - low < 0.6 * 2 * unpaired  # what both get right says nothing about their difference
    assert finals.lead(correct, others[:1])["by_seed"] == found["by_seed"][:1]


def bundle(folder: Path, answers: list[Any], labels: Any, epochs: int = 2) -> Path:
    """What a retrain leaves of seeds that gave `answers`, beside what an older and shorter one left."""
    (folder / "best").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    for seed, given in enumerate(answers):
        for length, said in ((epochs, given), (epochs - 1, np.roll(given, 2))):  # as accurate, on others
            logits = np.eye(2, dtype=np.float32)[said]
            if length == epochs and seed == 0:  # of an earlier version: of all epochs that were tested
                logits = np.stack([1 - logits, logits])
            file = folder / "checkpoints" / f"abc-seed{seed}-{length}.npz"
            np.savez(file, epochs=np.array([length - 1]), losses=np.zeros(1), logits=logits)
    metrics = {
        **{"candidate_id": "abc", "epochs": epochs, "params": 1234, "macs": 5, "command": "python -m study.retrain"},
        **{"seeds": list(range(len(answers))), "test_accuracy": [float((each == labels).mean()) for each in answers]},
        "hardware": {"cpu": "a CPU", "n_cores": 2},
    }
    (folder / "best" / "metrics.json").write_text(json.dumps(metrics))
    (folder / "best" / "candidate.json").write_text("{}")
    return folder / "best"


def test_bundles_are_compared_by_what_their_seeds_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(200) % 2
    test = Images(np.zeros((200, 1, 1, 3), np.uint8), labels)
    monkeypatch.setattr(opening, "open_data", lambda data: CIFAR10)
    monkeypatch.setattr(opening, "load_test", lambda source: test)
    one_wrong, ten_wrong = (np.where(np.arange(200) < n, 1 - labels, labels) for n in (1, 10))
    winner = bundle(tmp_path / "first", [one_wrong, one_wrong], labels)
    default = bundle(tmp_path / "second", [ten_wrong], labels)
    assert (finals.read(winner, "winner", labels).correct == np.stack([one_wrong == labels] * 2)).all()
    options = ["--names", "winner", "default", "--results", str(tmp_path / "finals")]
    assert finals.main([str(winner), str(default), *options]) == 0
    found = json.loads((tmp_path / "finals" / "dilated.json").read_text())
    assert [len(each["test_accuracy"]) for each in found["networks"]] == [2, 1]
    assert found["leads"][0]["by_seed"] == [0.045]
    assert str(tmp_path) not in json.dumps(found)
    text = finals.block(tmp_path)
    assert "| winner | 1,234 | 2 | 99.50% (99.50, 99.50) |  |  |" in text
    assert "| default | 1,234 | 2 | 95.00% (95.00) | 4.50 (" in text
    (default.parent / "checkpoints" / "abc-seed0-2.npz").unlink()
    for wrong, words in (
        ([winner, default], "no tested checkpoint of seed 0: retrain it again"),
        ([tmp_path, winner], "is no bundle"),
        ([winner], "two bundles or more"),
    ):
        with pytest.raises(UserError, match=words):
            finals.main([*map(str, wrong), *options])
