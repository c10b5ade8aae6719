"""One step of training: the same code for every device, and on a GPU one CUDA graph.

These networks are so small that a GPU spends less time on a kernel than the CPU on launching it. So the whole
step (moving pixels, forward, backward, update, averages, sums) is captured once and replayed.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from study.data.batches import Batch, normalise, place
from study.data.cifar10 import CIFAR10
from study.data.dataset import DataSet
from study.errors import CaptureFailed, first_line
from study.model.network import Network
from study.training.distillation import distilled
from study.training.state import TrainState

N_WARM_UP = 3
"""Steps before a capture: by then every library has chosen its kernels and reserved its memory."""

N_TIMED = 20
TIMED_S = 5.0
"""A step is timed over so many repetitions, or over as many as are done in this time."""


@dataclass(frozen=True)
class StepSettings:
    """How a batch becomes an update.

    Attributes:
        device: "cpu" or "cuda".
        precision: "bfloat16" (autocast) or "float32".
        label_smoothing: Share of the target spread over all classes.
        mixes: Whether images are mixed in pairs.
        of: What the images are of.
        side: That images are resized to; None: they stay as they are.
    """

    device: str
    precision: str
    label_smoothing: float = 0.0
    mixes: bool = False
    of: DataSet = CIFAR10
    side: int | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """Forward, backward, update, averages and sums of one batch, each operation launched by this process.

    Attributes:
        state: What it changes.
        settings: How.
        forward: What makes logits of pixels: the network of `state`, or its compiled form.
        resident: All images, uint8 [M, H, W, 3], where they lie on the device; batches are rows of them then.
        teacher: What to learn from besides the labels.
    """

    state: TrainState
    settings: StepSettings
    forward: Callable[[torch.Tensor], torch.Tensor]
    resident: torch.Tensor | None = None
    teacher: Network | None = None

    def __call__(self, batch: Batch, lr: float, ema_weight: float, mix: float = 1.0) -> None:
        """Trains on `batch`, whose tensors may be anywhere, with learning rate `lr`; images count for `mix`."""
        device = self.settings.device
        self.state.set_rate(lr)
        self.run(moved(batch, device), ema_weight, torch.full((), mix, device=device))

    def run(self, batch: Batch, ema_weight: float | torch.Tensor, mix: torch.Tensor) -> None:
        """The step itself at the rate that is set, on a batch that lies on the device."""
        settings, state = self.settings, self.state
        images, labels, moves = batch
        if self.resident is not None:
            pixels = place(self.resident, images, moves)
        else:
            pixels = place(images, torch.arange(len(labels), device=settings.device), moves)
        with autocast(settings.device, settings.precision):
            pixels = normalise(pixels, settings.of)
            if settings.mixes:
                pixels = torch.lerp(pixels.flip(0), pixels, mix.to(pixels.dtype))
            seen = pixels if settings.side is None else resized(pixels, settings.side)
            logits = self.forward(seen).float()
            with torch.no_grad():
                teacher_logits = None if self.teacher is None else self.teacher(pixels).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        if settings.mixes:
            partners = F.cross_entropy(logits, labels.flip(0), label_smoothing=settings.label_smoothing)
            loss = torch.lerp(partners, loss, mix)
        if teacher_logits is not None:
            loss = distilled(loss, logits, teacher_logits)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        state.ema.update(ema_weight)
        correct = (logits.detach().argmax(1) == labels).sum()
        state.sums.add_(torch.stack([loss.detach().double() * len(labels), correct.double()]))


class CapturedStep:
    """A plain step as one CUDA graph, for batches shaped like `example`; called as that one.

    The steps that warm up leave no trace in weights, averages, optimizer or sums. What the plain one holds must live
    as long as the graph, which reads it.

    Raises:
        CaptureFailed: What the step does cannot be captured; this process must train no more.
    """

    def __init__(self, plain: Step, example: Batch) -> None:
        self.plain, self.state, self.settings = plain, plain.state, plain.settings
        device = self.settings.device
        self._inputs: Batch = tuple(torch.zeros_like(tensor, device=device) for tensor in example)  # type: ignore[assignment]
        self._lr, self._ema_weight = torch.zeros((), device=device), torch.zeros((), device=device)
        self._mix = torch.ones((), device=device)
        self.state.set_rate(self._lr)
        with self.state.unchanged():
            # Gradients of the graph belong to its own memory, so those of the warm-up must be gone.
            forget = functools.partial(self.state.optimizer.zero_grad, set_to_none=True)
            self._graph = graph_of(lambda: plain.run(self._inputs, self._ema_weight, self._mix), forget)

    def __call__(self, batch: Batch, lr: float, ema_weight: float, mix: float = 1.0) -> None:
        for mine, given in zip(self._inputs, batch, strict=True):
            mine.copy_(given, non_blocking=True)
        self._lr.fill_(lr)
        self._ema_weight.fill_(ema_weight)
        if self.settings.mixes:
            self._mix.fill_(mix)
        self._graph.replay()


AnyStep = Step | CapturedStep


def ready(plain: Step, example: Batch) -> AnyStep:
    """`plain` as its device runs it: on a GPU captured.

    Raises:
        CaptureFailed: See `CapturedStep`.
    """
    return CapturedStep(plain, example) if plain.settings.device == "cuda" else plain


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """float [N, C, S, S] -> [N, C, side, side], each pixel a mean of those that it covers, weighted bilinearly."""
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def moved(batch: Batch, device: str) -> Batch:
    """`batch` on the device; a copy from pinned memory goes on meanwhile."""
    images, labels, moves = (tensor.to(device, non_blocking=True) for tensor in batch)
    return images, labels, moves


def step_seconds(train_on: AnyStep, example: Batch, n: int = N_TIMED) -> float:
    """Of one call of `train_on` with a batch on the device; leaves no trace. The first call is not counted."""
    device = train_on.settings.device
    batch = moved(example, device)
    with train_on.state.unchanged():
        train_on(batch, 0.01, 0.5)
        _wait(device)
        started, done = time.perf_counter(), 0
        while done < n and (done == 0 or time.perf_counter() - started < TIMED_S):
            train_on(batch, 0.01, 0.5)
            done += 1
        _wait(device)
        return (time.perf_counter() - started) / done


def graph_of(run: Callable[[], None], after_warm_up: Callable[[], None] = lambda: None) -> Any:
    """A CUDA graph of `run`, which has run `N_WARM_UP` times before.

    Raises:
        CaptureFailed: `run` warmed up but could not be captured.
    """
    # cuBLAS keeps a workspace for every stream that it was used on, perhaps inside an earlier graph's memory.
    torch._C._cuda_clearCublasWorkspaces()
    side = _side_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(N_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    after_warm_up()
    graph = torch.cuda.CUDAGraph()
    try:
        # Only this thread's calls must be fit for capture: others may be pinning memory meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    except Exception as error:  # whatever it was, it left a capture under way: this process is spoiled all the same
        raise CaptureFailed(first_line(error)) from error
    return graph


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a network runs in `precision`."""
    if precision == "float32":
        return contextlib.nullcontext()
    # Without the cache of cast weights, which would outlive the graph that filled it.
    return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@functools.cache
def _side_stream() -> Any:
    """One for all captures of this process: libraries keep memory for every stream they meet."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
