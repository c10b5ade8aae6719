"""The comparison of pruners, on made curves whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from experiments import pruners
from study.errors import UserError
from study.search.plan import PRUNERS
from study.search.pruning import make_pruner
from study.storage.config import StudyConfig

EPOCHS = 6
N = 16
BUDGET = N * EPOCHS // 2
GAP = 0.03

ORDERED = np.array([[0.2 + 0.02 * trial + 0.03 * epoch for epoch in range(EPOCHS)] for trial in range(N)])
"""Curves that never cross; the last trial is the best throughout."""

LATE = np.vstack([ORDERED[:-1], [0.05, 0.06, 0.07, 0.08, 0.09, ORDERED[-2, -1] + GAP]])
"""The best trial is the worst until its last epoch."""


def outcome(setting: str, curves: np.ndarray, replays: int = 20, **options: Any) -> pruners.Outcome:
    make = pruners.settings(curves.shape[1])[setting]
    return pruners.evaluate(make, curves, replays, 0, "made", BUDGET, **options)


def made(epochs: float, regret: list[float]) -> dict[str, Any]:
    zeros = np.zeros(len(regret))
    outcome = {"epochs": zeros + epochs, "regret": np.array(regret), "kept_best": zeros, "budget_accuracy": zeros}
    return pruners.summary((f"{epochs:g}",), outcome, 100)


def store(folder: Path, curves: np.ndarray, n_pruned: int = 0, pruner: str = "none") -> list[str]:
    """Stores a study with whole `curves`, then pruned and failed trials; returns options that name it."""
    url = f"sqlite:///{folder / 'study.db'}"
    study = optuna.create_study(study_name="made", storage=url, direction="maximize")
    config = StudyConfig("dilated", 1, curves.shape[1], 200, 100, 0, pruner, "tpe", "float32")
    study.set_user_attr("config", config.to_json())
    for curve in curves.tolist():
        study.add_trial(create_trial(value=curve[-1], intermediate_values=dict(enumerate(curve))))
    for _ in range(n_pruned):
        study.add_trial(create_trial(state=TrialState.PRUNED, value=0.99, intermediate_values={0: 0.98, 1: 0.99}))
    study.add_trial(create_trial(state=TrialState.FAIL))
    return ["--storage", url, "--study-name", "made", "--results", str(folder / "results")]


def test_curves_that_never_cross_lose_nothing_under_any_setting() -> None:
    rows = pruners.compare(pruners.settings(EPOCHS), ORDERED, 10, 0, "made", BUDGET)
    assert all(row["regret"] == 0 and row["kept_best"] == 1 for row in rows)
    epochs = {name: row["epochs"] for row in rows for name in (row["name"], *row["same_as"])}
    assert epochs["none"] == N * EPOCHS
    assert epochs["halving, rung 1, factor 4"] < epochs["halving, rung 1, factor 2"] < epochs["none"]
    assert epochs["percentile"] < epochs["median"] < epochs["none"]


def test_a_best_trial_that_starts_worst_is_lost_unless_it_comes_first() -> None:
    found = outcome("halving, rung 1, factor 4", LATE)
    first = np.array([pruners.order_of(index, N, 0)[0] == N - 1 for index in range(20)])
    assert (found["kept_best"] == first).all()
    assert found["regret"] == pytest.approx(np.where(first, 0, GAP))
    assert outcome("none", LATE)["regret"].max() == 0


@pytest.mark.parametrize("name", PRUNERS)
def test_a_replay_stops_every_trial_where_a_real_study_stops_it(name: str) -> None:
    rng = np.random.default_rng(0)
    curves = np.sort(rng.uniform(0.2, 0.8, (24, EPOCHS)), axis=1)
    ran = []

    def objective(trial: optuna.Trial) -> float:
        for epoch in range(EPOCHS):
            ran.append(trial.number)
            trial.report(curves[trial.number, epoch], epoch)
            if epoch < EPOCHS - 1 and trial.should_prune():
                raise optuna.TrialPruned
        return float(curves[trial.number, -1])

    study = optuna.create_study(direction="maximize", study_name="real", pruner=make_pruner(name, EPOCHS))
    study.optimize(objective, n_trials=24)
    replayed = pruners.replay(make_pruner(name, EPOCHS), curves, "real")
    assert replayed.tolist() == np.bincount(ran).tolist()
    assert (replayed < EPOCHS).any() == (name != "none")


def test_replays_share_nothing_and_every_setting_sees_the_same_orders() -> None:
    rng = np.random.default_rng(1)
    curves = np.sort(rng.uniform(0.2, 0.8, (N, EPOCHS)), axis=1)
    for name in ("percentile", "halving", "hyperband"):
        together = outcome(name, curves, 12)["ran"]
        later = outcome(name, curves, 2, first=10)["ran"]
        assert (together[10:] == later).all()
        assert len(np.unique(together, axis=0)) > 1
    orders = [tuple(pruners.order_of(index, N, 0)) for index in range(20)]
    assert len(set(orders)) == 20
    assert pruners.order_of(3, N, 0).tolist() != pruners.order_of(3, N, 1).tolist()


def test_every_epoch_but_the_last_is_asked_about_and_whole_trials_are_complete() -> None:
    asked: list[tuple[int, int | None]] = []
    complete: list[int] = []

    class Listening(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            asked.append((trial.number, trial.last_step))
            complete.append(len(study.get_trials(states=(TrialState.COMPLETE,))))
            return False

    assert pruners.replay(Listening(), ORDERED, "made").tolist() == [EPOCHS] * N
    assert asked == [(trial, epoch) for trial in range(N) for epoch in range(EPOCHS - 1)]
    assert complete == [trial for trial, _ in asked]


def test_every_replay_is_a_study_of_its_own_name() -> None:
    # Hyperband draws the brackets from it: under one name the n-th trial of every order has the same bracket.
    seen: list[str] = []

    class Listening(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            seen.append(study.study_name)
            return False

    pruners.evaluate(Listening, ORDERED, 10, 0, "made", BUDGET)
    assert len(set(seen)) == 10
    found = [pruners.replay(make_pruner("hyperband", EPOCHS), ORDERED[::-1], name).sum() for name in sorted(set(seen))]
    assert len(set(found)) > 1


def test_a_budget_counts_trials_that_end_within_it() -> None:
    curves = np.array([[0.1, 0.2, 0.5], [0.3, 0.4, 0.9], [0.1, 0.1, 0.7], [0.2, 0.3, 0.95]])
    found = pruners.measure(np.array([3, 1, 3, 3]), curves, 7)
    assert found["budget_accuracy"] == 0.7  # 3 + 1 + 3 = 7; the fourth starts no more
    assert pruners.measure(np.array([3, 1, 3, 3]), curves, 6)["budget_accuracy"] == 0.5
    assert found["epochs"] == 10
    assert found["regret"] == 0


def test_a_setting_that_prunes_finds_more_within_the_budget() -> None:
    none, halving = outcome("none", ORDERED), outcome("halving", ORDERED)
    assert halving["budget_accuracy"].mean() > none["budget_accuracy"].mean()
    best_of_half = [ORDERED[pruners.order_of(index, N, 0)[: N // 2], -1].max() for index in range(20)]
    assert none["budget_accuracy"].tolist() == best_of_half


@pytest.mark.parametrize(
    ("regret", "met"),
    [
        ([0.0] * 20, True),
        ([0.001] * 20, True),  # at the margin
        ([0.001] * 8 + [0.0] * 12, True),
        ([0.0011] * 20, False),
        ([0.01] * 2 + [0.0] * 18, False),  # a tenth of a point on average, but it may be more
        ([0.15] + [0.0] * 19, False),  # rare, but large
    ],
)
def test_the_rule(regret: list[float], met: bool) -> None:
    assert pruners.meets_rule(made(10, regret)) == met


def test_the_cheapest_is_chosen_and_less_regret_decides_a_tie() -> None:
    assert pruners.cheapest([made(30, [0.0]), made(20, [0.002]), made(25, [0.0])])["name"] == "25"  # 20 loses too much
    even = [made(20, [0.0009]), made(20, [0.0005])]
    assert pruners.cheapest(even) is even[1]


def test_settings_that_do_the_same_share_a_row_under_the_name_the_study_uses() -> None:
    found = pruners.compare(pruners.settings(EPOCHS), LATE, 10, 0, "made", BUDGET)
    every_name = [(row["name"], *row["same_as"]) for row in found]
    shared = [names for names in every_name if set(names) & set(PRUNERS)]
    assert all(names[0] in PRUNERS for names in shared)
    [percentile] = [names for names in shared if "percentile" in names]
    assert "percentile 25, startup 5, warm-up 2" in percentile[1:]
    every = [name for names in every_name for name in names]
    assert sorted(every) == sorted(pruners.settings(EPOCHS))
    assert set(PRUNERS) <= set(every)


@pytest.mark.parametrize("epochs", [2, 3, 6, 20])
def test_every_setting_works_for_every_length_of_trials(epochs: int) -> None:
    found = pruners.settings(epochs)
    curves = np.linspace(0.2, 0.6, epochs) + np.arange(12)[:, None] * 0.01
    for make in found.values():
        ran = pruners.replay(make(), curves, "made")
        assert ran[0] == epochs  # `measure` relies on it
        assert ran.max() <= epochs


def test_the_command_writes_the_record_the_figure_and_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = store(tmp_path, LATE, n_pruned=3, pruner="median")
    assert pruners.main([*options, "--replays", "10"]) == 0
    printed = capsys.readouterr().out
    assert f"{N} whole curves of {EPOCHS} epochs, of {N + 4} trials of 'made'. It was pruned (median)" in printed
    text = (tmp_path / "results" / "made.json").read_text()
    assert str(tmp_path) not in text
    record = json.loads(text)
    assert record["command"] == "python scripts/experiments/pruners.py --study-name made --replays 10"
    assert (record["n_curves"], record["n_trials"], record["budget"]) == (N, N + 4, BUDGET)
    assert record["best_val_accuracy"] == LATE[-1, -1]  # not the pruned trials' 0.99
    assert f"Winner by the rule: **{record['winner']}**" in printed
    by_name = {row["name"]: row for row in record["settings"]}
    assert by_name["none"]["epochs"] == N * EPOCHS
    winner, aggressive = by_name[record["winner"]], by_name["halving"]
    assert winner["regret"] <= 0.005 < aggressive["regret"]
    assert aggressive["epochs"] < winner["epochs"]
    assert printed.count("\n| ") == len(record["settings"]) + 2
    assert [row["epochs"] for row in record["settings"]] == sorted(row["epochs"] for row in record["settings"])
    assert np.allclose([row["val_accuracy"] for row in record["curves"]], LATE)
    assert (tmp_path / "results" / "made.png").read_bytes().startswith(b"\x89PNG")
    pruners.main([*options, "--replays", "10"])
    assert (tmp_path / "results" / "made.json").read_text() == text


@pytest.mark.parametrize(
    ("n_curves", "epochs", "extra", "message"),
    [
        (11, EPOCHS, (), "at least 12 complete trials of all 6 epochs: 'made' has 11 of 12"),
        (12, 1, (), "Trials of 1 epoch cannot be pruned"),
        (12, EPOCHS, ("--replays", "9"), "--replays must be at least 10"),
        (12, EPOCHS, ("--budget-share", "0"), "--budget-share must be between"),
        (12, EPOCHS, ("--seed", "-1"), "--seed must be at least 0"),
    ],
)
def test_a_mistake_gets_one_line(
    tmp_path: Path, n_curves: int, epochs: int, extra: tuple[str, ...], message: str
) -> None:
    options = store(tmp_path, ORDERED[:n_curves, :epochs])
    with pytest.raises(UserError, match=message) as error:
        pruners.main([*options, *extra])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "results").exists()


def test_a_curve_that_lacks_an_epoch_or_holds_no_number_is_not_used() -> None:
    trials = [
        create_trial(value=0.5, intermediate_values={0: 0.4, 1: 0.5}),
        create_trial(value=0.5, intermediate_values={1: 0.5}),
        create_trial(value=0.5, intermediate_values={0: float("nan"), 1: 0.5}),
        create_trial(state=TrialState.PRUNED, value=0.5, intermediate_values={0: 0.4, 1: 0.5}),
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    numbers, curves = pruners.whole_curves(trials, 2)
    assert numbers == [0]
    assert curves.tolist() == [[0.4, 0.5]]
