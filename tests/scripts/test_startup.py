"""The startup benchmark at a tiny size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from optuna.trial import create_trial

from benchmarks import startup
from study.errors import StudyFailed, UserError
from study.machine.paths import REPOSITORY

pytestmark = pytest.mark.slow


def test_every_command_is_found_and_nothing_else():
    found = startup.commands(REPOSITORY / "study")
    assert {f"study.{name}" for name in ("run", "retrain", "report", "describe", "predict")} <= set(found)
    assert not {"study.training.loop", "study.storage.database", "study.errors"} & set(found)


def test_all_figures_are_measured(benchmark_options: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(startup, "commands", lambda _: ["study.run"])  # the others take their time, too
    options = benchmark_options(startup, "--samples", "1")
    assert startup.run(options) == 0
    record = json.loads((options.out / "startup-cpu.json").read_text())
    begins, step, whole = (record[name]["median"] for name in ("trial_begins", "ours", "whole_command"))
    assert 0 < begins < step < whole
    assert 0 < record["help"]["study.run"]["median"] < whole
    assert "peer" not in record
    assert record["command"] == "the command"


@pytest.mark.parametrize(("n_trials", "batch_size", "message"), [(1, 64, "batch size is 64"), (0, 128, "complete")])
def test_a_trial_of_more_than_one_step_is_refused(
    benchmark_options: Any, monkeypatch: pytest.MonkeyPatch, n_trials: int, batch_size: int, message: str
):
    attrs = {"candidate": {"optimisation": {"batch_size": batch_size}}}
    monkeypatch.setattr(startup, "search", lambda *_, **__: 1.0)
    monkeypatch.setattr(startup, "commands", lambda _: [])
    monkeypatch.setattr(startup, "trials", lambda *_: [create_trial(value=0.5, user_attrs=attrs)] * n_trials)
    with pytest.raises(StudyFailed, match=message):
        startup.run(benchmark_options(startup))


def test_no_sample_is_refused(benchmark_options: Any):
    with pytest.raises(UserError, match="--samples"):
        startup.run(benchmark_options(startup, "--samples", "0"))
