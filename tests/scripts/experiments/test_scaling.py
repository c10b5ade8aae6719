"""The simulation of workers: what it counts as lost, and that its studies are real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments import scaling
from study.storage.database import finished_trials, open_study


def test_a_study_of_simulated_workers_is_a_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "TRIAL_S", 1.0)
    url = f"sqlite:///{tmp_path}/study.db"
    scaling.make_study(url)
    scaling.simulate(url, tmp_path, 2, 0.0, 60.0, seed=0)
    scaling.fill(url, 20)
    executors: list[scaling.Simulated] = []

    class Kept(scaling.Simulated):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            executors.append(self)

    monkeypatch.setattr(scaling, "Simulated", Kept)
    watched = scaling.simulate(url, tmp_path, 4, 1.0, 3.0, seed=1)
    assert watched.n_trials >= 4
    assert 0 < watched.busy_s <= watched.watched_s
    assert 0 <= watched.lost_s < watched.worker_s == 4 * 3.0
    assert watched.answers
    row = scaling.row(20, 4, [watched])
    assert row["lost_share"] == watched.lost_s / watched.worker_s
    study = open_study(url, scaling.NAME)
    n_ended = len(executors[0]._ended)
    assert len(finished_trials(study)) == 20 + n_ended
    assert 0 <= n_ended - watched.n_trials < 4  # before each worker had been given its first
    assert all(trial.state.is_finished() for trial in study.trials)


def test_waiting_is_counted_from_when_a_worker_had_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(scaling.time, "perf_counter", lambda: now)
    monkeypatch.setattr(scaling, "SPREAD_S", 0.0)
    executor = scaling.Simulated(1, 30.0, 1000.0, 0)

    def given(key: int) -> Any:
        return type("Work", (), {"key": key})

    executor.submit(given(1))
    for epoch in range(2):
        now += 10.0 + 3.0  # heard three seconds late
        [asked] = executor.wait(0)
        assert (asked.record.epoch, asked.asks) == (epoch, True)
        now += 1.0  # answered another one later
        executor.answer(1, True)
    now += 10.0
    assert [type(message).__name__ for message in executor.wait(0)] == ["EpochEnded", "Ended"]
    now += 7.0
    executor.submit(given(2))
    found = executor.watched()
    assert found.answers == pytest.approx([4.0, 4.0])
    assert found.handovers == pytest.approx([7.0])
    assert found.lost_s == pytest.approx(15.0)
    assert found.n_trials == 1


def test_the_picture_and_the_table_show_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = {"median_s": 0.01, "p95_s": 0.1}
    rows = [
        {"recorded": n, "workers": w, "supervisors": 1, "trials": 9, "ms_per_trial": 100.0, "answers": waits,
         "busy_share": w / 200, "lost_share": 0.01, "handovers": waits}
        for n in (50, 500) for w in (10, 100)
    ]  # fmt: skip
    record = {"command": "python x.py", "storage": "sqlite", "rows": rows, "hardware": {"cpu": "C", "n_cores": 2}}
    scaling.draw({"sqlite": record}, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(scaling.evidence, "records", lambda folder: {"sqlite": record})
    assert scaling.block().count("| SQLite |") == 4
