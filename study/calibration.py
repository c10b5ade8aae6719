"""What this machine can do: its device, the faster precision, and the price of each class of operation.

Measured once (a few seconds), kept in the user's cache for this machine and torch version, and stored
with every study.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.architecture import Architecture, Conv, identifier
from search_spaces.candidate import Augmentation
from search_spaces.cost import CostModel, Work
from search_spaces.reference import REFERENCE, REFERENCE_ARCHITECTURE
from study import heap
from study.errors import StudyFailed, UserError
from study.paths import cache_dir
from study.processes import end_with_parent

BATCH = 128
N_WARMUP, N_TIMED = 2, 6
N_ROUNDS = 4


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        device: "cpu" or "cuda".
        hardware: Names of the device and the processor, cores in use.
        precision: The faster of "bfloat16" and "float32" for the reference network.
        cost: Seconds per unit of work in that precision.
        fit_error: Median relative error of the cost model on the networks it was fitted to.
    """

    device: str
    hardware: dict[str, Any]
    precision: str
    cost: CostModel
    fit_error: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        return cls(**{**data, "cost": CostModel.from_json(data["cost"])})


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_loaders(device: str, jobs: int) -> int:
    """Augmenting processes for each of `jobs` trainings at once.

    On a CPU they and the training itself use the same cores, but never at once (`study.batches`).
    """
    beside = n_cores() // jobs - 1
    return max(0, beside) if device == "cpu" else max(1, beside)


def resolve_device(asked: str) -> str:
    """ "cuda" or "cpu".

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    if asked == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise UserError("--device cuda needs a CUDA device, and torch finds none. Use --device cpu or auto.")
    return "cpu"


def gpus(device: str) -> list[str]:
    """The visible GPUs as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    if device != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def hardware(device: str) -> dict[str, Any]:
    """Names for reports."""
    found: dict[str, Any] = {"device": device, "cpu": _cpu_name(), "n_cores": n_cores()}
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "albumentations", "optuna", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def memory(device: str) -> dict[str, float]:
    """MiB that this process holds now: `rss_mib` of main memory, on a GPU `device_mib` allocated there."""
    found = {}
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["rss_mib"] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError):  # not Linux
        pass
    if device == "cuda":
        import torch

        found["device_mib"] = torch.cuda.memory_allocated() / 2**20
    return found


def calibrate(device: str) -> Calibration:
    """Measures, or reads what was measured on this machine before."""
    key = identifier([hardware(device), versions(), "cost-10"])
    file = cache_dir() / f"calibration-{key}.json"
    try:
        return Calibration.from_json(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        pass
    # In a process of its own: a GPU context or thread pools must not stay behind in the caller.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        try:
            found = pool.submit(_measure, device).result()
        except BrokenProcessPool as error:
            raise StudyFailed("the calibration of this machine was killed; is there enough memory?") from error
    _write(file, found)
    return found


def _write(file: Path, calibration: Calibration) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(calibration.to_json(), indent=1))
        temporary.replace(file)
    except OSError:  # a cache that cannot be written only costs the next run some seconds
        pass


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


def _measure(device: str) -> Calibration:
    import torch
    from scipy.optimize import nnls

    if device == "cpu":
        torch.set_num_threads(n_cores())
        heap.keep()  # as a training does
    timed = dict.fromkeys(("bfloat16", "float32"), float("inf"))
    for _ in range(N_ROUNDS):  # in turns, so that a busy moment of the machine hits both
        for name in timed:
            timed[name] = min(timed[name], _seconds_per_image(REFERENCE_ARCHITECTURE, device, name))
    precision = min(timed, key=timed.__getitem__)
    # Depthwise convolutions alone: in a network their price drowns in that of everything else.
    depthwise = statistics.mean(
        _depthwise_seconds(device, precision, kernel=3, dilation=1, side=s) for s in (8, 16, 32)
    )
    other = statistics.mean(_depthwise_seconds(device, precision, k, d, 16) for k, d in ((3, 2), (5, 1), (5, 2)))
    probes = _probes()
    rounds = [[_seconds_per_image(network, device, precision) for network in probes] for _ in range(2)]
    seconds = np.array(rounds).min(0)
    rows, fixed = [], []
    for network in probes:
        work = Work.of(network)
        rows.append([work.dense_macs, work.activations, work.n_operations / BATCH])
        fixed.append(work.depthwise_macs * depthwise + work.depthwise_other_macs * other)
    # Relative errors are what matters, so every row is divided by its time; prices are never negative.
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
    return Calibration(device, hardware(device), precision, cost, error)


def _depthwise_seconds(device: str, precision: str, kernel: int, dilation: int, side: int) -> float:
    """Seconds per multiply-accumulate of one depthwise convolution, forward and backward."""
    import torch

    from study.model import DepthwiseConv2d
    from study.step import autocast

    channels = 64
    module = DepthwiseConv2d(channels, kernel, 1, dilation * (kernel - 1) // 2, dilation, bias=True)
    module = module.to(device).to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, channels, side, side, device=device).to(memory_format=torch.channels_last)
    seconds = _fastest_seconds(
        device, lambda: _forward_backward(module, x.requires_grad_(), autocast(device, precision))
    )
    return seconds / (BATCH * channels * kernel**2 * side**2)


def _forward_backward(module: Any, x: Any, context: Any) -> None:
    with context:
        out = module(x)
    out.backward(out.detach())


def _fastest_seconds(device: str, step: Any) -> float:
    """The fastest of several runs: neighbours on the machine only ever add time.

    On a GPU of a graph, as trainings run: step by step these networks only show how fast the host launches kernels.
    """
    import torch

    if device == "cuda":
        from study.step import graph_of

        step = graph_of(step).replay
    times = []
    for _ in range(N_WARMUP + N_TIMED):
        started = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[N_WARMUP:])


def _seconds_per_image(architecture: Architecture, device: str, precision: str) -> float:
    import torch
    from torch.nn import functional as F

    from study.batches import normalise
    from study.model import build
    from study.step import autocast

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

    return _fastest_seconds(device, step) / BATCH


def _augmentation_seconds(augmentation: Augmentation) -> float:
    from study.augmentation import AugmentedBatches, BatchSpec
    from study.data import Images

    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8), np.zeros(BATCH, np.int64))
    batches = AugmentedBatches(images, augmentation, seed=0)
    times = []
    for batch in range(3):
        started = time.perf_counter()
        batches[BatchSpec(0, batch, np.arange(BATCH))]
        times.append(time.perf_counter() - started)
    return min(times) / BATCH


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
