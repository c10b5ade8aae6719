"""One step: moving pixels, averages, and a capture that leaves no trace."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from search_spaces.architecture import Architecture, Conv, Residual
from search_spaces.candidate import Augmentation, Candidate, Optimisation
from study.data.batches import normalise, place
from study.data.cifar10 import Images
from study.errors import CaptureFailed
from study.training.loop import Training
from study.training.records import TrainingConfig
from study.training.step import N_WARM_UP, CapturedStep, graph_of, step_seconds

TINY = Architecture(
    (
        Conv(8, stride=2),
        Residual((Conv(8, separable=True, bias=True), Conv(8, dilation=2, activation=False))),
        Conv(16, stride=2),
    )
)
CANDIDATE = Candidate(TINY, Augmentation(0.5, 2), Optimisation(lr=0.05, batch_size=40, label_smoothing=0.05))


def training(images: Images, epochs: int = 2, resume: Training | None = None) -> Training:
    found = Training(CANDIDATE, images, TrainingConfig(epochs, seed=5, precision="float32"), images)
    if resume is not None:
        found.go_on_from(resume.checkpoint())
    found.network.train()
    return found


def state(of: Training) -> list[torch.Tensor]:
    momenta = [s["momentum_buffer"] for s in of.state.optimizer.state.values() if "momentum_buffer" in s]
    tensors = [*of.network.state_dict().values(), *of.ema.network.state_dict().values(), of.state.sums, *momenta]
    return [tensor.clone() for tensor in tensors]


def test_place_shifts_mirrors_and_flips() -> None:
    image = torch.arange(5 * 5, dtype=torch.uint8).view(1, 5, 5, 1).expand(1, 5, 5, 3).contiguous()
    images = torch.cat([torch.zeros_like(image), image])
    moves = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, -2, 0], [0, -2, 1], [-1, 1, 0]])
    found = place(images, torch.ones(6, dtype=torch.int64), moves)
    assert found.shape == (6, 5, 5, 3)
    still, flipped, down, left, left_flipped, both = found[..., 0]
    assert torch.equal(still, image[0, :, :, 0])
    assert torch.equal(flipped, still.flip(1))
    assert down[:, 0].tolist() == [5, 10, 15, 20, 15]  # one row further down; the border mirrors
    assert left[0].tolist() == [2, 1, 0, 1, 2]
    assert torch.equal(left_flipped, left.flip(1))  # a flip comes last
    assert both[0].tolist() == [6, 7, 8, 9, 8]
    assert both[1].tolist() == [1, 2, 3, 4, 3]


def test_a_capture_leaves_no_trace_of_its_warm_up(tiny_images: Images, made_graphs: None) -> None:
    fresh = training(tiny_images)
    before = state(fresh)
    CapturedStep(fresh.step, fresh.example())
    after = state(fresh)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=False))
    assert len(after) > len(before)  # momenta, which a first step would have made
    assert all(not momentum.any() for momentum in after[len(before) :])


def test_a_capture_keeps_what_a_resumed_training_brings(tiny_images: Images, made_graphs: None) -> None:
    begun = training(tiny_images)
    source = begun.batches(0)
    for number in range(3):
        begun.step(next(source), 0.05, begun.ema.weight(number))
    resumed = training(tiny_images, resume=begun)
    before = state(resumed)
    assert any(tensor.any() for tensor in before[-5:])
    CapturedStep(resumed.step, resumed.example())
    assert all(torch.equal(a, b) for a, b in zip(before, state(resumed), strict=True))


def test_a_captured_step_trains_as_any_other(tiny_images: Images, made_graphs: None) -> None:
    """Rates and weights are tensors then; they must follow the schedule, not freeze."""
    plain, captured = training(tiny_images), training(tiny_images)
    captured.train_on = CapturedStep(captured.step, captured.example())
    results = [each.run(None, None, None) for each in (plain, captured)]
    for name, tensor in results[0].ema.state_dict().items():
        assert torch.allclose(tensor.float(), results[1].ema.state_dict()[name].float(), rtol=1e-3, atol=1e-4), name
    losses = [[record.train_loss for record in result.records] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][1] < losses[0][0]


def test_timing_a_step_leaves_no_trace(tiny_images: Images) -> None:
    begun = training(tiny_images)
    source = begun.batches(0)
    begun.step(next(source), 0.05, 0.5)
    before, rate = state(begun), begun.state.optimizer.param_groups[0]["lr"]
    calls = []

    def noted(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return begun.network(pixels)

    assert step_seconds(dataclasses.replace(begun.step, forward=noted), next(source), 3) > 0
    assert len(calls) == 4
    assert all(torch.equal(a, b) for a, b in zip(before, state(begun), strict=True))
    assert begun.state.optimizer.param_groups[0]["lr"] == rate


class ScriptedCuda:
    """Stands for `torch.cuda` while a capture fails, as cuDNN's or the allocator's errors do."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: MagicMock()

    @contextlib.contextmanager
    def graph(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error
        yield


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("operation not permitted")]
)
def test_a_capture_that_fails_is_not_taken_for_a_failed_trial(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is spoiled, so the error must be neither caught as a lack of memory nor as one of a kernel."""
    monkeypatch.setattr(torch, "cuda", ScriptedCuda(error))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    runs = []
    with pytest.raises(CaptureFailed, match=type(error).__name__):
        graph_of(lambda: runs.append(1))
    assert len(runs) == N_WARM_UP
    assert not issubclass(CaptureFailed, RuntimeError)


def test_sums_are_of_the_whole_epoch(tiny_images: Images) -> None:
    alone = training(tiny_images, epochs=1)
    record = alone.run(None, None, None).records[0]
    assert record.train_accuracy == float(alone.state.sums[1]) / 200
    assert record.train_loss == pytest.approx(float(alone.state.sums[0]) / 200)
    assert 0 < record.train_accuracy < 1


def test_label_smoothing_reaches_the_step(tiny_images: Images) -> None:
    smooth = dataclasses.replace(CANDIDATE.optimisation, label_smoothing=0.3)
    candidate = dataclasses.replace(CANDIDATE, optimisation=smooth)
    made = Training(candidate, tiny_images, TrainingConfig(1, seed=5), None)
    assert made.step.settings.label_smoothing == 0.3


def test_mixing_is_of_images_and_of_losses(tiny_images: Images) -> None:
    """Against the formula, with the weights before the step."""
    mixing = dataclasses.replace(CANDIDATE, augmentation=dataclasses.replace(CANDIDATE.augmentation, mixup=0.3))
    for mix in (1.0, 0.7):
        made = Training(mixing, tiny_images, TrainingConfig(1, seed=5, precision="float32"), None)
        made.network.train()
        batch = next(made.batches(0))
        images, labels, moves = batch
        x = normalise(place(images, torch.arange(len(labels)), moves))
        logits = copy.deepcopy(made.network)(mix * x + (1 - mix) * x.flip(0))
        expected = sum(
            weight * torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.05)
            for weight, target in ((mix, labels), (1 - mix, labels.flip(0)))
        )
        made.step(batch, 0.01, 0.5, mix)
        assert float(made.state.sums[0]) / len(labels) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_captured_step_mixes_with_the_weight_of_every_call(tiny_images: Images, made_graphs: None) -> None:
    mixing = dataclasses.replace(CANDIDATE, augmentation=dataclasses.replace(CANDIDATE.augmentation, mixup=0.3))
    found = []
    for captured in (False, True):
        made = Training(mixing, tiny_images, TrainingConfig(1, seed=5, precision="float32"), None)
        made.network.train()
        train_on = CapturedStep(made.step, made.example()) if captured else made.step
        source = made.batches(0)
        for mix in (1.0, 0.6, 0.8):
            train_on(next(source), 0.01, 0.5, mix)
        found.append(float(made.state.sums[0]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_training_mixes_as_its_candidate_says(tiny_images: Images) -> None:
    mixing = dataclasses.replace(CANDIDATE, augmentation=dataclasses.replace(CANDIDATE.augmentation, mixup=0.4))
    config = TrainingConfig(2, seed=5, precision="float32")
    with_it, without = (Training(each, tiny_images, config, None) for each in (mixing, CANDIDATE))
    assert (with_it.step.settings.mixes, without.step.settings.mixes) == (True, False)
    losses = [each.run(None, None, None).records[-1].train_loss for each in (with_it, without)]
    assert losses[0] != losses[1]
