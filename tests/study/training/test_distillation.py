"""Learning from a larger network: the loss, and a retrain with and without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Augmentation, Candidate, Optimisation
from search_spaces.constraints import Limits, check
from search_spaces.teacher import TEACHER
from study import retrain
from study.data.cifar10 import Images
from study.errors import UserError
from study.model.network import Network, build
from study.training.distillation import TEMPERATURE, WEIGHT, distilled
from study.training.evaluation import evaluate
from study.training.loop import train
from study.training.records import Progress, TrainingConfig

STUDENT = Candidate(
    Architecture((Conv(8, stride=2), Conv(8, separable=True, bias=True), Conv(16, stride=2, dilation=2))),
    Augmentation(0.5, 2),
    Optimisation(lr=0.05, batch_size=32),
)
BIGGER = Architecture((Conv(16, stride=2), Conv(32, stride=2)))


@pytest.fixture
def images() -> Images:
    rng = np.random.default_rng(0)
    return Images(rng.integers(0, 256, (96, 32, 32, 3), dtype=np.uint8), np.arange(96) % 10)


def test_the_loss_is_the_weighted_sum_that_it_says() -> None:
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(0, 2, (2, 6, 10))

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(teacher / TEMPERATURE), softmax(student / TEMPERATURE)
    divergence = (p * np.log(p / q)).sum(1).mean()
    expected = (1 - WEIGHT) * 1.25 + WEIGHT * TEMPERATURE**2 * divergence
    found = distilled(torch.tensor(1.25), torch.from_numpy(student), torch.from_numpy(teacher))
    assert float(found) == pytest.approx(expected, rel=1e-9)
    same = distilled(torch.tensor(1.25), torch.from_numpy(student), torch.from_numpy(student))
    assert float(same) == pytest.approx((1 - WEIGHT) * 1.25)


def test_the_teacher_stays_and_the_student_differs(images: Images) -> None:
    config = TrainingConfig(epochs=1, seed=0, precision="float32")
    teacher = build(BIGGER, seed=5)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    taught = train(STUDENT, images, config, teacher=teacher)
    alone = train(STUDENT, images, config)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    pairs = zip(taught.ema.parameters(), alone.ema.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_a_student_approaches_its_teacher(images: Images) -> None:
    """Closer than one that learns from the labels alone, which say something else here."""
    teacher = build(BIGGER, seed=5).eval()
    config = TrainingConfig(epochs=8, seed=0, precision="float32")

    def far(student: Network) -> float:
        said, wanted = (torch.from_numpy(evaluate(each.eval(), images, "cpu")[1]) for each in (student, teacher))
        return float(torch.nn.functional.kl_div(said.log_softmax(1), wanted.softmax(1), reduction="batchmean"))

    taught, alone = train(STUDENT, images, config, teacher=teacher), train(STUDENT, images, config)
    assert far(taught.ema) < far(alone.ema)


def test_stopped_and_resumed_equals_uninterrupted(images: Images) -> None:
    config = TrainingConfig(epochs=2, seed=0, precision="float32")
    kept: list[Progress] = []

    def keep(capture) -> None:
        if len(kept) < 2:
            kept.append(capture())

    whole = train(STUDENT, images, config, on_checkpoint=keep, teacher=build(BIGGER, seed=5))
    resumed = train(STUDENT, images, config, resume=kept[1], teacher=build(BIGGER, seed=5))
    pairs = zip(whole.ema.parameters(), resumed.ema.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_teacher_is_outside_the_limits_and_its_training_fits_a_small_file() -> None:
    params = TEACHER.architecture.params
    assert not all(constraint.feasible for constraint in check(TEACHER.architecture, Limits()))
    assert 3 * 4 * params < 16 * 2**20  # weights, averages and momenta in float32


@pytest.mark.slow
def test_a_retrain_with_a_teacher_stands_beside_the_one_without(
    made_study: Path, made_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Candidate(BIGGER, TEACHER.augmentation, TEACHER.optimisation)
    monkeypatch.setattr("study.retraining.teacher.TEACHER", small)
    out = tmp_path / "study"
    shutil.copytree(made_study, out)
    command = ["--epochs", "1", "--train-images", "128", "--device", "cpu", "--out", str(out)]
    taught = ["--teacher", "--teacher-epochs", "2"]
    assert retrain.main([*command, *taught]) == 0
    metrics = json.loads((out / "best-distilled" / "metrics.json").read_text())
    assert metrics["name"] == "best-distilled"
    assert metrics["teacher"]["params"] == BIGGER.params
    assert metrics["teacher"]["epochs"] == 2
    assert (out / "best" / "metrics.json").read_text() == (made_study / "best" / "metrics.json").read_text()
    assert retrain.main(["--evaluate", str(out / "best-distilled"), "--device", "cpu"]) == 0
    files = sorted(file.name for file in (out / "checkpoints").glob("teacher-*.pt"))
    assert len(files) == 1

    # The same command again trains nothing; another teacher is another training.
    monkeypatch.setattr("study.executors.local.LocalExecutor", None)
    assert retrain.main([*command, *taught]) == 0
    with pytest.raises(TypeError):
        retrain.main([*command, "--teacher"])
    with pytest.raises(UserError, match="--teacher-epochs 2 needs --teacher"):
        retrain.main([*command, "--teacher-epochs", "2"])
