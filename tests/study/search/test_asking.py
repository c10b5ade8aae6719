"""What a slot is given to train: known points, neighbours, samples, what the user put into the queue."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from stage import CONFIG, COST, Stage

from search_spaces import get_space
from search_spaces.constraints import InfeasibleError, Limits, OwnLimit
from search_spaces.dilated import DilatedSpace
from search_spaces.space import Decoded
from study.command_line.own import OwnLimits
from study.data import cifar10
from study.errors import UserError
from study.search import asking
from study.search.asking import N_REDRAWS, Asked
from study.search.creation import anchors, refuse_impossible
from study.search.plan import Given
from study.search.sampling import (
    N_STARTUP_TRIALS,
    distributions,
    near_is_better,
    neighbour,
    sampler_seed,
    training_seed,
)
from study.storage import patience
from study.storage.database import candidate_of, stored

SPACE = get_space("dilated")


def ask(stage: Stage, n_slots: int = 100, own: OwnLimits | None = None) -> Asked:
    claim = stage.slots.claim(n_slots)
    assert claim is not None
    return stage.asker(own).ask(claim)


def test_the_anchors_come_first_and_are_run_as_they_are(stage: Stage) -> None:
    stage.play(["complete"] * 3, trials=3)
    known = dict(SPACE.anchors(Limits()))
    assert [asked.anchor for asked in stage.asked] == [*known, None]
    assert stage.attributes("anchor") == [*known, None]
    assert [trial.params for trial in stage.trials()[:2]] == [dict(params) for params in known.values()]


@pytest.mark.parametrize("own", [True, False])
def test_a_space_of_the_user_s_that_fails_on_a_sample_gets_a_line(
    stage: Stage, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its anchors were tried when it was loaded. One of ours that fails is a bug."""

    def fail(*arguments: Any) -> Decoded:
        raise ZeroDivisionError("division by zero.")

    stage.skip_anchors()
    asker = stage.asker()
    monkeypatch.setattr(type(SPACE), "decode", fail)
    monkeypatch.setattr("study.command_line.own._spaces", {"dilated"} if own else set())
    claim = stage.slots.claim(100)
    assert claim is not None
    line = r"^The space 'dilated' cannot be used: ZeroDivisionError: division by zero with .*reduction .*[^.]\.$"
    for call in (lambda: asker.ask(claim), lambda: refuse_impossible(SPACE, CONFIG, COST)):
        with pytest.raises(UserError if own else ZeroDivisionError, match=line if own else None):
            call()


def test_an_anchor_that_the_limits_exclude_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = type(SPACE).decode

    def strict(space: Any, params: Any, *limits: Any) -> Any:
        if params == {"too": "large"}:
            raise InfeasibleError([])
        return decode(space, params, *limits)

    known = SPACE.anchors(Limits())
    monkeypatch.setattr(type(SPACE), "anchors", lambda space, limits: {**known, "further": {"too": "large"}})
    monkeypatch.setattr(type(SPACE), "decode", strict)
    assert [name for name, _ in anchors(SPACE, CONFIG, COST)] == list(known)


@pytest.mark.parametrize("max_params", [1_200, 1_500, 2_000, 3_000, 5_000])
def test_tight_limits_are_either_refused_or_leave_anchors(max_params: int) -> None:
    config = dataclasses.replace(CONFIG, limits=Limits(max_params=max_params))
    try:
        refuse_impossible(SPACE, config, COST)
    except UserError:
        return
    assert anchors(SPACE, config, COST)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ([OwnLimit("size_kb", 1.0)], r"meets --limit size_kb=1: the smallest has [\d.]+\. Name a larger bound"),
        (
            [OwnLimit("size_kb", 800.0), OwnLimit("wide", 5.0, "mine.py:f 12")],
            r"meets --limit mine\.py:f \(wide < 5\): the smallest has 7\. Name a larger bound",
        ),
        ([OwnLimit("turns", 5.0, "mine.py:f 12"), OwnLimit("size_kb", 1e-3)], r"meets --limit size_kb=0\.001: "),
        ([OwnLimit("turns", 5.0, "mine.py:f 12"), OwnLimit("other", 5.0, "mine.py:g 12")], "meets all limits at once"),
    ],
)
def test_the_own_limit_that_nothing_meets_is_named_with_the_smallest_figure(own: list[OwnLimit], said: str) -> None:
    config, turns = dataclasses.replace(CONFIG, limits=Limits(own=tuple(own))), itertools.cycle((4.0, 6.0))

    def measure(architecture: Any) -> dict[str, float]:
        turn = next(turns)
        return {"wide": 3 + turn, "turns": turn, "other": 10 - turn}

    with pytest.raises(UserError, match=rf"None of 10\d networks of the space 'dilated' {said}"):
        refuse_impossible(SPACE, config, COST, measure)


def test_an_anchored_study_starts_near_the_default(empty_study: Path, tmp_path: Path) -> None:
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), dataclasses.replace(CONFIG, sampler="anchored"))
    # The last neighbour of the default fails twice and is drawn anew, still near it.
    n_start = N_STARTUP_TRIALS
    script = ["complete", "complete", "complete", "pruned", *["complete"] * (n_start - 5), "failed", "failed"]
    assert stage.play([*script, *["pruned"] * 5], trials=n_start + 4) == "done"
    default = SPACE.anchors(Limits())["default"]
    params = [asked.trial.params for asked in stage.asked]

    def n_changed(found: Mapping[str, Any], centre: Mapping[str, Any]) -> int:
        return sum(found[name] != centre[name] for name in centre)

    first, sample, *others = params[stage.n_anchors : n_start + 2]
    assert others[-3] == others[-2] != others[-1]
    assert all(1 <= n_changed(each, default) <= len(default) / 2 for each in (first, *others))
    assert n_changed(sample, default) > len(default) / 2
    after = params[n_start + 2 :]
    assert [asked.claim.slot for asked in stage.asked[n_start + 2 :]] == [10, 11, 12, 13]
    assert not any(n_changed(each, default) <= len(default) / 2 for each in after)


def test_an_anchored_study_leaves_a_default_that_samples_beat(empty_study: Path, tmp_path: Path) -> None:
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), dataclasses.replace(CONFIG, sampler="anchored"))
    script = ["complete", "complete", "pruned", "complete", *["complete"] * (N_STARTUP_TRIALS - 4)]
    assert stage.play(script, trials=N_STARTUP_TRIALS) == "done"
    default = SPACE.anchors(Limits())["default"]
    near, *samples = (asked.trial.params for asked in stage.asked[stage.n_anchors :])
    assert sum(near[name] != default[name] for name in default) <= len(default) / 2
    assert all(sum(each[name] != default[name] for name in default) > len(default) / 2 for each in samples)


def test_what_the_user_queued_is_no_draw(empty_study: Path, tmp_path: Path) -> None:
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), dataclasses.replace(CONFIG, sampler="anchored"))
    stage.skip_anchors()
    for seed in range(2):
        stage.study.enqueue_trial(SPACE.sample(random.Random(seed)))
    stage.play(["complete", "complete", "pruned", "pruned", "complete"], trials=stage.n_anchors + 5)
    default = SPACE.anchors(Limits())["default"]
    near = [sum(asked.trial.params[name] != default[name] for name in default) <= 8 for asked in stage.asked]
    assert near == [False, False, True, False, True]


def test_the_better_kind_of_draw_is_taken_until_the_other_is_better() -> None:
    default = SPACE.anchors(Limits())["default"]
    distributions_of = distributions(SPACE)
    rng = random.Random(0)

    def tried(near: bool, value: float | None) -> FrozenTrial:
        params = neighbour(SPACE, default, rng.randrange(10**6)) if near else SPACE.sample(rng)
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        return optuna.create_trial(state=state, value=value, params=params, distributions=distributions_of)

    def better(*trials: FrozenTrial, nth: int = 5) -> bool:
        return near_is_better(SPACE, default, trials, nth)

    assert [better(nth=nth) for nth in range(4)] == [True, False, True, True]  # while no sample is finished
    assert better(tried(False, 0.2), nth=2)  # and while no neighbour is
    assert better(tried(True, 0.5), tried(False, 0.4))
    assert better(tried(True, 0.5), tried(False, 0.5))
    assert not better(tried(True, 0.5), tried(False, 0.6))
    assert not better(tried(True, None), tried(False, 0.1))
    assert better(tried(True, 0.7), tried(True, 0.8), tried(True, None), tried(False, 0.9), tried(False, None))


def test_a_trial_stores_all_that_the_report_and_the_retrain_read(stage: Stage) -> None:
    asked = ask(stage)
    attrs = asked.trial.user_attrs
    assert set(attrs) == {
        "slot", "attempt", "fence", "anchor", "params", "receptive_field", "receptive_field_with_pool", "macs",
        "n_dilated_reductions", "candidate_id", "architecture_id", "training_seed",
        "sampler_seed", "predicted_s",
    }  # fmt: skip
    assert (attrs["slot"], attrs["attempt"]) == (0, 0)
    assert (attrs["training_seed"], attrs["sampler_seed"]) == (training_seed(0, 0), sampler_seed(0, 0, 0))
    assert asked.seed == attrs["training_seed"]
    assert asked.candidate is not None
    assert attrs["candidate_id"] == asked.candidate.candidate_id
    assert candidate_of(stage.trials()[0]) == asked.candidate
    assert isinstance(stored(stage.trials()[0], "repairs"), list)
    assert all(len(json.dumps(value)) < 100 for value in attrs.values())  # the dashboard prints each on one line
    assert asked.trial.constraints
    assert all(value <= 0 for value in asked.trial.constraints.values())


def test_a_repeated_trial_is_the_same_with_another_number(stage: Stage) -> None:
    first = ask(stage)
    stage.study.tell(first.trial, state=TrialState.FAIL)
    stage.slots.interrupted(first.claim, first.trial.number)
    again = ask(stage)
    assert again.trial.number != first.trial.number
    assert (again.candidate, again.seed, again.anchor) == (first.candidate, first.seed, first.anchor)


class WideSpace(DilatedSpace):
    """Every candidate breaks a limit that its decoder forgets."""

    def decode(self, params: Any, limits: Limits, clock: Any = None) -> Decoded:
        return super().decode(params, Limits(), clock)


def test_what_breaks_a_limit_is_not_handed_on(
    empty_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, limits=Limits(max_params=10_000))
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), config)
    monkeypatch.setattr("study.search.asking.open_space", lambda name: WideSpace())
    asked = ask(stage)
    assert asked.candidate is None
    assert asked.reason.startswith("infeasible: ")
    assert asked.trial.constraints["parameters"] > 0
    assert stored(stage.trials()[-1], "candidate") is None


def counting(values: Iterator[float]) -> OwnLimits:
    """A limit of a file, below 5, on what comes next in `values`."""
    return OwnLimits((OwnLimit("next", 5.0, "mine.py:f 12"),), {"next": lambda architecture: ("next", next(values), 5)})


def test_samples_are_drawn_again_for_an_own_limit(empty_study: Path, tmp_path: Path) -> None:
    values = iter([9.0, 9.0, 4.0])
    own = counting(values)
    config = dataclasses.replace(CONFIG, limits=Limits(own=own.limits))
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), config)
    asked = ask(stage, own=own)
    assert asked.candidate is not None
    assert asked.anchor is None  # the one of this slot breaks the limit
    assert asked.trial.user_attrs["redraws"] == 2
    assert asked.trial.user_attrs["measured"] == {"next": 4.0}
    assert asked.trial.constraints["next"] == -1.0
    # A repeat decides the same without measuring again.
    stage.study.tell(asked.trial, state=TrialState.FAIL)
    stage.slots.failed(asked.claim, asked.trial.number)
    again = ask(stage, own=counting(iter([])))
    assert (again.candidate, again.trial.user_attrs["measured"]) == (asked.candidate, {"next": 4.0})


def test_what_no_sample_meets_is_infeasible(empty_study: Path, tmp_path: Path) -> None:
    own = counting(itertools.repeat(7.0))
    config = dataclasses.replace(CONFIG, limits=Limits(own=own.limits))
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), config)
    asked = ask(stage, own=own)
    assert (asked.candidate, asked.reason) == (None, "infeasible: next 7, not below 5")
    assert asked.trial.user_attrs["redraws"] == N_REDRAWS
    assert (asked.trial.constraints["next"], asked.trial.user_attrs["measured"]) == (2.0, {"next": 7.0})
    with pytest.raises(UserError, match=r"add --limit mine\.py:f"):
        ask(stage)


def test_the_data_set_decides_on_outputs_and_flips(empty_study: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, limits=Limits(n_classes=7), mirrored=False)
    asked = ask(Stage(Path(shutil.copy(empty_study, tmp_path)), config))
    assert asked.candidate is not None
    assert (asked.candidate.architecture.n_classes, asked.candidate.augmentation.flip_p) == (7, 0.0)


def test_given_candidates_are_trained_whatever_the_limits_are_now(empty_study: Path, tmp_path: Path) -> None:
    params = dict(SPACE.anchors(Limits())["default"])
    candidate = SPACE.decode(SPACE.sample(random.Random(1)), Limits()).candidate
    given = [Given("trial 7", params, candidate.to_json())]
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), given=given)
    for attempt in range(3):
        asked = ask(stage, 1)
        assert (asked.candidate, asked.anchor, asked.trial.params) == (candidate, "trial 7", params)
        stage.study.tell(asked.trial, state=TrialState.FAIL)
        stage.slots.failed(asked.claim, asked.trial.number if attempt else None)


def test_no_test_image_is_ever_asked_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a search asked for images")

    monkeypatch.setattr(cifar10, "load_test", refuse)
    monkeypatch.setattr(cifar10, "load_train", refuse)
    assert stage.play(["complete"], trials=1) == "done"


# The user's own trials in Optuna's queue


def a_point(seed: int = 5) -> dict[str, Any]:
    return SPACE.sample(random.Random(seed))


def test_a_waiting_trial_comes_first_as_what_it_is(stage: Stage) -> None:
    stage.study.enqueue_trial(a_point(), user_attrs={"mine": True})
    assert stage.play(["complete"] * 4, trials=4) == "done"
    first, second, third, _ = stage.trials()
    assert first.params == a_point()
    assert (first.user_attrs["mine"], first.user_attrs["queued"], first.user_attrs["slot"]) == (True, True, 0)
    assert "anchor" not in first.user_attrs
    assert [second.user_attrs["anchor"], third.user_attrs["anchor"]] == list(SPACE.anchors(Limits()))
    assert stage.executor.works[0].asks_after  # like any other sample


def test_one_that_comes_later_takes_the_next_slot(stage: Stage) -> None:
    stage.play(["complete"], trials=1)
    stage.study.enqueue_trial({"budget_frac": 0.5})  # the rest is sampled
    assert stage.play(["failed", "complete", "complete"], trials=3) == "done"
    assert stage.attributes("slot") == [0, 1, 1, 2]
    assert stage.attributes("queued") == [None, True, True, None]
    assert [trial.params["budget_frac"] for trial in stage.trials()[1:3]] == [0.5, 0.5]
    assert stage.attributes("anchor") == ["reference", None, None, "default"]


def test_one_that_comes_where_a_trial_is_to_be_repeated_waits_for_a_slot(stage: Stage) -> None:
    first = ask(stage, 1)
    stage.study.tell(first.trial, state=TrialState.FAIL)
    stage.slots.interrupted(first.claim, first.trial.number)
    stage.study.enqueue_trial(a_point(), user_attrs={"mine": True})
    assert stage.play(["complete"], trials=1) == "done"  # there is no other slot
    complete = [trial for trial in stage.trials() if trial.state == TrialState.COMPLETE]
    assert [trial.params for trial in complete] == [first.trial.params]
    assert stage.trials()[1].state == TrialState.WAITING
    assert stage.play(["complete"], trials=2) == "done"
    assert stage.trials()[1].params == a_point()
    assert stage.trials()[1].user_attrs["mine"] is True


@pytest.mark.parametrize(
    "params", [{"budget_frac": 7.0}, {"width_ratio_2": 1.1}, {"optimizer": "none"}, {"no such": 1}]
)
def test_one_that_is_not_of_the_space_is_failed_and_does_not_stop_the_study(
    stage: Stage, params: dict[str, Any]
) -> None:
    known = {name: value for name, value in params.items() if name in SPACE.dimensions}
    stage.study.enqueue_trial(params)
    assert stage.play(["complete"] * 2, trials=2) == "done"
    wrong = [trial for trial in stage.trials() if trial.state == TrialState.FAIL]
    assert len(wrong) == len(known)
    assert all(trial.user_attrs["reason"].startswith("not of the space: ") for trial in wrong)
    assert stage.slots.n_finished() == 2


def test_one_that_another_process_refused_first_does_not_stop_the_study(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.study.enqueue_trial({"optimizer": "none"})
    ask = optuna.Study.ask

    def ask_late(study: optuna.Study, *arguments: Any) -> optuna.Trial:
        try:
            return ask(study, *arguments)
        except ValueError:
            stage.asker()._refuse_queued()
            raise

    monkeypatch.setattr(optuna.Study, "ask", ask_late)
    assert stage.play(["complete"], trials=1) == "done"


def test_a_queue_waits_while_candidates_are_given(empty_study: Path, tmp_path: Path) -> None:
    params = dict(SPACE.anchors(Limits())["default"])
    candidate = SPACE.decode(params, Limits()).candidate
    given = [Given("trial 7", params, candidate.to_json())]
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), given=given)
    stage.study.enqueue_trial(a_point())
    assert stage.play(["complete"], trials=1) == "done"
    assert [trial.state for trial in stage.trials()] == [TrialState.WAITING, TrialState.COMPLETE]
    assert stage.trials()[1].user_attrs["anchor"] == "trial 7"


def test_foreign_trials_are_neither_counted_nor_learned_from(stage: Stage) -> None:
    stage.study.add_trial(optuna.create_trial(value=0.99))
    assert stage.play(["complete"] * 3, trials=3) == "done"
    assert stage.attributes("slot") == [None, 0, 1, 2]


def test_one_that_failed_is_repeated_itself_and_not_by_the_next_in_the_queue(stage: Stage) -> None:
    for seed in (5, 6):
        stage.study.enqueue_trial(a_point(seed))
    assert stage.play(["failed", "complete"], trials=1) == "done"
    complete = [trial for trial in stage.trials() if trial.state == TrialState.COMPLETE]
    assert [trial.params for trial in complete] == [a_point(5)]
    assert stage.play(["complete"], trials=2) == "done"  # the other waited
    assert stage.trials()[1].params == a_point(6)


@pytest.mark.parametrize("where", ["publish_trial", "certify"])
def test_one_that_came_out_of_the_queue_survives_an_error_of_the_storage(
    stage: Stage, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after it has its candidate."""
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    real, n_calls = getattr(asking, where), 0

    def fail_once(*args: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            raise optuna.exceptions.StorageInternalError("server closed the connection")
        return real(*args)

    monkeypatch.setattr(asking, where, fail_once)
    stage.study.enqueue_trial(a_point(), user_attrs={"mine": True})
    assert stage.play(["complete"] * 2, trials=2) == "done"
    complete = [trial for trial in stage.trials() if trial.state == TrialState.COMPLETE]
    assert [trial.params == a_point() for trial in complete] == [True, False]
    assert complete[0].user_attrs["queued"] is True
    assert not [trial for trial in stage.trials() if not trial.state.is_finished()]


def test_parameters_that_the_space_has_no_more_are_an_error(empty_study: Path, tmp_path: Path) -> None:
    params = dict(SPACE.anchors(Limits())["default"])
    candidate = SPACE.decode(params, Limits()).candidate
    given = [Given("trial 7", {**params, "reduction": "no such"}, candidate.to_json())]
    stage = Stage(Path(shutil.copy(empty_study, tmp_path)), given=given)
    with pytest.raises(ValueError, match="no such"):
        ask(stage, 1)
    assert stage.trials() == []
