"""The faults on purpose, at small size."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from experiments import faults
from study.errors import StudyFailed

pytestmark = pytest.mark.cifar10


@pytest.fixture(autouse=True)
def _data(cifar10_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY_DATA", cifar10_folder)


@pytest.mark.slow
def test_kills_at_any_moment_under_halving_leave_exactly_n(tmp_path: Path) -> None:
    found = faults.kills(tmp_path, random.Random(3), n_trials=5, n_kills=2, n_jobs=2)
    assert (found["n_finished"], found["n_twice"], found["n_running"]) == (5, 0, 0)
    assert found["n_interrupted"] >= 2
    assert found["lost_s"]
    assert not (tmp_path / "checkpoints" / "trials").exists()
    with pytest.raises(StudyFailed, match="not exactly what was asked for"):
        faults.left(tmp_path, 7)


@pytest.mark.heavy
def test_every_command_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    found = faults.chain(tmp_path, random.Random(3), n_kills=1, longest_s=8.0, n_trials=3)
    assert (found["n_finished"], found["reranked"]["n_finished"]) == (3, 2)


@pytest.mark.heavy
def test_two_runs_on_one_file_share_it(tmp_path: Path) -> None:
    found = faults.crowd(tmp_path, random.Random(3), n_trials=12, n_jobs=2)
    assert (found["n_finished"], found["n_twice"]) == (12, 0)
