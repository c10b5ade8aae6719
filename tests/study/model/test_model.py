"""The builder, and what is read off a built module."""

from __future__ import annotations

import copy
import math
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from search_spaces import SPACES, get_space
from search_spaces.architecture import Architecture, Branch, Branches, Conv, Gated, Layer, Residual
from search_spaces.constraints import InfeasibleError, Limits
from search_spaces.reference import REFERENCE_ARCHITECTURE
from study.bundle.preprocessing import CIFAR_10
from study.bundle.programs import int8_program, onnx_program, run_by_onnxruntime, run_by_torch, torch_program
from study.data.batches import normalise
from study.data.cifar10 import MEAN, STD
from study.machine.paths import REPOSITORY
from study.model.certificate import certify_module, count_params, measure_receptive_field
from study.model.layers import DepthwiseConv2d, LayerNorm2d, ResidualBlock, TanhExp, depthwise_class
from study.model.network import Deployable, build, folded, use_native_depthwise

SMALL = Architecture(
    (
        Conv(8, stride=2),
        Residual((Conv(8), Conv(8, separable=True, bias=True, activation=False))),
        Conv(12, dilation=2),
    )
)


def test_frozen_parameters_count() -> None:
    module = nn.Conv2d(3, 8, 3).requires_grad_(False)
    assert count_params(module) == 3 * 8 * 9 + 8


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    assert count_params(nn.Sequential(first, second)) == 200
    second.weight = first.weight
    assert count_params(nn.Sequential(first, second)) == 100


def test_buffers_count_unless_they_are_running_statistics() -> None:
    norm = nn.BatchNorm2d(8)
    assert count_params(norm) == 16
    module = nn.Sequential(norm, nn.Conv2d(8, 1, 1, bias=False))
    module.register_buffer("table", torch.zeros(5, 7))
    assert count_params(module) == 16 + 8 + 35


@pytest.mark.parametrize(
    ("layers", "field"),
    [
        ((Conv(4),), 3),
        ((Conv(4, kernel=5, dilation=3),), 13),
        ((Conv(4, stride=2), Conv(4, stride=2), Conv(4)), 15),
        ((Conv(4, dilation=8, padded=False), Conv(4)), 19),
        ((Conv(4), Residual((Conv(4), Conv(4, dilation=2, activation=False)))), 9),
        ((Conv(4, separable=True, kernel=5), Conv(4, kernel=1)), 5),
    ],
)
def test_measured_receptive_field_of_known_cases(layers: tuple[Layer, ...], field: int) -> None:
    architecture = Architecture(layers)
    network = build(architecture)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert measure_receptive_field(network, architecture) == field
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_receptive_field_is_that_of_the_module_not_of_the_description() -> None:
    described = Architecture((Conv(4), Conv(4, dilation=3)))
    network = build(Architecture((Conv(4), Conv(4, dilation=2))))
    assert described.receptive_field == 9
    assert measure_receptive_field(network, described) == 7


def _broken(network: nn.Module, limits: Limits | None = None) -> set[str]:
    with pytest.raises(InfeasibleError) as caught:
        certify_module(network, REFERENCE_ARCHITECTURE, limits or Limits())  # type: ignore[arg-type]
    return {constraint.name for constraint in caught.value.broken}


def test_certify_module_passes_what_it_should() -> None:
    certify_module(build(REFERENCE_ARCHITECTURE), REFERENCE_ARCHITECTURE, Limits())
    certify_module(build(REFERENCE_ARCHITECTURE), REFERENCE_ARCHITECTURE, Limits(max_params=175_697))


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(4)])
def test_certify_module_catches_pooling(pool: nn.Module) -> None:
    network = build(REFERENCE_ARCHITECTURE)
    network.layers.insert(6, pool)
    assert _broken(network) == {"pooling"}


def test_certify_module_catches_too_many_parameters() -> None:
    assert _broken(build(REFERENCE_ARCHITECTURE), Limits(max_params=175_696)) == {"parameters"}
    network = build(REFERENCE_ARCHITECTURE)
    network.register_buffer("table", torch.zeros(30_000))
    assert _broken(network) == {"parameters", "analytic_parameters"}


def test_certify_module_catches_missing_convolutions() -> None:
    plain = build(Architecture((Conv(8), Conv(8))))
    assert _broken(plain) == {"dilated_convolution", "depthwise_separable_convolution", "analytic_parameters"}


def test_depthwise_runs_in_float32_under_cpu_autocast() -> None:
    conv = DepthwiseConv2d(16, 5, 1, 4, 2, bias=True)
    x = torch.randn(2, 16, 16, 16)
    wanted = conv(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = conv(x)
        from_half = conv(x.bfloat16())
        plain = nn.functional.conv2d(x, conv.weight, conv.bias, 1, 4, 2, 16)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert from_half.dtype == torch.float32
    assert (from_half - wanted).abs().max() < 0.05
    assert plain.dtype == torch.bfloat16  # so the module's own handling is what the test sees


def test_folding_the_norms_changes_nothing_but_rounding() -> None:
    network = build(REFERENCE_ARCHITECTURE, seed=0)
    network(torch.randn(64, 3, 32, 32))  # running statistics that are no longer the initial ones
    for norm in [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]:
        nn.init.normal_(norm.weight, 1.0, 0.2)
        nn.init.normal_(norm.bias)
    before = copy.deepcopy(network.state_dict())
    x = torch.randn(8, 3, 32, 32)
    found = folded(network.eval())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())
    assert torch.allclose(found(x), network(x), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_network_under_autocast_is_close_to_float32() -> None:
    network = build(SMALL, seed=0).eval()
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        wanted = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(x).float()
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_a_seed_decides_the_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    first = build(SMALL, seed=5)
    assert torch.equal(torch.rand(1), wanted)
    again, other = build(SMALL, seed=5), build(SMALL, seed=6)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_residual_blocks_start_as_the_identity() -> None:
    network = build(SMALL, seed=0)
    block = next(module for module in network.modules() if isinstance(module, ResidualBlock))
    x = torch.rand(2, 8, 16, 16)
    assert torch.equal(block(x.clone()), x)


def test_the_classifier_sees_the_global_average() -> None:
    network = build(SMALL, seed=0).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits, features = network(x), network.layers(x)
        wanted = features.mean((2, 3)) @ network.classifier.weight[:, :, 0, 0].T
    assert logits.shape == (3, 10)
    torch.testing.assert_close(logits, wanted)


def test_deployable_normalises_as_training_does() -> None:
    network = build(SMALL, seed=0).eval()
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        found = Deployable(network).eval()(pixels.permute(0, 3, 1, 2).float() / 255)
        wanted = network(normalise(pixels))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    by_hand = (pixels[0, 0, 0, 2].item() / 255 - MEAN[2]) / STD[2]
    assert normalise(pixels)[0, 2, 0, 0].item() == pytest.approx(by_hand, abs=1e-5)


BRANCHES = (Branch(1), Branch(3), Branch(5, dilation=2))
EVERY_MODULE = Architecture(
    (
        Conv(12, bias=True, activation=False, norm_type="layer"),
        Residual(
            (Branches(BRANCHES, norm_type="layer"), Gated(12, 16, activation_type="tanhexp")),
            activation=False,
            scaled="identity",
        ),
        Conv(24, kernel=4, stride=2, groups=4, activation_type="silu"),
        Residual(
            (Branches(BRANCHES, "sum", activation=True), Gated(24, 8, norm=True, activation_type="relu")), scaled="body"
        ),
        Conv(32, kernel=2, stride=2, activation_type="gelu"),
        Residual(
            (
                Conv(48, kernel=1, norm_type="layer", activation_type="gelu"),
                Conv(48, kernel=3, groups=48, activation_type="silu"),
                Conv(32, kernel=1, activation=False),
            ),
            activation=False,
            times=3,
        ),
    ),
    classifier_bias=True,
)


@pytest.mark.parametrize(
    ("layer", "field"),
    [
        (Branches(BRANCHES), 9),
        (Branches(BRANCHES, "sum"), 9),
        (Branches((Branch(1), Branch(3, smooth=True), Branch(3))), 5),
        (Gated(8, 8), 1),
        (Residual((Branches(BRANCHES), Gated(8, 8)), scaled="identity"), 9),
        (Residual((Conv(8, groups=8, norm_type="layer"),), scaled="body", times=3), 7),
        (Conv(8, kernel=4, stride=2, groups=4), 4),
    ],
)
def test_measured_receptive_field_of_new_blocks(layer: Layer, field: int) -> None:
    architecture = Architecture((Conv(8, kernel=1), layer))
    assert architecture.receptive_field == field
    assert measure_receptive_field(build(architecture), architecture) == field


def test_a_field_is_of_channels_that_meet() -> None:
    """What one branch and the next add to different channels no output sees together."""
    first, second = (Branch(7, 3), Branch(1)), (Branch(1), Branch(7, 3))
    layers = (Conv(8, separable=True), Branches(first), Branches(second), Conv(8, kernel=1), *(Conv(8),) * 3)
    architecture = Architecture(layers)
    assert architecture.receptive_field == 27  # of 45 if both had widened the same ones
    assert measure_receptive_field(build(architecture), architecture) == 27
    mixed = Architecture((layers[0], Branches(first, norm_type="layer"), *layers[2:]))  # over the channels of a pixel
    assert mixed.receptive_field == measure_receptive_field(build(mixed), mixed) == 45


@pytest.mark.parametrize("seed", range(20))
def test_fields_of_whatever_does_not_mix_its_channels(seed: int) -> None:
    rng = random.Random(seed)
    layers, width = list[Layer]([Conv(8)]), 8
    for _ in range(6):
        branches = tuple(Branch(rng.choice((1, 3, 5)), rng.choice((1, 2))) for _ in range(rng.randint(1, 3)))
        norm = rng.choice(("batch", "batch", "layer"))
        apart = Branches((*branches, Branch(3)), rng.choice(("sum", "concat")), norm_type=norm)
        conv = Conv(rng.choice((4, 8, 12)), kernel=rng.choice((1, 3)), groups=rng.choice((1, 2, 4)))
        layers.append(rng.choice((conv, apart, Residual((apart,)), Residual((Conv(width, groups=width),)))))
        width = conv.out_channels if layers[-1] is conv else width
    architecture = Architecture(tuple(layers))
    assert measure_receptive_field(build(architecture), architecture) == architecture.receptive_field


def test_figures_of_every_module_agree() -> None:
    network = build(EVERY_MODULE)
    assert count_params(network) == EVERY_MODULE.params
    assert measure_receptive_field(network, EVERY_MODULE) == EVERY_MODULE.receptive_field
    certify_module(network, EVERY_MODULE, Limits())


def test_runs_share_weights_and_have_norms_of_their_own() -> None:
    block = Residual((Conv(8, activation=False),), activation=False, times=3)
    network = build(Architecture((Conv(8), block)), seed=0).train()
    repeated = next(module for module in network.modules() if isinstance(module, ResidualBlock))
    conv, norms = repeated.body
    for norm in norms:  # started at zero
        nn.init.ones_(norm.weight)
    x = torch.randn(4, 8, 16, 16)
    wanted = x
    for _ in norms:
        copied = nn.BatchNorm2d(8).train()
        wanted = copied(conv(wanted)) + wanted
    torch.testing.assert_close(repeated(x), wanted)
    means = [norm.running_mean for norm in norms]
    assert not torch.allclose(means[0], means[1])
    tensors = network.state_dict(keep_vars=True).values()
    assert len({id(tensor) for tensor in tensors}) == len(tensors)  # an average over them counts none twice


@pytest.mark.parametrize("scaled", [None, "body", "identity"])
@pytest.mark.parametrize("norm", [False, True])
def test_every_kind_of_block_starts_near_the_identity_and_learns(scaled: str | None, norm: bool) -> None:
    body = (Branches(BRANCHES), Gated(12, 16, norm=norm))
    network = build(Architecture((Conv(12), Residual(body, activation=False, scaled=scaled))), seed=0)
    block = next(module for module in network.modules() if isinstance(module, ResidualBlock))
    x = torch.randn(4, 12, 16, 16)
    if scaled == "body":
        assert (block(x) - x).norm() < 0.3 * x.norm()
    else:
        assert torch.equal(block(x), x)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (block(x) ** 2).mean().backward()
        optimizer.step()
    still = [
        name for name, p in block.named_parameters() if "weight" in name and p.grad is not None and not p.grad.any()
    ]
    assert still == []


@pytest.mark.parametrize("activation_type", ["relu", "silu"])
def test_a_body_that_ends_in_its_activation_learns(activation_type: str) -> None:
    """Of zeros ReLU lets no gradient through."""
    convs = (Conv(12, activation_type=activation_type), Conv(12, activation_type=activation_type))
    network = build(Architecture((Conv(12), Residual(convs))), seed=0)
    optimizer, x = torch.optim.SGD(network.parameters(), lr=0.1), torch.randn(8, 3, 32, 32)
    moved = set[str]()
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), torch.arange(8)).backward()
        moved |= {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    assert {name for name, p in network.named_parameters() if p.dim() > 1} <= moved


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("dilation", [1, 3])
def test_torchs_own_depthwise_kernels_are_given_plain_memory(kernel: int, dilation: int) -> None:
    """What a GPU chooses by is memory formats; values, gradients and the format of the result must not change."""
    conv = DepthwiseConv2d(16, kernel, 1, dilation * (kernel - 1) // 2, dilation, bias=True)
    conv.weight.data = conv.weight.data.as_strided(conv.weight.shape, (kernel**2, 1, kernel, 1))
    x = torch.randn(4, 16, 16, 16).to(memory_format=torch.channels_last)
    found, seen = [], []
    for classes in (frozenset(), frozenset({depthwise_class(conv, 16)})):
        conv.native = classes
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        conv.zero_grad()
        with ConvolutionFormats() as formats:
            out = conv(given)
        out.square().sum().backward()
        assert out.is_contiguous(memory_format=torch.channels_last)
        found.append([out, given.grad, conv.weight.grad])
        seen.append(formats.found)
    for plain, native in zip(*found, strict=True):
        assert torch.allclose(plain, native, rtol=1e-4, atol=1e-4)
    assert seen == [[(False, True)], [(True, False)]]  # plain memory throughout, or channels_last throughout


class ConvolutionFormats(TorchDispatchMode):
    """Of every convolution: whether its input is plain memory, and whether its weight's strides say channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[bool, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight = args[:2]
            # [C, 1, k, k] fits both readings of its memory; this stride decides which one torch sees.
            self.found.append((x.is_contiguous(), weight.stride(1) == 1))
        return func(*args, **(kwargs or {}))


def test_classes_of_depthwise_convolutions() -> None:
    conv = DepthwiseConv2d(8, 7, 1, 9, 3, bias=True)
    assert [depthwise_class(conv, side) for side in (64, 32, 16, 14, 4)] == [
        (7, True, 32), (7, True, 32), (7, True, 16), (7, True, 8), (7, True, 8)
    ]  # fmt: skip
    space = get_space("best")
    network = build(space.decode(space.anchors(Limits())["default"], Limits()).candidate.architecture)
    use_native_depthwise(network, frozenset({(7, True, 32)}))
    chosen = [module.native for module in network.modules() if isinstance(module, DepthwiseConv2d)]
    assert len(chosen) == 21
    assert set(chosen) == {frozenset({(7, True, 32)})}


def test_first_losses_are_those_of_chance() -> None:
    """About ln 10 in every space, whatever the classifier's fan-out."""
    for name in SPACES:
        space = get_space(name)
        architecture = space.decode(space.anchors(Limits())["default"], Limits()).candidate.architecture
        logits = build(architecture, seed=0).train()(torch.randn(64, 3, 32, 32))
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(64) % 10)
        assert loss.item() == pytest.approx(math.log(10), abs=0.8), name


def test_every_module_in_bfloat16_and_channels_last_is_close_to_float32() -> None:
    network = build(EVERY_MODULE, seed=0)
    x = torch.randn(4, 3, 32, 32)
    wanted = network(x)
    network = network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(x.to(memory_format=torch.channels_last)).float()
    assert (found - wanted).norm() < 0.1 * wanted.norm()
    found.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_every_module_exports_with_any_batch(tmp_path: Path) -> None:
    network = build(EVERY_MODULE, seed=0).eval()
    module = Deployable(network).eval().requires_grad_(False)
    content, _ = torch_program(module, EVERY_MODULE, CIFAR_10)  # compares itself
    (tmp_path / "model.pt2").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        assert not [name for name in archive.namelist() if str(REPOSITORY).encode() in archive.read(name)]


def test_tanhexp_is_finite_for_large_inputs() -> None:
    x = torch.tensor([-100.0, -1.0, 0.0, 1.0, 4.0, 100.0], requires_grad=True)
    y = TanhExp()(x)
    y.sum().backward()
    wanted = x.detach().double() * torch.tanh(torch.exp(x.detach().double()))
    torch.testing.assert_close(y, wanted.float())
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_layer_norm_normalises_the_channels_of_each_pixel() -> None:
    x = torch.randn(2, 6, 4, 5) * 3 + 1
    y = LayerNorm2d(6)(x)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 4, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, unbiased=False), torch.ones(2, 4, 5), atol=1e-3, rtol=0)


def test_folding_norms_changes_no_block() -> None:
    network = build(EVERY_MODULE, seed=0).train()
    network(torch.randn(16, 3, 32, 32))  # moves the running statistics
    network.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(x), network(x), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_every_module_becomes_onnx() -> None:
    pytest.importorskip("onnxruntime")
    network = build(EVERY_MODULE, seed=0).eval().requires_grad_(False)
    images = np.random.default_rng(0).random((5, 3, 32, 32), np.float32)
    expected = run_by_torch(Deployable(network).eval())(images)
    program = onnx_program(network, CIFAR_10)
    np.testing.assert_allclose(run_by_onnxruntime(program)(images), expected, rtol=1e-3, atol=1e-4)
    small = run_by_onnxruntime(int8_program(program, images, CIFAR_10))(images)
    assert np.abs(small - expected).max() < 0.5 * np.ptp(expected)
