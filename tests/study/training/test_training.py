"""Training: schedule, averaging, exactness, failure."""

from __future__ import annotations

import dataclasses
import io
import math
import multiprocessing
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces.architecture import Architecture, Conv, Residual
from search_spaces.candidate import Augmentation, Candidate, Optimisation
from study.data.batches import normalise
from study.data.cifar10 import Images
from study.errors import TrialFailed
from study.model.network import Network, build, folded
from study.training.evaluation import accuracy, evaluate
from study.training.loop import Training, learning_rate, train
from study.training.records import EpochRecord, Progress, Trained, TrainingConfig
from study.training.state import Ema

TINY = Architecture(
    (
        Conv(8, stride=2),
        Residual((Conv(8, separable=True, bias=True), Conv(8, dilation=2, activation=False))),
        Conv(16, stride=2),
    )
)
CANDIDATE = Candidate(
    TINY,
    Augmentation(0.5, 2, 0.3, 0.1, 0.1, 10.0, 0.3, 6),
    Optimisation(lr=0.2, batch_size=40, label_smoothing=0.05),
)
SMALL_FIRST = dataclasses.replace(CANDIDATE, optimisation=dataclasses.replace(CANDIDATE.optimisation, small_images=0.7))
EPOCHS = 3


class InterruptedHereError(Exception):
    pass


class PrunedHereError(Exception):
    pass


def _train(images: Images, candidate: Candidate = CANDIDATE, **options: Any) -> Trained:
    names = {field.name for field in dataclasses.fields(TrainingConfig)}
    config = {name: options.pop(name) for name in list(options) if name in names}
    return train(
        candidate,
        images,
        TrainingConfig(**{"epochs": EPOCHS, "seed": 5, "n_loaders": 0, **config}),
        images,
        **options,
    )


def _what_is_seeded(records: list[EpochRecord]) -> list[dict[str, Any]]:
    timed = ("wall_s", "wait_frac", "val_frac")
    return [{k: v for k, v in dataclasses.asdict(record).items() if k not in timed} for record in records]


def _same(a: Trained, b: Trained) -> bool:
    one, other = a.ema.state_dict(), b.ema.state_dict()
    return _what_is_seeded(a.records) == _what_is_seeded(b.records) and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.02),  # lr 0.1 at batch 256 peaks at 0.2; 10 of 50 steps warm up
        (4, 0.10),
        (9, 0.20),
        (29, 0.10),
        (19, 0.2 * 0.5 * (1 + math.cos(math.pi / 4))),
        (49, 0.0),
    ],
)
def test_learning_rate(step: int, expected: float) -> None:
    optimisation = Optimisation(lr=0.1, batch_size=256, warmup_frac=0.2)
    assert learning_rate(optimisation, step, 50) == pytest.approx(expected, abs=1e-12)


def test_learning_rate_rises_then_falls_and_is_never_negative() -> None:
    for n_steps in (1, 2, 3, 7, 100):
        rates = [learning_rate(Optimisation(lr=0.1), step, n_steps) for step in range(n_steps)]
        peak = int(np.argmax(rates))
        assert min(rates) >= 0
        assert 0 < max(rates) <= 0.1 + 1e-12
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)


def _ema_of_a_jump(half_life: float, n_steps: int, first_step: int) -> float:
    """How much of the old value is left `n_steps` after all weights jumped from 1 to 0."""
    network = build(TINY, seed=0)
    for parameter in network.parameters():
        torch.nn.init.ones_(parameter)
    ema = Ema(network, half_life)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    for step in range(first_step, first_step + n_steps):
        ema.update(ema.weight(step))
    left = {round(float(parameter.mean()), 6) for parameter in ema.network.parameters()}
    assert len(left) == 1
    return left.pop()


@pytest.mark.parametrize("half_life", [1.0, 5.0, 20.0])
def test_ema_halves_in_its_half_life(half_life: float) -> None:
    late = 100_000  # long after the warm-up
    assert _ema_of_a_jump(half_life, round(half_life), late) == pytest.approx(0.5, abs=1e-4)
    assert _ema_of_a_jump(half_life, round(3 * half_life), late) == pytest.approx(0.125, abs=1e-4)


def test_ema_forgets_the_initial_weights_early() -> None:
    """However long the half-life, the decay of step t is at most (1 + t) / (10 + t)."""
    assert _ema_of_a_jump(1e6, 1, 0) == pytest.approx(0.1, abs=1e-6)
    assert _ema_of_a_jump(1e6, 3, 0) == pytest.approx(1 / 10 * 2 / 11 * 3 / 12, abs=1e-6)


def test_ema_averages_running_statistics_too_and_leaves_the_network_alone() -> None:
    network = build(TINY, seed=0)
    ema = Ema(network, 1.0)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.fill_(4.0)  # type: ignore[union-attr]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ema.update(ema.weight(100_000))
    found = [tensor for name, tensor in ema.network.named_buffers() if name.endswith("running_mean")]
    assert len(found) == len(norms)
    assert all(torch.allclose(mean, torch.full_like(mean, 2.0)) for mean in found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, 0.1), (3, 0.1), (10, 0.3), (24, 0.72), (66, 1.98), (67, 2.0), (1_000, 2.0)]
)
def test_half_life_in_epochs(epochs: int, expected: float) -> None:
    assert TrainingConfig(epochs=epochs, seed=0).ema_half_life == pytest.approx(expected)


@pytest.mark.parametrize(
    ("epochs", "n_snapshots", "n_kept"),
    [
        (1, 0, 0),
        (1, 1, 1),
        (5, 0, 0),
        (5, 40, 5),
        (5, 5, 5),
        (10, 1, 1),
        (10, 3, 3),
        (100, 40, 40),
        (600, 40, 40),
        (7, 6, 6),
    ],
)
def test_snapshots_are_evenly_spread(epochs: int, n_snapshots: int, n_kept: int) -> None:
    config = TrainingConfig(epochs=epochs, seed=0, n_snapshots=n_snapshots)
    kept = [epoch for epoch in range(epochs) if config.keeps_snapshot(epoch)]
    assert len(kept) == n_kept
    if kept:
        assert kept[-1] == epochs - 1
        gaps = np.diff([-1, *kept])
        assert gaps.max() - gaps.min() <= 1


def test_snapshots_hold_the_averaged_weights_of_their_epoch(tiny_images: Images) -> None:
    found = _train(tiny_images, n_snapshots=2)
    assert sorted(found.snapshots) == [1, 2]
    assert all(torch.equal(t, found.snapshots[2][name]) for name, t in found.ema.state_dict().items())
    network = build(TINY).eval()
    network.load_state_dict(found.snapshots[1])
    loss, _ = evaluate(network, tiny_images, "cpu", "bfloat16")
    assert loss == pytest.approx(found.records[1].val_loss, rel=1e-2)  # there with folded norms, in bfloat16


def test_the_same_seed_gives_the_same_training_and_another_does_not(tiny_images: Images) -> None:
    first = _train(tiny_images)
    assert _same(first, _train(tiny_images))
    assert _same(first, _train(tiny_images, n_loaders=2))
    assert not _same(first, _train(tiny_images, seed=6))


@pytest.mark.parametrize("change", [{"label_smoothing": 0.5}, {"weight_decay": 0.05}, {"momentum": 0.5}], ids=str)
def test_every_part_of_the_optimisation_has_an_effect(tiny_images: Images, change: dict[str, float]) -> None:
    changed = dataclasses.replace(CANDIDATE.optimisation, **change)  # type: ignore[arg-type]
    first = _train(tiny_images, epochs=1)
    assert not _same(first, _train(tiny_images, Candidate(TINY, CANDIDATE.augmentation, changed), epochs=1))


def test_the_rate_is_for_the_batches_that_there_are(tiny_images: Images) -> None:
    """Few images are one batch, however large a batch is asked for."""
    few = tiny_images.take(np.arange(18))
    found = [
        train(Candidate(TINY, optimisation=Optimisation(lr=0.6, batch_size=size)), few, TrainingConfig(1, 0))
        for size in (18, 256)
    ]
    assert found[0].records[0].lr == found[1].records[0].lr == pytest.approx(0.6 * 18 / 128)
    assert found[0].records[0].train_loss == found[1].records[0].train_loss


def test_label_smoothing_is_in_the_loss(tiny_images: Images) -> None:
    """One batch of all images: its loss is that of the initial weights."""
    plain = Optimisation(batch_size=200, label_smoothing=0.0)
    smooth = dataclasses.replace(plain, label_smoothing=0.5)
    losses = []
    for optimisation in (plain, smooth):
        found = _train(tiny_images, Candidate(TINY, Augmentation(0.0, 0), optimisation), epochs=1, precision="float32")
        losses.append(found.records[0].train_loss)
    logits = build(TINY, seed=5)(normalise(torch.from_numpy(tiny_images.pixels)))
    logs = torch.log_softmax(logits, 1)
    right = logs[torch.arange(200), torch.from_numpy(tiny_images.labels)]
    assert losses[0] == pytest.approx(-right.mean().item(), rel=1e-4)
    assert losses[1] == pytest.approx(-(0.5 * right + 0.5 * logs.mean(1)).mean().item(), rel=1e-4)


def test_norms_and_biases_do_not_decay(tiny_images: Images) -> None:
    training = Training(CANDIDATE, tiny_images, TrainingConfig(epochs=1, seed=0), None)
    decays = {id(p): group["weight_decay"] for group in training.state.optimizer.param_groups for p in group["params"]}
    for name, parameter in training.network.named_parameters():
        wanted = CANDIDATE.optimisation.weight_decay if parameter.ndim == 4 else 0.0
        assert decays[id(parameter)] == wanted, name


def test_records_say_what_happened(tiny_images: Images) -> None:
    seen: list[EpochRecord] = []
    found = _train(tiny_images, on_epoch=seen.append)
    assert seen == found.records
    assert [record.epoch for record in seen] == list(range(EPOCHS))
    logits = evaluate(folded(found.ema), tiny_images, "cpu", "bfloat16")[1]
    assert seen[-1].val_accuracy == accuracy(logits, tiny_images.labels)
    last_steps = range(4, 5 * EPOCHS, 5)
    assert [record.lr for record in seen] == [
        learning_rate(CANDIDATE.optimisation, step, 5 * EPOCHS) for step in last_steps
    ]
    assert all(0 <= record.wait_frac <= 1 and 0 < record.val_frac < 1 and record.wall_s > 0 for record in seen)
    alone = train(CANDIDATE, tiny_images, TrainingConfig(epochs=1, seed=0, n_loaders=0))
    assert alone.records[0].val_accuracy is None


def test_where_nothing_depends_on_it_a_fifth_of_the_images_validates(tiny_images: Images) -> None:
    whole, partly = _train(tiny_images), _train(tiny_images, whole_validations=(1,))
    n, fifth = len(tiny_images), tiny_images.take(np.arange(0, len(tiny_images), 5))
    assert [record.n_val for record in whole.records] == [n, n, n]
    assert [record.n_val for record in partly.records] == [len(fifth), n, len(fifth)]
    assert partly.records[1].val_loss == whole.records[1].val_loss
    loss, logits = evaluate(folded(partly.ema), fifth, "cpu", "bfloat16")
    assert partly.records[2].val_accuracy == accuracy(logits, fifth.labels)
    assert partly.records[2].val_loss == pytest.approx(loss, rel=1e-3)
    weights = zip(whole.ema.state_dict().values(), partly.ema.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def _saved(progress: Progress) -> bytes:
    file = io.BytesIO()
    torch.save(progress.to_dict(), file)
    return file.getvalue()


def _loaded(content: bytes) -> Progress:
    return Progress.from_dict(torch.load(io.BytesIO(content), weights_only=True))


def _interrupting(where: tuple[int, int], saved: list[bytes]) -> Callable[[Callable[[], Progress]], None]:
    """For `on_checkpoint`: keeps the progress at that epoch and batch, and ends the training there."""

    def interrupt(capture: Callable[[], Progress]) -> None:
        progress = capture()
        if (progress.epoch, progress.batch) == where:
            saved.append(_saved(progress))
            raise InterruptedHereError

    return interrupt


@pytest.mark.parametrize("where", [(0, 1), (1, 3), (2, 0), (EPOCHS, 0)], ids=str)
@pytest.mark.parametrize("n_loaders", [0, 1])
def test_interrupted_and_resumed_is_uninterrupted(tiny_images: Images, where: tuple[int, int], n_loaders: int) -> None:
    saved: list[bytes] = []
    interrupt = _interrupting(where, saved)
    whole = _train(tiny_images, n_snapshots=EPOCHS)
    with pytest.raises(InterruptedHereError):
        _train(tiny_images, n_snapshots=EPOCHS, n_loaders=n_loaders, on_checkpoint=interrupt)
    seen: list[EpochRecord] = []
    resumed = _train(
        tiny_images, n_snapshots=EPOCHS, n_loaders=n_loaders, resume=_loaded(saved[0]), on_epoch=seen.append
    )
    assert _same(whole, resumed)
    assert [record.epoch for record in seen] == list(range(where[0], EPOCHS))
    assert sorted(resumed.snapshots) == sorted(whole.snapshots)
    for epoch, state in whole.snapshots.items():
        assert all(torch.equal(tensor, resumed.snapshots[epoch][name]) for name, tensor in state.items())


@pytest.mark.parametrize("where", [(1, 0), (2, 0), (2, 1), (4, 0), (4, 3), (6, 0)], ids=str)
def test_small_images_come_first_also_when_resumed(
    tiny_images: Images, where: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six epochs, of which the rule makes two of 20, two of 26 and two of 32 pixels."""
    config = TrainingConfig(6, seed=3, precision="float32")
    sides: list[int] = []
    forward = Network.forward

    def seen(self: Network, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            sides.append(images.shape[2])
        return forward(self, images)

    monkeypatch.setattr(Network, "forward", seen)
    saved: list[bytes] = []
    interrupt = _interrupting(where, saved)
    whole = train(SMALL_FIRST, tiny_images, config, tiny_images)
    n_steps = len(sides) // 6
    assert sides == [20] * 2 * n_steps + [26] * 2 * n_steps + [32] * 2 * n_steps
    with pytest.raises(InterruptedHereError):
        train(SMALL_FIRST, tiny_images, config, tiny_images, on_checkpoint=interrupt)
    sides.clear()
    assert _same(whole, train(SMALL_FIRST, tiny_images, config, tiny_images, resume=_loaded(saved[0])))
    assert sides[:1] == {1: [20], 2: [26], 4: [32], 6: []}[where[0]]


def test_only_whole_images_are_worth_a_compiler(tiny_images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int | None, int, bool | None]] = []

    def fastest(step: Any, example: Any, n_steps: int, name: str, decided: bool | None) -> tuple[Any, bool]:
        asked.append((step.settings.side, n_steps, decided))
        return step, True

    monkeypatch.setattr("study.training.loop.fastest", fastest)
    config = TrainingConfig(6, seed=3, precision="float32", compiled=True)
    assert train(SMALL_FIRST, tiny_images, config).compiled
    n_steps = len(tiny_images) // SMALL_FIRST.optimisation.batch_size
    assert asked == [(None, 2 * n_steps, None)]


@pytest.mark.parametrize("epochs", [1, 2, 3, 150])
def test_the_last_epoch_sees_whole_images(tiny_images: Images, epochs: int) -> None:
    training = Training(SMALL_FIRST, tiny_images, TrainingConfig(epochs, seed=3, precision="float32"))
    found = []
    for epoch in range(epochs):
        training.resize(epoch)
        found.append(training.step.settings.side)
    assert found[-1] is None
    if epochs == 150:
        assert [found.count(side) for side in (20, 26, None)] == [60, 45, 45]


def test_a_teacher_sees_whole_images(tiny_images: Images) -> None:
    teacher, seen = build(CANDIDATE.architecture), []
    training = Training(SMALL_FIRST, tiny_images, TrainingConfig(3, 3, precision="float32"), teacher=teacher)
    training.resize(0)
    assert training.step.settings.side == 20
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[2]))
    training.network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[2]))
    training.step(next(training.batches(0)), 0.01, 0.5)
    assert seen == [20, 32]


def test_a_checkpoint_changes_nothing_and_is_changed_by_nothing(tiny_images: Images) -> None:
    """What was captured stays as it was while training goes on, and can be resumed from twice."""
    held: list[tuple[Progress, bytes]] = []

    def keep(capture: Any) -> None:
        progress = capture()
        if (progress.epoch, progress.batch) == (1, 2):
            held.append((progress, _saved(progress)))

    whole = _train(tiny_images)
    assert _same(whole, _train(tiny_images, on_checkpoint=keep))
    progress, content = held[0]
    then = _loaded(content)
    for index, state in then.optimizer["state"].items():
        assert torch.equal(state["momentum_buffer"], progress.optimizer["state"][index]["momentum_buffer"])
    assert _same(whole, _train(tiny_images, resume=progress))
    assert (progress.epoch, progress.batch, len(progress.records)) == (1, 2, 1)
    assert _same(whole, _train(tiny_images, resume=progress))


def test_checkpoints_are_offered_after_every_step(tiny_images: Images) -> None:
    places: list[tuple[int, int]] = []
    _train(tiny_images, on_checkpoint=lambda capture: places.append((capture().epoch, capture().batch)))
    assert places == [divmod(step, 5) for step in range(1, 5 * EPOCHS + 1)]


def test_divergence_fails_the_trial(tiny_images: Images) -> None:
    candidate = dataclasses.replace(CANDIDATE, optimisation=Optimisation(lr=1e12, batch_size=40))
    with pytest.raises(TrialFailed, match=r"diverged: .* in epoch \d \(lr=1e\+12\)"):
        _train(tiny_images, candidate, precision="float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_tiny_network_learns_a_separable_problem(tiny_images: Images, precision: str) -> None:
    candidate = Candidate(TINY, Augmentation(), Optimisation(lr=0.3, batch_size=20))
    found = _train(tiny_images, candidate, epochs=8, precision=precision)
    accuracies = [record.val_accuracy or 0.0 for record in found.records]
    assert accuracies[-1] > 0.9
    assert found.records[-1].train_loss < found.records[0].train_loss
    assert accuracy(evaluate(found.ema, tiny_images, "cpu")[1], tiny_images.labels) > 0.9


@pytest.mark.parametrize("n_loaders", [0, 2])
def test_what_on_epoch_raises_ends_the_training_and_its_processes(tiny_images: Images, n_loaders: int) -> None:
    def prune(record: EpochRecord) -> None:
        if record.epoch == 1:
            raise PrunedHereError

    before = {child.pid for child in multiprocessing.active_children()}  # joblib keeps idle ones of other tests
    with pytest.raises(PrunedHereError):
        _train(tiny_images, n_loaders=n_loaders, on_epoch=prune)
    assert {child.pid for child in multiprocessing.active_children()} <= before


def test_evaluate_covers_every_image_in_order(tiny_images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(TINY, seed=0).eval()
    loss, logits = evaluate(network, tiny_images, "cpu")
    monkeypatch.setattr("study.training.evaluation.EVALUATION_BATCH", 70)
    loss_in_parts, logits_in_parts = evaluate(network, tiny_images, "cpu")
    assert logits.shape == (200, 10)
    assert logits_in_parts == pytest.approx(logits, abs=1e-5)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert loss == pytest.approx(-np.log(probabilities[np.arange(200), tiny_images.labels]).mean(), rel=1e-4)
    assert loss_in_parts == pytest.approx(loss, rel=1e-5)


def test_accuracy_is_a_fraction() -> None:
    logits = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert accuracy(logits, np.array([1, 0, 0, 0])) == 0.75


def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    """Elsewhere than with the GNU C library on Linux there is nothing to see, and nothing may fail."""
    code = (
        "import resource; from study.machine import heap; from study.machine.hardware import memory\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "heap.keep(); bytearray(2**24); held = memory('cpu').get('rss_mib', 0); before = faults()\n"
        "for _ in range(20): bytearray(2**24)\n"
        "new = faults() - before; heap.give_back(); left = memory('cpu').get('rss_mib', 0)\n"
        "print(new, held - left)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    if platform.libc_ver()[0] == "glibc":
        faults, given_back = float(found[0]), float(found[1])
        assert faults < 20 * 2**24 / 4096 / 100  # of 16 MiB each, a hundredth of its pages at most
        assert given_back > 12
