"""Rank correlation of fidelities: candidates of a study trained again, each kept as soon as it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import fidelity
from study import run
from study.errors import UserError
from study.machine.paths import default_storage
from study.storage.database import open_study
from study.training import loop as training

TINY = ["--train-images", "40", "--val-images", "20", "--epochs", "1", "--device", "cpu", "--jobs", "1"]


@pytest.mark.slow
def test_candidates_of_a_study_are_trained_again_once(
    made_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    assert run.main(["--trials", "3", "--pruner", "none", *TINY, "--study-name", "s", "--out", str(out)]) == 0
    arguments = ["--study-name", "s", "--out", str(out), "--candidates", "3", "--results", str(tmp_path / "results")]
    arguments += ["--epochs", "1", "--train-images", "80", "--device", "cpu"]
    trained: list[Any] = []

    def train(candidate: Any, images: Any, config: Any, validation: Any) -> Any:
        assert (len(images), len(validation), config.epochs) == (80, 20, 1)
        trained.append((candidate.candidate_id, config.seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return original(candidate, images, config, validation)

    original = training.train
    monkeypatch.setattr(training, "train", train)
    with pytest.raises(KeyboardInterrupt):
        fidelity.main(arguments)
    assert fidelity.main(arguments) == 0
    assert len(trained) == 4  # the interrupted one, and nothing else, began anew
    found = json.loads((tmp_path / "results" / "s.json").read_text())
    assert found["command"].startswith("python scripts/experiments/fidelity.py --study-name s --candidates 3 ")
    assert (found["short"]["train_images"], found["fuller"]["train_images"]) == (40, 80)
    trials = open_study(default_storage("s", str(out)), "s").get_trials()
    assert {(c["candidate_id"], c["short_val_accuracy"]) for c in found["candidates"]} == {
        (trial.user_attrs["candidate_id"], trial.value) for trial in trials
    }
    assert set(trained) == {(trial.user_attrs["candidate_id"], trial.user_attrs["training_seed"]) for trial in trials}
    with pytest.raises(UserError, match=r"is of another study or fidelity \(fuller\)"):
        fidelity.main([*arguments, "--train-images", "60"])


def test_too_few_candidates_get_a_line() -> None:
    with pytest.raises(UserError, match="--candidates must be at least 3: 2"):
        fidelity.main(["--candidates", "2"])
