"""What only a GPU can show. Skipped where there is none."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from search_spaces import SPACES, get_space
from search_spaces.architecture import Architecture, Conv, Residual
from search_spaces.candidate import Augmentation, Candidate, Optimisation
from search_spaces.constraints import Limits
from search_spaces.reference import REFERENCE
from search_spaces.teacher import TEACHER
from search_spaces.yardstick import YARDSTICK
from study.calibration.concurrency import Window, measure
from study.data.cifar10 import Images, load_train, search_split
from study.errors import CaptureFailed, TrialFailed
from study.model.network import build
from study.training.loop import Training, train
from study.training.records import EpochRecord, TrainingConfig
from study.training.step import CapturedStep, graph_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SMALL = Architecture(
    (
        Conv(32, stride=2),
        Residual((Conv(32, separable=True, bias=True), Conv(32, dilation=2, activation=False))),
        Conv(64, stride=2),
    )
)
MOVED = Augmentation(0.5, 4)
CHANGED = Augmentation(0.5, 4, 0.5, 0.1, 0.1, 10.0, 0.5, 8)


class PrunedHereError(Exception):
    pass


@pytest.fixture(scope="module")
def images() -> Images:
    """2,560 made images of 10 colours: uint8 [2560, 32, 32, 3]."""
    rng = np.random.default_rng(0)
    labels = np.arange(2_560) % 10
    colours = rng.integers(0, 256, (10, 1, 1, 3))
    pixels = np.clip(colours[labels] + rng.normal(0, 40, (2_560, 32, 32, 3)), 0, 255).astype(np.uint8)
    return Images(pixels, labels.astype(np.int64))


def candidate(augmentation: Augmentation, lr: float = 0.05, optimizer: str = "sgd") -> Candidate:
    return Candidate(SMALL, augmentation, Optimisation(lr=lr, batch_size=128, optimizer=optimizer))


def gpu(epochs: int = 2, **options: object) -> TrainingConfig:
    return TrainingConfig(epochs, seed=3, device="cuda", **{"n_loaders": 2, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("augmentation", "optimizer", "taught"),
    [
        (MOVED, "sgd", False),
        (CHANGED, "sgd", False),
        (MOVED, "adamw", False),
        (MOVED, "muon", False),
        (dataclasses.replace(MOVED, mixup=0.4), "sgd", False),
        (MOVED, "sgd", True),
    ],
    ids=["resident", "loaded", "adamw", "muon", "mixup", "taught"],
)
def test_twenty_graph_steps_are_twenty_eager_steps(
    images: Images, augmentation: Augmentation, optimizer: str, taught: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In float32 without tf32, so that only the order of sums may differ.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    found = []
    for capture in (True, False):
        each = Training(
            candidate(augmentation, 0.05 if optimizer == "sgd" else 0.005, optimizer),
            images,
            gpu(epochs=1, precision="float32", capture=capture),
            None,
            build(SMALL, seed=9) if taught else None,
        )
        each.run(None, None, None)
        found.append(each)
    graph, eager = found
    assert graph.n_steps == 20
    assert isinstance(graph.train_on, CapturedStep)
    assert eager.train_on is eager.step
    # A rate is a tensor in one and a number in the other; Muon's iteration in bfloat16 makes more of that.
    atol = 1e-2 if optimizer == "muon" else 2e-3
    for name, tensor in eager.ema.network.state_dict().items():
        assert torch.allclose(graph.ema.network.state_dict()[name].float(), tensor.float(), rtol=2e-2, atol=atol), name
    assert graph.progress.records[0].train_loss == pytest.approx(eager.progress.records[0].train_loss, rel=1e-3)


NETWORKS = {
    "yardstick": YARDSTICK,
    "teacher": TEACHER,
    **{
        f"{space}-{anchor}": get_space(space).decode(params, Limits()).candidate
        for space in SPACES
        for anchor, params in get_space(space).anchors(Limits()).items()
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_of_networks_can_be_captured(images: Images, name: str) -> None:
    trained = train(NETWORKS[name], images, gpu(epochs=1, precision="bfloat16"), images)
    assert np.isfinite(trained.records[0].train_loss)
    assert trained.records[0].val_accuracy is not None


def test_a_compiled_graph_trains_as_well(images: Images, user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.training.compiling.EXPECTED_COMPILE_S", 0.0)
    monkeypatch.setattr("study.training.compiling.LEAST_STEPS", 0)
    found = train(candidate(MOVED), images, gpu(compiled=True), images)
    (kept,) = user_cache.rglob("compiled-*.json")  # it was compiled, and measured against the plain one
    assert '"compile_s"' in kept.read_text()
    plain = train(candidate(MOVED), images, gpu(), images)
    assert found.records[-1].train_loss == pytest.approx(plain.records[-1].train_loss, rel=0.1)


def test_no_step_waits_for_the_device(images: Images) -> None:
    each = Training(candidate(MOVED), images, gpu(epochs=1), None)
    each.network.train()
    each.prepare()
    source = each.batches(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(5):
            each.train_on(next(source), 0.05, each.ema.weight(number))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.isfinite(each.state.sums).all()


def test_interrupted_and_resumed_goes_on(images: Images) -> None:
    """Same position, same momenta: the losses of the second epoch agree with those of an uninterrupted run."""
    kept = []

    def keep(capture: object) -> None:
        progress = capture()  # type: ignore[operator]
        if (progress.epoch, progress.batch) == (1, 0):
            kept.append(progress)

    whole = train(candidate(CHANGED), images, gpu(precision="float32"), on_checkpoint=keep)
    resumed = train(candidate(CHANGED), images, gpu(precision="float32"), resume=kept[0])
    assert resumed.records[1].train_loss == pytest.approx(whole.records[1].train_loss, rel=2e-2)


def allocated() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated())


def test_every_end_of_a_training_leaves_the_memory_as_it_was(images: Images) -> None:
    def prune(record: EpochRecord) -> None:
        raise PrunedHereError

    train(candidate(MOVED), images, gpu(epochs=1), images)  # what libraries keep for good
    before = allocated()
    train(candidate(CHANGED), images, gpu(epochs=1), images)
    assert allocated() == before
    with pytest.raises(PrunedHereError):
        train(candidate(CHANGED), images, gpu(), images, on_epoch=prune)
    assert allocated() == before
    with pytest.raises(TrialFailed, match="diverged"):
        train(candidate(MOVED, lr=1e12), images, gpu(precision="float32"), images)
    assert allocated() == before
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((before + 30 * 2**20) / total)
    try:
        with pytest.raises(TrialFailed, match="out of memory"):
            train(candidate(MOVED), images, gpu(), images)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert allocated() == before


def test_a_layer_norm_keeps_the_short_type() -> None:
    from study.model.layers import LayerNorm2d

    norm = LayerNorm2d(48).cuda()
    x = torch.randn(8, 48, 16, 16, device="cuda").to(memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        short = norm(x.bfloat16())
    assert short.dtype == torch.bfloat16
    assert short.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(short.float(), norm(x.bfloat16().float()), atol=0.05)


def test_captures_add_no_memory_of_libraries(images: Images) -> None:
    """Muon's matrix products have a workspace for every stream: trial after trial it is the same."""
    found = []
    for _ in range(4):
        train(candidate(MOVED, 0.005, "muon"), images, gpu(epochs=1))
        found.append(allocated())
    assert found[-1] == found[1]


@pytest.mark.parametrize("native", [False, True])
def test_dilated_depthwise_convolutions_run_the_chosen_kernels(native: bool) -> None:
    from study.model.layers import DepthwiseConv2d

    conv = DepthwiseConv2d(64, 5, 1, 4, 2, bias=False).cuda().to(memory_format=torch.channels_last)
    conv.native = frozenset({(5, True, 16)}) if native else frozenset()
    x = torch.randn(128, 64, 16, 16, device="cuda").to(memory_format=torch.channels_last).requires_grad_()

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = conv(x)
        out.sum().backward()

    step()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    names = {event.key for event in profile.key_averages()}
    assert any("cudnn_convolution" in name for name in names) is not native, sorted(names)
    assert any("conv_depthwise2d" in name for name in names) is native, sorted(names)


def _waits() -> None:
    torch.ones(1, device="cuda").item()  # the host waits for it, which cannot be captured


def test_a_failed_capture_is_told_as_one() -> None:
    context = multiprocessing.get_context("spawn")  # the process that fails is spoiled
    with ProcessPoolExecutor(1, context) as pool, pytest.raises(CaptureFailed):
        pool.submit(graph_of, _waits).result()


@pytest.mark.cifar10
def test_a_gpu_and_a_cpu_learn_alike(cifar10_folder: str) -> None:
    """The reference network, a few epochs from the same seeds: accuracies within the noise of seeds."""
    everything = load_train(cifar10_folder)
    for_training, for_validation = search_split(everything.labels, 5_000, 2_000)
    images, validation = everything.take(for_training), everything.take(for_validation)
    quick = dataclasses.replace(REFERENCE, augmentation=Augmentation(0.5, 4))
    found: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        for seed in range(3):
            config = TrainingConfig(4, seed, device)
            found.setdefault(device, []).append(train(quick, images, config, validation).records[-1].val_accuracy or 0)
    spread = max(statistics.stdev(values) for values in found.values())
    assert abs(statistics.mean(found["cpu"]) - statistics.mean(found["cuda"])) < 3 * max(spread, 0.01)
    assert min(found["cuda"]) > 0.2


def test_trainings_share_the_device() -> None:
    found = measure(REFERENCE, TrainingConfig(1, 0, "cuda", "bfloat16"), [1, 2], Window(0.1, 0.2, 1))
    assert min(found.values()) > 0
