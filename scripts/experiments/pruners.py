"""Which pruner saves most epochs without losing the best trial? Answered by replaying whole curves.

    python -m study.run --trials 50 --pruner none --study-name whole
    python scripts/experiments/pruners.py --study-name whole [--replays 200]

Takes the complete trials of a study, best one run with --pruner none, and shows their recorded curves in seeded random
orders to Optuna's own pruners, one trial after the other, asking as a search asks. Every setting sees the same orders.
Writes results/pruners/<study>.json and .png and prints a table.

- Epochs: what the setting let run, of all that were recorded.
- Points lost (regret): final accuracy of the best trial of all minus that of the best trial that ran to the end.
- Within a budget: the best final accuracy reached when the epochs stop at a share (--budget-share) of all.
  A setting that prunes more sees more trials by then.

The rule by which the winner is chosen, fixed before any result: of the settings that lose at most 0.1 points (the
upper end of the 95% bootstrap interval of the mean), the one that spends the fewest epochs; the smaller mean loss, then
the earlier in the list, decides a tie. 0.1 points is a sixth of the standard error of an accuracy of 75% on 5,000
images. The cheapest of many settings is also the luckiest: the winner is replayed in as many fresh orders, and whether
it meets the rule there is said.

The intervals cover the order of the trials, neither the choice of candidates nor that a sampler learns from what was
pruned. Left out are PatientPruner, which waits for a curve to fall while these rise to the end of the schedule, and
WilcoxonPruner, which compares trials over problem instances in random order, not over epochs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, PercentilePruner, SuccessiveHalvingPruner

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from evidence import Floats, Integers
from study.command_line.options import add_study_options
from study.command_line.parser import run_command
from study.errors import UserError
from study.machine.paths import RESULTS
from study.search.plan import PRUNERS
from study.search.pruning import compared_epochs, make_pruner
from study.storage.database import config_of, first_step

SCRIPT = "experiments/pruners.py"
FORMER_DEFAULT = "halving, rung 1, factor 4"
"""What halving was for trials of 6 epochs before it waited for half of them."""
MIN_CURVES = 12
MAX_REGRET = 0.001
COLOURS = {"none": "#444444", "percentile": "#1f77b4", "median": "#7570b3", "halving": "#d95f02",
           "hyperband": "#2ca02c"}  # fmt: skip

Make = Callable[[], BasePruner]
"""A setting: how a fresh pruner is made, so that replays share no state."""


Outcome = dict[str, npt.NDArray[Any]]
"""What one setting did, an element for each replay: `ran`, the epochs of every trial in the replay's order; `epochs`,
of all of them; `regret`, the final accuracy lost, a fraction; `kept_best`, whether the best trial ran to the end;
`budget_accuracy`, the best final accuracy within the budget."""


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = evidence.parser(SCRIPT, __doc__)
    add_study_options(parser)
    parser.add_argument("--replays", type=int, default=200, metavar="N", help="orders per setting (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the orders (default: 0)")
    parser.add_argument("--budget-share", type=float, default=0.5, metavar="F", help="of all epochs (default: 0.5)")
    parser.add_argument("--results", type=Path, default=RESULTS / "pruners", help="(default: results/pruners)")
    options = parser.parse_args(given)
    evidence.at_least(options, replays=10, seed=0)
    if not 0.1 <= options.budget_share <= 1:
        raise UserError(f"--budget-share must be between 0.1 and 1: {options.budget_share}.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name, study = evidence.named_study(options)
    config, trials = config_of(study), study.get_trials(deepcopy=False)
    if config.epochs < 2:
        raise UserError(f"Trials of {config.epochs} epoch cannot be pruned: record a study with --epochs 2 or more.")
    numbers, curves = whole_curves(trials, config.epochs, first_step(study))
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
    rows = compare(compared, *arguments)
    winner = cheapest(rows)["name"]
    again = summary((winner,), evaluate(compared[winner], *arguments, first=options.replays), curves.size)
    record = {
        "command": evidence.command_line(SCRIPT, given),
        "study": name,
        "recorded_with": {"pruner": config.pruner, "sampler": config.sampler, "train_images": config.train_images},
        "n_trials": len(trials),
        "n_curves": len(numbers),
        "epochs": config.epochs,
        "replays": options.replays,
        "seed": options.seed,
        "budget": budget,
        "best_val_accuracy": float(curves[:, -1].max()),
        "winner": winner,
        "winner_in_fresh_orders": {**again, "meets_rule": meets_rule(again)},
        "max_regret": MAX_REGRET,
        "settings": rows,
        "versions": {"optuna": optuna.__version__, "numpy": np.__version__},
        "curves": [{"trial": n, "val_accuracy": curve} for n, curve in zip(numbers, curves.tolist(), strict=True)],
    }
    file: Path = options.results / f"{name}.json"
    evidence.write(file, record)
    draw(record, file.with_suffix(".png"))
    print(
        f"{used}\n\n{markdown(record, rows)}\n\nWinner by the rule: **{winner}**. In {options.replays} "
        f"fresh orders it loses {evidence.points(again['regret'], again['regret_interval_95'])} points and "
        f"{'meets' if meets_rule(again) else 'does not meet'} the rule.\n\n-> {file} and .png"
    )
    return 0


def whole_curves(
    trials: Sequence[optuna.trial.FrozenTrial], epochs: int, first_step: int = 0
) -> tuple[list[int], Floats]:
    """Numbers of the complete trials and their accuracies after every epoch [trial, epoch].

    A trial that lacks an epoch or holds a value that is no number is left out.
    """
    found = {}
    for trial in trials:
        curve = [trial.intermediate_values.get(first_step + epoch, np.nan) for epoch in range(epochs)]
        if trial.state.name == "COMPLETE" and np.isfinite(curve).all():
            found[trial.number] = curve
    return list(found), np.array(list(found.values()), dtype=float).reshape(-1, epochs)


def settings(epochs: int) -> dict[str, Make]:
    """The pruners that `study.run` offers, first, and further settings of the same kinds."""
    third = max(1, epochs // 3)
    rungs = sorted({max(1, epochs // 6), third, max(1, epochs // 2)})
    found: dict[str, Make] = {name: partial(make_pruner, name, epochs) for name in PRUNERS}
    warmups = [*((rung, 1) for rung in rungs), (third, max(2, third))]
    for keep, startup, (warmup, every) in product((25, 50), (5, 10), warmups):
        name = f"percentile {keep}, startup {startup}, warm-up {warmup}"
        name += f", every {every} epochs" if every > 1 else ""
        found[name] = partial(PercentilePruner, float(keep), startup, warmup, every)
    for rung, factor in product(rungs, (2, 3, 4)):
        name = f"rung {rung}, factor {factor}"
        rule = {"min_resource": rung, "reduction_factor": factor}
        found[f"halving, {name}"] = partial(SuccessiveHalvingPruner, **rule)
        found[f"hyperband, {name}"] = partial(HyperbandPruner, max_resource=epochs, **rule)
    return found


def replay(pruner: BasePruner, curves: Floats, study_name: str) -> Integers:
    """Shows `curves` [trial, epoch] to `pruner`, one trial after the other; the epochs that each ran.

    Args:
        pruner: A fresh one.
        curves: In the order in which the trials start.
        study_name: Hyperband draws a trial's bracket from it and the trial's number.
    """
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(study_name=study_name, direction="maximize", sampler=sampler, pruner=pruner)
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
    make: Make, curves: Floats, replays: int, seed: int, study_name: str, budget: int, first: int = 0
) -> Outcome:
    """Replays `curves` in `replays` random orders, from order `first` on."""
    found = []
    for index in range(first, first + replays):
        ordered = curves[order_of(index, len(curves), seed)]
        ran = replay(make(), ordered, f"{study_name}, order {seed}/{index}")
        found.append({"ran": ran, **measure(ran, ordered, budget)})
    return {key: np.array([each[key] for each in found]) for key in found[0]}


def compare(settings: dict[str, Make], curves: Floats, *how: Any) -> list[dict[str, Any]]:
    """A row for each setting, the cheapest first; settings that did exactly the same share one."""
    found: dict[bytes, tuple[tuple[str, ...], Outcome]] = {}
    for name, make in settings.items():
        outcome = evaluate(make, curves, *how)
        key = outcome["ran"].tobytes()
        names = found[key][0] if key in found else ()
        found[key] = (*names, name), outcome
    return sorted((summary(*each, curves.size) for each in found.values()), key=lambda row: row["epochs"])


def measure(ran: Integers, curves: Floats, budget: int) -> dict[str, float]:
    """The figures of one replay.

    Args:
        ran: Epochs that every trial ran, in the order in which they ran.
        curves: [trial, epoch], in the same order.
        budget: Epochs after which everything stops.
    """
    final, complete, spent = curves[:, -1], ran == curves.shape[1], ran.cumsum()
    # The first trial is never pruned, and the budget holds more than one, so that neither selection is empty.
    regret = float(final.max() - final[complete].max())
    return {
        "epochs": float(spent[-1]),
        "regret": regret,
        "kept_best": float(regret == 0),
        "budget_accuracy": float(final[complete & (spent <= budget)].max()),
    }


def interval(values: Floats) -> tuple[float, float]:
    """95% bootstrap interval of the mean."""
    return evidence.bootstrap(len(values), lambda rows: float(values[rows].mean()))


def summary(names: tuple[str, ...], outcome: Outcome, n_epochs: int) -> dict[str, Any]:
    """What the record holds about an outcome, of curves of so many epochs together."""
    means = {key: float(values.mean()) for key, values in outcome.items()}
    return {
        "name": names[0],
        "same_as": list(names[1:]),
        "epochs": means["epochs"],
        "epochs_share": means["epochs"] / n_epochs,
        "regret": means["regret"],
        "regret_interval_95": interval(outcome["regret"]),
        "kept_best": means["kept_best"],
        "budget_val_accuracy": means["budget_accuracy"],
        "budget_val_accuracy_interval_95": interval(outcome["budget_accuracy"]),
    }


def meets_rule(row: dict[str, Any]) -> bool:
    """Whether it surely loses little; a billionth more is rounding."""
    return bool(row["regret_interval_95"][1] <= MAX_REGRET + 1e-9)


def cheapest(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By the rule: of those that meet it the one with the fewest epochs, then the smallest regret, then the first."""
    return min(filter(meets_rule, rows), key=lambda row: (row["epochs"], row["regret"]))


def markdown(record: dict[str, Any], settings: Sequence[dict[str, Any]]) -> str:
    """A row for each of `settings`, the winner in bold."""
    rows = []
    for row in settings:
        is_winner = record["winner"] in (row["name"], *row["same_as"])
        rows.append(
            (
                f"**{row['name']}**" if is_winner else row["name"],
                f"{row['epochs_share']:.0%}",
                evidence.points(row["regret"], row["regret_interval_95"]),
                f"{row['kept_best']:.0%}",
                evidence.percent(row["budget_val_accuracy"]),
            )
        )
    share = record["budget"] / (record["n_curves"] * record["epochs"])
    within = "best within half of all epochs" if share == 0.5 else f"best within {share:.0%} of all epochs"
    return evidence.table(("pruner", "epochs spent", "points lost (95%)", "kept the best trial", within), rows)


def named(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings that have a name, the former default and the winner."""
    shown = {*PRUNERS, FORMER_DEFAULT, record["winner"]}
    return [row for row in record["settings"] if shown & _names(row)]


def draw(record: dict[str, Any], file: Path) -> None:
    """Epochs spent against points lost, all settings; those of the table have a letter, the winner is a star."""
    figure, [axes] = evidence.figure(8.5, 5.6)
    told = sorted(named(record), key=lambda row: row["epochs_share"])
    for row in record["settings"]:
        colour = COLOURS[row["name"].partition(",")[0].split()[0]]
        x, y = 100 * row["epochs_share"], 100 * row["regret"]
        low, high = (100 * bound for bound in row["regret_interval_95"])
        axes.errorbar(x, y, [[max(0, y - low)], [max(0, high - y)]], color=colour, alpha=0.35, linewidth=1)
        if row not in told:
            axes.plot(x, y, "o", color=colour, markersize=4, alpha=0.5)
    for letter, row in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", told, strict=False):
        colour, is_winner = COLOURS[row["name"].partition(",")[0].split()[0]], record["winner"] in _names(row)
        x, y = 100 * row["epochs_share"], 100 * row["regret"]
        label = f"{letter}  {row['name']}" + (" (chosen)" if is_winner else "")
        size = 14 if is_winner else 8
        axes.plot(x, y, "*" if is_winner else "o", color=colour, markersize=size, label=label, linestyle="none")
        axes.annotate(letter, (x, y), (0, 8), textcoords="offset points", ha="center", weight="bold", color=colour)
    if axes.get_ylim()[1] > 100 * record["max_regret"]:
        words = f"most that the chosen one may lose, {100 * record['max_regret']:g} points"
        axes.axhline(100 * record["max_regret"], color="#888888", linestyle=":", linewidth=1, label=words)
    axes.margins(0.08)
    axes.set(xlabel="epochs spent, % of all", ylabel="accuracy lost, points, mean (bars: 95%)")
    which = f"{record['n_curves']} whole curves of {record['epochs']} epochs, {record['replays']} random orders"
    axes.set_title(f"What pruners save and what they lose; small: other settings of that colour\n{which}", fontsize=11)
    evidence.legend(figure, axes)
    evidence.save(figure, file)


def _names(row: dict[str, Any]) -> set[str]:
    return {row["name"], *row["same_as"]}


def block(results: Path = RESULTS) -> str:
    """What results/README.md says of it."""
    parts = []
    for found in evidence.records(results / "pruners").values():
        recorded = found["recorded_with"]
        parts.append(
            f"{markdown(found, named(found))}\n\n{found['n_curves']} whole curves of {found['epochs']} epochs of "
            f"{recorded['train_images']:,} images (`--sampler {recorded['sampler']}`), replayed in {found['replays']} "
            f"random orders each. Of {len(found['settings'])} settings: those that have a name, the former default, "
            f"and in bold the cheapest that loses at most {100 * found['max_regret']:.1f} points "
            f"({evidence.command_of(found)})."
        )
    return evidence.folded(parts, "The same for other candidates, or shorter trials")


if __name__ == "__main__":
    run_command(main)
