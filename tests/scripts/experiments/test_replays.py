"""Samplers replayed on a surrogate: the table, the model, the bookkeeping."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from experiments import replays
from search_spaces import get_space
from search_spaces.constraints import InfeasibleError, Limits
from study.errors import UserError
from study.machine.paths import RESULTS
from study.search.creation import typical
from study.storage.config import StudyConfig

COST = {
    "dense_mac_s": 1e-9, "depthwise_mac_s": 1e-8, "depthwise_other_mac_s": 1e-8, "activation_s": 1e-8, "image_s": 1e-5,
    "operation_s": 1e-5, "device": "cpu",
}  # fmt: skip


CONFIG = StudyConfig("dilated", get_space("dilated").version, 3, 1000, 100, 0, "none", "random", "float32")


def recorded(params: dict[str, Any], number: int, seed: int, curve: list[float]) -> dict[str, Any]:
    architecture = get_space("dilated").decode(params, Limits()).candidate.architecture
    figures = [getattr(architecture, key) for key in replays.FIGURES]
    return {"params": params, "candidate_id": str(number), "training_seed": seed, "figures": figures, "curve": curve}


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    """Candidates whose accuracy grows with the share of the budget that they spend; the default is a bad one.

    Some were trained twice, and once the same training was recorded twice.
    """
    space, rng = get_space("dilated"), random.Random(0)
    trials = []
    for number in range(200):
        params = space.sample(rng)
        height = 0.3 + 0.4 * params["budget_frac"]
        trials.append(recorded(params, number, 0, [height - 0.2, height - 0.1, height]))
    for trial in sorted(trials, key=lambda trial: trial["curve"][-1])[-5:]:
        trials.append({**trial, "training_seed": 1, "curve": [value + 0.01 for value in trial["curve"]]})
    trials.append({**trials[0], "training_seed": 1, "curve": [0.1, 0.2, 0.3]})  # a bad one varies more
    trials.append(trials[0])
    default = space.anchors(Limits())["default"]
    trials += [recorded({**default, "flip": flip}, 1000 + flip, 0, [0.1, 0.15, 0.2]) for flip in (False, True)]
    return {"config": CONFIG.to_json(), "cost_model": COST, "studies": {"made": {}}, "trials": trials}


@pytest.fixture(scope="module")
def surrogate(table: dict[str, Any]) -> replays.Surrogate:
    return replays.Surrogate(table)


def test_noise_is_that_between_trainings_of_one_candidate() -> None:
    repeats = [np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[5.0, 5.0]]), np.array([[0.0, 0.0], [2.0, 2.0]])]
    covariance, n_free = replays.covariance_of_repeats(repeats)
    assert covariance.tolist() == [[2.0, 1.0], [1.0, 1.0]]
    assert n_free == 2
    with pytest.raises(UserError, match="No good candidate of the table was trained from two seeds"):
        replays.covariance_of_repeats(repeats[1:2])


def test_the_surrogate_has_learnt_and_says_how_well(surrogate: replays.Surrogate) -> None:
    space = get_space("dilated")
    params = space.sample(random.Random(1))
    low, high = (surrogate.curve({**params, "budget_frac": share}) for share in (0.4, 1.0))
    assert (high > low + 0.1).all()
    assert (np.diff(high) > 0).all()
    quality = surrogate.quality()
    assert quality["spearman"] > 0.8
    assert (quality["n_trials"], quality["n_candidates"], quality["noise_degrees_of_freedom"]) == (208, 202, 5)
    noisy = np.array([surrogate.noisy(high, seed) for seed in range(200)])
    assert noisy.std(axis=0) == pytest.approx(0.007, rel=0.3)  # two trainings a point apart
    assert (surrogate.noisy(high, 3) == surrogate.noisy(high, 3)).all()


def test_rates_of_other_optimizers_are_no_inputs(surrogate: replays.Surrogate) -> None:
    default = dict(get_space("dilated").anchors(Limits())["default"])
    assert default["optimizer"] == "muon"
    figures = (1, 2, 3)
    assert surrogate.features({**default, "adamw_lr": 1e-3}, figures) == surrogate.features(default, figures)
    assert surrogate.features({**default, "muon_lr": 1e-2}, figures) != surrogate.features(default, figures)


@pytest.mark.parametrize("name", [name for name in replays.SETTINGS if name != "none"])
def test_a_replay_stops_at_its_budget_and_repeats(name: str, surrogate: replays.Surrogate) -> None:
    budget = 42 if name == "gp" else 60  # it fits a process after every trial beyond its tenth
    steps = replays.replay(replays.SETTINGS[name], surrogate, 1, budget)
    assert steps == replays.replay(replays.SETTINGS[name], surrogate, 1, budget)
    assert steps != replays.replay(replays.SETTINGS[name], surrogate, 2, budget)
    spent = [epochs for epochs, _ in steps]
    assert spent[:2] == [3, 6]  # anchors are not pruned, though the second one is the worst of all
    assert spent[-2] < budget <= spent[-1] < budget + 3
    assert steps[-1][1] > 0.5


def test_without_a_search_there_are_only_the_anchors(surrogate: replays.Surrogate) -> None:
    steps = replays.replay(replays.SETTINGS["none"], surrogate, 1, 60)
    assert [spent for spent, _ in steps] == [3, 6]


def test_neighbours_are_of_the_default_and_then_of_the_best(
    surrogate: replays.Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts, on the parameters that were tried, how many dimensions differ from a point's."""
    seen: list[dict[str, Any]] = []
    noisy: list[np.ndarray] = []
    curve, with_noise = surrogate.curve, surrogate.noisy
    monkeypatch.setattr(surrogate, "curve", lambda params: (seen.append(dict(params)), curve(params))[1])
    monkeypatch.setattr(surrogate, "noisy", lambda *given: (noisy.append(with_noise(*given)), noisy[-1])[1])
    default = get_space("dilated").anchors(Limits())["default"]

    def changed(slot: int, point: dict[str, Any]) -> int:
        return sum(seen[slot][key] != point[key] for key in point)

    steps = replays.replay(replays.SETTINGS["neighbours"], surrogate, 0, 90)
    ran = np.diff([0, *(spent for spent, _ in steps)])
    assert all(changed(slot, dict(default)) <= 8 for slot in range(2, 10))
    for slot in (20, 21, 24, 26):  # after the start-up
        best = max((other for other in range(slot) if ran[other] == CONFIG.epochs), key=lambda other: noisy[other][-1])
        assert changed(slot, seen[best]) <= 8 < changed(slot, dict(default))
    for name in ("near", "anchored"):
        seen.clear()
        replays.replay(replays.SETTINGS[name], surrogate, 0, 90)
        samples = [slot for slot in range(2, 10) if changed(slot, dict(default)) > 8]
        assert samples[:1] == ([3] if name == "anchored" else [])
        assert len(samples) < 7
        assert min(changed(slot, dict(default)) for slot in range(10, len(seen))) > 8  # TPE's
    seen.clear()
    replays.replay(replays.SETTINGS["random"], surrogate, 0, 40)
    assert all(changed(slot, dict(default)) > 15 for slot in range(2, 10))


def test_infeasible_samples_are_drawn_anew(surrogate: replays.Surrogate, monkeypatch: pytest.MonkeyPatch) -> None:
    curve, calls = surrogate.curve, []

    def refusing(params: Any) -> Any:
        calls.append(params)
        if len(calls) == 4:
            raise InfeasibleError(())
        return curve(params)

    monkeypatch.setattr(surrogate, "curve", refusing)
    steps = replays.replay(replays.SETTINGS["random"], surrogate, 0, 20)
    assert len(calls) == len(steps) + 1
    assert calls[3] != calls[4]


def test_the_best_so_far_is_read_at_the_budget() -> None:
    steps = [(3, 0.5), (6, 0.5), (10, 0.7)]
    assert [replays.best_at(steps, epochs) for epochs in (2, 3, 9, 10)] == [0.0, 0.5, 0.5, 0.7]


def test_the_command_makes_table_and_picture(
    table: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dilated-table.json").write_text(json.dumps(table))
    arguments = ["--replays", "5", "--budget", "15", "--jobs", "1", "--results", str(tmp_path)]
    assert replays.main(arguments) == 0
    record = json.loads((tmp_path / "dilated.json").read_text())
    assert [each["name"] for each in record["settings"]] == list(replays.SETTINGS)
    finals = {each["name"]: each["final"] for each in record["settings"]}
    for each in record["settings"]:
        assert each["behind_default"] == pytest.approx(finals["anchored"] - each["final"])
    assert finals["random"] > finals["none"]
    assert (tmp_path / "dilated.png").read_bytes().startswith(b"\x89PNG")
    assert replays.markdown(record) in capsys.readouterr().out


def test_the_table_is_collected_from_studies_of_one_fidelity(table: dict[str, Any], tmp_path: Path) -> None:
    default = get_space("dilated").anchors(Limits())["default"]
    longer = dataclasses.replace(CONFIG, epochs=4)
    other = dataclasses.replace(CONFIG, limits=Limits(max_params=100_000))
    slower = dataclasses.replace(CONFIG, limits=Limits(max_epoch_s=9.0), seed=7, pruner="halving")
    for name, config in (("a", CONFIG), ("b", slower), ("c", longer), ("d", other), ("e", CONFIG), ("f", CONFIG)):
        (tmp_path / name).mkdir()
        study = optuna.create_study(
            study_name=name, storage=f"sqlite:///{tmp_path / name / 'study.db'}", direction="maximize"
        )
        study.set_user_attr("config", config.to_json())
        study.set_user_attr("cost_model", COST)
        if name in "ef":  # only what was trained before is repeated
            study.set_user_attr("rerank_of", "a")
        for n_reported in (config.epochs, 1):  # the second one lacks epochs
            trial = study.ask()
            for key in default:
                trial.suggest_categorical(key, [default[key]])
            for key in ("candidate_id", "training_seed", *replays.FIGURES):
                trial.set_user_attr(key, 2 if name == "f" else 1)
            for epoch in range(n_reported):
                trial.report(0.5 + 0.1 * epoch, epoch)
            study.tell(trial, 0.5)
        study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    optuna.create_study(study_name="foreign", storage=f"sqlite:///{tmp_path / 'a' / 'study.db'}")
    assert replays.main(["--collect", str(tmp_path), "--results", str(tmp_path / "results")]) == 0
    found = json.loads((tmp_path / "results" / "dilated-table.json").read_text())
    assert {name: study["complete"] for name, study in found["studies"].items()} == {"a": 1, "b": 1, "e": 1}
    assert found["studies"]["b"] == {"complete": 1, "sampler": CONFIG.sampler, "pruner": "halving", "seed": 7}
    assert found["studies"]["e"]["rerank_of"] == "a"
    assert [(trial["study"], trial["anchor"]) for trial in found["trials"]] == [("a", None), ("b", None), ("e", None)]
    assert len((tmp_path / "results" / "dilated-table.json").read_text().splitlines()) == 4  # a line each, for diffs
    assert [trial["curve"] for trial in found["trials"]] == [[0.5, 0.6, 0.7]] * 3
    assert found["trials"][0]["params"] == default


def test_mistakes_get_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--replays must be at least 5: 1"):
        replays.main(["--replays", "1"])
    with pytest.raises(UserError, match=r"There is no table of recorded trials: .*Make one with --collect"):
        replays.main(["--results", str(tmp_path)])
    with pytest.raises(UserError, match="No study of 'dilated' with complete trials is below"):
        replays.main(["--collect", str(tmp_path), "--results", str(tmp_path)])


@pytest.mark.parametrize("name", ["dilated", "dilated-15000"])
def test_a_recorded_command_still_replays_what_it_replayed(name: str) -> None:
    record = json.loads((RESULTS / "replays" / f"{name}.json").read_text())
    assert [(each["name"], each["title"]) for each in record["settings"]] == [
        (way, setting.title) for way, setting in replays.SETTINGS.items()
    ]
    assert record["default"] == typical(get_space(record["space"]), Limits()).candidate_id
