"""What is read off a built module: counts, receptive field, limits."""

from __future__ import annotations

import copy

import torch
from torch import nn

from search_spaces.architecture import Architecture
from search_spaces.constraints import Constraint, InfeasibleError, Limits
from study.model.layers import (
    _ACTIVATIONS,
    _NORMS,
    DepthwiseConv2d,
    Gate,
    LayerNorm2d,
    MeanOfChannels,
    RunNorms,
    SumOfHalves,
)
from study.model.network import Network


def count_params(module: nn.Module) -> int:
    """All learned values: parameters, frozen ones too, shared ones once, and buffers that are not a
    norm's running statistics."""
    tensors: dict[int, torch.Tensor] = {id(parameter): parameter for parameter in module.parameters()}
    for child in module.modules():
        if not isinstance(child, nn.modules.batchnorm._NormBase):
            tensors.update((id(buffer), buffer) for buffer in child.buffers(recurse=False))
    return sum(tensor.numel() for tensor in tensors.values())


def measure_receptive_field(network: Network, architecture: Architecture) -> int:
    """Side in pixels of what one output before the global pooling depends on, by gradient.

    All weights are set positive, norms and activations to the identity, norms over channels to their mean and gates to
    the sum of their halves (see `SumOfHalves`), so that nothing can cancel; the input is larger than the field, so that
    nothing is cut off; the answer is the side of the bounding box of the non-zero gradient of the
    centre output (float64, on a copy).
    """
    layers = copy.deepcopy(network.layers).cpu().double()

    def linear(module: nn.Module) -> None:
        for name, child in module.named_children():
            first = child[0] if isinstance(child, RunNorms) else child
            if isinstance(first, LayerNorm2d):
                setattr(module, name, MeanOfChannels())
            elif isinstance(child, (RunNorms, *_NORMS.values(), *_ACTIVATIONS.values())):
                setattr(module, name, nn.Identity())
            elif isinstance(child, Gate):
                setattr(module, name, SumOfHalves())
            else:
                linear(child)

    linear(layers)
    for module in layers.modules():
        for name, parameter in module.named_parameters(recurse=False):
            positive = 1.0 / parameter[0].numel() if parameter.ndim > 1 else 1.0
            nn.init.constant_(parameter, 0.0 if name == "bias" else positive)
    jump = max(op.jump for op in architecture.operations)
    # At least one output more than the field on either side, whatever unpadded layers take away.
    lost = sum(2 * op.kernel * op.dilation * jump for op in architecture.operations if not op.padded)
    side = architecture.receptive_field + lost + 4 * jump
    x = torch.ones(1, architecture.in_channels, side, side, dtype=torch.float64, requires_grad=True)
    out = layers(x)
    centre = out.shape[-1] // 2
    out[0, :, centre, centre].sum().backward()
    assert x.grad is not None
    hit = x.grad[0].abs().sum(0) > 0
    rows = torch.nonzero(hit.any(1)).flatten()
    return int(rows[-1] - rows[0] + 1)


def certify_module(network: Network, architecture: Architecture, limits: Limits) -> None:
    """Holds the built module itself against the limits that can be read off it.

    Raises:
        InfeasibleError: The module has too many parameters, pools, or lacks a needed convolution.
    """
    convs = [module for module in network.layers.modules() if isinstance(module, nn.Conv2d)]
    n_pools = sum("pool" in type(module).__name__.lower() for module in network.modules())
    params = count_params(network)
    found = (
        Constraint("parameters", params - limits.max_params + 1, f"the built module has {params:,} parameters"),
        Constraint("pooling", n_pools, "the built module pools before the global average"),
        Constraint(
            "dilated_convolution",
            1 - sum(conv.dilation[0] > 1 and conv.kernel_size[0] > 1 for conv in convs),
            "the built module has no dilated convolution",
        ),
        Constraint(
            "depthwise_separable_convolution",
            1 - sum(isinstance(conv, DepthwiseConv2d) for conv in convs),
            "the built module has no depthwise separable convolution",
        ),
        Constraint(
            "analytic_parameters",
            abs(params - architecture.params),
            f"the built module has {params:,} parameters, its description {architecture.params:,}",
        ),
    )
    broken = tuple(constraint for constraint in found if not constraint.feasible)
    if broken:
        raise InfeasibleError(broken)
