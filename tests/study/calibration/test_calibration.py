"""Calibration: what is measured decides, and what cannot be measured stops nothing."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from search_spaces.architecture import Architecture
from search_spaces.cost import Work
from study.calibration import measuring, prices
from study.calibration.prices import Calibration, DepthwisePrice
from study.errors import CaptureFailed, StudyFailed, UserError
from study.machine import cache
from study.machine.hardware import hardware, resolve_device


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A made GPU: 1 ps a multiply-accumulate, depthwise ones as the test says. Returns what was asked of it."""
    made: dict[str, Any] = {"precisions": set(), "native": {}, "channels_last": {}, "failing": set()}

    def of_network(architecture: Architecture, device: str, precision: str) -> float:
        made["precisions"].add(precision)
        if architecture.params in made["failing"]:
            return math.inf
        work = Work.of(architecture)
        return 1e-12 * work.dense_macs + 1e-10 * work.activations

    def of_depthwise(device: str, precision: str, which: Any, native: bool) -> float:
        made["precisions"].add(precision)
        return float(made["native" if native else "channels_last"].get(which, 2e-12 if native else 1e-12))

    for module in (measuring, prices):
        monkeypatch.setattr(module, "hardware", lambda device: {"device": device, "gpu": "made"})
    monkeypatch.setattr(measuring, "_seconds_per_image", of_network)
    monkeypatch.setattr(measuring, "_depthwise_seconds", of_depthwise)
    return made


def test_a_gpu_trains_in_bfloat16_unasked(gpu: dict[str, Any]) -> None:
    found = measuring.measure("cuda")
    assert found.precision == "bfloat16"
    assert gpu["precisions"] == {"bfloat16"}
    assert found.cost.dense_mac_s == pytest.approx(1e-12, rel=0.2)


def test_every_class_of_depthwise_convolutions_takes_its_faster_kernels(gpu: dict[str, Any]) -> None:
    slow, engineless, lost = (7, True, 32), (5, True, 16), (7, False, 8)
    gpu["channels_last"] |= {slow: 2e-10, engineless: math.inf, lost: math.inf}
    gpu["native"] |= {lost: math.inf}
    found = measuring.measure("cuda")
    assert found.native_depthwise == {slow, engineless}
    assert {(p.kernel, p.dilated, p.side) for p in found.depthwise} == set(
        itertools.product((3, 5, 7), (False, True), (32, 16, 8))
    )
    assert math.isfinite(found.cost.depthwise_other_mac_s)
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_network_that_cannot_run_is_left_out(gpu: dict[str, Any]) -> None:
    params = [network.params for network in measuring._probes()]
    gpu["failing"] = set(params[1:])
    found = measuring.measure("cuda")
    assert found.cost.dense_mac_s + found.cost.activation_s + found.cost.operation_s > 0
    gpu["failing"] = set(params)
    with pytest.raises(StudyFailed, match="no network of the calibration could be trained"):
        measuring.measure("cuda")


def test_a_kernel_that_is_missing_costs_its_figure_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise RuntimeError("GET was unable to find an engine")

    assert measuring._fastest_seconds("cpu", refuse, "this kernel") == math.inf
    assert "not measured: this kernel: RuntimeError: GET was unable to find an engine" in capsys.readouterr().err


def test_a_capture_that_fails_is_left_out_by_another_process(
    gpu: dict[str, Any], user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[frozenset[str]] = []

    class HerePool:
        def __init__(self, *args: Any) -> None:
            pass

        def __enter__(self) -> HerePool:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def submit(self, measure: Any, device: str, spoiled: frozenset[str]) -> Any:
            tries.append(spoiled)
            done: Future[Calibration] = Future()
            try:
                done.set_result(measure(device, spoiled))
            except Exception as error:
                done.set_exception(pickle.loads(pickle.dumps(error)))  # as it comes from another process
            return done

    def spoils(device: str, precision: str, which: Any, native: bool) -> float:
        def step() -> None:
            if which == (5, True, 16) and native:
                raise CaptureFailed("operation not permitted")

        return measuring._fastest_seconds("cpu", step, f"depthwise {which} {native}")

    monkeypatch.setattr(prices, "ProcessPoolExecutor", HerePool)
    monkeypatch.setattr(measuring, "_depthwise_seconds", spoils)
    found = prices.calibrate("cuda")
    assert tries == [frozenset(), {"depthwise (5, True, 16) True"}]
    (price,) = [p for p in found.depthwise if (p.kernel, p.dilated, p.side) == (5, True, 16)]
    assert price.native_s == math.inf
    assert math.isfinite(price.channels_last_s)


@pytest.mark.parametrize(
    ("processor", "faster", "chosen"),
    [("AVX2", "bfloat16", "float32"), ("AVX512", "bfloat16", "bfloat16"), ("AVX512", "float32", "float32")],
)
def test_a_cpu_trains_in_the_faster_precision_and_none_that_it_emulates(
    processor: str, faster: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: set[str] = set()

    def seconds(architecture: Architecture, device: str, precision: str) -> float:
        tried.add(precision)
        return 1.0 if precision == faster else 2.0

    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: processor)
    monkeypatch.setattr(measuring, "_seconds_per_image", seconds)
    monkeypatch.setattr(measuring, "_started", math.inf)
    assert measuring._faster_precision("cpu") == chosen
    assert tried == (set() if processor == "AVX2" else {"bfloat16", "float32"})


def test_slow_steps_are_repeated_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_started", math.inf)
    clock = itertools.count(step=measuring.SLICE_S)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(clock)))
    calls: list[int] = []
    measuring._fastest_seconds("cpu", lambda: calls.append(1), "calls")
    assert len(calls) == 1 + 2  # one warms up
    monkeypatch.setattr(measuring, "SLICE_S", 1e9)
    calls.clear()
    measuring._fastest_seconds("cpu", lambda: calls.append(1), "calls")
    assert len(calls) == 1 + 2  # they agree
    growing = itertools.accumulate(itertools.count())
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(growing)))
    calls.clear()
    measuring._fastest_seconds("cpu", lambda: calls.append(1), "calls")
    assert len(calls) == 1 + measuring.N_TIMED


def test_it_is_measured_once_and_damage_is_mended(user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    class MadePool:
        def __init__(self, *args: Any) -> None:
            pass

        def __enter__(self) -> MadePool:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def submit(self, _: Any, device: str, spoiled: frozenset[str]) -> Any:
            measured.append(device)
            price = DepthwisePrice(3, False, 32, 1e-12, math.inf)
            cost = measuring.CostModel(1e-12, 1e-12, 1e-12, 1e-10, 0.0, 0.0, device)
            found = Calibration(device, hardware(device), "float32", cost, 0.1, (price,))
            return type("Done", (), {"result": lambda self: found})()

    monkeypatch.setattr(prices, "ProcessPoolExecutor", MadePool)
    monkeypatch.setattr(prices.Neighbours, "share", lambda self: 0.0)
    first = prices.calibrate("cpu")
    assert prices.calibrate("cpu") == first
    assert measured == ["cpu"]
    (file,) = user_cache.rglob("calibration-*.json")
    for damage in ("{", "[]", "null", '{"device": "cpu"}', file.read_text().replace("depthwise_mac_s", "other")):
        file.write_text(damage)
        assert prices.calibrate("cpu") == first
    assert measured == ["cpu"] * 6


@pytest.mark.parametrize(
    ("others", "error", "words"),
    [
        (0.1, 0.1, ""),
        (0.45, 0.1, "(other processes took 45% of the cores)"),
        (0.1, 0.6, "(prices fit badly, median error 60%)"),
        (0.3, 0.6, "(other processes took 30% of the cores and prices fit badly, median error 60%)"),
    ],
)
def test_what_is_not_to_be_trusted_is_used_once(
    others: float,
    error: float,
    words: str,
    user_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cost = measuring.CostModel(1e-12, 1e-12, 1e-12, 1e-10, 0.0, 0.0, "cpu")
    found = Calibration("cpu", hardware("cpu"), "float32", cost, error)
    monkeypatch.setattr(prices, "_measured", lambda device: found)
    monkeypatch.setattr(prices.Neighbours, "share", lambda self: others)
    cache.complain.cache_clear()
    assert prices.calibrate("cpu") == found
    printed = capsys.readouterr()
    assert printed.out.startswith("Measuring this machine once (about 10 s)\n... took ")
    assert (words in printed.err) if words else not printed.err
    assert len(list(user_cache.rglob("calibration-*.json"))) == (0 if words else 1)


@pytest.mark.slow
def test_this_machine_is_measured() -> None:
    found = prices._measured("cpu")
    assert found.cost.dense_mac_s > 0
    assert found.cost.image_s > 0


def test_a_gpu_that_is_not_there_is_said() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="--device cuda needs a CUDA device"):
        resolve_device("cuda")
