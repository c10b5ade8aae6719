"""The supervisor, with workers that follow a script: exactly N, whatever becomes of a trial."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from stage import Stage

from search_spaces.constraints import Limits
from search_spaces.dilated import DilatedSpace
from study.command_line.parser import run_command
from study.errors import StudyDeleted, StudyFailed
from study.executors.messages import Died, EpochEnded, Message
from study.search import supervisor as module
from study.search import telling
from study.search.plan import Given
from study.search.supervisor import MAX_FAILURES_IN_A_ROW, MAX_INFEASIBLE_IN_A_ROW, Supervisor
from study.storage import patience
from study.storage.database import MOST_SHOWN, open_storage, stored
from study.storage.known import KnownTrials
from study.storage.slots import LEASE_S, Claim, SlotTable


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_it_stops_at_n(stage: Stage, jobs: int) -> None:
    assert stage.play(["complete"] * 7, trials=7, jobs=jobs) == "done"
    assert sorted(stage.attributes("slot")) == list(range(7))
    assert stage.executor.most_at_once == jobs
    assert stage.slots.n_finished() == 7
    assert stage.play([], trials=7, jobs=jobs) == "done"
    assert [trial.value for trial in stage.trials()] == [0.5] * 7


def test_a_trial_tells_how_it_went(stage: Stage) -> None:
    stage.skip_anchors()
    assert stage.play(["complete", "pruned"], trials=stage.n_anchors + 2) == "done"
    complete, pruned = stage.trials()[-2:]
    assert (complete.state, complete.value, complete.user_attrs["outcome"]) == (TrialState.COMPLETE, 0.5, "complete")
    assert (complete.user_attrs["wall_s"], complete.user_attrs["rss_mib"]) == (1.0, 100.0)
    assert [epoch["val_accuracy"] for epoch in stored(complete, "curve")] == [0.5, 0.5]
    assert (pruned.state, pruned.user_attrs["outcome"]) == (TrialState.PRUNED, "pruned")
    assert pruned.user_attrs["reason"] == "pruned after epoch 1 of 2"
    assert pruned.intermediate_values == {0: 0.5}
    assert stage.executor.answers == [False]
    files = {file.read_bytes() for file in (stage.out / "artifacts").iterdir()}
    assert b"picture" in files


def test_known_points_are_never_asked_about(stage: Stage) -> None:
    stage.play(["complete"] * 3, trials=3)
    assert [work.asks_after for work in stage.executor.works] == [frozenset(), frozenset(), frozenset({0})]
    assert [asked.anchor for asked in stage.asked] == ["reference", "default", None]


def test_a_sole_worker_is_asked_for_after_every_result_and_others_ahead(stage: Stage) -> None:
    seen: list[tuple[int, int]] = []
    for jobs in (1, 2):
        supervisor = stage.supervisor(["complete"] * 4, trials=4 * jobs, jobs=jobs)
        submit = stage.executor.submit

        def look(work: Any, submit: Any = submit) -> None:
            states = [trial.state for trial in stage.trials()]
            seen.append((states.count(TrialState.RUNNING), len(stage.executor.busy)))
            submit(work)

        stage.executor.submit = look  # type: ignore[method-assign]
        assert supervisor.run() == "done"
    alone, together = seen[:4], seen[4:]
    assert alone == [(1, 0)] * 4  # nothing but itself
    assert max(running for running, _ in together) == 3  # two that train and the next


def test_a_failed_slot_is_repeated_once_then_drawn_anew(stage: Stage) -> None:
    stage.skip_anchors()
    assert stage.play(["failed", "failed", "complete"], trials=stage.n_anchors + 1) == "done"
    assert [asked.claim.attempt for asked in stage.asked] == [0, 0, 1]
    first, second, third = stage.trials()[-3:]
    assert first.params == second.params != third.params
    assert first.user_attrs["outcome"] == "failed"
    assert first.user_attrs["reason"] == "failed"
    assert len({asked.seed for asked in stage.asked}) == 1


def test_an_anchor_that_cannot_be_trained_is_replaced_and_does_not_end_the_study(stage: Stage) -> None:
    assert stage.play(["failed", "failed", "complete", "complete"], trials=2) == "done"
    assert [asked.anchor for asked in stage.asked] == ["reference", "reference", None, "default"]


def test_five_failures_in_a_row_end_the_run_with_the_cause(stage: Stage) -> None:
    with pytest.raises(StudyFailed, match=f"{MAX_FAILURES_IN_A_ROW} trials failed in a row; the last: failed"):
        stage.play(["complete", *["failed", "dies"] * 10], trials=20)
    assert len(stage.trials()) == 1 + MAX_FAILURES_IN_A_ROW
    assert stage.slots.n_finished() == 1


def test_a_machine_that_is_lost_is_no_failure_of_its_trials(stage: Stage) -> None:
    n_lost = MAX_FAILURES_IN_A_ROW + 1
    assert stage.play(["loses its machine"] * n_lost + ["complete"], trials=1) == "done"
    *lost, complete = stage.trials()
    assert [trial.user_attrs["outcome"] for trial in lost] == ["interrupted"] * n_lost
    assert complete.params == lost[0].params
    assert len({work.checkpoint for work in stage.executor.works}) == 1


@pytest.mark.parametrize(
    ("jobs", "script"),
    [(1, ["failed", "dies", "complete", "complete"]), (2, ["failed", "complete", "complete", "dies"])],
)
def test_a_given_candidate_that_cannot_be_trained_holds_up_no_other_one(
    empty_study: Path, tmp_path: Path, jobs: int, script: list[str]
) -> None:
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), given=same_candidates(3))
    supervisor = stage.supervisor(script, trials=3, jobs=jobs)
    assert supervisor.run() == "done"
    assert supervisor.left_out == {0: "trial 0, light: the worker was killed by SIGKILL"}
    assert stage.slots.n_finished() == 2
    assert stage.play(["failed", "complete"], trials=3, jobs=jobs) == "done"  # the next call tries it again
    assert stage.slots.n_finished() == 3


def test_many_given_candidates_that_cannot_be_trained_hold_up_no_other_one(empty_study: Path, tmp_path: Path) -> None:
    n_bad = MAX_FAILURES_IN_A_ROW
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), given=same_candidates(n_bad + 1))
    supervisor = stage.supervisor(["failed"] * 2 * n_bad + ["complete"], trials=n_bad + 1)
    assert supervisor.run() == "done"
    assert sorted(supervisor.left_out) == list(range(n_bad))
    assert stage.slots.n_finished() == 1


def test_what_is_left_out_is_not_waited_for(stage: Stage, empty_study: Path, tmp_path: Path) -> None:
    """Another process re-ranks more candidates; when it finishes the one that was left out here, that counts."""
    folder = tmp_path / "shared"
    folder.mkdir()
    stage = Stage(Path(shutil.copy(empty_study, folder)), given=same_candidates(3))
    other = other_table(stage)
    supervisor = stage.supervisor(["failed", "failed", "complete"], trials=2)
    claim, seen = stage.slots.claim, []

    def claim_and_note(*arguments: Any, **named: Any) -> Claim | None:
        found = claim(*arguments, **named)
        if found is None and not seen:
            seen.append(other.claim(3))
            assert seen[0] is not None
            finish_elsewhere(stage, other, seen[0])
            seen.append(other.claim(3))
        return found

    stage.slots.claim = claim_and_note  # type: ignore[method-assign]
    assert supervisor.run() == "done"
    assert [each.slot for each in seen] == [0, 2]
    assert supervisor.waited_s == 0
    assert supervisor.left_out == {}


def same_candidates(n: int) -> list[Given]:
    space = DilatedSpace()
    params = dict(space.anchors(Limits())["default"])
    candidate = space.decode(params, Limits()).candidate.to_json()
    return [Given(f"trial {number}, light", params, candidate) for number in range(n)]


def test_a_success_forgives_the_failures_before_it(stage: Stage) -> None:
    stage.skip_anchors()
    script = [*["failed"] * (MAX_FAILURES_IN_A_ROW - 1), "complete"] * 2
    assert stage.play(script, trials=stage.n_anchors + 2) == "done"


def test_five_failures_exit_with_1(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: cast(int, stage.play(["failed"] * 9, trials=20)))
    assert caught.value.code == 1
    assert "failed: 5 trials failed in a row" in capsys.readouterr().err


def test_infeasible_samples_are_drawn_anew_but_not_for_ever(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_INFEASIBLE_IN_A_ROW > MAX_FAILURES_IN_A_ROW
    monkeypatch.setattr(module, "MAX_INFEASIBLE_IN_A_ROW", 4)
    stage.skip_anchors()
    n_before = len(stage.trials())
    from search_spaces.constraints import Constraint, InfeasibleError
    from study.search.asking import Asker

    decode, n_refused = Asker._decoded, 3

    def refuse(self: Asker, *args: Any) -> Any:
        nonlocal n_refused
        n_refused -= 1
        if n_refused >= 0:
            raise InfeasibleError((Constraint("parameters", 7, "too many " * 30),))
        return decode(self, *args)

    monkeypatch.setattr(Asker, "_decoded", refuse)
    assert stage.play(["complete"], trials=stage.n_anchors + 1) == "done"
    assert [asked.claim.attempt for asked in stage.asked] == list(range(4))
    refused = stage.trials()[n_before]
    assert (refused.state, refused.user_attrs["outcome"]) == (TrialState.FAIL, "infeasible")
    assert refused.user_attrs["reason"].startswith("infeasible: too many too many")
    assert len(refused.user_attrs["reason"]) == MOST_SHOWN  # the dashboard prints it on one line
    assert stored(refused, "reason") == f"infeasible: {'too many ' * 30}"
    assert refused.constraints == {"parameters": 7}
    n_refused = 9
    with pytest.raises(StudyFailed, match="4 samples in a row broke a limit; the last: infeasible"):
        stage.play([], trials=stage.n_anchors + 2)


@pytest.mark.parametrize(
    ("outcome", "reason"), [("dies", "the worker was killed by SIGKILL"), ("crashes", "IndexError: a bug")]
)
def test_the_trial_of_a_dead_worker_fails_and_its_slot_goes_on(
    stage: Stage, outcome: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.skip_anchors()
    assert stage.play([outcome, "complete"], trials=stage.n_anchors + 1) == "done"
    dead, again = stage.trials()[-2:]
    assert (dead.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert dead.user_attrs["reason"] == reason
    assert dead.params == again.params
    first, second = stage.executor.works
    assert first.checkpoint == second.checkpoint
    assert f"failed: {reason}" in capsys.readouterr().err


def test_checkpoints_go_when_their_trials_are_over(stage: Stage) -> None:
    for outcome, left in (("dies", True), ("failed", False), ("complete", False)):
        supervisor = stage.supervisor([outcome, "hangs"], trials=1)
        submit = stage.executor.submit

        def write(work: Any, submit: Any = submit, outcome: str = outcome) -> None:
            if len(stage.executor.works) == 0:
                work.checkpoint.parent.mkdir(parents=True, exist_ok=True)
                work.checkpoint.write_bytes(b"progress")
            submit(work)

        stage.executor.submit = write  # type: ignore[method-assign]
        interrupt_when_silent(supervisor, stage)
        supervisor.run()
        assert stage.executor.works[0].checkpoint.exists() is left, outcome
    assert not (stage.out / "checkpoints" / "trials").exists()


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("moment", ["it waits", "an epoch ended", "it is asked"])
def test_a_study_that_is_deleted_ends_it_and_the_next_one_stays_clean(
    stage: Stage, replaced: bool, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next study gets the same numbers, and so do its trials."""
    stage.study.set_user_attr("created", "before")
    stage.slots = SlotTable(stage.study, stage.storage)
    stage.known = KnownTrials(stage.study, stage.storage, stage.slots)
    stage.skip_anchors()
    monkeypatch.setattr(module, "RENEW_S", 0.0)
    supervisor = stage.supervisor(["hangs", "complete"], trials=stage.n_anchors + 2, jobs=2)
    others = open_storage(str(stage.storage.engine.url))

    def delete() -> None:
        monkeypatch.undo()
        monkeypatch.setattr(module, "RENEW_S", 0.0)
        optuna.delete_study(study_name="stage", storage=others)
        if replaced:
            new = optuna.create_study(study_name="stage", storage=others, direction="maximize")
            new.set_user_attr("created", "after")
            for _ in range(stage.n_anchors + 2):
                new.ask()

    def first(owner: Any, name: str, when: Callable[[Any], bool]) -> None:
        original = getattr(owner, name)

        def delete_first(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            if when(result):
                delete()
            return result

        monkeypatch.setattr(owner, name, delete_first)

    if moment == "it waits":
        first(stage.executor, "wait", lambda said: not said and bool(stage.executor.busy))
    elif moment == "an epoch ended":
        first(stage.executor, "wait", bool)
    else:
        first(stage.slots, "claim", bool)
    with pytest.raises(StudyDeleted, match="the study 'stage' was deleted while it ran"):
        supervisor.run()
    studies = others.get_all_studies()
    assert len(studies) == replaced
    if replaced:
        found = optuna.load_study(study_name="stage", storage=others)
        assert found.user_attrs == {"created": "after"}
        assert [(trial.state, trial.user_attrs) for trial in found.trials] == [(TrialState.RUNNING, {})] * (
            stage.n_anchors + 2
        )


# Interruptions


def interrupt_when_silent(supervisor: Supervisor, stage: Stage, signum: int = signal.SIGINT) -> None:
    wait = stage.executor.wait

    def wait_or_interrupt(timeout_s: float) -> list[Message]:
        said = wait(timeout_s)
        if timeout_s and not said and stage.executor.busy:
            os.kill(os.getpid(), signum)
        return said

    stage.executor.wait = wait_or_interrupt  # type: ignore[method-assign]


def play_and_interrupt(stage: Stage, script: list[str], trials: int, jobs: int = 1, signum: int = signal.SIGINT) -> str:
    supervisor = stage.supervisor(script, trials, jobs)
    interrupt_when_silent(supervisor, stage, signum)
    return supervisor.run()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_frees_the_slots_at_work_with_their_parameters(stage: Stage, signum: int) -> None:
    stage.skip_anchors()
    n_trials, n_before = stage.n_anchors + 3, len(stage.trials())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    assert play_and_interrupt(stage, ["hangs", "hangs"], n_trials, 2, signum) == "interrupted"
    assert {number: signal.getsignal(number) for number in before} == before
    stopped = stage.trials()[n_before:]  # the third was asked for ahead
    assert [trial.state for trial in stopped] == [TrialState.FAIL] * 3
    assert {(trial.user_attrs["reason"], trial.user_attrs["outcome"]) for trial in stopped} == {("interrupted",) * 2}
    assert stage.play(["complete"] * 3, trials=n_trials) == "done"
    again = stage.trials()[n_before + 3 :]
    assert [trial.params for trial in again] == [trial.params for trial in stopped]


def test_checkpoints_stay_while_a_slot_is_cut_off(stage: Stage) -> None:
    """Also where a later command asks for fewer trials than were begun."""
    stage.skip_anchors()
    n_trials, checkpoints = stage.n_anchors + 1, stage.out / "checkpoints" / "trials"
    checkpoints.mkdir(parents=True)
    assert play_and_interrupt(stage, ["hangs"], n_trials) == "interrupted"
    assert stage.play([], trials=stage.n_anchors) == "done"
    assert checkpoints.exists()
    assert stage.play(["complete"], trials=n_trials) == "done"
    assert not checkpoints.exists()


def test_workers_that_are_told_to_end_with_it_do_not_fail(stage: Stage) -> None:
    """A SIGTERM to the whole group, as timeout and systemd send it: theirs may be heard of first."""
    stage.skip_anchors()
    n_trials = stage.n_anchors + 1
    for _ in range(3):
        supervisor = stage.supervisor(["dies"], trials=n_trials)
        wait = stage.executor.wait

        def end(timeout_s: float, wait: Any = wait) -> list[Message]:
            said: list[Message] = wait(timeout_s)
            if said:
                os.kill(os.getpid(), signal.SIGTERM)
            return said

        stage.executor.wait = end  # type: ignore[method-assign]
        assert supervisor.run() == "interrupted"
        assert stage.trials()[-1].user_attrs["outcome"] == "interrupted"
        assert stage.asked[-1].claim.attempt == 0
    assert stage.play(["failed", "complete"], trials=n_trials) == "done"  # the first failure of the slot


def test_what_ends_while_workers_are_stopped_is_kept(stage: Stage) -> None:
    stage.skip_anchors()
    n_trials = stage.n_anchors + 1
    assert play_and_interrupt(stage, ["ends late"], n_trials) == "interrupted"
    assert stage.trials()[-1].state == TrialState.COMPLETE
    assert len(stored(stage.trials()[-1], "curve")) == 2
    assert stage.play([], trials=n_trials) == "done"


@pytest.mark.parametrize("output", ["a closed pipe", "a full disk"])
def test_output_that_is_lost_interrupts_it_like_a_signal(stage: Stage, output: str) -> None:
    """What ended meanwhile is kept, what runs is freed, and the next run goes on with it."""
    stage.skip_anchors()
    n_trials = stage.n_anchors + 4
    read, write = (
        os.pipe() if output == "a closed pipe" else (os.open(os.devnull, 0), os.open("/dev/full", os.O_WRONLY))
    )
    os.close(read)
    supervisor = stage.supervisor(["complete", "complete", "hangs"], n_trials, jobs=2)
    with os.fdopen(write, "w") as stream:
        with contextlib.redirect_stdout(stream):
            assert supervisor.run() == "interrupted"
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
    with pytest.raises(OSError, match=r"Broken pipe|No space left"):
        supervisor.interrupted.end()
    assert stage.slots.n_finished() == stage.n_anchors + 2
    assert {trial.state for trial in stage.trials()} == {TrialState.COMPLETE, TrialState.FAIL}
    assert {trial.user_attrs["outcome"] for trial in stage.trials()[stage.n_anchors + 2 :]} == {"interrupted"}
    assert stage.play(["complete"] * 2, trials=n_trials) == "done"


def test_interruptions_are_no_failures_and_hide_none(stage: Stage) -> None:
    stage.skip_anchors()
    n_trials = stage.n_anchors + 1
    # Once as it was, then a new sample: the interruption must not bring the failed one back.
    for script, repeats, attempt in (
        (["starts"], False, 0),
        (["hangs"], True, 0),
        (["starts"], True, 0),
        (["failed", "starts"], True, 0),
        (["failed", "starts"], False, 1),
        (["starts"], True, 1),
    ):
        assert play_and_interrupt(stage, script, n_trials) == "interrupted"
        last = stage.asked[-1].claim
        assert (last.repeats is not None, last.attempt) == (repeats, attempt), script
    assert stage.play(["complete"], trials=n_trials) == "done"


def test_the_timeout_starts_no_more_trials(stage: Stage) -> None:
    assert stage.play([], trials=3, timeout=1e-9) == "timeout"
    assert stage.trials() == []
    assert stage.play(["complete"] * 3, trials=3, timeout=600) == "done"


def test_what_was_asked_for_ahead_does_not_start_after_the_timeout(stage: Stage) -> None:
    stage.skip_anchors()
    n_before = len(stage.trials())
    supervisor = stage.supervisor(["complete"] * 4, stage.n_anchors + 4, 2, 600)
    wait = stage.executor.wait

    def late(timeout_s: float) -> list[Message]:
        said: list[Message] = wait(timeout_s)
        if said:
            supervisor._deadline = 0.0
        return said

    stage.executor.wait = late  # type: ignore[method-assign]
    assert supervisor.run() == "timeout"
    states = [trial.state for trial in stage.trials()[n_before:]]
    assert states.count(TrialState.COMPLETE) == 2  # that had been started
    assert stage.play(["complete"] * 2, stage.n_anchors + 4) == "done"


# Others at work on the same study


def test_no_more_than_n_when_others_work_on_the_study(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = other_table(stage)
    claims = [other.claim(10) for _ in range(3)]
    finish_elsewhere(stage, other, claims[1])
    supervisor = stage.supervisor(["complete"] * 2, trials=5)  # slots 0 and 2 are at work elsewhere
    when_it_waits(monkeypatch, lambda: [finish_elsewhere(stage, other, claims[slot]) for slot in (0, 2)])
    assert supervisor.run() == "done"
    assert sorted(stage.attributes("slot")) == [0, 1, 2, 3, 4]
    assert supervisor.told == [1, 2]
    said = capsys.readouterr()
    assert said.err.count("waiting for 2 trials of other processes") == 1
    assert "[3/5] slot 4, trial 2" in said.out  # those of others are counted


def test_no_more_than_n_where_slots_from_n_on_are_finished(stage: Stage) -> None:
    """As after a call for more, which was interrupted, and one for fewer."""
    for claim in [stage.slots.claim(100) for _ in range(stage.n_anchors + 6)]:
        assert claim is not None
        if claim.slot in (2, 3):
            stage.slots.interrupted(claim, None)
        else:
            finish_elsewhere(stage, stage.slots, claim)
    n_trials = stage.n_anchors + 5
    assert stage.play(["complete"] * 2, trials=n_trials, jobs=2) == "done"
    assert stage.slots.n_finished() == n_trials


def test_what_is_left_open_the_moment_before_it_looks_is_taken_over(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = other_table(stage)
    claim = other.claim(1)
    assert claim is not None
    look, left = SlotTable.unfinished, list[Claim]()

    def leave_and_look(table: SlotTable) -> dict[int, str]:
        if not left:
            left.append(claim)
            other.interrupted(claim, None)
        return look(table)

    monkeypatch.setattr(SlotTable, "unfinished", leave_and_look)
    assert stage.play(["complete"], trials=1) == "done"
    assert stage.slots.n_finished() == 1


def test_checkpoints_stay_while_candidates_that_others_were_given_are_cut_off(
    stage: Stage, empty_study: Path, tmp_path: Path
) -> None:
    """Of a re-ranking that another call made larger."""
    (tmp_path / "given").mkdir()
    given = same_candidates(2)
    stage = Stage(Path(shutil.copy(empty_study, tmp_path / "given")), given=given)
    larger = SlotTable(stage.study, stage.storage)
    claims = [larger.claim(3) for _ in range(3)]
    for claim in claims:
        assert claim is not None
        larger.interrupted(claim, None)
    kept = stage.out / "checkpoints" / "trials" / "of-slot-2.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"progress")
    assert stage.play(["complete"] * 2, trials=2) == "done"
    assert stage.slots.n_finished() == 2
    assert kept.exists()


def test_a_reason_to_stop_of_all_workers_ends_the_run_and_costs_no_trial(stage: Stage) -> None:
    supervisor = stage.supervisor(["complete"], trials=1)

    def wait(timeout_s: float) -> list[Message]:
        return [Died(each.key, "they were changed", for_all=True) for each in stage.executor.works]

    stage.executor.wait = wait  # type: ignore[method-assign]
    with pytest.raises(StudyFailed, match="they were changed"):
        supervisor.run()
    assert [trial.user_attrs["outcome"] for trial in stage.trials()] == ["interrupted"]
    assert stage.slots.unfinished() == {0: "open"}
    assert stage.play(["complete"], trials=1) == "done"
    first, second = stage.trials()
    assert first.params == second.params


def test_the_best_is_that_of_all_processes(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.skip_anchors()
    supervisor = stage.supervisor(["complete"], trials=stage.n_anchors + 2)
    other = other_table(stage)
    claim = other.claim(stage.n_anchors + 1)
    assert claim is not None
    better = {"slot": claim.slot, "candidate": {}}
    stage.study.add_trial(optuna.create_trial(value=0.8, user_attrs=better))
    assert other.finish(claim)
    capsys.readouterr()
    assert supervisor.run() == "done"
    assert "best 80.00%" in capsys.readouterr().out


def test_what_others_leave_while_it_waits_for_them_is_taken_over(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert other_table(stage).claim(1) is not None
    when_it_waits(monkeypatch, lambda: let_leases_end(stage))
    assert stage.play(["complete"], trials=1) == "done"
    assert stage.slots.n_finished() == 1


@pytest.mark.parametrize("ends", ["timeout", "interrupted"])
def test_it_does_not_wait_for_others_longer_than_it_may(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    assert other_table(stage).claim(1) is not None
    supervisor = stage.supervisor([], trials=1, timeout=0.3 if ends == "timeout" else None)
    if ends == "interrupted":
        when_it_waits(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert supervisor.run() == ends


def finish_elsewhere(stage: Stage, other: SlotTable, claim: Claim | None) -> None:
    assert claim is not None
    stage.study.add_trial(optuna.create_trial(value=0.5, user_attrs={"slot": claim.slot, "candidate": {}}))
    assert other.finish(claim)


def when_it_waits(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """What happens elsewhere the first time that a supervisor has nothing to do."""
    once = iter([happens])
    monkeypatch.setattr(module, "OTHERS_S", 0.0)
    waits = Supervisor._wait_for_others

    def wait(self: Supervisor) -> bool:
        waited = waits(self)
        for each in once if waited else ():
            each()
        return waited

    monkeypatch.setattr(Supervisor, "_wait_for_others", wait)


def other_table(stage: Stage) -> SlotTable:
    table = SlotTable(stage.study, stage.storage)
    table._owner = "elsewhere/boot/namespace/1/1"
    return table


def let_leases_end(stage: Stage) -> None:
    with stage.storage.engine.begin() as connection:
        shift = sqlalchemy.text("UPDATE small_cnn_study_slots SET expires = expires - :s")
        connection.execute(shift, {"s": LEASE_S + 1})


def test_one_that_was_away_for_too_long_stores_nothing_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its slot was taken over meanwhile, by another that also finished it."""
    monkeypatch.setattr(module, "RENEW_S", 0.0)
    stage.skip_anchors()
    n_trials, other = stage.n_anchors + 1, other_table(stage)
    stage.slots._owner = "here/boot/namespace/1/1"  # a process that cannot be looked up
    supervisor = stage.supervisor(["hangs"], trials=n_trials)
    wait, taken, lost = stage.executor.wait, [], []

    def take_over(timeout_s: float) -> list[Message]:
        said = wait(timeout_s)
        if timeout_s and not said and not taken:
            let_leases_end(stage)
            assert other.reconcile() == [stage.n_anchors]
            claim = other.claim(n_trials)
            assert claim is not None
            taken.append(claim)
            lost.append(stage.trials()[-1].number)
            finish_elsewhere(stage, other, claim)
        return said

    stage.executor.wait = take_over  # type: ignore[method-assign]
    assert supervisor.run() == "done"
    assert stage.executor.withdrawn == lost
    assert stage.trials()[lost[0]].state == TrialState.FAIL
    assert "another process took it over" in capsys.readouterr().err


def test_a_result_that_comes_after_the_slot_was_lost_does_not_count(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.skip_anchors()
    n_trials, other = stage.n_anchors + 1, other_table(stage)
    stage.slots._owner = "here/boot/namespace/1/1"
    supervisor = stage.supervisor(["complete"], trials=n_trials)
    submit, taken = stage.executor.submit, []

    def take_over(work: Any) -> None:
        submit(work)
        let_leases_end(stage)
        other.reconcile()
        taken.append(other.claim(n_trials))

    stage.executor.submit = take_over  # type: ignore[method-assign]
    when_it_waits(monkeypatch, lambda: finish_elsewhere(stage, other, taken[0]))
    assert supervisor.run() == "done"
    assert [trial.state for trial in stage.trials()[stage.n_anchors :]] == [TrialState.FAIL, TrialState.COMPLETE]
    assert supervisor.told == []


def test_a_result_in_the_moment_of_a_take_over_does_not_count(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot is another's already, its old trial not failed yet: else the slot would have two results."""
    stage.skip_anchors()
    n_trials, other = stage.n_anchors + 1, other_table(stage)
    stage.slots._owner = "here/boot/namespace/1/1"
    monkeypatch.setattr(other, "_fail_orphans", lambda *args: None)
    supervisor = stage.supervisor(["complete"], trials=n_trials)
    submit, taken = stage.executor.submit, []

    def take_over(work: Any) -> None:
        submit(work)
        let_leases_end(stage)
        other.reconcile()
        taken.append(other.claim(n_trials))

    stage.executor.submit = take_over  # type: ignore[method-assign]
    when_it_waits(monkeypatch, lambda: finish_elsewhere(stage, other, taken[0]))
    assert supervisor.run() == "done"
    lost, theirs = stage.trials()[stage.n_anchors :]
    assert lost.state != TrialState.COMPLETE
    assert theirs.state == TrialState.COMPLETE
    assert supervisor.told == []


def test_what_others_left_is_taken_over_while_this_one_works(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.0)
    other = other_table(stage)
    assert other.claim(2) is not None
    let_leases_end(stage)
    assert stage.play(["complete"] * 2, trials=2) == "done"
    assert sorted(stage.attributes("slot")) == [0, 1]


# A storage that does not answer


@pytest.mark.parametrize("where", ["report", "tell", "finish", "claim", "ask", "attach"])
def test_an_outage_of_the_storage_is_waited_for(
    stage: Stage, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it strikes, before or after the write: exactly N, nothing twice, nothing left running."""
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    owner, name = {
        "report": (optuna.Trial, "report"),
        "tell": (optuna.Study, "tell"),
        "finish": (SlotTable, "finish"),
        "claim": (SlotTable, "claim"),
        "ask": (optuna.Study, "ask"),
        "attach": (telling, "attach"),
    }[where]
    real, n_calls = getattr(owner, name), 0

    def fail_at_times(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls % 5 == 1:
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("server closed the connection"))
        found = real(*args, **kwargs)
        if n_calls % 5 == 3:  # done, but its answer is lost
            raise optuna.exceptions.StorageInternalError("server closed the connection")
        return found

    monkeypatch.setattr(owner, name, fail_at_times)
    assert stage.play(["complete"] * 6, trials=6, jobs=2) == "done"
    assert "the storage does not answer" in capsys.readouterr().err
    monkeypatch.setattr(owner, name, real)
    stage.slots.reconcile()
    complete = [trial for trial in stage.trials() if trial.state == TrialState.COMPLETE]
    assert sorted(trial.user_attrs["slot"] for trial in complete) == list(range(6))
    assert stage.slots.n_finished() == 6
    assert not [trial for trial in stage.trials() if trial.state == TrialState.RUNNING]


def test_leases_are_renewed_while_workers_are_given_work(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.0)
    renewed: list[int] = []
    renew = SlotTable.renew

    def note(table: SlotTable, claims: Any) -> list[Claim]:
        renewed.append(len(list(claims)))
        return renew(table, claims)

    monkeypatch.setattr(SlotTable, "renew", note)
    stage.play(["complete"] * 3, trials=3, jobs=3)
    assert {1, 2, 3} <= set(renewed)


def test_an_outage_that_lasts_ends_the_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "OUTAGE_S", 0.0)
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("no space left on device"))

    monkeypatch.setattr(optuna.Study, "tell", fail)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        stage.play(["complete"], trials=1)


def test_questions_are_answered_before_results_are_written(stage: Stage) -> None:
    stage.skip_anchors()
    heard: list[str] = []
    supervisor = stage.supervisor(["complete", "pruned"], trials=stage.n_anchors + 2, jobs=2)
    for name in ("_epoch_ended", "_ended"):
        real = getattr(supervisor, name)

        def note(running: Any, message: Any, real: Any = real, name: str = name) -> None:
            heard.append("asks" if isinstance(message, EpochEnded) and message.asks else name)
            real(running, message)

        setattr(supervisor, name, note)
    assert supervisor.run() == "done"
    assert heard.index("asks") < heard.index("_ended")


def test_a_path_of_the_checkpoint_does_not_depend_on_the_folder_of_the_worker(stage: Stage) -> None:
    stage.play(["complete"], trials=1)
    assert stage.executor.works[0].checkpoint.is_absolute()
    assert Path(stage.executor.works[0].checkpoint).is_relative_to(stage.out)


def test_a_running_study_has_a_report(stage: Stage) -> None:
    stage.study.set_user_attr("config", stage.config.to_json())
    stage.play(["complete"] * 9, trials=9)
    assert not (stage.out / "report.html").exists()
    stage.play(["complete"] * 11, trials=20)
    assert len((stage.out / "trials.csv").read_text().splitlines()) == 1 + 19  # written after ten of the eleven
