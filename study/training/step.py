"""One step of training: the same code for every device, and on a GPU one CUDA graph.

These networks are so small that a GPU spends less time on a kernel than the CPU on launching it. So the whole
step (moving pixels, forward, backward, update, averages, sums) is captured once and replayed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from study.data.batches import Batch, normalise, place
from study.errors import CaptureFailed, first_line
from study.model.network import Network
from study.training.distillation import distilled

N_WARM_UP = 3
"""Steps before a capture: by then every library has chosen its kernels and reserved its memory."""

N_TIMED = 20
TIMED_S = 5.0
"""A step is timed over so many repetitions, or over as many as are done in this time."""


class Ema:
    """Exponential moving average of weights and of the floating buffers of norms.

    The decay per step is 0.5 ** (1 / half_life), but never more than (1 + t) / (10 + t): early
    averages must forget the initial weights.
    """

    def __init__(self, network: Network, half_life_steps: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = 0.5 ** (1 / max(half_life_steps, 1e-9))
        live, kept = network.state_dict(keep_vars=True), self.network.state_dict(keep_vars=True)
        names = [name for name, tensor in kept.items() if tensor.is_floating_point()]
        self._live = [live[name].detach() for name in names]
        self._kept = [kept[name].detach() for name in names]

    def weight(self, step: int) -> float:
        """What the live weights count for at `step`, in (0, 1]."""
        return float(1 - min(self._decay, (1 + step) / (10 + step)))

    def update(self, weight: float | torch.Tensor) -> None:
        """Moves the averages by `weight` towards the live weights; a tensor may change between replays."""
        difference = torch._foreach_sub(self._live, self._kept)
        torch._foreach_mul_(difference, weight)
        torch._foreach_add_(self._kept, difference)


@dataclass(frozen=True)
class StepSettings:
    """How a batch becomes an update.

    Attributes:
        device: "cpu" or "cuda".
        precision: "bfloat16" (autocast) or "float32".
        label_smoothing: Share of the target spread over all classes.
        mixes: Whether images are mixed in pairs.
    """

    device: str
    precision: str
    label_smoothing: float = 0.0
    mixes: bool = False


class Step:
    """Forward, backward, update, averages and sums of one batch.

    Attributes:
        forward: What makes logits of pixels: the network, or its compiled form.
        sums: float64 [2], on the device: the loss times the images, and the images classified correctly.
            Nothing is read from the device during an epoch.
    """

    def __init__(
        self,
        network: Network,
        ema: Ema,
        optimizer: torch.optim.Optimizer,
        settings: StepSettings,
        resident: torch.Tensor | None = None,
        teacher: Network | None = None,
    ) -> None:
        self.network, self.ema, self.optimizer, self.settings = network, ema, optimizer, settings
        self.resident, self.teacher = resident, teacher
        self.forward: Callable[[torch.Tensor], torch.Tensor] = network
        self.sums = torch.zeros(2, dtype=torch.float64, device=settings.device)
        self._mix = torch.ones((), device=settings.device)

    def __call__(self, batch: Batch, lr: float, ema_weight: float, mix: float = 1.0) -> None:
        """Trains on `batch`, whose tensors may be anywhere, with learning rate `lr`; images count for `mix`."""
        if self.settings.mixes:
            self._mix.fill_(mix)
        self.set_rate(lr)
        self.run(_moved(batch, self.settings.device), ema_weight, self._mix)

    def set_rate(self, lr: float | torch.Tensor) -> None:
        """A tensor may change between replays; a number would be frozen in a graph."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def run(self, batch: Batch, ema_weight: float | torch.Tensor, mix: torch.Tensor) -> None:
        """The step itself, on a batch that lies on the device."""
        settings = self.settings
        images, labels, moves = batch
        if self.resident is not None:
            pixels = place(self.resident, images, moves)
        else:
            pixels = place(images, torch.arange(len(labels), device=settings.device), moves)
        with autocast(settings.device, settings.precision):
            pixels = normalise(pixels)
            if settings.mixes:
                pixels = torch.lerp(pixels.flip(0), pixels, mix.to(pixels.dtype))
            logits = self.forward(pixels).float()
            with torch.no_grad():
                teacher_logits = None if self.teacher is None else self.teacher(pixels).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        if settings.mixes:
            partners = F.cross_entropy(logits, labels.flip(0), label_smoothing=settings.label_smoothing)
            loss = torch.lerp(partners, loss, mix)
        if teacher_logits is not None:
            loss = distilled(loss, logits, teacher_logits)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.ema.update(ema_weight)
        correct = (logits.detach().argmax(1) == labels).sum()
        self.sums += torch.stack([loss.detach().double() * len(labels), correct.double()])

    def compile(self) -> None:
        """From now on the network runs compiled, as one graph."""
        torch.compiler.reset()  # each network starts its own count of recompilations
        self.forward = torch.compile(self.network, fullgraph=True)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Puts all state back, in place, at the end: a graph goes on using the very same tensors."""
        tensors = [*self.network.state_dict().values(), *self.ema.network.state_dict().values(), self.sums]
        before = [tensor.clone() for tensor in tensors]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        momenta = {
            id(tensor): tensor.clone()
            for state in self.optimizer.state.values()
            for tensor in state.values()
            if isinstance(tensor, torch.Tensor)
        }
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
                for state in self.optimizer.state.values():
                    for tensor in state.values():
                        if isinstance(tensor, torch.Tensor):
                            # A buffer that the warm-up made starts from zero, as a missing one does.
                            tensor.copy_(momenta[id(tensor)]) if id(tensor) in momenta else tensor.zero_()
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


class CapturedStep:
    """A step as one CUDA graph, for batches shaped like `example`; called as a plain one.

    The steps that warm up leave no trace in weights, averages, optimizer or sums.

    Raises:
        CaptureFailed: What the step does cannot be captured; this process must train no more.
    """

    def __init__(self, step: Step, example: Batch) -> None:
        device = step.settings.device
        self._step = step
        self._inputs: Batch = tuple(torch.zeros_like(tensor, device=device) for tensor in example)  # type: ignore[assignment]
        self._lr, self._ema_weight = torch.zeros((), device=device), torch.zeros((), device=device)
        self._mix = torch.ones((), device=device)
        step.set_rate(self._lr)
        with step.unchanged():
            # Gradients of the graph belong to its own memory, so those of the warm-up must be gone.
            self.replay = graph_of(self._run, lambda: step.optimizer.zero_grad(set_to_none=True)).replay

    def __call__(self, batch: Batch, lr: float, ema_weight: float, mix: float = 1.0) -> None:
        for mine, given in zip(self._inputs, batch, strict=True):
            mine.copy_(given, non_blocking=True)
        self._lr.fill_(lr)
        self._ema_weight.fill_(ema_weight)
        if self._step.settings.mixes:
            self._mix.fill_(mix)
        self.replay()

    def _run(self) -> None:
        self._step.run(self._inputs, self._ema_weight, self._mix)


def step_seconds(step: Step, again: Callable[[], None], n: int = N_TIMED) -> float:
    """Of one call of `again`, which runs `step`; leaves no trace in its state. The first call is not counted."""
    with step.unchanged():
        again()
        _wait(step.settings.device)
        started, done = time.perf_counter(), 0
        while done < n and (done == 0 or time.perf_counter() - started < TIMED_S):
            again()
            done += 1
        _wait(step.settings.device)
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
    except Exception as error:
        raise CaptureFailed(first_line(error)) from error
    return graph


def _moved(batch: Batch, device: str) -> Batch:
    images, labels, moves = (tensor.to(device, non_blocking=True) for tensor in batch)
    return images, labels, moves


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@functools.cache
def _side_stream() -> Any:
    """One for all captures of this process: libraries keep memory for every stream they meet."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a network runs in `precision`."""
    if precision == "float32":
        return contextlib.nullcontext()
    # Without the cache of cast weights, which would outlive the graph that filled it.
    return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)
