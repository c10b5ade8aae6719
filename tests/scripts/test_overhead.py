"""The overhead benchmark: what it records is what a run records, and its figures are what it timed."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note

from benchmarks import overhead
from study.errors import UserError
from study.storage.database import config_of, open_study

pytestmark = pytest.mark.slow

N_RECORDED = 20


def options_for(out: Path, **given: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    overhead.add_options(parser)
    options = parser.parse_args([])
    vars(options).update(device="cpu", out=out, command="python scripts/benchmark.py overhead", **given)
    return options


def test_both_storages_hold_the_same_recorded_trials_and_ours_all_that_a_run_stores(tmp_path: Path) -> None:
    url, peer_url = f"sqlite:///{tmp_path / 'ours.db'}", f"sqlite:///{tmp_path / 'peer.db'}"
    slots = overhead.fill(url, peer_url, N_RECORDED, "cpu")
    assert slots.n_finished() == N_RECORDED
    assert slots.claim(N_RECORDED) is None
    study = open_study(url, overhead.STUDY)
    ours, peer = study.get_trials(), optuna.load_study(study_name=overhead.STUDY, storage=peer_url).get_trials()
    assert [trial.number for trial in ours] == list(range(N_RECORDED))
    made = overhead.recorded_trials(
        N_RECORDED, overhead.open_space(config_of(study).space), config_of(study), overhead.cost_model()
    )
    assert ours == made
    for trial, plain in zip(ours, peer, strict=True):
        assert (trial.params, trial.distributions, trial.state, trial.value, trial.intermediate_values) == (
            plain.params,
            plain.distributions,
            plain.state,
            plain.value,
            plain.intermediate_values,
        )
        reported = {epoch["epoch"]: epoch["val_accuracy"] for epoch in trial.user_attrs["curve"]}
        assert trial.intermediate_values == reported
        assert list(reported) == list(range(len(reported)))
        assert (trial.state == TrialState.PRUNED) == (len(trial.intermediate_values) < overhead.N_EPOCHS)
        assert trial.constraints
        assert max(trial.constraints.values()) <= 0
        assert not plain.user_attrs
    n_pruned = sum(trial.state == TrialState.PRUNED for trial in ours)
    assert 0.4 * N_RECORDED < n_pruned < 0.9 * N_RECORDED
    live = argparse.Namespace(storage=study._storage, study=study, _trial_id=ours[3]._trial_id)
    assert "| 1 | conv" in get_note(live)


def test_a_tiny_run_measures_both_sides_and_draws_them(tmp_path: Path) -> None:
    assert overhead.run(options_for(tmp_path, recorded=[N_RECORDED], samples=2)) == 0
    record = json.loads((tmp_path / f"overhead-cpu-{N_RECORDED}.json").read_text())
    assert record["unit"] == "ms/trial"
    assert len(record["ours"]["samples"]) == len(record["peer"]["samples"]) == 2
    assert record["ratio"] == pytest.approx(record["peer"]["median"] / record["ours"]["median"])
    parts = record["breakdown_ms"]
    assert set(parts) == set(overhead.PARTS)
    assert all(ms > 0 for ms in parts.values())
    # Medians of parts need not add up to the median of sums, but they cannot leave its range by much.
    beside = sum(ms for part, ms in parts.items() if part != "publish")
    assert 0.8 * record["ours"]["min"] < beside < 1.2 * record["ours"]["max"]
    assert set(record["peer_breakdown_ms"]) >= {"sampler", "sample", "report", "finish"}
    assert record["first_trial_ms"]["ours"] > record["ours"]["median"]
    assert record["goal_met"] == (record["ours"]["median"] <= 200)
    assert (tmp_path / "overhead-cpu.png").stat().st_size > 10_000


def test_a_moment_belongs_to_the_innermost_part_alone() -> None:
    clock = overhead.Clock()
    inner = clock.around("inner", lambda: time.sleep(0.05))

    def outer() -> None:
        time.sleep(0.02)
        inner()

    before = time.perf_counter()
    clock.reset()
    started = time.perf_counter()
    clock.around("outer", outer)()
    ended = time.perf_counter()
    times = clock.read()
    after = time.perf_counter()
    assert times["inner"] >= 50
    assert times["outer"] >= 20
    assert 1000 * (ended - started) <= sum(times.values()) <= 1000 * (after - before)


def test_a_part_that_raises_has_ended() -> None:
    clock = overhead.Clock()

    def fail() -> None:
        raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        clock.around("pruned", fail)()
    clock.reset()
    time.sleep(0.01)
    assert set(clock.read()) == {"other"}


def test_publishing_is_no_part_of_the_overhead() -> None:
    assert overhead.total({"sampler": 3.0, "publish": 100.0, "finish": 1.5}) == 4.5


@pytest.mark.parametrize("given", [{"recorded": [19], "samples": 1}, {"recorded": [20], "samples": 0}])
def test_sizes_that_measure_nothing_are_refused(given: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--samples must be at least 1, and --recorded at least 20"):
        overhead.run(options_for(tmp_path, **given))
