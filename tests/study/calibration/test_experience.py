"""What trials took corrects what is expected of the next ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.calibration.concurrency import choose
from study.calibration.experience import MEMORY, START_S, Experience, experience, keep, reached


@pytest.mark.parametrize(("n_trials", "jobs", "gain"), [(8, 1, 1.0), (8, 2, 1.5), (1, 2, 1.5), (100, 4, 2.0)])
def test_a_run_like_the_last_one_is_expected_to_take_as_long(n_trials: int, jobs: int, gain: float) -> None:
    predicted_s = 30.0  # of the epochs of one trial, alone
    at_once = min(jobs, n_trials)
    epochs_s, beside_s = 1.4 * predicted_s * jobs / gain, 5.0  # as it really was
    elapsed_s = START_S + n_trials * (epochs_s + beside_s) / at_once
    first = Experience().after(n_trials, elapsed_s, n_trials * epochs_s, n_trials * predicted_s * jobs / gain, jobs)
    assert first.factor == pytest.approx(1.4)
    assert first.beside_s == pytest.approx(5.0)
    if n_trials >= jobs:
        assert first.seconds(n_trials, predicted_s, jobs, gain) == pytest.approx(elapsed_s)
    assert first.seconds(0, predicted_s, jobs, gain) == 0


def test_the_past_is_weighed_by_its_trials_and_forgotten() -> None:
    old = Experience(1.0, 2.0, 10)
    new = old.after(10, START_S + 10 * 64.0, 10 * 60.0, 10 * 30.0, 1)
    assert (new.factor, new.beside_s, new.n_trials) == (pytest.approx(1.5), pytest.approx(3.0), 20)
    assert new.after(1_000, 10_000.0, 5_000.0, 5_000.0, 1).n_trials == MEMORY


def test_what_cannot_be_is_held_within_bounds() -> None:
    found = Experience().after(1, 0.0, 1_000.0, 10.0, 1)  # resumed at its end: the epochs were trained before
    assert (found.factor, found.beside_s) == (20, 0)


def test_trials_of_a_moment_tell_only_what_they_cost_beside_their_epochs() -> None:
    """An epoch of a hundred images is its first step, for which libraries choose their kernels."""
    found = Experience(1.2, 3.0, 10).after(10, START_S + 10 * 12.0, 10 * 9.0, 10 * 0.5, 1)
    assert found.factor == pytest.approx(1.2)
    assert found.beside_s == pytest.approx((3.0 + 12.0 - 1.2 * 0.5) / 2)


def test_it_is_kept_for_a_machine(user_cache: Path) -> None:
    here, there = {"cpu": "made"}, {"cpu": "another"}
    found = Experience(1.5, 4.0, 12)
    keep(here, 2, found)
    assert experience(here, 2) == found
    assert experience(here, 1) == Experience(factor=1.5)  # as the others were, but not by any of its own
    assert experience(there, 2) == Experience()
    (file,) = user_cache.rglob("trials-*.json")
    file.write_text('{"factor": "much"}')
    assert experience(here, 2) == Experience()


def test_trials_at_once_that_are_slower_than_measured_give_way(user_cache: Path) -> None:
    here, measured = {"cpu": "made"}, {1: 100.0, 2: 130.0}
    assert reached(here, measured) == measured
    keep(here, 2, Experience(2.0, 3.0, 20))
    assert choose(reached(here, measured)) == 2  # prices may be wrong, and alone trials are as slow
    keep(here, 1, Experience(1.2, 3.0, 20))
    assert reached(here, measured) == {1: pytest.approx(100 / 1.2), 2: pytest.approx(65.0)}
    assert choose(reached(here, measured)) == 1
    keep(here, 1, Experience(1.2, 3.0, 1))
    assert choose(reached(here, measured)) == 2
