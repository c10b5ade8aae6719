"""What every search space promises, whatever it searches: checked for ours by the tests, for a user's by
`study.describe file.py:Class --check`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from search_spaces.architecture import Architecture
from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, InfeasibleError, Limits, certify
from search_spaces.cost import CostModel
from search_spaces.space import SearchSpace
from study.command_line.wording import counted
from study.errors import first_line
from study.model.certificate import certify_module, count_params, measure_receptive_field
from study.model.layers import Add, Gate, LayerNorm2d, ParallelBranches, Scale, TanhExp
from study.model.network import Network, build

LIMITS = (Limits(), Limits(max_params=100_000), Limits(n_classes=100))
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
ODD_LIMITS = (
    Limits(max_params=5_000),
    Limits(max_params=20_000, min_receptive_field=150),
    Limits(min_receptive_field=200),
    Limits(max_macs=3_000_000),
    Limits(max_epoch_s=4.0),
)
IMPOSSIBLE = {
    "parameters": Limits(max_params=500),
    "receptive_field": Limits(min_receptive_field=5_000),
    "macs": Limits(max_macs=1_000),
    "epoch_s": Limits(max_epoch_s=0.01),
}
SWEEPS: tuple[Callable[[int], Limits], ...] = (
    lambda n: Limits(max_params=n // 2),
    lambda n: Limits(max_macs=n * 50),
    lambda n: Limits(max_epoch_s=n / 3_000),
    lambda n: Limits(min_receptive_field=2_000_000 // n),
)
"""From limits that nothing meets to such that everything does."""
WATCHED = (
    nn.Conv2d, nn.BatchNorm2d, LayerNorm2d, nn.ReLU, nn.GELU, nn.SiLU, TanhExp, Gate, Scale, Add, ParallelBranches,
)  # fmt: skip
"""Modules that are one operation each."""
MIN_DISTINCT = 0.95
Complaints = Iterator[str]


def complaint_of(space: SearchSpace, promise: str) -> str:
    """How `space` breaks one of `PROMISES`; empty if it does not."""
    try:
        return next(PROMISES[promise](space), "")
    except Exception as error:  # the space's own, of whatever kind
        return first_line(error)


def _dimensions(space: SearchSpace) -> Complaints:
    if space.version < 1:
        yield f"version must be at least 1: {space.version}"
    yield from (f"{name} is not in the tree" for name in space.dimensions if name not in space.tree)
    before = dict(space.dimensions)
    hash(tuple(before.values()))  # frozen
    for limits in LIMITS:
        space.decode(space.sample(random.Random(0)), limits)
    if list(space.dimensions.items()) != list(before.items()):
        yield "decoding changes them"


def _anchors(space: SearchSpace) -> Complaints:
    for limits in LIMITS:
        anchors = space.anchors(limits)
        if "default" not in anchors:
            yield "there is none called 'default'"
        for name, params in anchors.items():
            yield from (f"{name}: {each}" for each in _misfits(space, params))
            decoded = space.decode(params, limits)
            certify(decoded.candidate.architecture, limits)
            if decoded.repairs:
                yield f"{name} is repaired: {decoded.repairs[0]}"


def _misfits(space: SearchSpace, params: Any) -> Complaints:
    for name in params.keys() ^ space.dimensions.keys():
        yield f"{name} is a parameter or a dimension, not both"
    for name, dimension in space.dimensions.items():
        if not dimension.contains(params[name]):
            yield f"{name}={params[name]!r} is outside of its dimension, {dimension}"


def _samples(space: SearchSpace) -> Complaints:
    n = 200
    for limits in LIMITS:
        rng, ids = random.Random(1), set()
        for _ in range(n):
            params = space.sample(rng)
            yield from _misfits(space, params)
            candidate = space.decode(params, limits).candidate
            certify(candidate.architecture, limits)
            again = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
            if again != candidate or again.candidate_id != candidate.candidate_id:
                yield "a candidate does not survive JSON"
            ids.add(candidate.architecture.architecture_id)
        if len(ids) < MIN_DISTINCT * n:
            yield f"{n} samples are only {counted(len(ids), 'different network')}"


def _determinism(space: SearchSpace) -> Complaints:
    rng = random.Random(2)
    for _ in range(50):
        params = space.sample(rng)
        before = dict(params)
        if space.decode(params, Limits()) != type(space)().decode(params, Limits()):
            yield "the same parameters decode to different candidates"
        if params != before:
            yield "decoding changes its parameters"


def _odd_limits(space: SearchSpace) -> Complaints:
    for limits in ODD_LIMITS:
        for architecture in sampled(space, limits, 200):
            certify(architecture, limits, CLOCK)
    yield from ()


def _impossible_limits(space: SearchSpace) -> Complaints:
    for name, limits in IMPOSSIBLE.items():
        rng = random.Random(4)
        for _ in range(10):
            try:
                space.decode(space.sample(rng), limits, CLOCK)
            except InfeasibleError as error:
                if name not in {constraint.name for constraint in error.broken}:
                    yield f"{name} is broken, and decoding says: {error}"
            else:
                yield f"decoding returns a candidate that breaks {name}"


def _independence(space: SearchSpace) -> Complaints:
    for of_limit in SWEEPS:
        swept = [of_limit(round(1_000 * 1.18**step)) for step in range(25)]
        met = [_outcomes(space, limits, 4, seed) for seed, limits in enumerate(swept)]
        for step in range(len(swept) - 1):
            if met[step] != met[step + 1]:  # beside a change a sample may matter
                for seed in (step, step + 1):
                    met[seed] |= _outcomes(space, swept[seed], 15, seed)
        for limits in (limits for limits, outcomes in zip(swept, met, strict=True) if len(outcomes) > 1):
            yield f"under {limits} some samples decode and others do not"
        if met == met[:1] * len(met):
            yield f"from {swept[0]} to {swept[-1]} nothing changes"


def _outcomes(space: SearchSpace, limits: Limits, n: int, seed: int) -> set[bool]:
    rng = random.Random(seed)
    return {_decodes(space, space.sample(rng), limits) for _ in range(n)}


def _decodes(space: SearchSpace, params: dict[str, Any], limits: Limits) -> bool:
    try:
        space.decode(params, limits, CLOCK)
    except InfeasibleError:
        return False
    return True


def _figures(space: SearchSpace) -> Complaints:
    for architecture in sampled(space, Limits(), 100, seed=6):
        with torch.device("meta"):
            network = build(architecture)
        if count_params(network) != architecture.params:
            yield f"{architecture.params:,} parameters described, {count_params(network):,} built"
        certify_module(network, architecture, Limits())
        described = [
            (op.name, op.in_shape, op.out_shape, op.params, op.macs)
            for op in architecture.operations
            if op.name != "AvgPool2d"
        ]
        if observed(network) != described:
            yield f"architecture {architecture.architecture_id} runs other operations than it describes"


def _receptive_field(space: SearchSpace) -> Complaints:
    n = 60 if space.name == "dilated" else 6  # seconds each, where fields are several times the image
    for architecture in sampled(space, Limits(max_params=30_000), n, seed=7):
        found = measure_receptive_field(build(architecture), architecture)
        if found != architecture.receptive_field:
            yield f"{architecture.receptive_field} described, {found} measured"


def _training(space: SearchSpace) -> Complaints:
    anchors = [space.decode(p, Limits()).candidate.architecture for p in space.anchors(Limits()).values()]
    for architecture in anchors + sampled(space, Limits(), 3, seed=8):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            x, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
        network = build(architecture, seed=0).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        losses, moved = [], set[str]()
        for _ in range(2):  # what a block that starts as the identity holds is reached by the second step
            losses.append(nn.functional.cross_entropy(network(x), labels))
            optimizer.zero_grad()
            torch.autograd.backward(losses[-1])
            gradients = {name: p.grad for name, p in network.named_parameters()}
            if not all(g is not None and bool(g.isfinite().all()) for g in gradients.values()):
                yield f"architecture {architecture.architecture_id} has parameters without a finite gradient"
            moved |= {name for name, g in gradients.items() if g is not None and bool(g.any())}
            optimizer.step()
        if still := [name for name, p in network.named_parameters() if p.dim() > 1 and name not in moved]:
            yield f"architecture {architecture.architecture_id} has weights that never learn: {', '.join(still[:3])}"
        if not losses[1] < losses[0]:
            yield f"architecture {architecture.architecture_id} does not learn"


PROMISES: dict[str, Callable[[SearchSpace], Complaints]] = {
    "dimensions are fixed and stand in the tree": _dimensions,
    "anchors decode as they are": _anchors,
    "samples meet the limits, differ and survive JSON": _samples,
    "decoding depends on its arguments alone": _determinism,
    "odd limits are met": _odd_limits,
    "limits that nothing meets are named": _impossible_limits,
    "whether limits can be met does not depend on the sample": _independence,
    "described figures are those of the built network": _figures,
    "the described receptive field is the measured one": _receptive_field,
    "a step of training lowers the loss": _training,
}


def sampled(space: SearchSpace, limits: Limits, n: int, seed: int = 0) -> list[Architecture]:
    """The networks of `n` samples."""
    rng = random.Random(seed)
    return [space.decode(space.sample(rng), limits, CLOCK).candidate.architecture for _ in range(n)]


def observed(network: Network) -> list[tuple[str, tuple[int, ...], tuple[int, ...], int, int]]:
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
