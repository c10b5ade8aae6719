"""Measuring what operations cost on this machine; runs in a process of its own."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import nnls
from torch.nn import functional as F

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Augmentation
from search_spaces.cost import CostModel, Work
from search_spaces.reference import REFERENCE, REFERENCE_ARCHITECTURE
from study.calibration.prices import Calibration, DepthwisePrice
from study.data.augmentation import AugmentedBatches, BatchSpec
from study.data.batches import normalise
from study.data.cifar10 import Images
from study.errors import CaptureFailed, StudyFailed, first_line
from study.machine import heap
from study.machine.hardware import hardware, n_cores
from study.model.layers import DepthwiseClass, DepthwiseConv2d
from study.model.network import build
from study.training.records import PRECISIONS
from study.training.step import autocast, graph_of

BATCH = 128
SLICE_S = 0.2
"""Of a single measurement: all of them together take less than 10 seconds on two cores."""

PATIENCE_S = 7.0
"""After which what is still to be measured is timed once: slow or busy machines take long enough."""
N_TIMED = 6
AGREE = 1.03
"""Two runs that differ by no more than this factor need no third one."""
CLEAR = 1.3
"""A precision that is faster by this factor need not be compared again."""
N_ROUNDS = 2
_SPOILED: set[str] = set()
"""What this process is not to try."""
_started = math.inf
"""When this process began to measure."""
CHANNELS = {32: 16, 16: 24, 8: 32}
"""Of the depthwise convolutions that are measured, by the side of the map: those of the space `best`."""


class SpoiledError(Exception):
    """What could not be captured."""


def _probes() -> tuple[Architecture, ...]:
    """Dense networks that differ in what they spend their time on."""
    wide = (Conv(32), Conv(32), Conv(64, stride=2), Conv(64), Conv(64), Conv(96, stride=2), Conv(96))
    narrow = tuple(Conv(8, dilation=1 + i % 2) for i in range(10))
    late = (Conv(16), Conv(64, stride=2), Conv(64), Conv(128, stride=2), Conv(128), Conv(128, dilation=2), Conv(128))
    return (REFERENCE_ARCHITECTURE, *(Architecture(layers) for layers in ((*wide, Conv(96, dilation=2)), narrow, late)))


def measure(device: str, spoiled: frozenset[str] = frozenset()) -> Calibration:
    """All prices; infinite for what is `spoiled`.

    Raises:
        SpoiledError: Something else could not be captured.
        StudyFailed: No network can be trained here.
    """
    global _started
    _started = time.monotonic()
    _SPOILED.clear()
    _SPOILED.update(spoiled)
    if device == "cpu":
        torch.set_num_threads(n_cores())
        heap.keep()  # as a training does
    precision = "bfloat16" if device == "cuda" else _faster_precision(device)
    by_class = _depthwise_prices(device, precision)
    plain = [each for each in by_class if each.kernel == 3 and not each.dilated]
    depthwise = _mean_seconds(plain)
    other = _mean_seconds([each for each in by_class if each not in plain and each.side == 16])
    probes = _probes()
    rounds = [[_seconds_per_image(network, device, precision) for network in probes]]
    while len(rounds) < N_ROUNDS and not _is_late():
        rounds.append([_seconds_per_image(network, device, precision) for network in probes])
    measured = [(network, s) for network, s in zip(probes, np.array(rounds).min(0), strict=True) if math.isfinite(s)]
    if not measured:
        raise StudyFailed(f"no network of the calibration could be trained on this device ({hardware(device)}).")
    rows, fixed = [], []
    for network, _ in measured:
        work = Work.of(network)
        rows.append([work.dense_macs, work.activations, work.n_operations / BATCH])
        fixed.append(work.depthwise_macs * depthwise + work.depthwise_other_macs * other)
    # Relative errors are what matters, so every row is divided by its time; prices are never negative.
    seconds = np.array([s for _, s in measured])
    matrix = np.array(rows) / seconds[:, None]
    wanted = 1 - np.array(fixed) / seconds
    scale = matrix.max(0)
    prices = nnls(matrix / scale, wanted)[0] / scale
    error = float(np.median(np.abs(matrix @ prices - wanted)))
    cost = CostModel(
        dense_mac_s=float(prices[0]),
        depthwise_mac_s=depthwise,
        depthwise_other_mac_s=other,
        activation_s=float(prices[1]),
        operation_s=float(prices[2]),
        # Augmentation runs beside a GPU, but on all cores in turns with the training on a CPU.
        image_s=_augmentation_seconds(REFERENCE.augmentation) / n_cores() if device == "cpu" else 0.0,
        device=device,
    )
    return Calibration(device, hardware(device), precision, cost, error, by_class if device == "cuda" else ())


def _faster_precision(device: str) -> str:
    if device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return "float32"  # which takes an eighth to a tenth of the time that emulated bfloat16 does
    timed = dict.fromkeys(PRECISIONS, float("inf"))
    for _ in range(2 * N_ROUNDS):  # in turns, so that a busy moment of the machine hits both
        for name in timed:
            timed[name] = min(timed[name], _seconds_per_image(REFERENCE_ARCHITECTURE, device, name))
        if max(timed.values()) > CLEAR * min(timed.values()) or _is_late():
            break
    return min(timed, key=timed.__getitem__)


def _depthwise_prices(device: str, precision: str) -> tuple[DepthwisePrice, ...]:
    """Measured alone: in a network their price drowns in that of everything else."""
    if device == "cuda":
        classes = list(itertools.product((3, 5, 7), (False, True), CHANNELS))
    else:
        classes = [(3, False, 8), (3, False, 16), (3, False, 32), (3, True, 16), (5, False, 16), (5, True, 16)]
    ways = (False, True) if device == "cuda" else (False,)
    return tuple(
        DepthwisePrice(*each, *(_depthwise_seconds(device, precision, each, native) for native in ways))
        for each in classes
    )


def _mean_seconds(prices: Sequence[DepthwisePrice]) -> float:
    finite = [each.fastest_s for each in prices if math.isfinite(each.fastest_s)]
    return statistics.mean(finite) if finite else 0.0


def _depthwise_seconds(device: str, precision: str, which: DepthwiseClass, native: bool) -> float:
    """Seconds per multiply-accumulate of one depthwise convolution, forward and backward."""
    kernel, dilated, side = which
    dilation, channels = 1 + dilated, 64 if device == "cpu" else CHANNELS[side]
    module = DepthwiseConv2d(channels, kernel, 1, dilation * (kernel - 1) // 2, dilation, bias=True)
    module.native = frozenset({which}) if native else frozenset()
    module = module.to(device).to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, channels, side, side, device=device).to(memory_format=torch.channels_last)
    x.requires_grad_()

    def step() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        with autocast(device, precision):
            out = module(x)
        out.backward(out.detach())

    return _fastest_seconds(device, step, f"depthwise {which} {native}") / (BATCH * channels * kernel**2 * side**2)


def _fastest_seconds(device: str, step: Callable[[], None], what: str) -> float:
    """The fastest of several runs: neighbours on the machine only ever add time. Infinite if it cannot run here.

    On a GPU of a graph, as trainings run: step by step these networks only show how fast the host launches kernels.
    """
    if what in _SPOILED:
        return math.inf
    try:
        step()  # libraries choose their kernels
        if device == "cuda":
            step = graph_of(step).replay
            step()
            torch.cuda.synchronize()
        times: list[float] = []
        began = time.perf_counter()
        while not _is_enough(times, time.perf_counter() - began):
            started = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)
    except RuntimeError as error:  # a library without a kernel for it, or no memory
        print(f"not measured: {what}: {first_line(error)}", file=sys.stderr)
        return math.inf
    except CaptureFailed as error:
        print(f"not measured: {what}: {error}", file=sys.stderr)
        raise SpoiledError(what) from error


def _is_late() -> bool:
    return time.monotonic() - _started > PATIENCE_S


def _is_enough(times: Sequence[float], spent_s: float) -> bool:
    """Whether no more runs need be timed."""
    if len(times) < 2:
        return bool(times) and _is_late()
    fastest, second = sorted(times)[:2]
    return len(times) >= N_TIMED or spent_s >= SLICE_S or second <= AGREE * fastest


def _seconds_per_image(architecture: Architecture, device: str, precision: str) -> float:
    network = build(architecture, seed=0).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)
    pixels = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (BATCH,), device=device)

    def step() -> None:
        with autocast(device, precision):
            logits = network(normalise(pixels)).float()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return _fastest_seconds(device, step, f"network {architecture.architecture_id} {precision}") / BATCH


def _augmentation_seconds(augmentation: Augmentation) -> float:
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8), np.zeros(BATCH, np.int64))
    batches = AugmentedBatches(images, augmentation, seed=0)
    times = []
    for batch in range(3):
        started = time.perf_counter()
        batches[BatchSpec(0, batch, np.arange(BATCH))]
        times.append(time.perf_counter() - started)
    return min(times) / BATCH
