"""The report of a running study."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import optuna
import pytest

from study.reporting import optional, report
from study.reporting.optional import LiveReport

STUDY = cast(optuna.Study, None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds; the last one is now."""
    times = [0.0]
    monkeypatch.setattr(optional.time, "monotonic", lambda: times[-1])
    return times


def test_every_tenth_trial_as_far_as_it_costs_little(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[float] = []

    def write(study: object, out: object) -> None:
        written.append(clock[-1])
        clock.append(clock[-1] + 1)  # it takes a second

    monkeypatch.setattr(report, "write_report", write)
    live = LiveReport(STUDY, Path(), pytest.fail)
    for trial in range(1, 101):
        clock.append(clock[-1] + 2)
        live.trial_finished()
        assert bool(written) == (trial >= 10)
    assert written == [20.0, 81.0, 142.0, 203.0]  # after 10, 40, 70 and 100 trials: a fiftieth of the time


def test_what_goes_wrong_is_said_once_and_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fails(study: object, out: object) -> None:
        calls.append(1)
        raise ZeroDivisionError("a bug\nin two lines")

    monkeypatch.setattr(report, "write_report", fails)
    said: list[str] = []
    live = LiveReport(STUDY, Path(), said.append)
    for _ in range(40):
        live.trial_finished()
    assert len(calls) == 1
    assert said == ["no report while the study runs: ZeroDivisionError: a bug"]
