"""Compiling: decided by cost, remembered, and as exact as training without it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces import get_space
from search_spaces.candidate import Augmentation, Candidate
from search_spaces.constraints import Limits
from study.data.cifar10 import Images
from study.model.network import build
from study.training import compiling
from study.training.compiling import EXPECTED_COMPILE_S, EXPECTED_GAIN, Gain, fastest
from study.training.loop import Training, train
from study.training.records import TrainingConfig
from study.training.step import CapturedStep, Step

MOVED = Augmentation(0.5, 2)
SMALL = Limits(max_params=12_000)


def candidate(space: str, **changes: Any) -> Candidate:
    """A small member of `space`, all its kinds of operations included."""
    found = get_space(space)
    params = {**found.anchors(Limits())["default"], "depth_1": 2, "depth_2": 2, "batch_size": 64}
    made = found.decode(params, SMALL).candidate
    optimisation = dataclasses.replace(made.optimisation, **changes)
    return dataclasses.replace(made, augmentation=MOVED, optimisation=optimisation)


def made(images: Images, of: Candidate | None = None, **config: Any) -> Training:
    training = Training(of or candidate("dilated"), images, TrainingConfig(2, seed=3, **config), None)
    training.network.train()
    return training


class Compiler:
    """Stands for torch's: steps take `plain_s`, and `compiled_s` where the network is compiled; None fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plain_s: float, compiled_s: float | None) -> None:
        self.n_calls = 0

        def compiled(network: torch.nn.Module, fullgraph: bool) -> Any:
            assert fullgraph
            self.n_calls += 1
            if compiled_s is None:
                raise RuntimeError("no compiler")
            return lambda x: network(x)

        def seconds(step: Any, example: Any, n: int = 0) -> float | None:
            return plain_s if step.forward is step.state.network else compiled_s

        monkeypatch.setattr(torch, "compile", compiled)
        monkeypatch.setattr(compiling, "step_seconds", seconds)


@pytest.mark.parametrize(
    ("compiled_s", "n_steps", "compiles", "keeps"),
    [
        (0.005, 100_000, True, True),
        (0.02, 100_000, True, False),  # it came out slower
        (None, 100_000, True, False),  # the compiler failed
        (0.005, 10_000, False, False),  # too short to pay it back
        (0.005, 0, False, False),
    ],
)
def test_a_network_is_compiled_where_that_pays(
    tiny_images: Images,
    user_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiled_s: float | None,
    n_steps: int,
    compiles: bool,
    keeps: bool,
) -> None:
    assert 10_000 * 0.01 * EXPECTED_GAIN["cpu"] < EXPECTED_COMPILE_S < 100_000 * 0.01 * EXPECTED_GAIN["cpu"]
    compiler = Compiler(monkeypatch, 0.01, compiled_s)
    training = made(tiny_images)
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    train_on, compiled = fastest(training.step, training.example(), n_steps, "some network")
    assert bool(compiler.n_calls) == compiles
    assert compiled == keeps == (train_on is not training.step)
    assert isinstance(train_on, Step)
    assert keeps == (train_on.forward is not training.network)
    assert all(torch.equal(before[name], tensor) for name, tensor in training.network.state_dict().items())


def test_what_was_measured_decides_the_next_time(
    tiny_images: Images, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(n_steps: int, name: str = "a network") -> bool:
        training = made(tiny_images)
        return fastest(training.step, training.example(), n_steps, name)[1]

    compiler = Compiler(monkeypatch, 0.01, 0.002)
    assert not decide(5_000)  # 5 s of an assumed gain
    assert decide(100_000)
    assert decide(5_000)  # 40 s of a measured one; the compiler took next to nothing
    assert compiler.n_calls == 2
    assert not decide(5_000, "another")
    slower = Compiler(monkeypatch, 0.01, 0.011)
    assert not decide(100_000, "another")
    assert not decide(10_000_000, "another")
    assert slower.n_calls == 1  # however long the training, it is not tried again


def test_a_short_training_is_not_even_timed(
    tiny_images: Images, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> float:
        raise AssertionError("it was timed")

    monkeypatch.setattr(compiling, "step_seconds", never)
    training = made(tiny_images)
    assert fastest(training.step, training.example(), compiling.LEAST_STEPS - 1, "short")[1] is False
    with pytest.raises(AssertionError, match="it was timed"):
        fastest(training.step, training.example(), compiling.LEAST_STEPS, "short")


def test_gains_are_of_steps_left() -> None:
    assert Gain(0.010, 0.008, 60.0).pays(30_001)
    assert not Gain(0.010, 0.008, 60.0).pays(30_000)
    assert not Gain(0.010, 0.010, 0.0).pays(10**9)


def test_a_resumed_training_on_a_cpu_stays_what_it_was(
    tiny_images: Images, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(monkeypatch, 0.01, 0.005)
    fresh = made(tiny_images, compiled=True)
    fresh.prepare()
    assert fresh.checkpoint().compiled is False  # 10 steps
    monkeypatch.setattr(compiling, "step_seconds", None)  # nothing is left to measure
    for decided in (True, False):
        training = made(tiny_images, compiled=True)
        training.progress.compiled = decided
        training.prepare()
        assert training.checkpoint().compiled is decided
        assert isinstance(training.train_on, Step)
        assert (training.train_on.forward is training.network) is not decided
    assert compiler.n_calls == 1
    unasked = made(tiny_images)
    unasked.prepare()
    assert unasked.checkpoint().compiled is None


@pytest.mark.parametrize("name", ["best", "dilated", "separable", "multiscale"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_every_space_traces_as_one_graph(name: str, precision: str) -> None:
    """Forward and backward, without the compiler's code: what is traced gives the same gradients."""
    space = get_space(name)
    network = build(space.decode(space.anchors(Limits())["default"], Limits()).candidate.architecture, seed=0)
    network = network.to(memory_format=torch.channels_last).train()
    x = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
    torch.compiler.reset()
    traced = torch.compile(network, backend="aot_eager", fullgraph=True)
    found = []
    for forward in (network, traced):
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            logits = forward(x)
        logits.float().square().mean().backward()
        found.append([logits, *(p.grad for p in network.parameters() if p.grad is not None)])
    tolerance = 1e-4 if precision == "float32" else 5e-2
    for plain, other in zip(*found, strict=True):
        assert (plain - other).norm() <= tolerance * plain.norm() + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_compiled_step_updates_as_an_eager_one(made_graphs: None, optimizer: str) -> None:
    """Forward, backward and optimizer, in float32, through the captured step, twelve times."""
    rng = np.random.default_rng(0)
    labels = np.arange(768) % 10
    colours = rng.integers(0, 256, (10, 1, 1, 3))
    pixels = np.clip(colours[labels] + rng.normal(0, 40, (768, 32, 32, 3)), 0, 255).astype(np.uint8)
    of = candidate("best", optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.005)
    found = []
    for compiled in (False, True):
        training = made(Images(pixels, labels.astype(np.int64)), of, precision="float32")
        step = compiling.compiled(training.step) if compiled else training.step
        training.train_on = CapturedStep(step, training.example())
        record = training.run(None, None, None).records[0]
        found.append((record.train_loss, training.ema.network.state_dict()))
    (plain_loss, plain), (loss, weights) = found
    assert loss == pytest.approx(plain_loss, rel=1e-3)
    for name, tensor in plain.items():
        assert torch.allclose(weights[name], tensor, rtol=2e-2, atol=2e-3), name


@pytest.mark.slow
def test_a_training_that_pays_for_it_really_compiles(
    tiny_images: Images, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "EXPECTED_COMPILE_S", 0.0)
    monkeypatch.setattr(compiling, "LEAST_STEPS", 0)
    trained = train(candidate("dilated"), tiny_images, TrainingConfig(2, seed=3, compiled=True))
    (kept,) = user_cache.rglob("compiled-*.json")
    assert '"compile_s"' in kept.read_text()
    plain = train(candidate("dilated"), tiny_images, TrainingConfig(2, seed=3))
    assert trained.records[-1].train_loss == pytest.approx(plain.records[-1].train_loss, rel=0.05)
    assert not plain.compiled
