"""How long something takes."""

from __future__ import annotations

import time

from study.machine.timing import timed


def test_first_runs_are_not_counted_and_few_enough_are_done() -> None:
    done: list[float] = []

    def run() -> None:
        done.append(time.perf_counter())
        time.sleep(0.05 if len(done) <= 2 else 0.002)

    assert len(timed(run, 0.0, at_least=4)) == 4
    assert len(done) == 6
    seconds = timed(run, 60.0, at_most=5)
    assert len(seconds) == 5
    assert 0.002 <= min(seconds) <= max(seconds) < 0.05


def test_it_goes_on_for_so_long() -> None:
    assert sum(timed(lambda: time.sleep(0.005), 0.05)) >= 0.05
