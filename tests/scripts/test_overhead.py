"""The overhead benchmark: a study is filled with trials that a run takes for its own, and its figures are its gaps."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from benchmarks import overhead
from study.errors import UserError
from study.reporting.facts import read_facts
from study.storage.database import finished_trials, open_study

N_RECORDED, SAMPLES = 20, 2


def options_for(out: Path, **given: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    overhead.add_options(parser)
    options = parser.parse_args([])
    vars(options).update(device="cpu", out=out, data=os.environ.get("STUDY_DATA", ""), command="overhead", **given)
    return options


@pytest.mark.cifar10
@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.heavy)])
def test_the_gaps_between_epochs_are_what_is_recorded(
    cifar10_folder: str, tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "TINY", tuple("60" if word == "500" else word for word in overhead.TINY))
    options = options_for(tmp_path / "results", recorded=[N_RECORDED], samples=SAMPLES, jobs=jobs)
    options.data = cifar10_folder
    first, times = overhead.overhead(options, N_RECORDED, tmp_path)
    assert len(times) == (SAMPLES - 1 if jobs == 1 else 1)
    assert all(0 < time < 5_000 for time in times)
    assert first > 0
    study = open_study(f"sqlite:///{tmp_path / 'out' / 'study.db'}", "overhead")
    trials = finished_trials(study)
    assert [trial.user_attrs["slot"] for trial in trials] == list(range(N_RECORDED + SAMPLES + jobs))
    assert read_facts(study, tmp_path / "out").n_foreign == 0


def test_the_peer_samples_and_reports(tmp_path: Path) -> None:
    times = overhead.peer(tmp_path, N_RECORDED, 3)
    assert len(times) == 3
    assert min(times) > 0


@pytest.mark.parametrize("given", [{"samples": 1}, {"recorded": [10]}])
def test_too_few_are_refused(tmp_path: Path, given: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--samples must be at least 2, and --recorded at least 20"):
        overhead.run(options_for(tmp_path, **given))
