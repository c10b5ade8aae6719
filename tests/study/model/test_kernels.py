"""The kernels behind a training step give the right gradients, whatever the channels and dilation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from study.model import layers
from study.model.layers import DenseConv2d, DepthwiseConv2d, GroupedConv2d, on_grids

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
@pytest.mark.parametrize("side", [32, 20, 13])
def test_dense_convolution(channels: int, dilation: int, side: int):
    module = DenseConv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
    assert largest_error(module, side) < TOLERANCE


@pytest.mark.parametrize(
    ("channels", "dilation", "seen"), [(24, 2, 32), (40, 3, 48), (24, 1, 24), (32, 2, 32), (8, 3, 8)]
)
def test_a_dilated_kernel_sees_whole_groups_of_channels(
    channels: int, dilation: int, seen: int, monkeypatch: pytest.MonkeyPatch
):
    """What reads past its buffer otherwise does so on some processors only."""
    found: list[tuple[int, int]] = []
    conv2d = torch.nn.functional.conv2d

    def watched(x: torch.Tensor, weight: torch.Tensor, *more: object) -> torch.Tensor:
        found.append((x.shape[1], weight.shape[1]))
        return conv2d(x, weight, *more)

    monkeypatch.setattr("torch.nn.functional.conv2d", watched)
    module = DenseConv2d(channels, 8, 3, padding=dilation, dilation=dilation, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(torch.randn(2, channels, 8, 8))
    assert found == [(seen, seen)]


def test_dense_unpadded_reduction():
    assert largest_error(DenseConv2d(24, 40, 3, dilation=8, bias=False), 32) < TOLERANCE


@pytest.mark.parametrize(
    ("channels", "kernel", "dilation", "side"),
    [(8, 5, 3, 32), (24, 3, 1, 16), (24, 5, 2, 16), (48, 3, 3, 16), (56, 5, 1, 16), (8, 5, 3, 26), (24, 3, 2, 10)],
)
def test_depthwise_convolution(channels: int, kernel: int, dilation: int, side: int):
    module = DepthwiseConv2d(channels, kernel, 1, dilation * (kernel - 1) // 2, dilation, bias=True)
    assert largest_error(module, side) < TOLERANCE


@pytest.fixture
def dealt(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The inputs of convolutions that ran on grids."""
    found: list[torch.Size] = []

    def watched(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
        found.append(x.shape)
        return on_grids(x, conv)

    monkeypatch.setattr(layers, "on_grids", watched)
    return found


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda widest: monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: widest)


@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "dilation", "height", "width"),
    [(8, 8, 3, 2, 16, 16), (6, 6, 5, 3, 16, 11), (8, 2, 3, 5, 9, 32), (6, 6, 7, 4, 32, 32), (4, 4, 3, 3, 2, 7)],
)
def test_grids_compute_the_dilated_convolution(
    channels: int, groups: int, kernel: int, dilation: int, height: int, width: int
):
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(channels, channels, kernel, 1, padding, dilation, groups).double()
    x = torch.randn(3, channels, height, width, dtype=torch.float64).to(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    results = []
    for run in (conv, lambda x: on_grids(x, conv)):
        given = x.clone().requires_grad_()
        out = run(given)
        conv.zero_grad()
        out.backward(gradient)
        assert out.is_contiguous(memory_format=torch.channels_last)
        results.append([out, given.grad, conv.weight.grad, conv.bias.grad])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_dilated_kernels_run_on_grids_where_they_are_faster_there(
    dealt: list[torch.Size], processor: Callable[[str], None]
):
    processor("AVX2")
    near, far = (DepthwiseConv2d(4, 7, 1, 3 * d, d, bias=False) for d in (1, 2))
    short = DepthwiseConv2d(4, 3, 1, 2, 2, bias=False)
    unpadded = DepthwiseConv2d(4, 3, 1, 0, 2, bias=False)
    strided = GroupedConv2d(4, 8, 3, 2, 2, 2, 4)
    even = DepthwiseConv2d(4, 4, 1, 4, 2, bias=False)
    processor("AVX512")
    elsewhere = DepthwiseConv2d(4, 3, 1, 2, 2, bias=False)
    x = torch.randn(2, 4, 16, 16).to(memory_format=torch.channels_last)

    def n_dealt(module: nn.Module, training: bool) -> int:
        dealt.clear()
        module.train(training)(x)
        return len(dealt)

    assert [n_dealt(module, True) for module in (near, far, short, unpadded, strided, even)] == [0, 1, 1, 0, 0, 0]
    assert [n_dealt(module, False) for module in (near, far, short)] == [0, 1, 0]  # short ones are fast forward
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert n_dealt(short, True) == 1
    assert n_dealt(elsewhere, True) == 0
    assert len(short(x[:0])) == 0


@pytest.mark.parametrize(
    ("side", "kernel", "dilation", "training", "evaluating"),
    [(16, 3, 6, 1, 1), (16, 3, 7, 0, 1), (16, 3, 16, 0, 0), (8, 5, 3, 1, 1), (8, 3, 4, 0, 0), (32, 3, 4, 1, 0)],
)
def test_grids_of_few_pixels_are_left_alone(
    side: int,
    kernel: int,
    dilation: int,
    training: int,
    evaluating: int,
    dealt: list[torch.Size],
    processor: Callable[[str], None],
):
    processor("AVX2")
    module = DepthwiseConv2d(4, kernel, 1, dilation * (kernel // 2), dilation, bias=False)
    x = torch.randn(2, 4, side, side).to(memory_format=torch.channels_last)
    module(x)
    assert len(dealt) == training
    module.eval()(x)
    assert len(dealt) == training + evaluating


def test_exported_programs_hold_no_grids(dealt: list[torch.Size], processor: Callable[[str], None]):
    processor("AVX2")
    module, x = DepthwiseConv2d(4, 7, 1, 6, 2, bias=False).eval(), torch.randn(2, 4, 16, 16)
    program = torch.export.export(module, (x,))
    assert dealt == []
    torch.testing.assert_close(program.module()(x), module(x))
    assert len(dealt) == 1


@pytest.mark.slow
def test_grids_compile(dealt: list[torch.Size], processor: Callable[[str], None]):
    processor("AVX2")
    module, x = DepthwiseConv2d(4, 3, 1, 2, 2, bias=False), torch.randn(2, 4, 16, 16)
    expected = module(x)
    dealt.clear()
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), expected)
    assert len(dealt) == 1  # while it was traced
