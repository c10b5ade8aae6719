"""Is the search worth its cost? Samplers replayed many times on a table of recorded trials.

    python scripts/replays.py --collect results/runs/samplers results/runs/whole   # makes the table
    python scripts/replays.py [--space dilated] [--replays 50] [--budget 180]

Real studies cost minutes each, so that `scripts/samplers.py` affords a few. Here trials are not trained: a forest of
extremely randomised trees (Geurts et al. 2006), fitted to the learning curves of recorded trials, says what they would
reach, and noise as large as that between two trainings of one candidate is added (a surrogate benchmark, after
Eggensperger et al. 2015). Samplers and pruner are the program's own, asked as `study.run` asks them, until the epochs
of the budget are spent. How well the forest ranks trials that it has not seen is in the record, and belongs next to
every figure: it is smoother than the truth, and knows little where no trial was recorded.

`--collect` reads every study of the space below the folders that has the fidelity of the first one and writes
results/replays/<space>-table.json; complete trials are used, so record some with --pruner none. Replays write
results/replays/<space>.json and .png and print a table. Needs scikit-learn (`pip install -e '.[dev]'`).
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from search_spaces import DEFAULT_SPACE, get_space
from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, Limits
from search_spaces.cost import CostModel
from search_spaces.space import Choice, Params, Real
from study.errors import Parser, UserError, run_command
from study.paths import RESULTS
from study.search import DEFAULT_PRUNER, is_neighbour

if TYPE_CHECKING:
    import optuna

Floats = npt.NDArray[np.float64]

MIN_TRIALS = 40
N_FOLDS = 10
N_TREES = 300
COLOURS = ("#d95f02", "#e7298a", "#66a61e", "#7570b3", "#7f7f7f", "#1b9e77")


@dataclass(frozen=True)
class Setting:
    """A way to choose the next trial.

    Attributes:
        title: For people.
        sampler, pruner: As `study.run` names them.
        near: Whether a slot, of a study with so many finished trials, gets a neighbour.
        pools: Whether neighbours are of the best trial once the start-up is over, or always of the default.
        replays_share: Of the replays that are asked for; the Gaussian process takes far longer than the others.
    """

    title: str
    sampler: str = "tpe"
    pruner: str = DEFAULT_PRUNER
    near: Callable[[int, int], bool] = lambda slot, n_finished: False
    replays_share: float = 1.0


SETTINGS = {
    "anchored": Setting("neighbours of the default, then TPE and neighbours of the best in turns", near=is_neighbour),
    "neighbours": Setting("neighbours only", near=lambda slot, n_finished: True),
    "start": Setting("neighbours of the default, then TPE alone", near=lambda slot, n: is_neighbour(1, n)),
    "tpe": Setting("TPE"),
    "random": Setting("random", sampler="random"),
    "gp": Setting("Gaussian process, not pruned", sampler="gp", pruner="none", replays_share=0.2),
}
"""The first one is the program's default, with which the others are compared."""


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        description=__doc__, prog="python scripts/replays.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", default=DEFAULT_SPACE, help=f"(default: {DEFAULT_SPACE})")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="DIR", help="make the table of studies below these")
    parser.add_argument("--replays", type=int, default=50, metavar="N", help="of each way (default: 50)")
    parser.add_argument("--budget", type=int, default=180, metavar="N", help="epochs of each replay (default: 180)")
    parser.add_argument("--jobs", type=int, default=-1, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--results", type=Path, default=RESULTS / "replays", help="(default: results/replays)")
    options = parser.parse_args(given)
    if options.replays < 5:
        raise UserError(f"--replays must be at least 5 for an interval: {options.replays}.")
    file = options.results / f"{options.space}-table.json"
    options.results.mkdir(parents=True, exist_ok=True)
    if options.collect:
        found = collect(options.space, options.collect)
        text = json.dumps(found, separators=(",", ":")).replace('{"params"', '\n{"params"')
        file.write_text(text + "\n")
        print(f"{len(found['trials'])} complete trials of {len(found['studies'])} studies -> {file}")
        return 0
    if not file.exists():
        raise UserError(f"There is no table of recorded trials: {file}. Make one with --collect.")
    table = json.loads(file.read_text())
    if len(table["trials"]) < MIN_TRIALS:
        raise UserError(f"The table needs at least {MIN_TRIALS} trials: {len(table['trials'])}. Collect more.")
    if options.budget < 4 * table["epochs"]:
        raise UserError(f"--budget must allow at least 4 trials of {table['epochs']} epochs: {options.budget}.")
    import joblib

    surrogate = Surrogate(table)
    counts = {name: max(5, round(options.replays * way.replays_share)) for name, way in SETTINGS.items()}
    work = [(name, seed) for name, count in counts.items() for seed in range(count)]
    steps = joblib.Parallel(options.jobs)(
        joblib.delayed(replay)(SETTINGS[name], surrogate, seed, options.budget) for name, seed in work
    )
    by_name = defaultdict(list)
    for (name, _), found in zip(work, steps, strict=True):
        by_name[name].append(found)
    record = {
        "command": shlex.join(["python", "scripts/replays.py", *given]),
        "space": options.space,
        "budget": options.budget,
        "table": {name: table[name] for name in ("studies", "epochs", "train_images", "val_images")},
        "surrogate": surrogate.quality(),
        "settings": [summary(name, by_name[name], by_name, options.budget) for name in SETTINGS],
    }
    file = options.results / f"{options.space}.json"
    file.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, file.with_suffix(".png"))
    print(f"{json.dumps(record['surrogate'])}\n\n{markdown(record)}\n\n-> {file} and .png")
    return 0


def collect(space: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The table: complete trials of every study of `space` that has the fidelity of the first one found."""
    import optuna

    from study.storage import config_of

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table: dict[str, Any] = {}
    for file in sorted(file for folder in folders for file in folder.rglob("study.db")):
        url = f"sqlite:///{file}"
        for name in sorted(optuna.get_all_study_names(url)):
            study = optuna.load_study(study_name=name, storage=url)
            config = config_of(study)
            if config.space != space or "rerank_of" in study.user_attrs:
                continue
            fidelity = {
                "space": space,
                "space_version": config.space_version,
                "epochs": config.epochs,
                "train_images": config.train_images,
                "val_images": config.val_images,
            }
            if not table:
                table = {
                    **fidelity,
                    "limits": config.limits.to_json(),
                    "cost_model": study.user_attrs["cost_model"],
                    "studies": {},
                    "trials": [],
                }
            complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
            if any(table[key] != value for key, value in fidelity.items()) or not complete:
                continue
            table["studies"][name] = len(complete)
            table["trials"] += [
                {
                    "params": trial.params,
                    "candidate_id": trial.user_attrs["candidate_id"],
                    "curve": [round(value, 5) for _, value in sorted(trial.intermediate_values.items())],
                }
                for trial in complete
            ]
    if not table:
        raise UserError(f"No study of {space!r} is below {', '.join(map(str, folders))}.")
    return table


class Surrogate:
    """What a trial would reach, from what recorded ones did.

    Works on logits of accuracies, where noise is alike at all heights.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        self.space = get_space(table["space"])
        self.epochs: int = table["epochs"]
        self.limits = Limits(**table["limits"])
        self.clock = Clock(CostModel.from_json(table["cost_model"]), table["train_images"], table["val_images"])
        trials = table["trials"]
        self.inputs = np.array([self.features(trial["params"]) for trial in trials])
        self.curves = logit(np.array([trial["curve"] for trial in trials], dtype=float))
        self.candidates = [trial["candidate_id"] for trial in trials]
        self.noise = spread_of_repeats(self.curves, self.candidates)
        self.forest = _forest().fit(self.inputs, self.curves)

    def features(self, params: Params) -> list[float]:
        """What the trees may ask: every dimension, and what follows from several of them."""
        found = []
        used = _OPTIMIZER_PREFIX[params["optimizer"]]
        for name, dimension in self.space.dimensions.items():
            value = params[name]
            if name.endswith(("lr", "weight_decay")) and name not in (f"{used}lr", f"{used}weight_decay"):
                found.append(-1.0)  # another optimizer's: it has no effect
            elif isinstance(dimension, Choice) and any(isinstance(each, str) for each in dimension.values):
                found += [float(value == each) for each in dimension.values]
            elif isinstance(dimension, Real) and dimension.log:
                found.append(math.log(value / dimension.low) / math.log(dimension.high / dimension.low))
            else:
                found.append(float(value))
        architecture = self.candidate(params).architecture
        return [*found, architecture.params / 1e5, math.log(architecture.macs), float(architecture.receptive_field)]

    def candidate(self, params: Params) -> Candidate:
        return self.space.decode(params, self.limits, self.clock).candidate

    def curve(self, params: Params) -> Floats:
        """Accuracies after every epoch, without noise."""
        found: Floats = expit(self.forest.predict([self.features(params)])[0])
        return found

    def noisy(self, curve: Floats, seed: int) -> Floats:
        """`curve` as one training would have it: lucky or unlucky all along."""
        return expit(logit(curve) + np.random.default_rng(seed).standard_normal() * self.noise)

    def quality(self) -> dict[str, Any]:
        """How the forest does on candidates that it was not fitted to (cross-validation, grouped by candidate)."""
        from scipy.stats import spearmanr
        from sklearn.model_selection import GroupKFold, cross_val_predict

        folds = GroupKFold(N_FOLDS)
        predicted = cross_val_predict(_forest(), self.inputs, self.curves, groups=self.candidates, cv=folds)
        true, found = self.curves[:, -1], predicted[:, -1]
        top = true >= np.median(true)
        return {
            "n_trials": len(true),
            "n_candidates": len(set(self.candidates)),
            "spearman": round(float(spearmanr(true, found)[0]), 3),
            "spearman_of_upper_half": round(float(spearmanr(true[top], found[top])[0]), 3),
            "median_error_points": round(100 * float(np.median(np.abs(expit(true) - expit(found)))), 2),
            "noise_points_at_half": round(100 * float(expit(self.noise[-1]) - 0.5), 2),
        }


_OPTIMIZER_PREFIX = {"sgd": "", "adamw": "adamw_", "muon": "muon_"}


def _forest() -> Any:
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(N_TREES, min_samples_leaf=2, max_features=0.5, random_state=0)


def logit(accuracy: Floats) -> Floats:
    clipped = np.clip(accuracy, 1e-3, 1 - 1e-3)
    found: Floats = np.log(clipped / (1 - clipped))
    return found


def expit(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))


def spread_of_repeats(curves: Floats, candidates: Sequence[str]) -> Floats:
    """Standard deviation, after every epoch, between trainings of one candidate, pooled over candidates.

    Args:
        curves: [trial, epoch].
        candidates: Of every trial.

    Raises:
        UserError: No candidate was trained twice.
    """
    groups = defaultdict(list)
    for curve, candidate in zip(curves.tolist(), candidates, strict=True):
        if curve not in groups[candidate]:  # the same seed, too
            groups[candidate].append(curve)
    repeats = [np.array(group) for group in groups.values() if len(group) > 1]
    if not repeats:
        raise UserError("No candidate of the table was trained from two seeds, so nothing tells how large noise is.")
    squares = sum(((group - group.mean(axis=0)) ** 2).sum(axis=0) for group in repeats)
    found: Floats = np.sqrt(squares / sum(len(group) - 1 for group in repeats))
    return found


def replay(setting: Setting, surrogate: Surrogate, seed: int, budget: int) -> list[tuple[int, float]]:
    """One study on the surrogate.

    Returns:
        Pairs of epochs spent and the accuracy, without noise, of the trial that looks best so far.
    """
    import optuna

    from study.search import SlotSampler, make_pruner, make_sampler, neighbour, sampler_seed, suggest, training_seed

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=make_pruner(setting.pruner, surrogate.epochs))
    space, kept = surrogate.space, SlotSampler()
    anchors = list(space.anchors(surrogate.limits).values())
    spent, slot, best, true_of_best = 0, 0, 0.0, 0.0
    centre, steps = space.anchors(surrogate.limits)["default"], []
    while spent < budget:
        finished = len(study.get_trials(deepcopy=False))
        chosen = sampler_seed(seed, slot, 0)
        fixed: dict[str, Any] | None = None
        if slot < len(anchors):
            fixed = dict(anchors[slot])
        elif setting.near(slot, finished):
            fixed = neighbour(space, centre if is_startup(finished) else _best_params(study, centre), chosen)
        study.sampler = make_sampler(setting.sampler, chosen, fixed, kept)
        trial = study.ask()
        params = suggest(trial, space)
        true = surrogate.curve(params)
        for epoch, accuracy in enumerate(surrogate.noisy(true, training_seed(seed, slot)).tolist()):
            trial.report(accuracy, epoch)
            spent += 1
            if slot >= len(anchors) and epoch + 1 < surrogate.epochs and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, accuracy)
            if accuracy > best and spent <= budget:
                best, true_of_best = accuracy, float(true[-1])
        steps.append((spent, true_of_best))
        slot += 1
    return steps


def is_startup(n_finished: int) -> bool:
    """Whether TPE would still sample uniformly."""
    return is_neighbour(1, n_finished)


def _best_params(study: optuna.Study, otherwise: Params) -> Params:
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return max(complete, key=lambda trial: trial.value or 0.0).params if complete else otherwise


def at(steps: Sequence[tuple[int, float]], epochs: int) -> float:
    """The accuracy of the best trial when `epochs` are spent."""
    return next((value for spent, value in reversed(steps) if spent <= epochs), 0.0)


def summary(name: str, runs: Sequence[Any], all_runs: dict[str, list[Any]], budget: int) -> dict[str, Any]:
    """Means at a third of the budget and at the whole, and what the default has ahead, over the same seeds."""
    finals = np.array([at(run, budget) for run in runs])
    first = np.array([at(run, budget) for run in all_runs[next(iter(SETTINGS))]])[: len(finals)]
    grid = range(1, budget + 1)
    ahead = first - finals
    return {
        "name": name,
        "title": SETTINGS[name].title,
        "replays": len(runs),
        "trials": float(np.mean([sum(spent <= budget for spent, _ in run) for run in runs])),
        "at_third": float(np.mean([at(run, budget // 3) for run in runs])),
        "final": float(finals.mean()),
        "final_interval": interval(finals),
        "behind_default": float(ahead.mean()),
        "behind_default_interval": interval(ahead),
        "mean_curve": [round(float(np.mean([at(run, epochs) for run in runs])), 5) for epochs in grid],
    }


def interval(values: Floats) -> tuple[float, float]:
    """95% interval of the mean (Student's t)."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def markdown(record: dict[str, Any]) -> str:
    """One row a way to choose trials."""
    head = ("how trials are chosen", "replays", "trials", "after a third", "at the end", "behind the default way (95%)")
    rows = [head, ("---",) * len(head)]
    for each in record["settings"]:
        low, high = (100 * value for value in each["behind_default_interval"])
        behind = f"{100 * each['behind_default']:.2f} ({low:.2f} to {high:.2f})" if each["name"] != "anchored" else ""
        accuracies = (f"{100 * each[name]:.2f}%" for name in ("at_third", "final"))
        rows.append((each["title"], str(each["replays"]), f"{each['trials']:.0f}", *accuracies, behind))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(record: dict[str, Any], file: Path) -> None:
    """Mean accuracy of the best trial so far against epochs spent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for each, colour in zip(record["settings"], COLOURS, strict=True):
        curve = 100 * np.array(each["mean_curve"])
        first = int(np.argmax(curve > 0))
        epochs = np.arange(1, len(curve) + 1)
        axes.plot(epochs[first:], curve[first:], color=colour, label=f"{each['title']} ({each['replays']})")
    lowest = min(100 * each["at_third"] for each in record["settings"])
    axes.set_ylim(bottom=lowest - 3)
    axes.set(xlabel="epochs spent on all trials", ylabel="accuracy of the best trial so far, %", title=record["space"])
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    run_command(main)
