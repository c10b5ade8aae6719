"""The memory benchmark at a tiny size, and its line through known samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from benchmarks import memory
from study.errors import StudyFailed, UserError
from study.storage.database import open_storage

pytestmark = pytest.mark.slow


def left_by_a_search(monkeypatch: pytest.MonkeyPatch, attrs: Sequence[dict[str, Any]]) -> None:
    """A search that leaves a trial for each of `attrs`; one with a reason failed."""

    def search(options: Any, folder: str, **sizes: int) -> None:
        study = optuna.create_study(study_name=memory.SPACE, storage=open_storage(f"sqlite:///{folder}/study.db"))
        for attr in attrs:
            state = TrialState.FAIL if "reason" in attr else TrialState.COMPLETE
            study.add_trial(create_trial(state=state, value=None if "reason" in attr else 0.5, user_attrs=attr))

    monkeypatch.setattr(memory, "search", search)


def test_a_leak_is_found(benchmark_options: Any, monkeypatch: pytest.MonkeyPatch):
    rss = [100.0 + 300 * (trial > 2) + 2 * trial for trial in range(20)]
    left_by_a_search(monkeypatch, [{"rss_mib": value} for value in rss])
    options = benchmark_options(memory, "--trials", "20", "--settle", "5")
    assert memory.run(options) == 0
    record = json.loads((options.out / "memory-cpu.json").read_text())
    trend = record["trend_rss_mib"]
    assert record["ours"]["samples"] == rss
    assert trend["slope_mib_per_trial"] == pytest.approx(2)
    assert (trend["first_trial"], trend["last_trial"], trend["growth_mib"]) == (5, 19, 28)
    assert "trend_device_mib" not in record
    assert (options.out / "memory-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_on_a_gpu_its_memory_is_told_too(benchmark_options: Any, monkeypatch: pytest.MonkeyPatch):
    left_by_a_search(monkeypatch, [{"rss_mib": 500.0, "device_mib": 10.0 + trial} for trial in range(8)])
    monkeypatch.setattr("benchmarks.record.hardware", lambda device: {"device": device})
    options = benchmark_options(memory, "--trials", "8", "--settle", "0")
    options.device = "cuda"
    memory.run(options)
    record = json.loads((options.out / "memory-cuda.json").read_text())
    assert record["trend_rss_mib"]["slope_mib_per_trial"] == pytest.approx(0)
    assert record["trend_device_mib"]["slope_mib_per_trial"] == pytest.approx(1)


def test_a_search_stores_what_is_read(benchmark_options: Any):
    options = benchmark_options(
        memory, "--trials", "4", "--settle", "1", "--train-images", "20", "--val-images", "10"
    )  # fmt: skip
    memory.run(options)
    samples = json.loads((options.out / "memory-cpu.json").read_text())["ours"]["samples"]
    assert len(samples) == 4
    assert all(100 < value < 10_000 for value in samples)  # torch alone takes more than 100


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ([{"rss_mib": 1.0}, {}], "rss_mib.*trial 1"),
        ([{"reason": "the worker was killed by SIGKILL"}, {"rss_mib": 1.0}], "same process: trial 0.*SIGKILL"),
    ],
)
def test_samples_that_do_not_belong_together_are_refused(
    benchmark_options: Any, monkeypatch: pytest.MonkeyPatch, attrs: list[dict[str, Any]], message: str
):
    left_by_a_search(monkeypatch, attrs)
    options = benchmark_options(memory)
    with pytest.raises(StudyFailed, match=message):
        memory.run(options)
    assert not options.out.exists()


def test_a_trial_that_failed_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    left_by_a_search(monkeypatch, [{"rss_mib": 1.0}, {"rss_mib": 2.0, "reason": "diverged"}])
    memory.search(None, str(tmp_path))  # type: ignore[arg-type]
    assert memory.samples(memory.trials(str(tmp_path), memory.SPACE), "rss_mib") == [1.0, 2.0]


def test_the_interval_holds_the_true_slope_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    n_held = 0
    for _ in range(300):
        trend = memory.fit([0.0, 0.0, *(500 + 0.5 * np.arange(2, 22) + rng.normal(0, 3, 20))], settle=2)
        low, high = trend["interval_95_mib_per_trial"]
        n_held += low <= 0.5 <= high
    assert 0.91 < n_held / 300 < 0.99


def test_the_figure_starts_at_zero():
    values = [500.0, 510.0, 510.0, 511.0]
    drawn = memory.figure({"memory": values}, {"memory": memory.fit(values, 1)})
    (axes,) = drawn.axes
    assert axes.get_ylim()[0] == 0
    assert list(axes.lines[0].get_ydata()) == values
    assert list(axes.lines[1].get_xdata()) == [1, 3]


@pytest.mark.parametrize("words", [("--trials", "12"), ("--settle", "-1")])
def test_too_few_trials_for_a_line_are_refused(benchmark_options: Any, words: tuple[str, str]):
    with pytest.raises(UserError, match=words[0]):
        memory.run(benchmark_options(memory, *words))
