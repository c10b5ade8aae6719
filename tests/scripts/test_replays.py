"""Samplers replayed on a surrogate: the table, the model, the bookkeeping."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

import replays
from search_spaces import get_space
from search_spaces.constraints import Limits
from study.errors import UserError

pytest.importorskip("sklearn")

COST = {
    "dense_mac_s": 1e-9, "depthwise_mac_s": 1e-8, "depthwise_other_mac_s": 1e-8, "activation_s": 1e-8, "image_s": 1e-5,
    "operation_s": 1e-5, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    """Forty candidates whose accuracy grows with the share of the budget that they spend; one was trained twice."""
    space, rng = get_space("dilated"), random.Random(0)
    trials = []
    for number in range(60):
        params = space.sample(rng)
        height = 0.3 + 0.4 * params["budget_frac"]
        trials.append({"params": params, "candidate_id": str(number), "curve": [height - 0.2, height - 0.1, height]})
    trials.append({**trials[0], "curve": [value + 0.01 for value in trials[0]["curve"]]})
    return {
        "space": "dilated",
        "space_version": space.version,
        "epochs": 3,
        "train_images": 1000,
        "val_images": 100,
        "limits": Limits().to_json(),
        "cost_model": COST,
        "studies": {"made": 61},
        "trials": trials,
    }


@pytest.fixture(scope="module")
def surrogate(table: dict[str, Any]) -> replays.Surrogate:
    return replays.Surrogate(table)


def test_noise_is_that_between_trainings_of_one_candidate() -> None:
    curves = np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0], [0.0, 1.0]])  # the last one is the first, recorded again
    assert replays.spread_of_repeats(curves, ["a", "a", "b", "a"]) == pytest.approx([2**0.5, 0.0])
    with pytest.raises(UserError, match="No candidate of the table was trained from two seeds"):
        replays.spread_of_repeats(curves[2:], ["b", "c"])


def test_the_surrogate_has_learnt_and_says_how_well(surrogate: replays.Surrogate) -> None:
    space = get_space("dilated")
    default = space.anchors(Limits())["default"]
    low, high = (surrogate.curve({**default, "budget_frac": share}) for share in (0.4, 1.0))
    assert (high > low + 0.1).all()
    assert (np.diff(high) > 0).all()
    quality = surrogate.quality()
    assert quality["spearman"] > 0.8
    assert (quality["n_trials"], quality["n_candidates"]) == (61, 60)
    noisy = np.array([surrogate.noisy(high, seed) for seed in range(200)])
    assert noisy.std(axis=0) == pytest.approx(0.007, rel=0.3)  # two trainings a point apart
    assert (surrogate.noisy(high, 3) == surrogate.noisy(high, 3)).all()


def test_what_has_no_effect_is_no_input(surrogate: replays.Surrogate) -> None:
    default = dict(get_space("dilated").anchors(Limits())["default"])
    assert default["optimizer"] == "muon"
    assert surrogate.features({**default, "adamw_lr": 1e-3}) == surrogate.features(default)
    assert surrogate.features({**default, "muon_lr": 1e-2}) != surrogate.features(default)


@pytest.mark.parametrize("name", replays.SETTINGS)
def test_a_replay_stops_at_its_budget_and_repeats(name: str, surrogate: replays.Surrogate) -> None:
    steps = replays.replay(replays.SETTINGS[name], surrogate, 1, 60)
    assert steps == replays.replay(replays.SETTINGS[name], surrogate, 1, 60)
    assert steps != replays.replay(replays.SETTINGS[name], surrogate, 2, 60)
    spent = [epochs for epochs, _ in steps]
    assert spent[:2] == [3, 6]  # anchors are not pruned
    assert spent[-2] < 60 <= spent[-1] < 63
    assert steps[-1][1] > 0.5


def test_anchored_replays_keep_most_of_the_default(
    surrogate: replays.Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts, on the parameters that were tried, how many dimensions differ from the default's."""
    seen: list[dict[str, Any]] = []
    curve = surrogate.curve
    monkeypatch.setattr(surrogate, "curve", lambda params: (seen.append(dict(params)), curve(params))[1])
    default = get_space("dilated").anchors(Limits())["default"]

    def changed(name: str) -> list[int]:
        seen.clear()
        replays.replay(replays.SETTINGS[name], surrogate, 0, 40)
        return [sum(params[key] != default[key] for key in default) for params in seen[2:10]]

    assert max(changed("anchored")) <= 8
    assert min(changed("random")) > 15


def test_the_best_so_far_is_read_at_the_budget() -> None:
    steps = [(3, 0.5), (6, 0.5), (10, 0.7)]
    assert [replays.at(steps, epochs) for epochs in (2, 3, 9, 10)] == [0.0, 0.5, 0.5, 0.7]


def test_the_command_makes_table_and_picture(
    table: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dilated-table.json").write_text(json.dumps(table))
    monkeypatch.setattr(replays, "N_TREES", 20)
    arguments = ["--replays", "5", "--budget", "15", "--jobs", "1", "--results", str(tmp_path)]
    assert replays.main(arguments) == 0
    record = json.loads((tmp_path / "dilated.json").read_text())
    assert [each["name"] for each in record["settings"]] == list(replays.SETTINGS)
    assert record["settings"][0]["behind_default"] == 0
    assert (tmp_path / "dilated.png").read_bytes().startswith(b"\x89PNG")
    assert replays.markdown(record) in capsys.readouterr().out


def test_the_table_is_collected_from_studies_of_one_fidelity(table: dict[str, Any], tmp_path: Path) -> None:
    default = get_space("dilated").anchors(Limits())["default"]
    for name, epochs, value in (("a", 2, 0.6), ("b", 2, 0.7), ("c", 3, 0.8)):
        (tmp_path / name).mkdir()
        study = optuna.create_study(
            study_name=name, storage=f"sqlite:///{tmp_path / name / 'study.db'}", direction="maximize"
        )
        config = {"space": "dilated", "space_version": 2, "epochs": epochs, "train_images": 100, "val_images": 50,
                  "seed": 0, "pruner": "none", "sampler": "random", "precision": "float32",
                  "limits": Limits().to_json(), "split_seed": 0}  # fmt: skip
        study.set_user_attr("config", config)
        study.set_user_attr("cost_model", COST)
        trial = study.ask()
        for key in default:
            trial.suggest_categorical(key, [default[key]])
        trial.set_user_attr("candidate_id", "id")
        for epoch in range(epochs):
            trial.report(value - 0.1 * (epochs - 1 - epoch), epoch)
        study.tell(trial, value)
        study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    assert replays.main(["--collect", str(tmp_path), "--results", str(tmp_path / "results")]) == 0
    found = json.loads((tmp_path / "results" / "dilated-table.json").read_text())
    assert found["studies"] == {"a": 1, "b": 1}
    assert [trial["curve"] for trial in found["trials"]] == [[0.5, 0.6], [0.6, 0.7]]
    assert found["trials"][0]["params"] == default


def test_mistakes_get_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--replays must be at least 5 for an interval: 1"):
        replays.main(["--replays", "1"])
    with pytest.raises(UserError, match=r"There is no table of recorded trials: .*Make one with --collect"):
        replays.main(["--results", str(tmp_path)])
    with pytest.raises(UserError, match="No study of 'dilated' is below"):
        replays.main(["--collect", str(tmp_path), "--results", str(tmp_path)])
