"""The kernels behind a training step give the right gradients, whatever the channels and dilation."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from study.model.layers import DenseConv2d, DepthwiseConv2d

TOLERANCE = 0.02
"""Of the largest value. bfloat16 has 8 bits: results differ by less than 0.5%; a broken kernel by all of it."""


def largest_error(module: nn.Conv2d, side: int) -> float:
    """Of output and both gradients under bfloat16 autocast, against float64."""
    exact = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.bias is not None,
    ).double()
    exact.load_state_dict(module.state_dict())
    module = module.to(memory_format=torch.channels_last)
    images = torch.randn(32, module.in_channels, side, side).to(memory_format=torch.channels_last)
    x, y = images.clone().requires_grad_(), images.double().contiguous().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    gradient = torch.randn_like(out)
    out.backward(gradient)
    expected = exact(y)
    expected.backward(gradient.double())
    pairs = ((out, expected), (x.grad, y.grad), (module.weight.grad, exact.weight.grad))
    errors = []
    for found, wanted in pairs:
        assert found is not None
        assert wanted is not None
        error = (found.detach().double() - wanted.detach()).abs().max() / wanted.detach().abs().max()
        errors.append(float(error) if torch.isfinite(error) else float("inf"))
    return max(errors)


@pytest.mark.parametrize(("channels", "dilation"), list(itertools.product((8, 16, 24, 32, 40, 56), (1, 2, 3))))
def test_dense_convolution(channels: int, dilation: int):
    module = DenseConv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
    assert largest_error(module, 32) < TOLERANCE


def test_dense_unpadded_reduction():
    assert largest_error(DenseConv2d(24, 40, 3, dilation=8, bias=False), 32) < TOLERANCE


@pytest.mark.parametrize(
    ("channels", "kernel", "dilation", "side"),
    [(8, 5, 3, 32), (24, 3, 1, 16), (24, 5, 2, 16), (48, 3, 3, 16), (56, 5, 1, 16)],
)
def test_depthwise_convolution(channels: int, kernel: int, dilation: int, side: int):
    module = DepthwiseConv2d(channels, kernel, 1, dilation * (kernel - 1) // 2, dilation, bias=True)
    assert largest_error(module, side) < TOLERANCE
