"""The optimizers that a candidate may name: SGD, AdamW, and Muon for the kernels of dense convolutions.

All of them take the rate as a number or as a tensor, which a CUDA graph needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from search_spaces.candidate import Optimisation

ADAM_BETAS = (0.9, 0.99)
MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan 2024): steepest at zero, singular values end in about 0.7 to 1.2."""

NEWTON_SCHULZ_STEPS = 5
UPDATE_RMS = 0.2
"""Root mean square of a Muon update at rate 1, about that of AdamW's, so that both share a rate (Liu et al. 2025)."""


def make_optimizer(network: nn.Module, optimisation: Optimisation) -> torch.optim.Optimizer:
    """The optimizer that `optimisation` names, over all parameters of `network`; its rate is set before every step.

    Weights are decayed; norms and biases are not. SGD's decay is an L2 penalty; the others' is decoupled.
    """
    decay = optimisation.weight_decay
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    if optimisation.optimizer == "sgd":
        momentum = optimisation.momentum
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=True)
    if optimisation.optimizer == "adamw":
        return _adamw(groups)
    kernels = list(_dense_kernels(network))
    ids = {id(p) for p in kernels}
    groups[0]["params"] = [p for p in decayed if id(p) not in ids]
    others_too = _adamw([group for group in groups if group["params"]])
    if not kernels:  # of a network that mixes channels in its first and last convolution alone
        return others_too
    return Together(Muon([{"params": kernels, "weight_decay": decay}]), others_too)


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    on_gpu = any(p.is_cuda for group in groups for p in group["params"])
    # Torch refuses to capture a step of Adam's that was not made for it.
    return torch.optim.AdamW(groups, lr=0.0, betas=ADAM_BETAS, fused=True, capturable=on_gpu)


def _dense_kernels(network: nn.Module) -> Iterator[torch.Tensor]:
    """Kernels that mix channels, except the first, which sees colours, and the last, which gives classes."""
    dense = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.groups == 1]
    for module in dense[1:-1]:
        yield module.weight


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalised (Jordan 2024): every direction moves equally far.

    A kernel [out, in, k, k] is the matrix [out, k * k * in]. `torch.optim.Muon` refuses kernels, and goes through
    its matrices one by one. Here those of one shape go together; on a GPU, which takes as long to launch a small
    operation as to run it, all of them do, the smaller ones padded with zeros, which change nothing.

    Attributes:
        one_stack: Whether all kernels go together; None: where they lie on a GPU.
    """

    one_stack: bool | None = None

    def __init__(self, params: Iterable[Any], momentum: float = MUON_MOMENTUM) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum})
        self._stacks: dict[int, list[_Stack]] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for number, group in enumerate(self.param_groups):
            lr, momentum = group["lr"], group["momentum"]
            params = group["params"]
            gradients = [p.grad for p in params]
            buffers = [self._buffer(p) for p in params]
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            directions = torch._foreach_lerp(gradients, buffers, momentum)
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            if number not in self._stacks:
                self._stacks[number] = _stacks(params, self.one_stack)
            for stack in self._stacks[number]:
                updates = stack.orthogonalised([directions[i] for i in stack.members], lr)
                torch._foreach_add_([params[i] for i in stack.members], updates)

    def _buffer(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        found: torch.Tensor = state["momentum_buffer"]
        return found


class _Stack:
    """Kernels that are orthogonalised together: matrices of one size, the smaller ones in a corner of theirs.

    Args:
        members: Which of the group's kernels.
        kernels: These kernels, [out, in, k, k] each.
    """

    def __init__(self, members: Sequence[int], kernels: Sequence[torch.Tensor]) -> None:
        self.members = list(members)
        self._kernels = list(kernels)
        sizes = [(len(kernel), kernel[0].numel()) for kernel in kernels]
        rows, columns = max(min(size) for size in sizes), max(max(size) for size in sizes)
        places = torch.arange(len(sizes) * rows * columns).view(-1, rows, columns)
        # As wide matrices all of them: the transpose is orthogonalised as well.
        corners = [
            (place if size[0] <= size[1] else place.mT)[: size[0], : size[1]].flatten()
            for place, size in zip(places, sizes, strict=True)
        ]
        device = kernels[0].device
        self._places = torch.cat(corners).to(device)
        # bfloat16 is enough for the iteration, but on a CPU such small products are no faster in it.
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._matrices = torch.zeros(places.shape, dtype=dtype, device=device)
        scales = [-UPDATE_RMS * max(size) ** 0.5 for size in sizes]
        self._scales = torch.tensor(scales, dtype=torch.float32, device=device).view(-1, 1, 1)

    def orthogonalised(self, directions: Sequence[torch.Tensor], lr: float | torch.Tensor) -> list[torch.Tensor]:
        """What `directions` add to their kernels, shaped and laid out like these."""
        # In the order of channels_last memory, in which networks train: columns may be in any, and this one is a view.
        flat = torch.cat([direction.permute(0, 2, 3, 1).flatten() for direction in directions])
        matrices = self._matrices
        matrices.view(-1)[self._places] = flat.to(matrices.dtype)
        updates = (orthogonalised(matrices) * (self._scales * lr)).view(-1)[self._places]
        parts = torch.split(updates, [kernel.numel() for kernel in self._kernels])
        return [
            part.view(len(kernel), *kernel.shape[2:], kernel.shape[1]).permute(0, 3, 1, 2)
            for part, kernel in zip(parts, self._kernels, strict=True)
        ]


def _stacks(kernels: Sequence[torch.Tensor], one: bool | None) -> list[_Stack]:
    """All kernels in one stack on a GPU; elsewhere one for each shape, since padding costs arithmetic."""
    together: dict[Any, list[int]] = {}
    for number, kernel in enumerate(kernels):
        key = None if (kernel.is_cuda if one is None else one) else (len(kernel), kernel[0].numel())
        together.setdefault(key, []).append(number)
    return [_Stack(members, [kernels[i] for i in members]) for members in together.values()]


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """About U V^T, float32, of every matrix U S V^T of `matrices` [N, rows, columns], rows <= columns, by Newton and
    Schulz's iteration. Zero rows and columns stay zero and change no other."""
    a, b, c = NEWTON_SCHULZ
    x: torch.Tensor = matrices / (torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.float()


class Together(torch.optim.Optimizer):
    """Several optimizers as one; every parameter belongs to one of them."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        self.defaults = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[torch.Tensor, Any]:  # type: ignore[override]
        return {p: state for optimizer in self.optimizers for p, state in optimizer.state.items()}

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
