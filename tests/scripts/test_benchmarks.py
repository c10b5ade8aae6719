"""The benchmarks at tiny size: they run, and their files hold what they measured."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmark
from benchmarks import accuracy, epoch, neighbour, operations, record, slots, throughput_ours
from search_spaces import get_space
from search_spaces.candidate import Optimisation
from search_spaces.constraints import Limits
from study.errors import UserError
from study.machine.paths import REPOSITORY

Options = Callable[..., argparse.Namespace]


def written(options: argparse.Namespace) -> dict[str, Any]:
    (file,) = options.out.glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["name"] == file.stem
    assert found["command"] == "the command"
    assert found["versions"]["torch"]
    assert found["hardware"]["n_cores"] >= 1
    return found


@pytest.mark.parametrize(
    ("ours", "peer", "higher", "ratio"),
    [([4.0, 6.0, 5.0], [2.0, 1.0, 9.0], True, 2.5), ([2.0], [4.0], False, 2.0), ([2.0], [4.0], True, 0.5)],
)
def test_a_ratio_above_one_means_that_ours_is_better(
    benchmark_options: Options, ours: list[float], peer: list[float], higher: bool, ratio: float
) -> None:
    options = benchmark_options(slots)
    record.write(options, "made-cpu", "made", "cpu", "s", ours, peer, "a goal", higher)
    found = written(options)
    assert found["ratio"] == pytest.approx(ratio)
    assert found["ours"]["samples"] == ours
    assert (found["ours"]["min"], found["ours"]["max"]) == (min(ours), max(ours))


def test_nothing_to_compare_has_no_ratio(benchmark_options: Options) -> None:
    options = benchmark_options(slots)
    record.write(options, "made-cpu", "made", "cpu", "s", [1.0], more={"extra": 3})
    found = written(options)
    assert "ratio" not in found
    assert "peer" not in found
    assert found["extra"] == 3


@pytest.mark.slow
def test_slots(benchmark_options: Options) -> None:
    options = benchmark_options(slots, "--samples", "1", "--seconds", "0.1")
    assert slots.run(options) == 0
    found = written(options)
    assert found["ours"]["median"] == found["by_number"][str(found["chosen"])]["median"] > 0
    assert found["peer"]["median"] == found["by_number"]["1"]["median"]


def test_only_benchmarks_that_train_on_the_data_set_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(operations, "run", lambda options: 0)
    assert benchmark.main(["operations"]) == 0
    with pytest.raises(UserError, match="nowhere"):
        benchmark.main(["startup"])


def test_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small network, without the compiler: what is counted is what the step asks for, wherever it runs."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    small = get_space("best")
    params = {**small.anchors(Limits())["default"], "depth_1": 2, "depth_2": 2, "batch_size": 64}
    candidate = small.decode(params, Limits(max_params=12_000)).candidate
    training = operations.training(candidate)
    assert not any(getattr(module, "grids", False) for module in training.network.modules())
    counted = operations.operations(operations.step_of(training.step, training.example()))
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in training.network.modules())
    assert counted["aten::convolution"] == counted["aten::convolution_backward"] == convolutions
    assert counted["aten::native_layer_norm"] == 2 + 4
    assert not {"aten::view", "aten::permute", "aten::empty"} & set(counted)
    plain = operations.training(dataclasses.replace(candidate, optimisation=Optimisation(optimizer="sgd")))
    assert operations.muon_operations(plain) == 0


def test_a_step_of_muon_is_few_operations() -> None:
    best = get_space("best")
    candidate = best.decode(best.anchors(Limits())["default"], Limits()).candidate
    small = dataclasses.replace(candidate.optimisation, batch_size=8)  # it counts none of them
    training = operations.training(dataclasses.replace(candidate, optimisation=small))
    operations.step_of(training.step, training.example())()
    assert 15 < operations.muon_operations(training) <= operations.GOAL_MUON


@pytest.mark.heavy
def test_compiling_fuses_operations(benchmark_options: Options) -> None:
    options = benchmark_options(operations, "--space", "dilated")
    assert operations.run(options) == 0
    found = written(options)
    assert found["ours"]["median"] < found["peer"]["median"]
    assert found["compiled_by_name"]["fused kernels"] > 10
    assert 15 < found["muon"] <= operations.GOAL_MUON


@pytest.mark.slow
def test_epoch(benchmark_options: Options) -> None:
    options = benchmark_options(epoch, "--epochs", "2", "--images", "250", "--val-images", "50")
    assert epoch.run(options) == 0
    found = written(options)
    assert len(found["ours"]["samples"]) == 1
    assert 0 < found["validation_share"] < 1
    assert 0 < found["ema_share"] < 1
    assert 0 <= found["waiting_share"] < 1


@pytest.mark.heavy
def test_neighbour(benchmark_options: Options) -> None:
    options = benchmark_options(neighbour, "--samples", "1", "--images", "128", "--jobs", "1")
    assert neighbour.run(options) == 0
    found = written(options)
    assert set(found["kept"]) == {"ours", "torch"}
    assert found["kept"]["ours"] == pytest.approx(found["ours"]["median"] / found["kinds"]["ours alone"][0])


@pytest.mark.slow
@pytest.mark.parametrize("before", ["HEAD", "cpu"])
def test_accuracy_against_itself(benchmark_options: Options, before: str) -> None:
    """This revision against itself, or its CPU against its CPU: the same seeds give the same accuracies."""
    if subprocess.run(["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, check=False).returncode:
        pytest.skip("this is no git clone")
    sizes = ("--seeds", "2", "--epochs", "1", "--train-images", "100", "--val-images", "100")
    options = benchmark_options(accuracy, "--before", before, *sizes)
    assert accuracy.run(options) == 0
    found = written(options)
    assert len(found["ours"]["samples"]) == 2
    assert found["ours"]["samples"] == found["peer"]["samples"]
    assert [found["loss"], *found["loss_interval_95"]] == [0.0] * 3


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (slots, ["--samples", "0"], "--samples must be at least 1"),
        (epoch, ["--epochs", "1"], "--epochs must be at least 2"),
        (neighbour, ["--images", "1"], "--images must be at least 128"),
        (accuracy, ["--seeds", "1"], "--seeds must be at least 2"),
        (accuracy, ["--before", "nothing-like-that"], "--before must name a revision"),
    ],
)
def test_mistakes_get_a_line(benchmark_options: Options, module: Any, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module.run(benchmark_options(module, *words))


def test_our_side_of_throughput(benchmark_options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    assert throughput_ours.run(benchmark_options(throughput_ours, "--images", "256")) == 0
    assert float(capsys.readouterr().out.strip().splitlines()[-1]) > 0
