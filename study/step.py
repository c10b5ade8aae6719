"""One step of training: the same code for every device, and on a GPU one CUDA graph.

These networks are so small that a GPU spends less time on a kernel than the CPU on launching it. So the whole
step (moving pixels, forward, backward, update, averages, sums) is captured once and replayed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from study.batches import Batch, normalise, place
from study.distillation import distilled
from study.model import Network

N_WARM_UP = 3
"""Steps before a capture: by then every library has chosen its kernels and reserved its memory."""

N_TIMED = 20
COMPILING_S = 60.0
"""About what compiling a network of this size costs; each GPU process pays it."""


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


class Step:
    """Forward, backward, update, averages and sums of one batch.

    Attributes:
        sums: float64 [2], on the device: the loss times the images, and the images classified correctly.
            Nothing is read from the device during an epoch.
    """

    def __init__(
        self,
        network: Network,
        ema: Ema,
        optimizer: torch.optim.Optimizer,
        label_smoothing: float,
        precision: str,
        device: str,
        resident: torch.Tensor | None = None,
        teacher: Network | None = None,
        mixes: bool = False,
    ) -> None:
        self.teacher, self.mixes = teacher, mixes
        self.network, self.ema, self.optimizer = network, ema, optimizer
        self.label_smoothing, self.precision, self.device = label_smoothing, precision, device
        self.resident = resident
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._lr = torch.zeros((), device=device)
        self._mix = torch.ones((), device=device)
        self._ema_weight = torch.zeros((), device=device)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = network
        self._inputs: Batch | None = None
        self._graph: Any = None

    def __call__(self, batch: Batch, lr: float, ema_weight: float, mix: float = 1.0) -> None:
        """Trains on `batch`, whose tensors may be anywhere, with learning rate `lr`; images count for `mix`."""
        if self.mixes:
            self._mix.fill_(mix)
        if self._inputs is None:
            images, labels, moves = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self._run((images, labels, moves), ema_weight)
            return
        for mine, given in zip(self._inputs, batch, strict=True):
            mine.copy_(given, non_blocking=True)
        self._lr.fill_(lr)
        self._ema_weight.fill_(ema_weight)
        self._again()

    def capture(self, example: Batch, n_steps: int = 0) -> None:
        """Makes the step ready for batches shaped like `example`; on a GPU, one graph from now on.

        The steps that warm up leave no trace in weights, averages, optimizer or sums. Where `n_steps` of the
        graph would take far longer than compiling, the network is compiled too, and the faster graph is kept.
        """
        self._inputs = tuple(torch.zeros_like(tensor, device=self.device) for tensor in example)  # type: ignore[assignment]
        assert self._inputs is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr  # a tensor: a number would be frozen in the graph
        with self._unchanged():
            self._graph = self._captured(self._inputs)
            seconds = self._seconds() if n_steps else 0.0
            if seconds * n_steps > 5 * COMPILING_S:
                self._compile(seconds)

    def _compile(self, seconds: float) -> None:
        """Keeps the compiled network if its graph takes less than `seconds`."""
        assert self._inputs is not None
        plain = self._forward, self._graph
        stream = torch.cuda.current_stream() if self.device == "cuda" else None
        try:
            self._forward = torch.compile(self.network)
            self._graph = self._captured(self._inputs)
            faster = self._seconds() < seconds
        except Exception as error:  # a compiler that is missing or fails costs speed, never the training
            print(f"not compiled: {type(error).__name__}: {str(error).strip().splitlines()[:1]}", file=sys.stderr)
            faster = False
            if stream is not None:  # a capture that fails may leave its own stream as the current one
                torch.cuda.set_stream(stream)
        if not faster:
            self._forward, self._graph = plain

    def _seconds(self) -> float:
        """Of one step, as it is now."""
        assert self._inputs is not None
        for timed in (False, True):
            if self.device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(N_TIMED if timed else 1):
                self._again()
            if self.device == "cuda":
                torch.cuda.synchronize()
        return (time.perf_counter() - started) / N_TIMED

    def _again(self) -> None:
        assert self._inputs is not None
        if self._graph is None:
            self._run(self._inputs, self._ema_weight)
        else:
            self._graph.replay()

    def _captured(self, inputs: Batch) -> Any:
        """A graph of the step; None on a CPU, which only warms up."""

        def run() -> None:
            self._run(inputs, self._ema_weight)

        if self.device == "cuda":
            # Gradients of the graph belong to its own memory, so those of the warm-up must be gone.
            return graph_of(run, lambda: self.optimizer.zero_grad(set_to_none=True))
        for _ in range(N_WARM_UP):
            run()
        return None

    def _run(self, batch: Batch, ema_weight: float | torch.Tensor) -> None:
        images, labels, moves = batch
        if self.resident is not None:
            pixels = place(self.resident, images, moves)
        else:
            pixels = place(images, torch.arange(len(labels), device=self.device), moves)
        with autocast(self.device, self.precision):
            pixels = normalise(pixels)
            if self.mixes:
                pixels = torch.lerp(pixels.flip(0), pixels, self._mix.to(pixels.dtype))
            logits = self._forward(pixels).float()
            with torch.no_grad():
                teacher_logits = None if self.teacher is None else self.teacher(pixels).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.mixes:
            partners = F.cross_entropy(logits, labels.flip(0), label_smoothing=self.label_smoothing)
            loss = torch.lerp(partners, loss, self._mix)
        if teacher_logits is not None:
            loss = distilled(loss, logits, teacher_logits)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.ema.update(ema_weight)
        correct = (logits.detach().argmax(1) == labels).sum()
        self.sums += torch.stack([loss.detach().double() * len(labels), correct.double()])

    @contextlib.contextmanager
    def _unchanged(self) -> Any:
        """Puts all state back, in place, at the end: a graph goes on using the very same tensors."""
        tensors = [*self.network.state_dict().values(), *self.ema.network.state_dict().values(), self.sums]
        before = [tensor.clone() for tensor in tensors]
        momenta = {
            id(tensor): tensor.clone()
            for state in self.optimizer.state.values()
            for tensor in state.values()
            if isinstance(tensor, torch.Tensor)
        }
        yield
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    if isinstance(tensor, torch.Tensor):
                        # A buffer that the warm-up made starts from zero, as a missing one does.
                        tensor.copy_(momenta[id(tensor)]) if id(tensor) in momenta else tensor.zero_()


def graph_of(run: Callable[[], None], after_warm_up: Callable[[], None] = lambda: None) -> Any:
    """A CUDA graph of `run`, which has run `N_WARM_UP` times before."""
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
    # Only this thread's calls must be fit for capture: others may be pinning memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph


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
