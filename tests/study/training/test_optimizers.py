"""Optimizers: every parameter belongs to one, Muon moves as its paper says, and a resume goes on exactly."""

from __future__ import annotations

import copy

import pytest
import torch

from search_spaces.architecture import Architecture, Conv, Residual
from search_spaces.candidate import Optimisation
from study.model.network import build
from study.training.optimizers import MUON_MOMENTUM, UPDATE_RMS, Muon, Together, _Stack, make_optimizer, orthogonalised

NETWORK = Architecture(
    (
        Conv(8),
        Residual((Conv(8), Conv(8, kernel=3, separable=True, bias=True, activation=False))),
        Conv(16, stride=2),
        Conv(16, dilation=2),
    )
)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_every_parameter_has_one_group_and_moves(name: str) -> None:
    network = build(NETWORK, seed=0)
    kernels = [p for p in network.parameters() if p.ndim > 1]  # a bias before a norm has no gradient
    before = [p.detach().clone() for p in kernels]
    optimizer = make_optimizer(network, Optimisation(optimizer=name, weight_decay=0.01))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.01)  # as a CUDA graph needs it
        if any(p.ndim <= 1 for p in group["params"]):
            assert group["weight_decay"] == 0.0
    network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(kernels, before, strict=True))


def test_muon_takes_kernels_that_mix_channels_alone() -> None:
    network = build(NETWORK, seed=0)
    optimizer = make_optimizer(network, Optimisation(optimizer="muon"))
    assert isinstance(optimizer, Together)
    shapes = [tuple(p.shape) for group in optimizer.optimizers[0].param_groups for p in group["params"]]
    # Not the first, not the depthwise one, not the classifier.
    assert shapes == [(8, 8, 3, 3), (8, 8, 1, 1), (16, 8, 3, 3), (16, 16, 3, 3)]


@pytest.mark.parametrize("shape", [(3, 8, 72), (2, 9, 40), (1, 16, 16)])
def test_singular_values_come_close_to_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrices)
    values = torch.linalg.svdvals(found)
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    kept = torch.einsum("nik,nij,nkj->nk", u, found, vh)  # along the matrix's own singular directions
    assert float(kept.min()) > 0.5


def test_a_step_of_muon_has_the_size_and_decay_it_promises() -> None:
    generator = torch.Generator().manual_seed(2)
    kernel = torch.nn.Parameter(torch.randn(16, 8, 3, 3, generator=generator))
    other = torch.nn.Parameter(torch.randn(16, 8, 3, 3, generator=generator))
    start = kernel.detach().clone()
    optimizer = Muon([{"params": [kernel, other], "weight_decay": 0.5}])
    optimizer.param_groups[0]["lr"] = 0.1
    kernel.grad = torch.randn(kernel.shape, generator=generator)
    other.grad = torch.randn(other.shape, generator=generator)
    first = kernel.grad.clone()
    optimizer.step()
    update = kernel.detach() - start * (1 - 0.1 * 0.5)
    assert float(update.square().mean().sqrt()) == pytest.approx(0.1 * UPDATE_RMS, rel=0.2)
    # The second step's direction is that of the gradient and the average of both (Nesterov).
    second = torch.randn(kernel.shape, generator=generator)
    average = MUON_MOMENTUM * (1 - MUON_MOMENTUM) * first + (1 - MUON_MOMENTUM) * second
    direction = (1 - MUON_MOMENTUM) * second + MUON_MOMENTUM * average
    before = kernel.detach().clone()
    kernel.grad, other.grad = second, torch.zeros_like(other)
    optimizer.step()
    expected = orthogonalised(direction.reshape(1, 16, -1))[0].reshape(kernel.shape) * UPDATE_RMS * 72**0.5
    assert torch.allclose(kernel, before * 0.95 - 0.1 * expected, atol=1e-5)


def test_kernels_padded_to_one_size_are_orthogonalised_as_by_themselves() -> None:
    """As a GPU does it: wide and tall ones, square ones and kernels of several taps, all in one stack."""
    generator = torch.Generator().manual_seed(3)
    kernels = [
        torch.randn(shape, generator=generator).to(memory_format=torch.channels_last)
        for shape in ((8, 24, 1, 1), (24, 8, 1, 1), (12, 12, 1, 1), (6, 4, 3, 3), (40, 2, 3, 3))
    ]
    together = _Stack(range(5), kernels).orthogonalised(kernels, 0.1)
    for kernel, update in zip(kernels, together, strict=True):
        (alone,) = _Stack([0], [kernel]).orthogonalised([kernel], 0.1)
        assert update.shape == kernel.shape
        assert update.stride() == kernel.stride()
        assert torch.allclose(update, alone, atol=1e-5)
        matrix = kernel.flatten(1)
        expected = orthogonalised((matrix if len(matrix) <= matrix.shape[1] else matrix.mT)[None])[0]
        expected = expected if len(matrix) <= matrix.shape[1] else expected.mT
        assert torch.allclose(update.flatten(1), -0.1 * UPDATE_RMS * max(matrix.shape) ** 0.5 * expected, atol=1e-4)


def test_a_restored_optimizer_goes_on_exactly() -> None:
    found = []
    for restored in (False, True):
        network = build(NETWORK, seed=0)
        optimizer = make_optimizer(network, Optimisation(optimizer="muon", weight_decay=0.01))
        for step in range(4):
            if restored and step == 2:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = make_optimizer(network, Optimisation(optimizer="muon", weight_decay=0.01))
                optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            optimizer.zero_grad()
            network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()
        found.append([p.detach().clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_rates_scale_with_the_batch() -> None:
    assert Optimisation(lr=0.1, batch_size=512).peak_lr == pytest.approx(0.4)
    assert Optimisation(lr=0.01, batch_size=512, optimizer="muon").peak_lr == pytest.approx(0.02)


def test_a_network_without_inner_kernels_is_adamws() -> None:
    network = build(Architecture((Conv(8, kernel=3, separable=True, dilation=2),)), seed=0)
    optimizer = make_optimizer(network, Optimisation(optimizer="muon"))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
