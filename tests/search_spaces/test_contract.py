"""What every registered space promises, whatever it searches."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces import DEFAULT_SPACE, SPACES, UnknownSpaceError, get_space
from search_spaces.architecture import Architecture
from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, InfeasibleError, Limits, certify
from search_spaces.cost import CostModel
from search_spaces.reference import REFERENCE
from search_spaces.space import SearchSpace
from search_spaces.training_dimensions import TRAINING_DIMENSIONS
from study.machine.paths import REPOSITORY
from study.model.certificate import certify_module, count_params, measure_receptive_field
from study.model.layers import Add, Gate, LayerNorm2d, ParallelBranches, Scale, TanhExp
from study.model.network import Network, build

LIMITS = {"default": Limits(), "small": Limits(max_params=100_000)}
CLOCK = Clock(
    CostModel(
        dense_mac_s=3e-12,
        depthwise_mac_s=4e-11,
        depthwise_other_mac_s=6e-11,
        activation_s=1e-10,
        image_s=1e-5,
        operation_s=1e-5,
        device="made",
    ),
    n_train=45_000,
    n_val=5_000,
)
ODD_LIMITS = {
    "5,000 parameters": Limits(max_params=5_000),
    "20,000 parameters, field > 150": Limits(max_params=20_000, min_receptive_field=150),
    "field > 200": Limits(min_receptive_field=200),
    "3,000,000 multiply-accumulates": Limits(max_macs=3_000_000),
    "4 s an epoch": Limits(max_epoch_s=4.0),
}


WATCHED = (
    nn.Conv2d,
    nn.BatchNorm2d,
    LayerNorm2d,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    TanhExp,
    Gate,
    Scale,
    Add,
    ParallelBranches,
)
"""Modules that are one operation each."""


@pytest.fixture(params=sorted(SPACES))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return get_space(request.param)


@pytest.fixture(params=sorted(LIMITS))
def limits(request: pytest.FixtureRequest) -> Limits:
    return LIMITS[request.param]


def _samples(space: SearchSpace, limits: Limits, n: int, seed: int = 0) -> list[Architecture]:
    rng = random.Random(seed)
    return [space.decode(space.sample(rng), limits, CLOCK).candidate.architecture for _ in range(n)]


def test_unknown_space_is_named_with_those_that_exist() -> None:
    with pytest.raises(UnknownSpaceError, match=f"'nonsense'.*{DEFAULT_SPACE}"):
        get_space("nonsense")


def test_name_version_and_tree(space: SearchSpace) -> None:
    assert SPACES[space.name] is type(space)
    assert space.version >= 1
    for name in space.dimensions:  # depth_1 .. depth_3 and the like stand in the tree by their own names
        assert name in space.tree, f"{name} is missing from the tree"


def test_dimensions_are_fixed(space: SearchSpace) -> None:
    other = get_space(space.name)
    before = dict(space.dimensions)
    for limits in LIMITS.values():
        other.decode(other.sample(random.Random(0)), limits)
    assert list(other.dimensions.items()) == list(before.items())
    assert len({hash(dimension) for dimension in before.values()}) > 1  # hashable, so frozen


def test_anchors_decode_feasibly(space: SearchSpace, limits: Limits) -> None:
    anchors = space.anchors(limits)
    assert "default" in anchors
    for name, params in anchors.items():
        assert set(params) == set(space.dimensions), name
        for dimension, value in params.items():
            assert space.dimensions[dimension].contains(value), (name, dimension, value)
        decoded = space.decode(params, limits)
        certify(decoded.candidate.architecture, limits)
        assert decoded.repairs == (), name


def test_samples_are_feasible_and_survive_json(space: SearchSpace, limits: Limits) -> None:
    rng = random.Random(1)
    ids = set()
    for _ in range(300):
        params = space.sample(rng)
        assert set(params) == set(space.dimensions)
        for name, value in params.items():
            assert space.dimensions[name].contains(value), (name, value)
        candidate = space.decode(params, limits).candidate
        assert all(constraint.feasible for constraint in certify(candidate.architecture, limits))
        again = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
        assert again == candidate
        assert again.candidate_id == candidate.candidate_id
        assert again.architecture.architecture_id == candidate.architecture.architecture_id
        ids.add(candidate.architecture.architecture_id)
    assert len(ids) >= 0.95 * 300


def test_decode_is_deterministic_and_leaves_its_input_alone(space: SearchSpace) -> None:
    rng = random.Random(2)
    for _ in range(50):
        params = space.sample(rng)
        before = dict(params)
        first, second = space.decode(params, Limits()), get_space(space.name).decode(params, Limits())
        assert first == second
        assert params == before


def test_the_same_seed_gives_the_same_ids_in_another_process(space: SearchSpace) -> None:
    """Ids are stored and compared across runs: nothing in them may depend on Python's hash seed."""
    code = (
        "import random; from search_spaces import get_space; from search_spaces.constraints import Limits\n"
        f"space, rng = get_space({space.name!r}), random.Random(3)\n"
        "print(*(space.decode(space.sample(rng), Limits()).candidate.candidate_id for _ in range(5)))"
    )
    there = _python(code).split()
    rng = random.Random(3)
    here = [space.decode(space.sample(rng), Limits()).candidate.candidate_id for _ in range(5)]
    assert there == here


@pytest.mark.parametrize("odd", sorted(ODD_LIMITS))
def test_odd_limits_are_met(space: SearchSpace, odd: str) -> None:
    for architecture in _samples(space, ODD_LIMITS[odd], 200):
        certify(architecture, ODD_LIMITS[odd], CLOCK)


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(max_params=500), "parameters"),
        (Limits(min_receptive_field=5_000), "receptive_field"),
        (Limits(max_macs=1_000), "macs"),
        (Limits(max_epoch_s=0.01), "epoch_s"),
    ],
)
def test_impossible_limits_are_named(space: SearchSpace, limits: Limits, name: str) -> None:
    rng = random.Random(4)
    for _ in range(10):
        with pytest.raises(InfeasibleError) as caught:
            space.decode(space.sample(rng), limits, CLOCK)
        assert name in {constraint.name for constraint in caught.value.broken}
        assert str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "of_limit",
    [
        lambda n: Limits(max_params=n // 2),
        lambda n: Limits(max_macs=n * 50),
        lambda n: Limits(max_epoch_s=n / 3_000),
        lambda n: Limits(min_receptive_field=2_000_000 // n),
    ],
    ids=["parameters", "macs", "epoch_s", "receptive_field"],
)
def test_whether_limits_can_be_met_does_not_depend_on_the_sample(
    space: SearchSpace, of_limit: Callable[[int], Limits]
) -> None:
    """A study checks its limits once, on an anchor; no later sample may then turn out infeasible."""
    n_met, n_limits = 0, 0
    for step in range(25):
        limits = of_limit(round(1_000 * 1.18**step))
        rng = random.Random(step)
        outcomes = {_decodes(space, space.sample(rng), limits) for _ in range(15)}
        assert len(outcomes) == 1, limits
        n_met, n_limits = n_met + outcomes.pop(), n_limits + 1
    assert 0 < n_met < n_limits  # the sweep crosses the border


def _decodes(space: SearchSpace, params: dict[str, Any], limits: Limits) -> bool:
    try:
        space.decode(params, limits, CLOCK)
    except InfeasibleError:
        return False
    return True


def test_default_limits_need_only_small_repairs() -> None:
    """Simplifying is for limits that hurt: here it would silently narrow what is searched."""
    space, rng = get_space("dilated"), random.Random(9)
    repairs = [space.decode(space.sample(rng), Limits()).repairs for _ in range(300)]
    assert sum(bool(found) for found in repairs) < 0.25 * 300
    assert sum("width ratios lowered to 1" in found for found in repairs) < 0.07 * 300
    kinds = {repair.partition(" (")[0] for found in repairs for repair in found}
    assert kinds <= {"last unit of stage 2 made separable", "dilations", "width ratios lowered to 1"}


def test_samples_of_the_published_space_stay_what_they_were() -> None:
    space, rng = get_space("dilated"), random.Random(0)
    found = [space.decode(space.sample(rng), Limits()).candidate.candidate_id for _ in range(3)]
    assert found == ["3d07f155309b", "cb880ac66a64", "35e74b703b1b"]


def test_spaces_share_the_dimensions_of_training(space: SearchSpace) -> None:
    names = list(TRAINING_DIMENSIONS)
    assert list(space.dimensions)[-len(names) :] == names
    assert all(space.dimensions[name] == dimension for name, dimension in TRAINING_DIMENSIONS.items())


@pytest.mark.parametrize("name", ["best", "multiscale", "separable"])
def test_new_spaces_are_rarely_simplified_under_the_default_limits(name: str) -> None:
    space, rng = get_space(name), random.Random(9)
    repairs = [space.decode(space.sample(rng), Limits()).repairs for _ in range(200)]
    kinds = [repair.partition(" (")[0] for found in repairs for repair in found]
    assert set(kinds) <= {"dilations", "dilations inside the map", "width ratios lowered to 1"}
    assert kinds.count("width ratios lowered to 1") < 0.05 * 200


def test_half_of_the_samples_reduce_by_dilation() -> None:
    n_dilated = sum(a.n_dilated_reductions > 0 for a in _samples(get_space("dilated"), Limits(), 600, seed=5))
    assert 0.42 < n_dilated / 600 < 0.58


def test_analytic_figures_equal_the_built_module(space: SearchSpace) -> None:
    for architecture in _samples(space, Limits(), 100, seed=6):
        with torch.device("meta"):
            network = build(architecture)
        assert count_params(network) == architecture.params
        certify_module(network, architecture, Limits())
        described = [
            (op.name, op.in_shape, op.out_shape, op.params, op.macs)
            for op in architecture.operations
            if op.name != "AvgPool2d"
        ]
        assert _observed(network) == described


def test_analytic_receptive_field_equals_the_measured_one(space: SearchSpace) -> None:
    n = 60 if space.name == "dilated" else 6  # seconds each, where fields are several times the image
    for architecture in _samples(space, Limits(max_params=30_000), n, seed=7):
        assert measure_receptive_field(build(architecture), architecture) == architecture.receptive_field


def test_one_training_step(space: SearchSpace) -> None:
    anchors = [space.decode(p, Limits()).candidate.architecture for p in space.anchors(Limits()).values()]
    for architecture in anchors + _samples(space, Limits(), 3, seed=8):
        network = build(architecture, seed=0).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        x, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
        first = nn.functional.cross_entropy(network(x), labels)
        torch.autograd.backward(first)
        gradients = [p.grad for p in network.parameters()]
        assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
        optimizer.step()
        assert nn.functional.cross_entropy(network(x), labels) < first


def test_search_spaces_need_neither_torch_nor_optuna() -> None:
    code = (
        "import sys, search_spaces, search_spaces.cost, search_spaces.reference\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(*sorted(loaded & {'torch', 'optuna', 'numpy', 'joblib', 'study'}))"
    )
    assert _python(code).split() == []


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def _observed(network: Network) -> list[tuple[str, tuple[int, ...], tuple[int, ...], int, int]]:
    """Name, shapes, parameters and multiply-accumulates of every operation, as run on one image."""
    rows: list[tuple[str, tuple[int, ...], tuple[int, ...], int, int]] = []
    counted: set[nn.Module] = set()

    def watch(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        name = type(module).__name__
        if isinstance(module, nn.Conv2d):
            name = "Conv2d"
        elif isinstance(module, ParallelBranches):
            name = {"sum": "Sum", "concat": "Concat"}[module.join]
        elif isinstance(module, nn.AvgPool2d):
            return  # the description's rows are compared without any pooling
        macs = module.weight.numel() * output.shape[2] * output.shape[3] if isinstance(module, nn.Conv2d) else 0
        params = 0 if module in counted or isinstance(module, ParallelBranches) else count_params(module)
        counted.add(module)
        rows.append((name, tuple(inputs[0].shape[1:]), tuple(output.shape[1:]), params, macs))

    inside_gates = {child for gate in network.modules() if isinstance(gate, Gate) for child in gate.children()}
    for module in network.modules():
        if isinstance(module, WATCHED) and module not in inside_gates:
            module.register_forward_hook(watch)
    device = next(network.parameters()).device
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32, device=device))
    return rows


def test_candidates_without_what_came_later_keep_their_ids() -> None:
    """The reference network was published before there was a choice of optimizer, colour or mixup."""
    folder = REPOSITORY / "results" / "dilated" / "reference"
    stored = json.loads((folder / "candidate.json").read_text())
    candidate = Candidate.from_json(stored)
    assert candidate == REFERENCE
    assert candidate.candidate_id == json.loads((folder / "metrics.json").read_text())["candidate_id"] == "ce05d1e08130"
    assert set(candidate.to_json()["optimisation"]) == set(stored["optimisation"])
    assert "optimizer" not in stored["optimisation"]
