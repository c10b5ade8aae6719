"""Which pruner saves most epochs without losing the best trial? Answered by replaying whole curves.

    python -m study.run --trials 50 --pruner none --study-name whole
    python scripts/pruners.py --study-name whole [--replays 200]

Takes the complete trials of a study, best one run with --pruner none, and shows their recorded curves in
seeded random orders to Optuna's own pruners, one trial after the other, asking as `study.search.objective` asks.
Every setting sees the same orders. Writes results/pruners/<study>.json and .png and prints a table.

- Epochs: what the setting let run, of all that were recorded.
- Regret: final accuracy of the best trial of all minus that of the best trial that ran to the end.
- Within a budget: the best final accuracy reached when the epochs stop at a share (--budget-share) of all.
  A setting that prunes more sees more trials by then.

The rule by which the winner is chosen, fixed before any result: of the settings that lose at most 0.1 points (the
upper end of the 95% bootstrap interval of the mean regret), the one that spends the fewest epochs; the smaller mean
regret, then the earlier in the list, decides a tie. 0.1 points is a sixth of the standard error of an accuracy of
75% on 5,000 images. The cheapest of many settings is also the luckiest: the winner is replayed in as many fresh
orders, and whether it meets the rule there is said.

The intervals cover the order of the trials, not the choice of candidates. Random orders leave out that a
sampler learns from what was pruned, so the recorded order stands beside them. Left out are PatientPruner, which
waits for a curve to fall while these rise to the end of the schedule, and WilcoxonPruner, which compares trials
over problem instances in random order, not over epochs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from study.command_line.parser import Parser, run_command
from study.errors import UserError
from study.machine.paths import RESULTS

if TYPE_CHECKING:
    import optuna

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MIN_CURVES = 12
MIN_REPLAYS = 10
MAX_REGRET = 0.001
N_BOOTSTRAP = 2000
ROUNDING = 1e-9
COLOURS = {
    "none": "#444444",
    "percentile": "#1f77b4",
    "median": "#1f77b4",
    "halving": "#d95f02",
    "hyperband": "#2ca02c",
}


@dataclass(frozen=True)
class Setting:
    """A pruner to compare: its name and how a fresh one is made, so that replays share no state."""

    name: str
    make: Callable[[], optuna.pruners.BasePruner]


@dataclass(frozen=True)
class Outcome:
    """What one setting did in every replay; one element per replay.

    Attributes:
        names: Of the settings that ran every trial of every replay for the same epochs.
        ran: Epochs that each trial ran, in the order of the replay; the last row is the recorded order.
        epochs: Spent on all trials.
        regret: Final accuracy lost, a fraction.
        kept_best, kept_top_3: Whether the best, or one of the three best, ran to the end.
        budget_accuracy: Best final accuracy reached within the budget.
        budget_trials: Trials started within the budget.
        recorded_regret: Of the replay in the recorded order.
    """

    names: tuple[str, ...]
    ran: Integers
    epochs: Floats
    regret: Floats
    kept_best: Floats
    kept_top_3: Floats
    budget_accuracy: Floats
    budget_trials: Floats
    recorded_regret: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        description=__doc__, prog="python scripts/pruners.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    from study.command_line.options import add_study_options, storage_url, study_name
    from study.search.pruning import compared_epochs
    from study.storage.database import config_of, open_study

    add_study_options(parser)
    parser.add_argument("--replays", type=int, default=200, metavar="N", help="orders per setting (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the orders (default: 0)")
    parser.add_argument("--budget-share", type=float, default=0.5, metavar="F", help="of all epochs (default: 0.5)")
    parser.add_argument("--results", type=Path, default=RESULTS / "pruners", help="(default: results/pruners)")
    options = parser.parse_args(argv)
    if options.replays < MIN_REPLAYS:
        raise UserError(f"--replays must be at least {MIN_REPLAYS} for an interval: {options.replays}.")
    if options.seed < 0:
        raise UserError(f"--seed must not be negative: {options.seed}.")
    if not 0.1 <= options.budget_share <= 1:
        raise UserError(f"--budget-share must be between 0.1 and 1: {options.budget_share}.")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = study_name(options)
    study = open_study(storage_url(options), name)
    config = config_of(study)
    if config.epochs < 2:
        raise UserError(f"Trials of {config.epochs} epoch cannot be pruned: record a study with --epochs 2 or more.")
    trials = study.get_trials(deepcopy=False)
    numbers, curves = whole_curves(trials, config.epochs)
    if len(numbers) < MIN_CURVES:
        raise UserError(
            f"A comparison needs at least {MIN_CURVES} complete trials of all {config.epochs} epochs: {name!r} has "
            f"{len(numbers)} of {len(trials)}. Record more with python -m study.run --pruner none."
        )
    used = f"{len(numbers)} whole curves of {config.epochs} epochs, of {len(trials)} trials of {name!r}."
    if config.pruner != "none":
        used += f" It was pruned ({config.pruner}): the losers' curves are missing and the comparison is too kind."
        if compared_epochs(config.pruner, config.epochs) is not None:
            used += " Accuracies of epochs at which it compared nothing may be of a fifth of the images."

    budget = round(options.budget_share * curves.size)
    arguments = (curves, options.replays, options.seed, name, budget)
    compared = settings(config.epochs)
    outcomes = compare(compared, *arguments)
    chosen = cheapest([outcome for outcome in outcomes if meets_rule(outcome)])
    [setting] = [setting for setting in compared if setting.name == chosen.names[0]]
    fresh = evaluate(setting, *arguments, first=options.replays)
    command = ["python", "scripts/pruners.py", "--study-name", name, "--replays", str(options.replays)]
    command += ["--seed", str(options.seed), "--budget-share", f"{options.budget_share:g}"]
    record = {
        "command": shlex.join(command),
        "study": name,
        "recorded_with": {"pruner": config.pruner, "sampler": config.sampler, "train_images": config.train_images},
        "n_trials": len(trials),
        "n_curves": len(numbers),
        "epochs": config.epochs,
        "n_epochs": curves.size,
        "replays": options.replays,
        "seed": options.seed,
        "budget": budget,
        "best_val_accuracy": float(curves[:, -1].max()),
        "winner": chosen.names[0],
        "winner_in_fresh_orders": {**summary(fresh, curves), "meets_rule": meets_rule(fresh)},
        "max_regret": MAX_REGRET,
        "settings": [summary(o, curves) for o in sorted(outcomes, key=lambda o: float(o.epochs.mean()))],
        "versions": {"optuna": optuna.__version__, "numpy": np.__version__},
        "curves": [
            {"trial": number, "val_accuracy": curve.tolist()} for number, curve in zip(numbers, curves, strict=True)
        ],
    }
    options.results.mkdir(parents=True, exist_ok=True)
    file: Path = options.results / f"{name}.json"
    file.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, file.with_suffix(".png"))
    print(f"{used}\n\n{markdown(record)}\n\n-> {file} and .png")
    return 0


def whole_curves(trials: Sequence[optuna.trial.FrozenTrial], epochs: int) -> tuple[list[int], Floats]:
    """Numbers of the complete trials and their accuracies after every epoch [trial, epoch].

    A trial that lacks an epoch or holds a value that is no number is left out.
    """
    whole = {
        trial.number: [trial.intermediate_values[epoch] for epoch in range(epochs)]
        for trial in trials
        if trial.state.name == "COMPLETE" and set(trial.intermediate_values) == set(range(epochs))
    }
    finite = {number: curve for number, curve in whole.items() if np.isfinite(curve).all()}
    return list(finite), np.array(list(finite.values()), dtype=float).reshape(-1, epochs)


def settings(epochs: int) -> list[Setting]:
    """The pruners that `study.run` offers, first, and further settings of the same kinds."""
    import optuna

    from study.search.plan import PRUNERS
    from study.search.pruning import make_pruner

    def percentile(keep: float, startup: int, warmup: int, interval: int) -> Setting:
        every = f", every {interval} epochs" if interval > 1 else ""
        return Setting(
            f"percentile {keep:g}, startup {startup}, warm-up {warmup}{every}",
            lambda: optuna.pruners.PercentilePruner(keep, startup, warmup, interval),
        )

    def halving(rung: int, factor: int) -> Setting:
        return Setting(
            f"halving, rung {rung}, factor {factor}",
            lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=rung, reduction_factor=factor),
        )

    def hyperband(rung: int, factor: int) -> Setting:
        return Setting(
            f"hyperband, rung {rung}, factor {factor}",
            lambda: optuna.pruners.HyperbandPruner(min_resource=rung, max_resource=epochs, reduction_factor=factor),
        )

    def offered(name: str) -> Setting:
        return Setting(name, lambda: make_pruner(name, epochs))

    rungs = sorted({max(1, epochs // 6), max(1, epochs // 3), max(1, epochs // 2)})
    found = [offered(name) for name in PRUNERS]
    for keep in (25.0, 50.0):
        for startup in (5, 10):
            found += [percentile(keep, startup, rung, 1) for rung in rungs]
            found.append(percentile(keep, startup, max(1, epochs // 3), max(2, epochs // 3)))
    found += [make(rung, factor) for make in (halving, hyperband) for rung in rungs for factor in (2, 3, 4)]
    return found


def replay(pruner: optuna.pruners.BasePruner, curves: Floats, study_name: str) -> Integers:
    """Shows `curves` [trial, epoch] to `pruner`, one trial after the other; the epochs that each ran.

    Args:
        pruner: A fresh one.
        curves: In the order in which the trials start.
        study_name: Hyperband draws a trial's bracket from it and the trial's number.
    """
    import optuna

    # A storage and a study of its own: rungs are kept with the trials there.
    study = optuna.create_study(
        storage=optuna.storages.InMemoryStorage(),
        study_name=study_name,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=pruner,
    )
    n_epochs = curves.shape[1]
    ran = []
    for curve in curves.tolist():
        trial = study.ask()
        for epoch, accuracy in enumerate(curve):
            trial.report(accuracy, epoch)
            if epoch + 1 < n_epochs and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, accuracy)
        ran.append(epoch + 1)
    return np.array(ran)


def order_of(index: int, n: int, seed: int) -> Integers:
    """The order of the `n` trials in replay `index`, the same for every setting."""
    return np.random.default_rng([seed, index]).permutation(n)


def evaluate(
    setting: Setting, curves: Floats, replays: int, seed: int, study_name: str, budget: int, first: int = 0
) -> Outcome:
    """Replays `curves` in `replays` random orders, from order `first` on, and once in the recorded order."""
    ran, measured = [], []
    for index in range(first, first + replays):
        order = order_of(index, len(curves), seed)
        ran.append(replay(setting.make(), curves[order], f"{study_name}, order {seed}/{index}"))
        measured.append(measure(ran[-1], curves[order], budget))
    ran.append(replay(setting.make(), curves, study_name))
    columns = {name: np.array([row[name] for row in measured]) for name in measured[0]}
    recorded = measure(ran[-1], curves, budget)
    return Outcome((setting.name,), np.array(ran), **columns, recorded_regret=recorded["regret"])


def compare(
    settings: Sequence[Setting], curves: Floats, replays: int, seed: int, study_name: str, budget: int
) -> list[Outcome]:
    """One outcome per setting; settings that did exactly the same share one."""
    found: dict[bytes, Outcome] = {}
    for setting in settings:
        outcome = evaluate(setting, curves, replays, seed, study_name, budget)
        same = found.setdefault(outcome.ran.tobytes(), outcome)
        if same is not outcome:
            found[outcome.ran.tobytes()] = dataclasses.replace(same, names=(*same.names, setting.name))
    return list(found.values())


def measure(ran: Integers, curves: Floats, budget: int) -> dict[str, float]:
    """The figures of one replay.

    Args:
        ran: Epochs that every trial ran, in the order in which they ran.
        curves: [trial, epoch], in the same order.
        budget: Epochs after which everything stops.
    """
    final, complete, spent = curves[:, -1], ran == curves.shape[1], ran.cumsum()
    # A tie at third place counts: neither of two equal trials is the better one to keep.
    third = np.sort(final)[-3]
    in_time = complete & (spent <= budget)
    # The first trial is never pruned, and the budget holds more than one, so that neither is empty.
    regret = float(final.max() - final[complete].max())
    return {
        "epochs": float(spent[-1]),
        "regret": regret,
        "kept_best": float(regret == 0),
        "kept_top_3": float((final[complete] >= third).any()),
        "budget_accuracy": float(final[in_time].max()),
        "budget_trials": float((spent - ran < budget).sum()),
    }


def interval(values: Floats) -> tuple[float, float]:
    """95% bootstrap interval (percentile) of the mean."""
    rows = np.random.default_rng(0).integers(0, len(values), (N_BOOTSTRAP, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def meets_rule(outcome: Outcome) -> bool:
    """Whether it surely loses little."""
    return interval(outcome.regret)[1] <= MAX_REGRET + ROUNDING


def cheapest(outcomes: Sequence[Outcome]) -> Outcome:
    """The one with the fewest epochs, then the smallest regret; the first of equal ones."""
    return min(outcomes, key=lambda outcome: (float(outcome.epochs.mean()), float(outcome.regret.mean())))


def summary(outcome: Outcome, curves: Floats) -> dict[str, Any]:
    """What the record holds about an outcome."""
    return {
        "name": outcome.names[0],
        "same_as": list(outcome.names[1:]),
        "epochs": float(outcome.epochs.mean()),
        "epochs_share": float(outcome.epochs.mean() / curves.size),
        "regret": float(outcome.regret.mean()),
        "regret_interval_95": list(interval(outcome.regret)),
        "regret_worst": float(outcome.regret.max()),
        "kept_best": float(outcome.kept_best.mean()),
        "kept_top_3": float(outcome.kept_top_3.mean()),
        "budget_val_accuracy": float(outcome.budget_accuracy.mean()),
        "budget_val_accuracy_interval_95": list(interval(outcome.budget_accuracy)),
        "budget_trials": float(outcome.budget_trials.mean()),
        "recorded_order": {"epochs": int(outcome.ran[-1].sum()), "regret": outcome.recorded_regret},
    }


def markdown(record: dict[str, Any]) -> str:
    """The table of all settings, and the winner."""
    head = (
        "", "setting", "epochs", "of all", "regret, points (95%)", "worst", "kept the best", "kept one of 3 best",
        f"best within {record['budget']} epochs (95%)", "trials by then", "recorded order: epochs, regret",
    )  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for number, row in enumerate(record["settings"], 1):
        name = " = ".join((row["name"], *row["same_as"]))
        low, high = row["regret_interval_95"]
        at_budget = [row["budget_val_accuracy"], *row["budget_val_accuracy_interval_95"]]
        rows.append(
            (
                str(number),
                f"**{name}**" if row["name"] == record["winner"] else name,
                f"{row['epochs']:.1f}",
                f"{row['epochs_share']:.0%}",
                f"{100 * row['regret']:.2f} ({100 * low:.2f} to {100 * high:.2f})",
                f"{100 * row['regret_worst']:.2f}",
                f"{row['kept_best']:.0%}",
                f"{row['kept_top_3']:.0%}",
                "{:.2f}% ({:.2f} to {:.2f})".format(*(100 * value for value in at_budget)),
                f"{row['budget_trials']:.1f} of {record['n_curves']}",
                f"{row['recorded_order']['epochs']}, {100 * row['recorded_order']['regret']:.2f}",
            )
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    fresh = record["winner_in_fresh_orders"]
    fresh_low, fresh_high = fresh["regret_interval_95"]
    return (
        f"{table}\n\n"
        f"Best trial {record['best_val_accuracy']:.2%}; {record['replays']} random orders each. Percentile p keeps the "
        "best p% at every question. Warm-up or rung w asks first after w + 1 epochs: Optuna counts from zero.\n"
        f"Winner by the rule: **{record['winner']}**. In {record['replays']} fresh orders it spends "
        f"{fresh['epochs_share']:.0%} of the epochs, its regret is {100 * fresh['regret']:.2f} points "
        f"({100 * fresh_low:.2f} to {100 * fresh_high:.2f}), it keeps the best in {fresh['kept_best']:.0%}, and it "
        f"{'meets' if fresh['meets_rule'] else 'does not meet'} the rule."
    )


def draw(record: dict[str, Any], file: Path) -> None:
    """Epochs spent against regret, every setting numbered as in the table."""
    from matplotlib.figure import Figure

    rows = record["settings"]
    figure = Figure(figsize=(12, 0.25 * max(len(rows), 18) + 1.2), layout="constrained")
    axes, key = figure.subplots(1, 2, width_ratios=(1.6, 1))
    for row in rows:
        colour = COLOURS[row["name"].partition(",")[0].split()[0]]
        x, y = 100 * row["epochs_share"], 100 * row["regret"]
        low, high = (100 * bound for bound in row["regret_interval_95"])
        is_winner = row["name"] == record["winner"]
        axes.errorbar(x, y, [[max(0, y - low)], [max(0, high - y)]], color=colour, alpha=0.35, linewidth=1)
        axes.plot(x, y, "*" if is_winner else "o", color=colour, markersize=15 if is_winner else 6)
    axes.set(xlabel="epochs spent, % of all", ylabel="mean regret, points (bars: 95%)")
    axes.margins(0.06)
    if axes.get_ylim()[1] > 100 * record["max_regret"]:
        axes.axhline(100 * record["max_regret"], color="#888888", linestyle=":", linewidth=1)
    _number(axes, [(100 * row["epochs_share"], 100 * row["regret"]) for row in rows])
    axes.set_title(f"{record['n_curves']} curves of {record['study']}, {record['replays']} orders", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    key.axis("off")
    for line, row in enumerate(rows):
        y = 1 - (line + 0.5) / len(rows)
        is_winner = row["name"] == record["winner"]
        weight = "bold" if is_winner else "normal"
        text = f"{row['name']}{' (winner)' if is_winner else ''}"
        colour = COLOURS[row["name"].partition(",")[0].split()[0]]
        key.text(0.06, y, str(line + 1), ha="right", va="center", fontsize=8.5, color=colour, weight="bold")
        key.text(0.09, y, text, va="center", fontsize=8.5, weight=weight)
    figure.savefig(file, dpi=130, metadata={"Software": None})


def _number(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """Writes 1, 2, ... beside the points, each at the nearest place that no earlier number or point takes."""
    figure = axes.figure
    figure.canvas.draw()
    pixel = figure.dpi / 72
    places = [axes.transData.transform(point) for point in points]
    taken = list(places)
    rings = [(radius, angle) for radius in (9, 14, 20, 27, 35, 44) for angle in (90, 45, 135, 0, 180, 270, 315, 225)]
    for number, place in enumerate(places, 1):
        shifts = [radius * np.array([np.cos(np.radians(a)), np.sin(np.radians(a))]) for radius, a in rings]
        free = [s for s in shifts if all(np.abs(place + pixel * s - t).max() > 9 * pixel for t in taken)]
        shift = free[0] if free else shifts[0]
        taken.append(place + pixel * shift)
        axes.annotate(
            str(number),
            points[number - 1],
            xytext=tuple(shift),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6, "shrinkA": 4, "shrinkB": 3},
        )


if __name__ == "__main__":
    run_command(main)
