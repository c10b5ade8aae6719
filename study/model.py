"""The one builder: an `Architecture` becomes a torch module. Search, retrain, predict and tests call it."""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from search_spaces.architecture import Architecture, Conv, Residual
from search_spaces.constraints import Constraint, InfeasibleError, Limits
from study.data import MEAN, STD

CHANNEL_GROUP = 16
"""Channels that oneDNN's bfloat16 kernels process together."""


class DenseConv2d(nn.Conv2d):
    """A dense convolution, [N, C, H, W] -> [N, C', H', W'], with correct gradients everywhere.

    oneDNN's bfloat16 kernel for the weight gradient of a dilated convolution reads past its buffer when
    the input channels are more than one group and no whole number of groups (seen with torch 2.15: 24
    or 40 channels on 32x32 maps give NaN or wrong values). Under autocast on a CPU, zero channels fill
    the last group of such an input; they change no result.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rest = self.in_channels % CHANNEL_GROUP
        harmless = self.dilation[0] == 1 or rest == 0 or self.in_channels < CHANNEL_GROUP
        if harmless or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        missing = (0, 0, 0, 0, 0, CHANNEL_GROUP - rest)
        # Cast first, so that the copies are of the smaller type; the memory format survives padding.
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = F.pad(x.to(dtype), missing), F.pad(self.weight.to(dtype), missing)
        x = x.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution, [N, C, H, W] -> [N, C, H', W'].

    On a CPU it runs in float32 even under autocast: the bfloat16 kernels there are up to 2.5 times slower
    for kernels larger than 3 and dilated ones, and for some shapes their gradients are wrong (seen with
    torch 2.15: 8 channels, kernel 5, dilation 3 on 32x32 maps give NaN).
    """

    def __init__(self, channels: int, kernel: int, stride: int, padding: int, dilation: int, bias: bool) -> None:
        super().__init__(channels, channels, kernel, stride, padding, dilation, channels, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class ResidualBlock(nn.Module):
    """`relu(body(x) + x)`, [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + x)


class Network(nn.Module):
    """Normalised images [N, 3, H, W] -> logits [N, n_classes]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels = architecture.in_channels
        layers: list[nn.Module] = []
        for layer in architecture.layers:
            if isinstance(layer, Residual):
                body: list[nn.Module] = []
                for unit in layer.body:
                    body += _unit(channels, unit)
                layers.append(ResidualBlock(nn.Sequential(*body)))
            else:
                layers += _unit(channels, layer)
                channels = layer.out_channels
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(channels, architecture.n_classes, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(x)
        x = x.mean((2, 3), keepdim=True)  # [N, C, H, W] -> [N, C, 1, 1]
        logits: torch.Tensor = self.classifier(x).flatten(1)
        return logits


class Deployable(nn.Module):
    """A trained network with its normalisation: images [N, 3, H, W] in [0, 1] -> logits [N, n_classes]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network((x - self.mean) / self.std)
        return logits


def build(architecture: Architecture, seed: int | None = None) -> Network:
    """The module of `architecture`, freshly initialised (from `seed`, if given, on the CPU).

    Convolutions start from He et al.'s normal distribution (2015, fan out), and the last norm of a
    residual body from zero, so that every block starts as the identity (Goyal et al. 2017, 5.1).
    """
    context = torch.random.fork_rng(devices=[]) if seed is not None else contextlib.nullcontext()
    with context:
        if seed is not None:
            torch.manual_seed(seed)
        network = Network(architecture)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out" if module.groups == 1 else "fan_in")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in network.modules():
            if isinstance(module, ResidualBlock):
                norms = [child for child in module.body if isinstance(child, nn.BatchNorm2d)]
                for norm in norms[-1:]:
                    nn.init.zeros_(norm.weight)
    return network


def folded(network: Network) -> Network:
    """A copy for inference alone, with each norm folded into the convolution right before it.

    Saves about a quarter of the time; equal up to rounding.
    """
    import copy

    network = copy.deepcopy(network).eval()
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for place in range(len(sequence) - 1):
            conv, norm = sequence[place], sequence[place + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                sequence[place], sequence[place + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network.to(memory_format=torch.channels_last)


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

    All weights are set positive and norms and activations to the identity, so that nothing can
    cancel; the input is larger than the field, so that nothing is cut off; the answer is the side
    of the bounding box of the non-zero gradient of the centre output (float64, on a copy).
    """
    import copy

    layers = copy.deepcopy(network.layers).cpu().double()

    def linear(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, (nn.BatchNorm2d, nn.ReLU)):
                setattr(module, name, nn.Identity())
            else:
                linear(child)

    linear(layers)
    for parameter in layers.parameters():
        nn.init.constant_(parameter, 1.0 / parameter[0].numel() if parameter.ndim > 1 else 0.0)
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


def _unit(in_channels: int, unit: Conv) -> list[nn.Module]:
    modules: list[nn.Module]
    if unit.separable:
        modules = [
            DepthwiseConv2d(in_channels, unit.kernel, unit.stride, unit.padding, unit.dilation, unit.bias),
            nn.Conv2d(in_channels, unit.out_channels, 1, bias=unit.bias),
        ]
    else:
        modules = [
            DenseConv2d(
                in_channels, unit.out_channels, unit.kernel, unit.stride, unit.padding, unit.dilation, bias=unit.bias
            )
        ]
    if unit.norm:
        modules.append(nn.BatchNorm2d(unit.out_channels))
    if unit.activation:
        modules.append(nn.ReLU(inplace=True))
    return modules
