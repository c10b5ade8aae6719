"""What this machine can do: its device, the faster precision, and the price of each class of operation.

Measured once (within 20 seconds), kept in the user's cache for this machine and torch version, and stored
with every study.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.architecture import Architecture, Conv, identifier
from search_spaces.candidate import Augmentation
from search_spaces.cost import CostModel, Work
from search_spaces.reference import REFERENCE, REFERENCE_ARCHITECTURE
from study.errors import CaptureFailed, StudyFailed, first_line
from study.machine import cache, heap
from study.machine.hardware import hardware, n_cores, versions
from study.machine.processes import end_with_parent

if TYPE_CHECKING:
    from study.model.layers import DepthwiseClass


BATCH = 128
SLICE_S = 0.4
"""Of a single measurement: all of them together take less than 20 seconds."""

N_TIMED = 6
N_ROUNDS = 2
_SPOILED: set[str] = set()
"""What this process is not to try."""
CHANNELS = {32: 16, 16: 24, 8: 32}
"""Of the depthwise convolutions that are measured, by the side of the map: those of the space `best`."""


@dataclass(frozen=True)
class DepthwisePrice:
    """Seconds per multiply-accumulate of a class of depthwise convolutions, forward and backward.

    Attributes:
        kernel, dilated, side: The class, see `study.model.layers.DepthwiseClass`.
        channels_last_s: As networks run, which on a GPU means cuDNN's kernels; infinite if there is none.
        native_s: On a GPU by torch's own kernels, the way there and back included; likewise.
    """

    kernel: int
    dilated: bool
    side: int
    channels_last_s: float
    native_s: float = math.inf

    @property
    def fastest_s(self) -> float:
        return min(self.channels_last_s, self.native_s)


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        device: "cpu" or "cuda".
        hardware: Names of the device and the processor, cores in use.
        precision: The faster of "bfloat16" and "float32" for the reference network; always "bfloat16" on a GPU.
        cost: Seconds per unit of work in that precision.
        fit_error: Median relative error of the cost model on the networks it was fitted to.
        depthwise: On a GPU, both ways to run each class of depthwise convolutions.
    """

    device: str
    hardware: dict[str, Any]
    precision: str
    cost: CostModel
    fit_error: float
    depthwise: tuple[DepthwisePrice, ...] = ()

    @property
    def native_depthwise(self) -> frozenset[DepthwiseClass]:
        """The classes that are faster by torch's own kernels than by cuDNN's (`study.model.layers.DepthwiseConv2d`)."""
        return frozenset((p.kernel, p.dilated, p.side) for p in self.depthwise if p.native_s < p.channels_last_s)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        depthwise = tuple(DepthwisePrice(**each) for each in data["depthwise"])
        return cls(**{**data, "cost": CostModel.from_json(data["cost"]), "depthwise": depthwise})


def calibrate(device: str) -> Calibration:
    """Measures, or reads what was measured on this machine before."""
    name = f"calibration-{identifier([hardware(device), versions(), 'cost-12'])}"
    with contextlib.suppress(KeyError, TypeError):  # nothing was kept, or another version kept it
        return Calibration.from_json(cache.recall(name))
    spoiled: set[str] = set()
    while True:
        # In a process of its own: a GPU context or thread pools must not stay behind in the caller.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
            try:
                found: Calibration = pool.submit(_measure, device, frozenset(spoiled)).result()
                break
            except _SpoiledError as error:  # the process must measure no more; another one leaves that out
                spoiled.add(error.what)
            except BrokenProcessPool as error:
                raise StudyFailed("the calibration of this machine was killed; is there enough memory?") from error
    cache.keep(name, found.to_json())
    return found


class _SpoiledError(Exception):
    """`what` could not be captured."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def _probes() -> tuple[Architecture, ...]:
    """Dense networks that differ in what they spend their time on."""
    wide = (
        Conv(32),
        Conv(32),
        Conv(64, stride=2),
        Conv(64),
        Conv(64),
        Conv(96, stride=2),
        Conv(96),
        Conv(96, dilation=2),
    )
    narrow = tuple(Conv(8, dilation=1 + i % 2) for i in range(10))
    late = (Conv(16), Conv(64, stride=2), Conv(64), Conv(128, stride=2), Conv(128), Conv(128, dilation=2), Conv(128))
    return (REFERENCE_ARCHITECTURE, *(Architecture(layers) for layers in (wide, narrow, late)))


def _measure(device: str, spoiled: frozenset[str] = frozenset()) -> Calibration:
    """All prices; infinite for what is `spoiled`.

    Raises:
        _SpoiledError: Something else could not be captured.
        StudyFailed: No network can be trained here.
    """
    import torch
    from scipy.optimize import nnls

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
    rounds = [[_seconds_per_image(network, device, precision) for network in probes] for _ in range(N_ROUNDS)]
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
    timed = dict.fromkeys(("bfloat16", "float32"), float("inf"))
    for _ in range(2 * N_ROUNDS):  # in turns, so that a busy moment of the machine hits both
        for name in timed:
            timed[name] = min(timed[name], _seconds_per_image(REFERENCE_ARCHITECTURE, device, name))
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
    import torch

    from study.model.layers import DepthwiseConv2d
    from study.training.step import autocast

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
    import torch

    if what in _SPOILED:
        return math.inf
    try:
        step()  # libraries choose their kernels
        if device == "cuda":
            from study.training.step import graph_of

            step = graph_of(step).replay
            step()
            torch.cuda.synchronize()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 2 or (len(times) < N_TIMED and time.perf_counter() - began < SLICE_S):
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
        raise _SpoiledError(what) from error


def _seconds_per_image(architecture: Architecture, device: str, precision: str) -> float:
    import torch
    from torch.nn import functional as F

    from study.data.batches import normalise
    from study.model.network import build
    from study.training.step import autocast

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
    from study.data.augmentation import AugmentedBatches, BatchSpec
    from study.data.cifar10 import Images

    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8), np.zeros(BATCH, np.int64))
    batches = AugmentedBatches(images, augmentation, seed=0)
    times = []
    for batch in range(3):
        started = time.perf_counter()
        batches[BatchSpec(0, batch, np.arange(BATCH))]
        times.append(time.perf_counter() - started)
    return min(times) / BATCH
