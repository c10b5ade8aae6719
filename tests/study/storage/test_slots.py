"""Slots: who may run what next, after every way in which a run can end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from study.storage.database import HEARTBEAT_S, checkpoint_sqlite, open_storage
from study.storage.slots import Claim, SlotTable, process_owner


@pytest.fixture(scope="module")
def empty_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's file to copy: making the tables takes longer than any test here."""
    file = tmp_path_factory.mktemp("empty") / "study.db"
    storage = open_storage(f"sqlite:///{file}")
    SlotTable(optuna.create_study(study_name="slots", storage=storage, direction="maximize"), storage)
    checkpoint_sqlite(storage)
    storage.engine.dispose()
    return file


@pytest.fixture
def storage(empty_study: Path, tmp_path: Path) -> Iterator[optuna.storages.RDBStorage]:
    opened = open_storage(f"sqlite:///{shutil.copy(empty_study, tmp_path)}")
    yield opened
    opened.engine.dispose()


@pytest.fixture
def study(storage: optuna.storages.RDBStorage) -> optuna.Study:
    return optuna.load_study(study_name="slots", storage=storage)


@pytest.fixture
def slots(study: optuna.Study, storage: optuna.storages.RDBStorage) -> SlotTable:
    return SlotTable(study, storage)


@pytest.fixture
def later(study: optuna.Study, storage: optuna.storages.RDBStorage) -> SlotTable:
    """The table as the next run sees it."""
    return SlotTable(study, storage)


class Process:
    """Another process that owns slots, without anything of this program in it."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.owner = process_owner(self.popen.pid)

    def kill(self, reap: bool = True) -> None:
        self.popen.send_signal(signal.SIGKILL)
        if reap:
            self.popen.wait()
        else:
            os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie


@pytest.fixture
def process() -> Iterator[Process]:
    found = Process()
    yield found
    found.popen.kill()
    found.popen.wait()


def owned_by(slots: SlotTable, owner: str) -> SlotTable:
    """The table as seen by a process of that name."""
    slots._owner = owner
    return slots


def on_another_host(owner: str) -> str:
    return "/".join(["elsewhere", *owner.split("/")[1:]])


def start_trial(study: optuna.Study, slot: int, attempt: int = 0, candidate: bool = True) -> optuna.Trial:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna wants heartbeats to come from study.optimize
        trial = study.ask()
    trial.set_user_attr("slot", slot)
    trial.set_user_attr("attempt", attempt)
    if candidate:
        trial.suggest_float("lr", 0.0, 1.0)
        trial.set_user_attr("candidate", {})
    return trial


def beat(storage: optuna.storages.RDBStorage, trial: optuna.Trial, seconds_ago: float) -> None:
    """Writes a heartbeat that is so old."""
    storage.record_heartbeat(trial._trial_id)
    with storage.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, :shift) WHERE trial_id = :trial"),
            {"shift": f"-{seconds_ago} seconds", "trial": trial._trial_id},
        )


def state_of(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[trial.number]


# States


def test_slots_are_claimed_in_order_and_never_beyond_n(slots: SlotTable) -> None:
    assert [slots.claim(3) for _ in range(4)] == [Claim(0, 0, None), Claim(1, 0, None), Claim(2, 0, None), None]
    assert slots.claim(5) == Claim(3, 0, None)


def test_a_finished_slot_is_never_claimed_again(slots: SlotTable) -> None:
    for slot in range(2):
        assert slots.claim(2) is not None
        slots.finish(slot)
    assert slots.claim(2) is None
    assert slots.claim(3) == Claim(2, 0, None)


def test_an_interrupted_slot_comes_first_and_keeps_its_trial(slots: SlotTable) -> None:
    for _ in range(3):
        slots.claim(10)
    slots.interrupted(1, trial_number=17)
    assert slots.claim(10) == Claim(1, 0, 17)
    assert slots.claim(10) == Claim(3, 0, None)


def test_an_interruption_is_no_failure(slots: SlotTable) -> None:
    slots.claim(1)
    for _ in range(5):
        slots.interrupted(0, 4)
        assert slots.claim(1) == Claim(0, 0, 4)


def test_a_failed_slot_runs_once_more_as_it_was_then_with_a_new_sample(slots: SlotTable) -> None:
    seen = [slots.claim(1)]
    for trial_number in (5, 6, 7, 8):
        slots.failed(0, trial_number)
        seen.append(slots.claim(1))
    assert seen == [Claim(0, 0, None), Claim(0, 0, 5), Claim(0, 1, None), Claim(0, 1, 7), Claim(0, 2, None)]


def test_a_failure_without_parameters_draws_new_ones_at_once(slots: SlotTable) -> None:
    slots.claim(1)
    slots.failed(0, None)
    assert slots.claim(1) == Claim(0, 1, None)


def test_an_interruption_between_failures_does_not_hide_the_first(slots: SlotTable) -> None:
    slots.claim(1)
    slots.failed(0, 5)
    slots.claim(1)
    slots.interrupted(0, 6)
    assert slots.claim(1) == Claim(0, 0, 6)
    slots.failed(0, 7)
    assert slots.claim(1) == Claim(0, 1, None)


def test_n_finished_counts_finished_slots_below_n(slots: SlotTable) -> None:
    for slot in range(4):
        slots.claim(10)
        if slot != 1:
            slots.finish(slot)
    slots.failed(1, None)
    assert slots.n_finished() == 3
    assert [slots.n_finished(n) for n in range(5)] == [0, 1, 1, 2, 3]


def test_studies_in_one_storage_do_not_share_slots(slots: SlotTable, storage: optuna.storages.RDBStorage) -> None:
    other = SlotTable(optuna.create_study(study_name="other", storage=storage), storage)
    assert slots.claim(1) == other.claim(1) == Claim(0, 0, None)
    slots.finish(0)
    assert (slots.n_finished(), other.n_finished()) == (1, 0)


def test_a_slot_taken_between_look_and_claim_is_not_taken_twice(
    slots: SlotTable, later: SlotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = slots._rows
    raced: list[Claim | None] = []

    def rows_then_race() -> dict[int, object]:
        seen = rows()
        if len(raced) < 2:
            raced.append(later.claim(10))
        return seen

    monkeypatch.setattr(slots, "_rows", rows_then_race)
    taken = slots.claim(10)
    assert [claim.slot for claim in raced if claim] == [0, 1]
    assert taken == Claim(2, 0, None)
    later.interrupted(0, 3)
    later.interrupted(1, 4)
    raced.clear()
    raced.append(None)  # one race more, for an open slot
    assert slots.claim(10) == Claim(1, 0, 4)
    assert raced[1] == Claim(0, 0, 3)


def test_finished_slots_are_not_read_again(slots: SlotTable) -> None:
    # Thousands of them must not make every further trial wait.
    for slot in range(40):
        slots.claim(100)
        if slot not in (7, 30):
            slots.finish(slot)
    slots.interrupted(30, 12)
    assert sorted(slots._rows()) == [7, 30, 39]
    assert slots.claim(100) == Claim(30, 0, 12)
    assert slots.claim(100) == Claim(40, 0, None)
    slots.finish(40)
    assert slots.claim(41) is None
    assert slots.claim(42) == Claim(41, 0, None)
    assert slots.n_finished() == 39


# Recovery


def test_a_live_process_keeps_its_slot(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, process.owner).claim(1)
    trial = start_trial(study, 0)
    assert later.recover() == []
    assert later.claim(1) is None
    assert state_of(study, trial).state == TrialState.RUNNING


@pytest.mark.parametrize("reap", [True, False], ids=["gone", "zombie"])
def test_the_slot_of_a_dead_process_is_run_again_with_its_parameters(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process, reap: bool
) -> None:
    owned_by(slots, process.owner).claim(2)
    trial = start_trial(study, 0)
    process.kill(reap)
    assert later.recover() == [0]
    assert state_of(study, trial).state == TrialState.FAIL
    assert state_of(study, trial).user_attrs["reason"].startswith("interrupted")
    assert later.claim(2) == Claim(0, 0, trial.number)
    assert later.recover() == []  # ours now


@pytest.mark.parametrize("part", [1, 3], ids=["boot", "start time"])
def test_a_process_number_that_means_another_process_now_is_dead(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process, part: int
) -> None:
    parts = process.owner.split("/")
    parts[part] = "12345678"
    owned_by(slots, "/".join(parts)).claim(1)
    trial = start_trial(study, 0)
    assert later.recover() == [0]
    assert later.claim(1) == Claim(0, 0, trial.number)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
def test_a_trial_that_finished_before_its_process_died_is_not_run_again(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process, state: TrialState
) -> None:
    owned_by(slots, process.owner).claim(1)
    trial = start_trial(study, 0)
    study.tell(trial, 0.5 if state == TrialState.COMPLETE else None, state=state)
    process.kill()
    assert later.recover() == []
    assert later.n_finished() == 1
    assert later.claim(1) is None


def test_a_process_that_died_before_its_trial_began_leaves_a_slot_as_new(
    slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, process.owner).claim(1)
    process.kill()
    assert later.recover() == [0]
    assert later.claim(1) == Claim(0, 0, None)


def test_a_trial_that_died_while_it_was_sampled_is_sampled_again(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, process.owner).claim(1)
    start_trial(study, 0, candidate=False)
    process.kill()
    assert later.recover() == [0]
    assert later.claim(1) == Claim(0, 0, None)


def test_a_trial_that_died_before_its_stored_parameters_were_read_keeps_them(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, process.owner).claim(1)
    first = start_trial(study, 0)
    study.tell(first, state=TrialState.FAIL)
    slots.interrupted(0, first.number)
    assert slots.claim(1) == Claim(0, 0, first.number)
    start_trial(study, 0, candidate=False)
    process.kill()
    assert later.recover() == [0]
    assert later.claim(1) == Claim(0, 0, first.number)


def test_a_new_sample_that_never_began_is_not_replaced_by_the_failed_one(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, process.owner).claim(1)
    for _ in range(2):
        failed = start_trial(study, 0)
        study.tell(failed, state=TrialState.FAIL)
        slots.failed(0, failed.number)
        slots.claim(1)
    process.kill()
    assert later.recover() == [0]
    assert later.claim(1) == Claim(0, 1, None)


def test_recovery_touches_no_other_slot(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, process.owner)
    for slot in range(3):
        slots.claim(5)
        if slot != 1:
            study.tell(start_trial(study, slot), 0.5)
            slots.finish(slot)
    trial = start_trial(study, 1)
    later.claim(5)
    ours = start_trial(study, 3)
    process.kill()
    assert later.recover() == [1]
    assert later.claim(5) == Claim(1, 0, trial.number)
    assert later.claim(5) == Claim(4, 0, None)
    assert state_of(study, ours).state == TrialState.RUNNING


# Another machine, whose processes cannot be looked up


def test_another_machine_with_a_fresh_heartbeat_keeps_its_slot(
    study: optuna.Study, storage: optuna.storages.RDBStorage, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, on_another_host(process.owner)).claim(1)
    trial = start_trial(study, 0)
    beat(storage, trial, seconds_ago=2 * HEARTBEAT_S)
    process.kill()  # a process of that number here says nothing
    assert later.recover() == []
    assert later.claim(1) is None
    assert state_of(study, trial).state == TrialState.RUNNING


def test_another_machine_with_a_stale_heartbeat_loses_its_slot(
    study: optuna.Study, storage: optuna.storages.RDBStorage, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, on_another_host(process.owner)).claim(1)
    trial = start_trial(study, 0)
    beat(storage, trial, seconds_ago=6 * HEARTBEAT_S)
    assert later.recover() == [0]
    assert state_of(study, trial).state == TrialState.FAIL
    assert later.claim(1) == Claim(0, 0, trial.number)


def test_another_machine_that_finished_its_trial_is_believed(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, on_another_host(process.owner)).claim(1)
    study.tell(start_trial(study, 0), 0.5)
    assert later.recover() == []
    assert later.n_finished() == 1


def test_another_machine_that_is_about_to_repeat_a_failed_trial_keeps_its_slot(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    # Its worker starts for seconds; the last trial of the slot is the failed one until then.
    owned_by(slots, on_another_host(process.owner)).claim(1)
    failed = start_trial(study, 0)
    study.tell(failed, state=TrialState.FAIL)
    slots.failed(0, failed.number)
    assert slots.claim(1) == Claim(0, 0, failed.number)
    assert later.recover() == []
    assert later.claim(1) is None


def test_a_process_is_named_by_host_boot_number_and_start() -> None:
    ours = process_owner()
    assert ours == process_owner(os.getpid())
    assert ours.split("/")[2] == str(os.getpid())
    assert len(ours) < 255
    assert process_owner(os.getppid()) != ours
