"""Slots: who may run what next, after every way in which a run can end."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from study.storage.database import checkpoint_sqlite, open_storage
from study.storage.slots import LEASE_S, Claim, SlotTable, process_owner


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


def start_trial(study: optuna.Study, slot: int, attempt: int = 0, candidate: bool = True, **more: Any) -> optuna.Trial:
    trial = study.ask()
    for name, value in {"slot": slot, "attempt": attempt, **more}.items():
        trial.set_user_attr(name, value)
    if candidate:
        trial.suggest_float("lr", 0.0, 1.0)
        trial.set_user_attr("candidate", {})
    return trial


def finish_trial(study: optuna.Study, slot: int) -> optuna.Trial:
    trial = start_trial(study, slot)
    study.tell(trial, 0.5)
    return trial


def let_leases_end(slots: SlotTable) -> None:
    """As if nobody had renewed any for long enough."""
    with slots._engine.begin() as connection:
        connection.execute(sa.text("UPDATE small_cnn_study_slots SET expires = expires - :s"), {"s": LEASE_S + 1})


def brief(claim: Claim | None) -> tuple[int, int, int | None] | None:
    """Slot, attempt and the trial to repeat."""
    return None if claim is None else (claim.slot, claim.attempt, claim.repeats)


def take(slots: SlotTable, n_slots: int) -> Claim:
    claim = slots.claim(n_slots)
    assert claim is not None
    return claim


def state_of(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[trial.number]


# States


def test_slots_are_claimed_in_order_and_never_beyond_n(slots: SlotTable) -> None:
    assert [brief(slots.claim(3)) for _ in range(4)] == [(0, 0, None), (1, 0, None), (2, 0, None), None]
    assert brief(slots.claim(5)) == (3, 0, None)


def test_a_finished_slot_is_never_claimed_again(slots: SlotTable) -> None:
    for _ in range(2):
        assert slots.finish(take(slots, 2))
    assert slots.claim(2) is None
    assert brief(slots.claim(3)) == (2, 0, None)


def test_an_interrupted_slot_comes_first_and_keeps_its_trial(slots: SlotTable) -> None:
    claims = [take(slots, 10) for _ in range(3)]
    assert slots.interrupted(claims[1], trial_number=17)
    assert brief(slots.claim(10)) == (1, 0, 17)
    assert brief(slots.claim(10)) == (3, 0, None)


def test_an_interruption_is_no_failure(slots: SlotTable) -> None:
    for repeats in (None, *[4] * 5):
        claim = take(slots, 1)
        assert brief(claim) == (0, 0, repeats)
        slots.interrupted(claim, 4)


def test_a_failed_slot_runs_once_more_as_it_was_then_with_a_new_sample(slots: SlotTable) -> None:
    seen = []
    for trial_number in (5, 6, 7, 8, 9):
        claim = take(slots, 1)
        seen.append(brief(claim))
        slots.failed(claim, trial_number)
    assert seen == [(0, 0, None), (0, 0, 5), (0, 1, None), (0, 1, 7), (0, 2, None)]


def test_a_failure_without_parameters_draws_new_ones_at_once(slots: SlotTable) -> None:
    slots.failed(take(slots, 1), None)
    assert brief(slots.claim(1)) == (0, 1, None)


def test_an_interruption_between_failures_does_not_hide_the_first(slots: SlotTable) -> None:
    slots.failed(take(slots, 1), 5)
    slots.interrupted(take(slots, 1), 6)
    claim = take(slots, 1)
    assert brief(claim) == (0, 0, 6)
    slots.failed(claim, 7)
    assert brief(slots.claim(1)) == (0, 1, None)


def test_studies_in_one_storage_do_not_share_slots(slots: SlotTable, storage: optuna.storages.RDBStorage) -> None:
    other = SlotTable(optuna.create_study(study_name="other", storage=storage), storage)
    claims = [take(slots, 1), take(other, 1)]
    assert [brief(claim) for claim in claims] == [(0, 0, None)] * 2
    slots.finish(claims[0])
    assert (slots.n_finished(), other.n_finished()) == (1, 0)


def test_a_slot_taken_between_look_and_claim_is_not_taken_twice(
    slots: SlotTable, later: SlotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = slots._rows
    raced: list[Claim] = []
    n_races = 2

    def rows_then_race() -> dict[int, object]:
        seen = rows()
        if len(raced) < n_races:
            raced.append(take(later, 10))
        return seen

    monkeypatch.setattr(slots, "_rows", rows_then_race)
    taken = slots.claim(10)
    assert [claim.slot for claim in raced] == [0, 1]
    assert brief(taken) == (2, 0, None)
    for claim, trial_number in zip(raced, (3, 4), strict=True):
        later.interrupted(claim, trial_number)
    n_races = 3  # one race more, for an open slot
    assert brief(slots.claim(10)) == (1, 0, 4)
    assert brief(raced[2]) == (0, 0, 3)


def test_finished_slots_are_not_read_again(slots: SlotTable) -> None:
    # Thousands of them must not make every further trial wait.
    for slot in range(40):
        claim = take(slots, 100)
        if slot == 30:
            thirty = claim
        elif slot != 7:
            slots.finish(claim)
    slots.interrupted(thirty, 12)
    assert sorted(slots._rows()) == [7, 30, 39]
    assert brief(slots.claim(100)) == (30, 0, 12)
    last = take(slots, 100)
    assert last.slot == 40
    slots.finish(last)
    assert slots.claim(41) is None
    assert brief(slots.claim(42)) == (41, 0, None)
    assert slots.n_finished() == 39


def test_waiting_trials_take_slots_of_their_own_that_others_do_not_count(slots: SlotTable) -> None:
    first = take(slots, 5)
    queued = slots.claim(5, queued=True)
    assert queued is not None
    assert (queued.slot, queued.queued, queued.ordinal) == (1, True, 1)
    third = take(slots, 5)
    assert [(claim.slot, claim.ordinal) for claim in (first, third)] == [(0, 0), (2, 1)]
    assert slots.set_queued(queued, False) == dataclasses.replace(queued, queued=False)
    assert take(slots, 5).ordinal == 3
    slots.interrupted(queued, 9)
    again = take(slots, 5)
    assert (again.slot, again.queued, again.repeats) == (1, False, 9)
    assert slots.claim(5, queued=True) is not None
    assert slots.claim(5, queued=True) is None  # all five are begun


# Leases


def test_a_lease_that_ended_is_taken_over_and_its_old_owner_writes_nothing_more(
    study: optuna.Study, slots: SlotTable, later: SlotTable
) -> None:
    owned_by(slots, "elsewhere/boot/namespace/1/1")
    claim = take(slots, 1)
    trial = start_trial(study, 0, fence=claim.fence)
    let_leases_end(slots)
    assert later.reconcile() == [0]
    assert slots.renew([claim]) == [claim]
    assert not slots.finish(claim)
    taken = take(later, 1)
    assert brief(taken) == (0, 0, trial.number)
    assert taken.fence > claim.fence
    assert not slots.finish(claim)
    assert not slots.failed(claim, trial.number)
    assert not slots.interrupted(claim, trial.number)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.report(0.5, 0)
    assert later.finish(taken)
    assert later.n_finished() == 1


def test_a_lease_that_is_renewed_lasts(slots: SlotTable, later: SlotTable) -> None:
    owned_by(slots, "elsewhere/boot/namespace/1/1")
    claim = take(slots, 1)
    let_leases_end(slots)
    assert slots.renew([claim]) == []  # nobody took it meanwhile
    assert later.reconcile() == []
    assert slots.finish(claim)


def test_a_lease_does_not_follow_the_clock_of_this_machine(
    slots: SlotTable, later: SlotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the database has a clock of its own; on a file this machine's is the only one."""
    postgres = SimpleNamespace(dialect=SimpleNamespace(name="postgresql"))
    monkeypatch.setattr(slots, "_engine", postgres)
    assert "clock_timestamp()" in str(slots._expiry().compile())


def test_a_table_of_an_older_version_gets_the_columns_that_it_lacks(
    study: optuna.Study, storage: optuna.storages.RDBStorage
) -> None:
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE small_cnn_study_slots")
        connection.exec_driver_sql(
            "CREATE TABLE small_cnn_study_slots (study_id INTEGER NOT NULL, slot INTEGER NOT NULL, state VARCHAR(16) "
            "NOT NULL, attempt INTEGER NOT NULL, failures INTEGER NOT NULL, trial_number INTEGER, owner VARCHAR(255), "
            "PRIMARY KEY (study_id, slot))"
        )
        connection.exec_driver_sql(
            "INSERT INTO small_cnn_study_slots VALUES (1, 0, 'finished', 0, 0, NULL, NULL), "
            "(1, 1, 'running', 0, 0, NULL, 'elsewhere/b/1/1')"
        )
    finish_trial(study, 0)
    slots = SlotTable(study, storage)
    assert slots.reconcile() == [1]
    assert slots.n_finished() == 1
    assert [brief(slots.claim(3)) for _ in range(3)] == [(1, 0, None), (2, 0, None), None]
    finish_trial(study, 3)
    slots.reconcile()  # a slot that the table does not have
    assert slots.n_finished() == 2


# What happened to the trials


def test_slots_of_a_deleted_study_are_not_those_of_the_one_that_gets_its_id(
    study: optuna.Study, slots: SlotTable, storage: optuna.storages.RDBStorage
) -> None:
    for slot in range(3):
        claim = take(slots, 5)
        finish_trial(study, slot)
        slots.finish(claim)
    optuna.delete_study(study_name="slots", storage=storage)
    again = optuna.create_study(study_name="slots", storage=storage, direction="maximize")
    table = SlotTable(again, storage)
    assert table._study_id == slots._study_id  # else there is nothing to test
    assert table.reconcile() == []
    assert table.n_finished() == 0
    assert [brief(table.claim(4)) for _ in range(5)] == [(0, 0, None), (1, 0, None), (2, 0, None), (3, 0, None), None]


def test_a_copied_study_keeps_what_was_finished(
    study: optuna.Study, slots: SlotTable, storage: optuna.storages.RDBStorage
) -> None:
    for slot in range(4):
        claim = take(slots, 5)
        if slot == 2:
            left = start_trial(study, slot)
        else:
            finish_trial(study, slot)
            slots.finish(claim)
    optuna.copy_study(from_study_name="slots", from_storage=storage, to_storage=storage, to_study_name="copy")
    copy = SlotTable(optuna.load_study(study_name="copy", storage=storage), storage)
    copy.reconcile()
    assert copy.n_finished() == 3
    assert brief(copy.claim(5)) == (2, 0, left.number)
    assert brief(copy.claim(5)) == (4, 0, None)


def test_foreign_trials_count_for_nothing(study: optuna.Study, slots: SlotTable) -> None:
    study.add_trial(optuna.create_trial(value=0.99))
    study.add_trial(optuna.create_trial(value=0.99, user_attrs={"slot": "first"}))
    slots.reconcile()
    assert slots.n_finished() == 0
    assert brief(slots.claim(1)) == (0, 0, None)


def test_a_running_trial_without_a_slot_is_failed_unless_somebody_may_be_about_to_name_it(
    study: optuna.Study, slots: SlotTable, later: SlotTable
) -> None:
    nameless = study.ask()
    owned_by(slots, "elsewhere/boot/namespace/1/1")
    claim = take(slots, 1)
    later.reconcile()
    assert state_of(study, nameless).state == TrialState.RUNNING
    slots.finish(claim)
    later.reconcile()
    assert state_of(study, nameless).state == TrialState.FAIL


def test_what_a_killed_process_took_out_of_the_queue_waits_again(study: optuna.Study, slots: SlotTable) -> None:
    study.enqueue_trial({"x": 0.5}, user_attrs={"mine": True})
    taken = study.ask()
    taken.set_user_attr("slot", 0)
    slots.reconcile()
    assert state_of(study, taken).state == TrialState.FAIL
    [again] = study.get_trials(states=(TrialState.WAITING,))
    assert (again.system_attrs["fixed_params"], again.user_attrs) == ({"x": 0.5}, {"mine": True})
    slots.reconcile()
    assert len(study.trials) == 2


def test_what_two_processes_find_taken_out_of_the_queue_waits_once(study: optuna.Study, slots: SlotTable) -> None:
    study.enqueue_trial({"x": 0.5})
    study.ask()
    trials = study.get_trials(deepcopy=False)
    for _ in range(2):  # both read it before either ended it
        slots._fail_orphans(trials, ())
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_slots_that_do_not_count_are_left_out(study: optuna.Study, storage: optuna.storages.RDBStorage) -> None:
    claims = [SlotTable(study, storage).claim(10) for _ in range(4)]
    counting, all_of_them = SlotTable(study, storage, 2), SlotTable(study, storage)
    for claim in claims[1:3]:
        assert claim is not None
        all_of_them.finish(claim)
    assert (counting.n_finished(), counting.n_taken()) == (1, 2)
    assert (all_of_them.n_finished(), all_of_them.n_taken()) == (2, 4)
    assert counting.unfinished() == all_of_them.unfinished() == {0: "running", 3: "running"}
    assert [counting.counts(slot) for slot in (1, 2)] == [True, False]
    assert [all_of_them.counts(slot) for slot in (1, 2)] == [True, True]


def test_a_running_trial_of_an_earlier_claim_is_failed(study: optuna.Study, slots: SlotTable, later: SlotTable) -> None:
    claim = take(slots, 1)
    lost = start_trial(study, 0, fence=claim.fence)
    slots.interrupted(claim, lost.number)
    claim = take(slots, 1)
    live = start_trial(study, 0, fence=claim.fence)
    later.reconcile([claim])
    assert [state_of(study, trial).state for trial in (lost, live)] == [TrialState.FAIL, TrialState.RUNNING]


# Recovery


def test_a_live_process_keeps_its_slot(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, process.owner).claim(1)
    trial = start_trial(study, 0)
    assert later.reconcile() == []
    assert later.claim(1) is None
    assert state_of(study, trial).state == TrialState.RUNNING


@pytest.mark.parametrize("reap", [True, False], ids=["gone", "zombie"])
def test_the_slot_of_a_dead_process_is_run_again_with_its_parameters(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process, reap: bool
) -> None:
    owned_by(slots, process.owner).claim(2)
    trial = start_trial(study, 0)
    process.kill(reap)
    assert later.reconcile() == [0]
    assert state_of(study, trial).state == TrialState.FAIL
    assert state_of(study, trial).user_attrs["reason"].startswith("interrupted")
    claim = take(later, 2)
    assert brief(claim) == (0, 0, trial.number)
    assert later.reconcile([claim]) == []  # ours now
    assert later.reconcile() == [0]  # unless its answer was lost


@pytest.mark.parametrize("part", [1, 3], ids=["boot", "start time"])
def test_a_process_number_that_means_another_process_now_is_dead(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process, part: int
) -> None:
    parts = process.owner.split("/")
    parts[part] = "12345678"
    owned_by(slots, "/".join(parts)).claim(1)
    trial = start_trial(study, 0)
    assert later.reconcile() == [0]
    assert brief(later.claim(1)) == (0, 0, trial.number)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
def test_a_trial_that_finished_before_its_process_died_is_not_run_again(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process, state: TrialState
) -> None:
    owned_by(slots, process.owner).claim(1)
    trial = start_trial(study, 0)
    study.tell(trial, 0.5 if state == TrialState.COMPLETE else None, state=state)
    process.kill()
    assert later.reconcile() == []
    assert later.n_finished() == 1
    assert later.claim(1) is None


def test_a_process_that_died_before_its_trial_began_leaves_a_slot_as_new(
    slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, process.owner).claim(1)
    process.kill()
    assert later.reconcile() == [0]
    assert brief(later.claim(1)) == (0, 0, None)


def test_a_trial_that_died_while_it_was_sampled_is_sampled_again(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, process.owner).claim(1)
    start_trial(study, 0, candidate=False)
    process.kill()
    assert later.reconcile() == [0]
    assert brief(later.claim(1)) == (0, 0, None)


def test_a_trial_that_died_before_its_stored_parameters_were_read_keeps_them(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    claim = take(owned_by(slots, process.owner), 1)
    first = start_trial(study, 0)
    study.tell(first, state=TrialState.FAIL)
    slots.interrupted(claim, first.number)
    assert brief(slots.claim(1)) == (0, 0, first.number)
    start_trial(study, 0, candidate=False)
    process.kill()
    assert later.reconcile() == [0]
    assert brief(later.claim(1)) == (0, 0, first.number)


def test_a_new_sample_that_never_began_is_not_replaced_by_the_failed_one(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    claim = take(owned_by(slots, process.owner), 1)
    for _ in range(2):
        failed = start_trial(study, 0)
        study.tell(failed, state=TrialState.FAIL)
        slots.failed(claim, failed.number)
        claim = take(slots, 1)
    process.kill()
    assert later.reconcile() == [0]
    assert brief(later.claim(1)) == (0, 1, None)


def test_recovery_touches_no_other_slot(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, process.owner)
    for slot in range(3):
        claim = take(slots, 5)
        if slot != 1:
            finish_trial(study, slot)
            slots.finish(claim)
    trial = start_trial(study, 1)
    held = take(later, 5)
    ours = start_trial(study, 3)
    process.kill()
    assert later.reconcile([held]) == [1]
    assert brief(later.claim(5)) == (1, 0, trial.number)
    assert brief(later.claim(5)) == (4, 0, None)
    assert state_of(study, ours).state == TrialState.RUNNING


# Another machine, whose processes cannot be looked up


def test_another_machine_keeps_its_slot_as_long_as_its_lease(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, on_another_host(process.owner)).claim(1)
    trial = start_trial(study, 0)
    process.kill()  # a process of that number here says nothing
    assert later.reconcile() == []
    assert later.claim(1) is None
    assert state_of(study, trial).state == TrialState.RUNNING
    let_leases_end(slots)
    assert later.reconcile() == [0]
    assert state_of(study, trial).state == TrialState.FAIL
    assert brief(later.claim(1)) == (0, 0, trial.number)


def test_another_machine_that_finished_its_trial_is_believed(
    study: optuna.Study, slots: SlotTable, later: SlotTable, process: Process
) -> None:
    owned_by(slots, on_another_host(process.owner)).claim(1)
    finish_trial(study, 0)
    let_leases_end(slots)
    assert later.reconcile() == []
    assert later.n_finished() == 1


def test_containers_of_one_name_on_one_machine_are_told_apart(slots: SlotTable, later: SlotTable) -> None:
    """Their processes may have the same numbers, and cannot be looked up from another one."""
    host, boot, _, *process = process_owner().split("/")
    owned_by(slots, "/".join([host, boot, "another", *process])).claim(1)
    assert later.reconcile() == []
    let_leases_end(slots)
    assert later.reconcile() == [0]


def test_a_process_from_before_the_machine_was_booted_again_is_gone(slots: SlotTable, later: SlotTable) -> None:
    host, _, *rest = process_owner().split("/")
    owned_by(slots, "/".join([host, "earlier", *rest])).claim(1)
    assert later.reconcile() == [0]


@pytest.mark.skipif(not shutil.which("unshare") or os.geteuid() != 0, reason="needs unshare, as root")
def test_a_process_in_another_namespace_has_another_name() -> None:
    name = "from study.storage.slots import process_owner; print(process_owner(1))"
    inside = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", name]
    theirs = subprocess.run(inside, capture_output=True, text=True, check=True).stdout.strip()
    assert theirs.split("/")[:2] == process_owner(1).split("/")[:2]
    assert theirs.split("/")[2] != process_owner(1).split("/")[2]


def test_a_process_is_named_by_host_boot_namespace_number_and_start() -> None:
    ours = process_owner()
    assert ours == process_owner(os.getpid())
    assert ours.split("/")[3] == str(os.getpid())
    assert len(ours) < 255
    assert process_owner(os.getppid()) != ours
