"""Samplers at equal budget: what a study found within it, and how the comparison is told."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from experiments import samplers
from study.errors import StudyFailed, UserError

pytestmark = pytest.mark.slow


def made_study(curves: list[tuple[list[float], bool]]) -> optuna.Study:
    """Trials in the order in which they end; True stands for pruned. The first is the space's default."""
    study = optuna.create_study(direction="maximize")
    for index, (curve, pruned) in enumerate(curves):
        started = datetime.datetime(2026, 1, 1) + datetime.timedelta(minutes=index)
        trial = optuna.trial.create_trial(
            value=None if pruned else curve[-1],
            state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE,
            intermediate_values=dict(enumerate(curve)),
            user_attrs={"slot": index, "candidate": {}, "candidate_id": str(index)},
        )
        study.add_trial(trial)
        frozen = study._storage._studies[study._study_id].trials[-1]  # type: ignore[attr-defined]
        frozen.datetime_start, frozen.datetime_complete = started, started + datetime.timedelta(seconds=30)
    return study


def test_the_budget_counts_epochs_and_only_whole_trials_have_an_accuracy() -> None:
    study = made_study([([0.2, 0.4], False), ([0.9], True), ([0.3, 0.5], False), ([0.4, 0.8], False)])
    assert samplers.spent(study) == 7
    found = samplers.describe(study, budget=5)
    assert found["steps"] == [[2, 0.4], [3, 0.4], [5, 0.5]]  # the last trial ended beyond the budget
    assert (found["n_trials"], found["best_val_accuracy"]) == (3, 0.5)
    # Of these one is trained longer, whatever ended later.
    assert samplers.best_within(study, budget=5) == (2, 2)
    assert samplers.best_within(study, budget=7) == (1, 3)
    assert samplers.best_within(study, budget=1) == (3, 0)


def test_others_run_until_they_have_spent_the_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their trials are whole, so that they need fewer of them."""
    asked: list[int] = []

    def call(module: str, arguments: list[str]) -> None:
        assert module == "study.run"
        asked.append(int(arguments[arguments.index("--trials") + 1]))

    monkeypatch.setattr(samplers, "_call", call)
    monkeypatch.setattr(
        "study.storage.database.open_study", lambda *_: made_study([([0.1, 0.2, 0.3], False)] * asked[-1])
    )
    identity = ["--study-name", "s", "--out", str(tmp_path)]
    assert samplers.spent(samplers._search([], identity, trials=4, budget=None)) == 12
    assert asked == [4]
    asked.clear()
    assert samplers.spent(samplers._search([], identity, trials=4, budget=10)) == 12
    assert asked == [1, 3, 4]


@pytest.mark.parametrize(("usable", "asked"), [(1, [1]), (2, [1, 2])])
def test_without_a_search_there_are_anchors_alone(
    monkeypatch: pytest.MonkeyPatch, usable: int, asked: list[int]
) -> None:
    """Limits may leave fewer of them than the space has, and the next slot would be a sample's."""
    found = list[int]()
    monkeypatch.setattr(samplers, "_call", lambda _, words: found.append(int(words[words.index("--trials") + 1])))
    monkeypatch.setattr("study.storage.database.open_study", lambda *_: made_study([([0.1], False)]))
    monkeypatch.setattr(samplers, "_n_usable", lambda _: usable)
    samplers._anchors([], ["--study-name", "s", "--out", "nowhere"])
    assert found == asked


def record() -> dict[str, Any]:
    studies = [
        {"sampler": s, "seed": seed, "budget": 4, "n_trials": 2,
         "steps": [[2, 0.5], [4, value]], "best_val_accuracy": value, "fuller_val_accuracy": value + 0.1}
        for s, values in (("anchored", (0.6, 0.7)), ("random", (0.5, 0.6)), ("none", (0.5, 0.5)))
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return {"space": "dilated", "studies": studies}


def test_the_table_has_means_and_ranges() -> None:
    table = samplers.markdown(record())
    assert f"| {samplers.SAMPLERS['anchored']} | 2 | 2 | 65.00% (60.00 to 70.00) | 75.00% (70.00 to 80.00) |" in table
    assert "| the space's anchors, no search | 2 | 2 | 50.00% (50.00 to 50.00) | 60.00% (60.00 to 60.00) |" in table
    assert "Gaussian" not in table  # none was run


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    samplers.draw(record(), tmp_path / "samplers.png")
    assert (tmp_path / "samplers.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_get_a_line() -> None:
    with pytest.raises(UserError, match="--seeds must be at least 1: 0"):
        samplers.main(["--seeds", "0"])
    with pytest.raises(StudyFailed, match=r"study\.run ended with exit code 2"):
        samplers._call("study.run", ["--trials", "0"])


def test_published_table_is_of_its_own_file() -> None:
    file = samplers.RESULTS / "samplers" / "dilated.json"
    if not file.exists():
        pytest.skip("no comparison is published")
    found = json.loads(file.read_text())
    assert {study["sampler"] for study in found["studies"]} <= set(samplers.SAMPLERS)
    assert all(study["steps"][-1][0] <= study["budget"] for study in found["studies"] if study["n_trials"] > 1)
