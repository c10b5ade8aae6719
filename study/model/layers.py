"""The modules that networks are made of, and how units of an architecture become modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from search_spaces.architecture import Branches, Conv, Gated, Residual, Unit

CHANNEL_GROUP = 16
"""Channels that oneDNN's bfloat16 kernels process together."""


class DenseConv2d(nn.Conv2d):
    """A dense convolution, [N, C, H, W] -> [N, C', H', W'], with correct gradients everywhere.

    oneDNN's bfloat16 kernel for the weight gradient of a dilated convolution reads past its buffer when
    the input channels are more than one group and no whole number of groups (24 or 40 channels on 32x32
    maps gave NaN or wrong values). Under autocast on a CPU, zero channels fill the last group of such an
    input; they change no result.
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


class GroupedConv2d(nn.Conv2d):
    """A convolution in groups of channels, [N, C, H, W] -> [N, C', H', W'].

    On a CPU it runs in float32 even under autocast: the bfloat16 kernels there are up to 2.5 times slower
    for depthwise kernels larger than 3 and dilated ones, and for some shapes their gradients are wrong (8
    channels, kernel 5, dilation 3 on 32x32 maps gave NaN).

    Dilated ones run `on_grids` where a processor has AVX2 and no more: oneDNN's gradients of them take 4 to 10 times as
    long there as those of undilated ones, and beyond a padding of 4 so does the convolution itself.

    Attributes:
        grids: Whether this processor is one of those.
    """

    def __init__(self, *of_convolution: Any, **more: Any) -> None:
        super().__init__(*of_convolution, **more)
        self.grids = torch.backends.cpu.get_cpu_capability() == "AVX2"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.forward(x.float())
        return on_grids(x, self) if self._wants_grids(min(x.shape[2:])) else super().forward(x)

    def _wants_grids(self, side: int) -> bool:
        kernel, dilation, padding = self.kernel_size[0], self.dilation[0], int(self.padding[0])
        keeps_size = kernel % 2 == 1 and self.stride[0] == 1 and padding == dilation * (kernel // 2)
        return (
            self.grids
            and dilation > 1
            and keeps_size
            # Grids of one or two pixels, most of them filled up, cost more than they save.
            and (5 * dilation <= 2 * side if self.training else padding > 4 and dilation < side)
            and not torch.compiler.is_exporting()  # an exported program is for any machine
        )


def on_grids(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """A dilated convolution that keeps the size of its maps, [N, C, H, W] -> [N, C', H, W], by undilated ones.

    Only pixels that lie a multiple of the dilation apart meet. So the maps are dealt out to dilation x dilation smaller
    ones, which are convolved each by itself (space to batch; Chen et al. 2018, DeepLab). The sums stay the same.
    """
    d, (n, c, height, width) = conv.dilation[0], x.shape
    if height % d or width % d:
        x = F.pad(x, (0, -width % d, 0, -height % d))  # zeros, as the padding
    rows, columns = x.shape[2] // d, x.shape[3] // d
    dealt = x.permute(0, 2, 3, 1).reshape(n, rows, d, columns, d, c).permute(2, 4, 0, 1, 3, 5)
    grids = dealt.reshape(d * d * n, rows, columns, c).permute(0, 3, 1, 2)
    grids = F.conv2d(grids, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2, groups=conv.groups)
    dealt = grids.permute(0, 2, 3, 1).reshape(d, d, n, rows, columns, conv.out_channels).permute(2, 3, 0, 4, 1, 5)
    out = dealt.reshape(n, rows * d, columns * d, conv.out_channels)[:, :height, :width]
    return out.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


DepthwiseClass = tuple[int, bool, int]
"""Of depthwise convolutions that a GPU runs by the same kernels: kernel, whether it is dilated, side of the map."""


class DepthwiseConv2d(GroupedConv2d):
    """A depthwise convolution, [N, C, H, W] -> [N, C, H', W'].

    On a GPU, channels_last memory leads to cuDNN's grouped kernels, which for some shapes fall back to ones many
    times slower than torch's own kernel for depthwise convolutions, which wants plain memory. So the classes of
    `native` are brought into it and back.

    Attributes:
        native: Classes that torch's own kernel runs.
    """

    def __init__(self, channels: int, kernel: int, stride: int, padding: int, dilation: int, bias: bool) -> None:
        super().__init__(channels, channels, kernel, stride, padding, dilation, channels, bias)
        self.native: frozenset[DepthwiseClass] = frozenset()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if depthwise_class(self, x.shape[-1]) not in self.native:
            # A slice of channels has gaps between its pixels, for which there is no fast convolution.
            return super().forward(x if x.is_contiguous() else x.contiguous(memory_format=torch.channels_last))
        # [C, 1, k, k] may be read as channels_last too; these strides say that it is not.
        weight = self.weight.flatten(1).view(-1, *self.kernel_size).unsqueeze(1)
        out = F.conv2d(x.contiguous(), weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return out.contiguous(memory_format=torch.channels_last)


def depthwise_class(conv: nn.Conv2d, side: int) -> DepthwiseClass:
    """Of `conv` on maps of `side` x `side`; sides count as 32, 16 or 8, whichever is the next smaller."""
    return conv.kernel_size[0], conv.dilation[0] > 1, 32 if side >= 32 else 16 if side >= 16 else 8


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel, [N, C, H, W] -> [N, C, H, W].

    In channels_last memory, in which networks train, both permutations are free. On a GPU it keeps the type of its
    input: autocast would turn it, and with it everything that is added to it, into float32. Means and variances are
    float32 inside in either case.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
            with torch.autocast("cuda", enabled=False):
                weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
                return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).permute(0, 3, 1, 2)
        return super().forward(x).permute(0, 3, 1, 2)


class RunNorms(nn.ModuleList):
    """One norm for every run of a repeated block: the runs share weights, but not statistics."""

    def forward(self, x: torch.Tensor, run: int) -> torch.Tensor:
        out: torch.Tensor = self[run](x)
        return out


class TanhExp(nn.Module):
    """x * tanh(exp(x)) (Liu and Di 2020)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # tanh(exp(5)) is 1 in float32; beyond that the exponential would only overflow.
        return x * torch.tanh(torch.exp(x.clamp(max=5.0)))


class Gate(nn.Module):
    """activation(a) * b for the halves (a, b) of the channels, [N, 2 C, H, W] -> [N, C, H, W]."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=1)
        out: torch.Tensor = self.activation(first) * second
        return out


class SumOfHalves(nn.Module):
    """What stands for a `Gate` where receptive fields are measured.

    A product of two positive sums depends on the pixels of both, and so does their sum; the sum stays
    linear, so that a gradient neither vanishes nor overflows. Both halves see the same pixels, so
    nothing is added that the product does not depend on.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=1)
        return first + second


class MeanOfChannels(nn.Module):
    """What a layer norm sees: every channel of a pixel, in all of them."""

    def forward(self, x: torch.Tensor, run: int = 0) -> torch.Tensor:
        return x + x.mean(1, keepdim=True)


class ParallelBranches(nn.Module):
    """Depthwise convolutions side by side, summed or concatenated, [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, channels: int, unit: Branches) -> None:
        super().__init__()
        self.sizes = list(unit.channels(channels))
        self.join = unit.join
        branches: list[nn.Module] = []
        for branch, size in zip(unit.branches, self.sizes, strict=True):
            steps: list[nn.Module] = [nn.AvgPool2d(3, stride=1, padding=1)] if branch.smooth else []
            if branch.kernel > 1:
                steps.append(_convolution(size, branch.conv(size, unit.bias)))
            branches.append(nn.Sequential(*steps))
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.join == "sum":
            first, *others = self.branches
            out: torch.Tensor = first(x)
            for branch in others:
                out = out + branch(x)
            return out
        parts = torch.split(x, self.sizes, dim=1)
        return torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], dim=1)


class Scale(nn.Module):
    """A learned scale per channel, [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), initial))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.to(x.dtype).view(1, -1, 1, 1)


class Add(nn.Module):
    """body + identity, [N, C, H, W] twice -> [N, C, H, W]."""

    def forward(self, body: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
        return body + identity


class ResidualBlock(nn.Module):
    """`activation(body(x) + x)`, one of both perhaps scaled, `times` times, [N, C, H, W] -> [N, C, H, W]."""

    INITIAL_BODY_SCALE = 0.1
    """Small, so that every block starts near the identity (Touvron et al. 2021, LayerScale)."""

    def __init__(self, channels: int, layer: Residual) -> None:
        super().__init__()
        self.times = layer.times
        body: list[nn.Module] = []
        for unit in layer.body:
            body += unit_modules(channels, unit, layer.times)
            channels = out_channels_of(channels, unit)
        self.body = nn.Sequential(*body)
        self.body_scale = Scale(channels, self.INITIAL_BODY_SCALE) if layer.scaled == "body" else None
        self.identity_scale = Scale(channels, 1.0) if layer.scaled == "identity" else None
        self.add = Add()
        self.activation = _activation(layer.activation_type) if layer.activation else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for run in range(self.times):
            body = x
            for module in self.body:
                body = module(body, run) if isinstance(module, RunNorms) else module(body)
            if self.body_scale is not None:
                body = self.body_scale(body)
            if self.identity_scale is not None:
                x = self.identity_scale(x)
            x = self.add(body, x)
            if self.activation is not None:
                x = self.activation(x)
        return x

    def start_as_identity(self) -> None:
        """Sets the body's last weights to zero, unless a small scale does the same, or a ReLU would let no gradient
        through to them ever after."""
        if self.body_scale is not None or isinstance(self.body[-1], nn.ReLU):
            return
        for module in reversed(self.body):
            last = [child for child in module.modules() if isinstance(child, (nn.BatchNorm2d, LayerNorm2d, nn.Conv2d))]
            for child in last:
                nn.init.zeros_(child.weight)
            if last:
                return


def unit_modules(in_channels: int, unit: Unit, runs: int = 1) -> list[nn.Module]:
    """The modules of `unit`; its norm once for every run."""
    modules: list[nn.Module]
    if isinstance(unit, Branches):
        modules = [ParallelBranches(in_channels, unit)]
    elif isinstance(unit, Gated):
        first, last = unit.convs
        gate = Gate(_activation(unit.activation_type, inplace=False))
        modules = [_convolution(in_channels, first), gate, _convolution(unit.hidden, last)]
    else:
        modules = [_convolution(in_channels, conv) for conv in unit.convs(in_channels)]
    if unit.norm:
        norms = [_NORMS[unit.norm_type](out_channels_of(in_channels, unit)) for _ in range(runs)]
        modules.append(RunNorms(norms) if runs > 1 else norms[0])
    if not isinstance(unit, Gated) and unit.activation:
        modules.append(_activation(unit.activation_type))
    return modules


def _convolution(in_channels: int, conv: Conv) -> nn.Module:
    geometry = (conv.kernel, conv.stride, conv.padding, conv.dilation)
    if conv.groups == 1:
        return DenseConv2d(in_channels, conv.out_channels, *geometry, bias=conv.bias)
    if conv.groups == in_channels == conv.out_channels:
        return DepthwiseConv2d(in_channels, *geometry, conv.bias)
    return GroupedConv2d(in_channels, conv.out_channels, *geometry, conv.groups, conv.bias)


def out_channels_of(in_channels: int, unit: Unit) -> int:
    return in_channels if isinstance(unit, Branches) else unit.out_channels


_NORMS: dict[str, type[nn.BatchNorm2d | LayerNorm2d]] = {"batch": nn.BatchNorm2d, "layer": LayerNorm2d}
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanhexp": TanhExp}


def _activation(activation_type: str, inplace: bool = True) -> nn.Module:
    """In place where the gradient needs nothing but the result."""
    return nn.ReLU(inplace=inplace) if activation_type == "relu" else _ACTIVATIONS[activation_type]()
