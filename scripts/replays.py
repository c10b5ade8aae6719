"""Which sampler finds most in equal epochs? All of them replayed many times on a table of recorded trials.

    python scripts/replays.py --collect results/runs/samplers results/runs/whole   # makes the table
    python scripts/replays.py [--space dilated] [--name dilated] [--replays 50] [--budget 180]

Real studies cost minutes each, so that `scripts/samplers.py` affords a few. Here trials are not trained: smoothed
radial basis functions (the mean of a Gaussian process), fitted to the learning curves of recorded trials, say what they
would reach, and noise as large as that between two trainings of one candidate is added (a surrogate benchmark, after
Eggensperger et al. 2015). Samplers and pruner are the program's own, asked as `study.run --jobs 1` asks them, until the
epochs of the budget are spent. How well the surrogate ranks candidates that it has not seen is in the record, and
belongs next to every figure: it is smoother than the truth, and knows little where no trial was recorded. Intervals are
over replays on this one surrogate; what it gets wrong is in none of them.

`--collect` reads every study of the space below the folders that has the fidelity and limits of the first one (the
limit of an epoch's time may differ) and writes results/replays/<name>-table.json. Only complete trials are used, so
record some with --pruner none: those of a pruned study were lucky enough not to be pruned, and halving looks at fewer
images after most epochs. How large noise is, is known from candidates that were trained twice: studies of several seeds
share the anchors, and `study.rerank` with a study's own --epochs and --train-images repeats its best ones. Replays
write results/replays/<name>.json and .png and print a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from scipy.interpolate import RBFInterpolator
from scipy.special import expit, logit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from samplers import save
from search_spaces import DEFAULT_SPACE, get_space
from search_spaces.constraints import Clock, InfeasibleError
from search_spaces.cost import CostModel
from search_spaces.space import Choice, Params
from search_spaces.training_dimensions import OF_OPTIMIZER
from study.command_line.parser import Parser, run_command
from study.errors import UserError
from study.machine.paths import RESULTS
from study.search import sampling as search
from study.search.pruning import default_pruner, make_pruner
from study.storage.config import StudyConfig

Floats = npt.NDArray[np.float64]

MIN_TRIALS = 40
N_FOLDS = 10
FIGURES = ("params", "macs", "receptive_field")
"""Of a network, beside its dimensions: widths are solved for, so these say more."""
WIDTH, SMOOTHING = 0.3, 0.1
"""Of the basis functions, with inputs from 0 to 1: chosen by cross-validation on the published table."""
COLOURS = ("#d95f02", "#e7298a", "#66a61e", "#7570b3", "#7f7f7f", "#1b9e77", "#000000")


@dataclass(frozen=True)
class Setting:
    """A way to choose the next trial.

    Attributes:
        title: For people.
        sampler: As `study.run` names it; its pruner is the one that goes with it there.
        near: Whether a slot, of a study with so many finished trials, gets a neighbour: of the default during the
            start-up, of the best trial after it.
        anchors_only: Whether nothing is searched.
        replays_share: Of the replays that are asked for; the Gaussian process takes far longer than the others.
    """

    title: str
    sampler: str = "tpe"
    near: Callable[[int, int], bool] = lambda slot, n_finished: False
    anchors_only: bool = False
    replays_share: float = 1.0


SETTINGS = {
    "anchored": Setting(
        "neighbours of the default, then TPE and neighbours of the best in turns", near=search.is_neighbour
    ),
    "neighbours": Setting("neighbours only", near=lambda slot, n_finished: True),
    "start": Setting("neighbours of the default, then TPE alone", near=lambda slot, n: n < search.N_STARTUP_TRIALS),
    "tpe": Setting("TPE"),
    "random": Setting("random", sampler="random"),
    "gp": Setting("Gaussian process, not pruned", sampler="gp", replays_share=0.2),
    "none": Setting("the space's anchors, no search", anchors_only=True),
}
"""The first one is the program's default, with which the others are compared."""


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        description=__doc__, prog="python scripts/replays.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", default=DEFAULT_SPACE, help=f"(default: {DEFAULT_SPACE})")
    parser.add_argument("--name", help="of the table and what comes of it (default: the space's)")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="DIR", help="make the table of studies below these")
    parser.add_argument("--replays", type=int, default=50, metavar="N", help="of each way (default: 50)")
    parser.add_argument("--budget", type=int, default=180, metavar="N", help="epochs of each replay (default: 180)")
    parser.add_argument("--jobs", type=int, default=-1, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--results", type=Path, default=RESULTS / "replays", help="(default: results/replays)")
    options = parser.parse_args(given)
    if options.replays < 5:
        raise UserError(f"--replays must be at least 5 for an interval: {options.replays}.")
    name = options.name or options.space
    file = options.results / f"{name}-table.json"
    if options.collect:
        found = collect(options.space, options.collect)
        text = json.dumps(found, separators=(",", ":")).replace('{"study"', '\n{"study"')
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
        print(f"{len(found['trials'])} complete trials of {len(found['studies'])} studies -> {file}")
        return 0
    if not file.exists():
        raise UserError(f"There is no table of recorded trials: {file}. Make one with --collect.")
    table = json.loads(file.read_text())
    if len(table["trials"]) < MIN_TRIALS:
        raise UserError(f"The table needs at least {MIN_TRIALS} trials: {len(table['trials'])}. Collect more.")
    epochs = table["config"]["epochs"]
    if options.budget < 4 * epochs:
        raise UserError(f"--budget must allow at least 4 trials of {epochs} epochs: {options.budget}.")
    import joblib

    surrogate = Surrogate(table)
    counts = {way: max(5, round(options.replays * setting.replays_share)) for way, setting in SETTINGS.items()}
    work = [(way, seed) for way, count in counts.items() for seed in range(count)]
    steps = joblib.Parallel(options.jobs)(
        joblib.delayed(replay)(SETTINGS[way], surrogate, seed, options.budget) for way, seed in work
    )
    by_way = defaultdict(list)
    for (way, _), found in zip(work, steps, strict=True):
        by_way[way].append(found)
    record = {
        "command": shlex.join(["python", "scripts/replays.py", *given]),
        "space": options.space,
        "budget": options.budget,
        "studies": table["studies"],
        "config": {**table["config"], "sampler": None, "seed": None, "pruner": None},
        "surrogate": surrogate.quality(),
        "settings": [summary(way, by_way[way], by_way, options.budget) for way in SETTINGS],
    }
    file = options.results / f"{name}.json"
    file.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, file.with_suffix(".png"))
    print(f"{json.dumps(record['surrogate'])}\n\n{markdown(record)}\n\n-> {file} and .png")
    return 0


def collect(space: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The table: complete trials of every study of `space` that has the fidelity and limits of the first one found."""
    from study.storage.database import config_of

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table: dict[str, Any] = {}
    for file in sorted(file for folder in folders for file in folder.rglob("study.db")):
        url = f"sqlite:///{file}"
        for name in sorted(optuna.get_all_study_names(url)):
            study = optuna.load_study(study_name=name, storage=url)
            if "config" not in study.user_attrs:
                continue
            config = config_of(study)
            complete = [
                trial
                for trial in study.get_trials(deepcopy=False)
                if trial.state.name == "COMPLETE" and len(trial.intermediate_values) == config.epochs
            ]
            if "rerank_of" in study.user_attrs:  # repetitions, but for those that a longer training augments more
                known = {trial["candidate_id"] for trial in table.get("trials", ())}
                complete = [trial for trial in complete if trial.user_attrs["candidate_id"] in known]
            if config.space != space or not complete:
                continue
            if not table:
                cost = study.user_attrs["cost_model"]
                table = {"config": config.to_json(), "cost_model": cost, "studies": {}, "trials": []}
            if not comparable(StudyConfig.from_json(table["config"]), config):
                continue
            how = {"sampler": config.sampler, "pruner": config.pruner, "seed": config.seed}
            repeats = {"rerank_of": study.user_attrs["rerank_of"]} if "rerank_of" in study.user_attrs else {}
            table["studies"][name] = {"complete": len(complete), **how, **repeats}
            table["trials"] += [
                {
                    "study": name,
                    "anchor": trial.user_attrs.get("anchor"),
                    "params": trial.params,
                    "figures": [trial.user_attrs[key] for key in FIGURES],
                    "candidate_id": trial.user_attrs["candidate_id"],
                    "training_seed": trial.user_attrs["training_seed"],
                    "curve": [round(value, 5) for _, value in sorted(trial.intermediate_values.items())],
                }
                for trial in complete
            ]
    if not table:
        raise UserError(f"No study of {space!r} with complete trials is below {', '.join(map(str, folders))}.")
    return table


def comparable(first: StudyConfig, other: StudyConfig) -> bool:
    """Whether trials of two studies were trained and limited alike, but for the limit of an epoch's time."""
    limits = dataclasses.replace(other.limits, max_epoch_s=first.limits.max_epoch_s)
    how = {"seed": first.seed, "sampler": first.sampler, "pruner": first.pruner}
    return dataclasses.replace(other, **how, limits=limits) == first  # type: ignore[arg-type]


class Surrogate:
    """What a trial would reach, from what recorded ones did.

    Works on logits of accuracies. Candidates count once, however often they were trained. Noise is that of the better
    half of them, between which a search has to choose; bad ones vary more.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        self.config = StudyConfig.from_json(table["config"])
        self.space, self.epochs = get_space(self.config.space), self.config.epochs
        self.clock = Clock(CostModel.from_json(table["cost_model"]), self.config.train_images, self.config.val_images)
        trained = {(trial["candidate_id"], trial["training_seed"]): trial for trial in table["trials"]}
        by_candidate = defaultdict(list)
        for (candidate, _), trial in trained.items():
            by_candidate[candidate].append(trial)
        repeats = [logit(np.array([trial["curve"] for trial in group])) for group in by_candidate.values()]
        height = [float(curves.mean(axis=0)[-1]) for curves in repeats]
        good = [curves for curves, mean in zip(repeats, height, strict=True) if mean >= np.median(height)]
        self.noise, self.n_noise = covariance_of_repeats(good)
        first = [group[0] for group in by_candidate.values()]
        features = np.array([self.features(trial["params"], trial["figures"]) for trial in first])
        self.low = features.min(axis=0)
        self.range = np.where(np.ptp(features, axis=0) > 0, np.ptp(features, axis=0), 1.0)
        self.inputs = (features - self.low) / self.range
        self.curves = np.array([curves.mean(axis=0) for curves in repeats])
        self.n_trials = len(trained)
        self.model = _fitted(self.inputs, self.curves)

    def features(self, params: Params, figures: Sequence[float]) -> list[float]:
        """What the surrogate sees: every dimension, and the figures of the network that came of them."""
        found = []
        used = OF_OPTIMIZER[params["optimizer"]]
        for name, dimension in self.space.dimensions.items():
            value = params[name]
            if name.endswith(("lr", "weight_decay")) and name not in (f"{used}lr", f"{used}weight_decay"):
                found.append(-1.0)  # another optimizer's: it has no effect
            elif isinstance(dimension, Choice) and any(isinstance(each, str) for each in dimension.values):
                found += [float(value == each) for each in dimension.values]
            else:
                found.append(float(value))
        return [*found, *map(float, figures)]

    def curve(self, params: Params) -> Floats:
        """Accuracies after every epoch, without noise.

        Raises:
            InfeasibleError: They decode to nothing within the limits.
        """
        architecture = self.space.decode(params, self.config.limits, self.clock).candidate.architecture
        figures = [getattr(architecture, key) for key in FIGURES]
        scaled = (np.array(self.features(params, figures)) - self.low) / self.range
        found: Floats = expit(self.model(scaled[None])[0])
        return found

    def noisy(self, curve: Floats, seed: int) -> Floats:
        """`curve` as one training would have it."""
        noise = np.random.default_rng(seed).multivariate_normal(np.zeros(len(curve)), self.noise)
        found: Floats = expit(logit(curve) + noise)
        return found

    def quality(self) -> dict[str, Any]:
        """How the surrogate does on candidates that it was not fitted to (cross-validation).

        Neighbours of one another may be on both sides, as they are in a replay.
        """
        from scipy.stats import spearmanr

        recorded = self.curves[:, -1]
        fold = np.random.default_rng(0).permutation(len(recorded)) % N_FOLDS
        found = np.empty_like(recorded)
        for index in range(N_FOLDS):
            model = _fitted(self.inputs[fold != index], self.curves[fold != index])
            found[fold == index] = model(self.inputs[fold == index])[:, -1]
        top = recorded >= np.median(recorded)
        best, spread = recorded.max(), math.sqrt(self.noise[-1, -1])
        return {
            "n_trials": self.n_trials,
            "n_candidates": len(recorded),
            "spearman": round(float(spearmanr(recorded, found)[0]), 3),
            "spearman_of_upper_half": round(float(spearmanr(recorded[top], found[top])[0]), 3),
            "median_error_points": round(100 * float(np.median(np.abs(expit(recorded) - expit(found)))), 2),
            "best_accuracy": round(float(expit(best)), 4),
            "noise_points_at_best": round(100 * float(expit(best) - expit(best - spread)), 2),
            "noise_degrees_of_freedom": self.n_noise,
        }


def _fitted(inputs: Floats, curves: Floats) -> RBFInterpolator:
    return RBFInterpolator(inputs, curves, kernel="gaussian", epsilon=WIDTH, smoothing=SMOOTHING, degree=0)


def covariance_of_repeats(repeats: Sequence[Floats]) -> tuple[Floats, int]:
    """Covariance over epochs [epoch, epoch] between trainings of one candidate, pooled, and its degrees of freedom.

    Args:
        repeats: For every candidate its curves [training, epoch].

    Raises:
        UserError: No candidate was trained twice.
    """
    deviations = [curves - curves.mean(axis=0) for curves in repeats if len(curves) > 1]
    if not deviations:
        raise UserError("No good candidate of the table was trained from two seeds: nothing tells how large noise is.")
    n_free = sum(len(each) - 1 for each in deviations)
    stacked = np.concatenate(deviations)
    found: Floats = stacked.T @ stacked / n_free
    return found, n_free


def replay(setting: Setting, surrogate: Surrogate, seed: int, budget: int) -> list[tuple[int, float]]:
    """One study on the surrogate.

    Returns:
        Pairs of epochs spent and the accuracy, without noise, of the trial that looks best so far.
    """
    from study.search.creation import anchors
    from study.storage.database import best_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize", pruner=make_pruner(default_pruner(setting.sampler), surrogate.epochs)
    )
    space, kept = surrogate.space, search.SlotSampler()
    starts = [params for _, params in anchors(space, surrogate.config, surrogate.clock.cost)]
    default = space.anchors(surrogate.config.limits)["default"]
    spent, slot, attempt, best, true_of_best = 0, 0, 0, 0.0, 0.0
    steps: list[tuple[int, float]] = []
    while spent < budget:
        finished = len(steps)
        chosen = search.sampler_seed(seed, slot, attempt)
        fixed: dict[str, Any] | None = None
        if slot < len(starts):
            fixed = dict(starts[slot])
        elif setting.anchors_only:
            break
        elif setting.near(slot, finished):
            # The anchors are complete before any other trial starts.
            fixed = search.neighbour(
                space, default if finished < search.N_STARTUP_TRIALS else best_trial(study).params, chosen
            )
        study.sampler = search.make_sampler(setting.sampler, chosen, fixed, kept)
        trial = study.ask()
        params = search.suggest(trial, space)
        try:
            true = surrogate.curve(params)
        except InfeasibleError:  # drawn anew
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            attempt += 1
            continue
        for epoch, accuracy in enumerate(surrogate.noisy(true, search.training_seed(seed, slot)).tolist()):
            trial.report(accuracy, epoch)
            spent += 1
            if slot >= len(starts) and epoch + 1 < surrogate.epochs and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, accuracy)
            if accuracy > best and spent <= budget:
                best, true_of_best = accuracy, float(true[-1])
        steps.append((spent, true_of_best))
        slot, attempt = slot + 1, 0
    return steps


def best_at(steps: Sequence[tuple[int, float]], epochs: int) -> float:
    """The accuracy of the best trial when `epochs` are spent."""
    return next((value for spent, value in reversed(steps) if spent <= epochs), 0.0)


def summary(name: str, runs: Sequence[Any], all_runs: dict[str, list[Any]], budget: int) -> dict[str, Any]:
    """Means at a third of the budget and at the whole, and what the default has ahead, over the same seeds."""
    finals = np.array([best_at(run, budget) for run in runs])
    first = np.array([best_at(run, budget) for run in all_runs[next(iter(SETTINGS))]])[: len(finals)]
    grid = range(1, budget + 1)
    ahead = first - finals
    return {
        "name": name,
        "title": SETTINGS[name].title,
        "replays": len(runs),
        "trials": float(np.mean([sum(spent <= budget for spent, _ in run) for run in runs])),
        "at_third": float(np.mean([best_at(run, budget // 3) for run in runs])),
        "final": float(finals.mean()),
        "final_interval": interval(finals),
        "behind_default": float(ahead.mean()),
        "behind_default_interval": interval(ahead),
        "mean_curve": [round(float(np.mean([best_at(run, epochs) for run in runs])), 5) for epochs in grid],
    }


def interval(values: Floats) -> tuple[float, float]:
    """95% interval of the mean (Student's t)."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def markdown(record: dict[str, Any]) -> str:
    """One row a way to choose trials."""
    head = ("sampler", "replays", "trials", "after a third", "at the end", "points behind the default sampler (95%)")
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
    save(figure, axes, record["space"], "accuracy of the best trial so far, %", file)


if __name__ == "__main__":
    run_command(main)
