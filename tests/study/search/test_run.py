"""What a run finds in the storage before it trains anything."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from stage import COST

from search_spaces import get_space
from search_spaces.constraints import InfeasibleError, Limits
from search_spaces.cost import CostModel
from search_spaces.dilated import DilatedSpace
from search_spaces.reference import REFERENCE
from search_spaces.space import Choice, Params
from study.calibration.prices import Calibration
from study.data.cifar10 import CIFAR10
from study.errors import MadeMeanwhile, UserError
from study.executors.local import ThisMachine
from study.machine.hardware import n_loaders
from study.search import searching
from study.search.creation import (
    EPOCHS_SHARE,
    expected_seconds,
    find_study,
    new_study,
    refuse_impossible,
    refuse_other_dimensions,
    typical,
)
from study.search.plan import PRUNERS, SearchPlan
from study.search.sampling import distributions
from study.search.searching import Machine, get_ready
from study.storage.config import StudyConfig
from study.storage.database import HIDDEN, open_storage, storage_of
from study.storage.slots import SlotTable


def existing(folder: Path) -> tuple[optuna.Study, optuna.storages.RDBStorage] | None:
    return find_study(SearchPlan(f"sqlite:///{folder}/study.db", "dilated", folder, "dilated", ["what is next"]))


def test_more_trials_at_once_than_cores_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, found in {
        "study.data.opening.open_data": CIFAR10,
        "study.data.opening.load_train": None,
        "study.calibration.prices.calibrate": Calibration("cpu", {}, "float32", COST, 0.0),
        "study.calibration.concurrency.known_rates": {},
        "study.machine.hardware.n_cores": 2,
    }.items():
        monkeypatch.setattr(name, lambda *arguments, found=found: found)
    plan = SearchPlan("", "", tmp_path, "dilated", [], device="cpu")
    for jobs, warning in ((2, ""), (5, "warning: --jobs 5 is more than the 2 cores here")):
        assert get_ready(dataclasses.replace(plan, jobs=jobs), ThisMachine("cpu"), REFERENCE).jobs == jobs
        assert capsys.readouterr().err.partition(",")[0].strip() == warning
    assert [n_loaders("cpu", ThisMachine("cpu").cores(5)), n_loaders("cuda", 1)] == [0, 1]


@pytest.mark.parametrize(
    ("jobs", "rates", "n", "gain"),
    [
        (4, {1: 100.0, 2: 130.0, 4: 150.0}, 1, 1.5),
        (3, {1: 100.0, 2: 130.0, 4: 150.0}, 1, 1.3),  # of what was measured the next below
        (3, {}, 1, 1.0),
        (3, {}, 2, 2.0),
    ],
)
def test_the_gain_of_trials_at_once(
    jobs: int, rates: dict[int, float], n: int, gain: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("study.machine.hardware.n_devices", lambda device: n)
    made = Calibration("cuda", {}, "bfloat16", COST, 0.0)
    assert Machine(ThisMachine("cuda"), CIFAR10, made, jobs, rates, (REFERENCE,)).gain == gain


def test_nothing_is_created_by_looking(tmp_path: Path):
    assert existing(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


CONFIG = StudyConfig("dilated", get_space("dilated").version, 6, 15_000, 5_000, 0, "none", "anchored", "float32")


class Killed(Exception):
    """Stands for the end of a process."""


def half_made(folder: Path, without: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> optuna.Study:
    """What a process leaves that is killed when it would give its new study the attribute `without`."""
    give = optuna.Study.set_user_attr

    def give_or_die(study: optuna.Study, name: str, value: Any) -> None:
        if name == without:
            raise Killed
        give(study, name, value)

    made = Calibration("cpu", {}, "float32", COST, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "set_user_attr", give_or_die)
        with pytest.raises(Killed):
            new_study(f"sqlite:///{folder}/study.db", "dilated", CONFIG, made, 0.85, **more)
    return optuna.load_study(study_name="dilated", storage=open_storage(f"sqlite:///{folder}/study.db"))


RERANKED = {"rerank_of": "another", "source_created": "now", "given": [], "small_images": True}


@pytest.mark.parametrize(
    ("without", "more"), [("cost_model", {}), ("created", {}), ("config", {}), ("config", RERANKED)]
)
def test_a_study_killed_in_the_moment_of_its_creation_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str, more: dict[str, Any]
):
    monkeypatch.setattr("study.storage.patience.MAKING_S", 0.1)
    left = half_made(tmp_path, without, monkeypatch, **more)
    assert existing(tmp_path) is None
    assert storage_of(left).get_all_studies() == []


def test_what_two_processes_wait_for_is_deleted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("study.storage.patience.MAKING_S", 0.1)
    half_made(tmp_path, "config", monkeypatch)
    delete = optuna.delete_study

    def delete_second(**named: Any) -> None:
        delete(**named)
        delete(**named)

    monkeypatch.setattr(optuna, "delete_study", delete_second)
    assert existing(tmp_path) is None


def test_a_study_that_another_process_is_making_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = half_made(tmp_path, "created", monkeypatch)
    monkeypatch.setattr("study.storage.patience.MAKING_S", 0.5)  # since the last attribute

    def go_on() -> None:
        for name, value in (("created", "now"), ("first_step", 1), ("config", CONFIG.to_json())):
            time.sleep(0.3)
            made.set_user_attr(name, value)

    maker = threading.Thread(target=go_on)
    maker.start()
    found = existing(tmp_path)
    maker.join()
    assert found is not None
    assert "config" in found[0].user_attrs


def test_one_whose_half_made_study_was_deleted_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    give = optuna.Study.set_user_attr

    def give_late(study: optuna.Study, name: str, value: Any) -> None:
        if name == "config":
            optuna.delete_study(study_name="dilated", storage=storage_of(study))
        give(study, name, value)

    monkeypatch.setattr(optuna.Study, "set_user_attr", give_late)
    with pytest.raises(MadeMeanwhile):
        new_study(
            f"sqlite:///{tmp_path}/study.db", "dilated", CONFIG, Calibration("cpu", {}, "float32", COST, 0.0), 0.85
        )


def test_one_that_was_suspended_while_it_made_its_study_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another process may have deleted what was half made, and got its number for a study of its own."""
    give, given = optuna.Study.set_user_attr, list[str]()

    def give_late(study: optuna.Study, name: str, value: Any) -> None:
        time.sleep(0.2 if name == "hardware" else 0.0)
        given.append(name)
        give(study, name, value)

    monkeypatch.setattr("study.storage.patience.MAKING_S", 0.1)
    monkeypatch.setattr(optuna.Study, "set_user_attr", give_late)
    made = Calibration("cpu", {}, "float32", COST, 0.0)
    with pytest.raises(MadeMeanwhile):
        new_study(f"sqlite:///{tmp_path}/study.db", "dilated", CONFIG, made, 0.85)
    assert given == ["cost_model", "hardware"]


def test_somebody_elses_study_is_refused_and_left_alone(tmp_path: Path):
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(study_name="dilated", storage=storage)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(UserError, match=r"was not made by study\.run"):
        existing(tmp_path)
    assert len(study.trials) == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"space_version": 1}, r"version 1 of the space 'dilated'"),
        ({"augmentation_order": "flip,crop"}, "trains otherwise .augmentation_order: flip,crop -> affine"),
        ({"split_seed": -1}, "trains otherwise .split_seed: -1 -> "),
    ],
)
def test_a_study_of_another_version_of_the_program_says_what_to_do(tmp_path: Path, changed: dict[str, Any], words: str):
    """Nothing was given that could be left out."""
    version = get_space("dilated").version
    older = StudyConfig("dilated", version, 6, 15_000, 5_000, 0, "halving", "tpe", "bfloat16")
    older = dataclasses.replace(older, **changed)
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    optuna.create_study(study_name="dilated", storage=storage).set_user_attr("config", older.to_json())
    with pytest.raises(UserError, match=rf"{words}.* Choose another --study-name") as caught:
        existing(tmp_path)
    assert "Leave them out" not in str(caught.value)


def made(folder: Path) -> tuple[optuna.Study, optuna.storages.RDBStorage]:
    calibration = Calibration("cpu", {}, "float32", COST, 0.0)
    return new_study(f"sqlite:///{folder}/study.db", "dilated", CONFIG, calibration, 0.85)


def test_looking_for_a_study_does_not_change_its_target(tmp_path: Path):
    """What was asked for may yet be refused."""
    study, _ = made(tmp_path)
    plan = SearchPlan(f"sqlite:///{tmp_path}/study.db", "dilated", tmp_path, "dilated", [], target_accuracy=0.99)
    assert find_study(plan) is not None
    assert study.user_attrs["target_accuracy"] == 0.85


def test_a_run_that_is_interrupted_ends_as_such_whatever_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    study, storage = made(tmp_path)
    plan, slots = SearchPlan("", "dilated", tmp_path, "dilated", []), SlotTable(study, storage)
    for error in (UserError("The report is not there."), optuna.exceptions.StorageInternalError("gone")):

        def fail(*each: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(searching, "_finish", fail)
        searching._say_stopped(plan, study, storage, slots)
        assert capsys.readouterr().err.startswith("Stopped. ")


def test_a_space_that_was_edited_since_is_refused(tmp_path: Path):
    study, _ = made(tmp_path)
    refuse_other_dimensions(study, get_space("dilated"))  # no trial tells

    class Mine(DilatedSpace):
        dimensions: ClassVar[Any] = {**DilatedSpace.dimensions, "batch_size": Choice((64, 128, 512))}

    here = distributions(get_space("dilated"))
    params = get_space("dilated").anchors(Limits())["default"]
    study.add_trial(
        optuna.create_trial(
            value=0.5,
            params=params,
            distributions=here,
            user_attrs={"slot": 0},
            system_attrs={HIDDEN + "candidate": {}},
        )
    )
    refuse_other_dimensions(study, get_space("dilated"))
    with pytest.raises(UserError, match=r"was changed since .* \(in batch_size\): undo that, or raise its version"):
        refuse_other_dimensions(study, Mine())


class Tight(DilatedSpace):
    """Of a user's: its anchors know few limits."""

    name: ClassVar[str] = "tight"

    def anchors(self, limits: Limits) -> Mapping[str, Params]:
        if limits.max_params < 100_000:
            raise InfeasibleError(())
        return super().anchors(limits)


def test_anchors_that_meet_no_limits_get_a_line():
    limits = Limits(max_params=50_000)
    assert typical(Tight(), limits) == REFERENCE
    with pytest.raises(UserError, match="The anchors of the space 'tight' meet no limits like these"):
        refuse_impossible(Tight(), dataclasses.replace(CONFIG, limits=limits), COST)


def test_a_trial_is_expected_to_take_as_long_as_its_kind_and_its_pruner_say():
    cost = CostModel(1e-12, 1e-11, 1e-11, 1e-9, 1e-5, 1e-5, "cpu")
    plain = StudyConfig("dilated", get_space("dilated").version, 6, 15_000, 5_000, 0, "none", "anchored", "float32")
    default = typical(get_space("dilated"), Limits())
    assert expected_seconds(plain, cost, [default]) == pytest.approx(6 * cost.candidate_seconds(default, 15_000, 5_000))
    both = expected_seconds(plain, cost, [default, REFERENCE])
    assert both == pytest.approx(sum(expected_seconds(plain, cost, [each]) for each in (default, REFERENCE)) / 2)
    pruned = dataclasses.replace(plain, pruner="halving")
    assert 0.6 < expected_seconds(pruned, cost, [default]) / expected_seconds(plain, cost, [default]) < 0.8
    assert set(EPOCHS_SHARE) == set(PRUNERS)
    small = dataclasses.replace(default, optimisation=dataclasses.replace(default.optimisation, batch_size=32))
    assert expected_seconds(plain, cost, [small]) > expected_seconds(plain, cost, [default])


def test_a_typical_trial_meets_the_limits_or_is_the_reference():
    space = get_space("dilated")
    default = space.decode(space.anchors(Limits())["default"], Limits()).candidate
    assert typical(space, Limits()) == default
    assert typical(space, Limits(max_params=100_000)).architecture.params < 100_000
    assert typical(space, Limits(max_params=10)) == REFERENCE
    assert typical(space, Limits(n_classes=100)) == default  # measured once for every data set
    assert typical(space, Limits(max_params=10), otherwise=default) == default
