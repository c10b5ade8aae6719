"""Which sampler finds most in equal epochs? All of them replayed many times on a table of recorded trials.

    python scripts/experiments/replays.py --collect results/runs/samplers results/runs/whole   # makes the table
    python scripts/experiments/replays.py [--space dilated] [--name dilated] [--replays 50] [--budget 180]

Real studies cost minutes each, so that `samplers.py` affords a few. Here trials are not trained: smoothed radial basis
functions (the mean of a Gaussian process), fitted to the learning curves of recorded trials, say what they would reach,
and noise as large as that between two trainings of one candidate is added (a surrogate benchmark, after Eggensperger et
al. 2015). Samplers and pruner are the program's own, asked as `study.run --jobs 1` asks them, until the epochs of the
budget are spent. How well the surrogate ranks candidates that it has not seen is in the record, and belongs next to
every figure: it is smoother than the truth, and knows little where no trial was recorded. Intervals are over replays on
this one surrogate; what it gets wrong is in none of them.

`--collect` reads every study of the space below the folders that has the fidelity and limits of the first one (the
limit of an epoch's time may differ) and writes results/replays/<name>-table.json. Only complete trials are used, so
record some with --pruner none: those of a pruned study were lucky enough not to be pruned, and halving looks at fewer
images after most epochs. How large noise is, is known from candidates that were trained twice: studies of several seeds
share the anchors, and `study.rerank --settings light` with a study's own --epochs and --train-images repeats its best
ones. Replays write results/replays/<name>.json and .png and print a table.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import joblib
import numpy as np
import optuna
from optuna.trial import TrialState
from scipy import special  # its functions, imported by name, would not reach other processes
from scipy.interpolate import RBFInterpolator
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from evidence import Floats
from experiments import samplers
from search_spaces import DEFAULT_SPACE, get_space
from search_spaces.constraints import Clock, InfeasibleError, Limits
from search_spaces.cost import CostModel
from search_spaces.space import Choice, Domain, Params
from search_spaces.training_dimensions import OF_OPTIMIZER
from study.command_line.parser import run_command
from study.errors import UserError
from study.machine.files import write_atomically
from study.machine.paths import RESULTS
from study.search import sampling as search
from study.search.creation import anchors, typical
from study.search.pruning import default_pruner, make_pruner
from study.storage.config import StudyConfig
from study.storage.database import best_of, config_of

SCRIPT = "experiments/replays.py"
MIN_TRIALS = 40
N_FOLDS = 10
FIGURES = ("params", "macs", "receptive_field")
"""Of a network, beside its dimensions: widths are solved for, so these say more."""
WIDTH, SMOOTHING = 0.3, 0.1
"""Of the basis functions, with inputs from 0 to 1: chosen by cross-validation on the published table."""
FIT = partial(RBFInterpolator, kernel="gaussian", epsilon=WIDTH, smoothing=SMOOTHING, degree=0)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
COLOURS = ("#d95f02", "#e7298a", "#66a61e", "#7570b3", "#7f7f7f", "#1b9e77", "#000000")


class Setting(NamedTuple):
    """A way to choose the next trial.

    `near` says whether a study with so many finished trials gets a neighbour next: of the default during the start-up,
    of the best trial after it. `compares` says whether in the start-up that depends on what neighbours and samples
    reached so far. `share` is that of the replays asked for: the Gaussian process takes longer.
    """

    title: str
    sampler: str = "tpe"
    near: Callable[[int], bool] = lambda n_finished: False
    compares: bool = False
    share: float = 1.0


NO_SEARCH = "none"
SETTINGS = {
    "anchored": Setting(
        "neighbours of the default while they are better, then TPE",
        near=lambda n: n < search.N_STARTUP_TRIALS,
        compares=True,
    ),
    "near": Setting("neighbours of the default, then TPE", near=lambda n: n < search.N_STARTUP_TRIALS),
    "neighbours": Setting("neighbours only", near=lambda n: True),
    "tpe": Setting("TPE"),
    "random": Setting("random", sampler="random"),
    "gp": Setting("Gaussian process, not pruned", sampler="gp", share=0.2),
    NO_SEARCH: Setting("the space's anchors, no search", sampler=NO_SEARCH),
}
"""The first one is the program's default, with which the others are compared."""


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = evidence.parser(SCRIPT, __doc__)
    parser.add_argument("--space", default=DEFAULT_SPACE, help=f"(default: {DEFAULT_SPACE})")
    parser.add_argument("--name", help="of the table and what comes of it (default: the space's)")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="DIR", help="make the table of studies below these")
    parser.add_argument("--replays", type=int, default=50, metavar="N", help="of each way (default: 50)")
    parser.add_argument("--budget", type=int, default=180, metavar="N", help="epochs of each replay (default: 180)")
    parser.add_argument("--jobs", type=int, default=-1, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--results", type=Path, default=RESULTS / "replays", help="(default: results/replays)")
    options = parser.parse_args(given)
    evidence.at_least(options, replays=5)
    name = options.name or options.space
    file = options.results / f"{name}-table.json"
    if options.collect:
        found = collect(options.space, options.collect)
        write_atomically(file, json.dumps(found, separators=(",", ":")).replace('{"study"', '\n{"study"') + "\n")
        print(f"{len(found['trials'])} complete trials of {len(found['studies'])} studies -> {file}")
        return 0
    table = evidence.read(file)
    if table is None:
        raise UserError(f"There is no table of recorded trials: {file}. Make one with --collect.")
    if len(table["trials"]) < MIN_TRIALS:
        raise UserError(f"The table needs at least {MIN_TRIALS} trials: {len(table['trials'])}. Collect more.")
    evidence.at_least(options, budget=4 * table["config"]["epochs"])

    surrogate, parallel, one = Surrogate(table), joblib.Parallel(options.jobs), joblib.delayed(replay)
    by_way = {}
    for way, setting in SETTINGS.items():
        seeds = range(max(5, round(options.replays * setting.share)))
        by_way[way] = parallel(one(setting, surrogate, seed, options.budget) for seed in seeds)
    record = {
        "command": evidence.command_line(SCRIPT, given),
        "space": options.space,
        "default": typical(get_space(options.space), Limits()).candidate_id,  # that most samplers stay near
        "budget": options.budget,
        "studies": table["studies"],
        "config": {**table["config"], "sampler": None, "seed": None, "pruner": None},
        "surrogate": surrogate.quality(),
        "settings": [summary(way, by_way, options.budget) for way in SETTINGS],
    }
    file = options.results / f"{name}.json"
    evidence.write(file, record)
    draw(record, file.with_suffix(".png"))
    print(f"{json.dumps(record['surrogate'])}\n\n{markdown(record)}\n\n-> {file} and .png")
    return 0


def collect(space: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The table: complete trials of every study of `space` that has the fidelity and limits of the first one found.

    Raises:
        UserError: There is none.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table: dict[str, Any] = {}
    for study in _studies(folders):
        config, attrs = config_of(study), study.user_attrs
        complete = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.state.name == "COMPLETE" and len(trial.intermediate_values) == config.epochs
        ]
        if "rerank_of" in attrs:  # repetitions, but for those that a longer training augments more
            known = {trial["candidate_id"] for trial in table.get("trials", ())}
            complete = [trial for trial in complete if trial.user_attrs["candidate_id"] in known]
        if config.space != space or not complete:
            continue
        if not table:
            table = {"config": config.to_json(), "cost_model": attrs["cost_model"], "studies": {}, "trials": []}
        if not comparable(StudyConfig.from_json(table["config"]), config):
            continue
        how = {"sampler": config.sampler, "pruner": config.pruner, "seed": config.seed}
        repeats = {"rerank_of": attrs["rerank_of"]} if "rerank_of" in attrs else {}
        table["studies"][study.study_name] = {"complete": len(complete), **how, **repeats}
        table["trials"] += [
            {
                "study": study.study_name,
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


def _studies(folders: Sequence[Path]) -> Iterator[optuna.Study]:
    """The program's studies below `folders`."""
    for file in sorted(file for folder in folders for file in folder.rglob("study.db")):
        url = f"sqlite:///{file}"
        for name in sorted(optuna.get_all_study_names(url)):
            study = optuna.load_study(study_name=name, storage=url)
            if "config" in study.user_attrs:
                yield study


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
        self.starts: Sequence[Params] = [params for _, params in anchors(self.space, self.config, self.clock.cost)]
        self.default = self.space.anchors(self.config.limits)["default"]
        trained = {(trial["candidate_id"], trial["training_seed"]): trial for trial in table["trials"]}
        by_candidate = defaultdict(list)
        for (candidate, _), trial in trained.items():
            by_candidate[candidate].append(trial)
        repeats = [special.logit(np.array([trial["curve"] for trial in group])) for group in by_candidate.values()]
        self.curves = np.array([curves.mean(axis=0) for curves in repeats])
        final = self.curves[:, -1]
        good = [curves for curves, height in zip(repeats, final, strict=True) if height >= np.median(final)]
        self.noise, self.n_noise = covariance_of_repeats(good)
        first = [group[0] for group in by_candidate.values()]
        features = np.array([self.features(trial["params"], trial["figures"]) for trial in first])
        self.low = features.min(axis=0)
        self.range = np.where(np.ptp(features, axis=0) > 0, np.ptp(features, axis=0), 1.0)
        self.inputs = (features - self.low) / self.range
        self.n_trials = len(trained)
        self.model = FIT(self.inputs, self.curves)

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
        found: Floats = special.expit(self.model(scaled[None])[0])
        return found

    def noisy(self, curve: Floats, seed: int) -> Floats:
        """`curve` as one training would have it."""
        noise = np.random.default_rng(seed).multivariate_normal(np.zeros(len(curve)), self.noise)
        found: Floats = special.expit(special.logit(curve) + noise)
        return found

    def train(self, params: Params, seed: int) -> tuple[Floats, float]:
        curve = self.curve(params)
        return self.noisy(curve, seed), float(curve[-1])

    def quality(self) -> dict[str, Any]:
        """How the surrogate does on candidates that it was not fitted to (cross-validation).

        Neighbours of one another may be on both sides, as they are in a replay.
        """
        recorded = self.curves[:, -1]
        fold = np.random.default_rng(0).permutation(len(recorded)) % N_FOLDS
        found = np.empty_like(recorded)
        for index in range(N_FOLDS):
            model = FIT(self.inputs[fold != index], self.curves[fold != index])
            found[fold == index] = model(self.inputs[fold == index])[:, -1]
        errors = np.abs(special.expit(recorded) - special.expit(found))
        top = recorded >= np.median(recorded)
        best, spread = recorded.max(), math.sqrt(self.noise[-1, -1])
        return {
            "n_trials": self.n_trials,
            "n_candidates": len(recorded),
            "spearman": round(float(spearmanr(recorded, found)[0]), 3),
            "spearman_of_upper_half": round(float(spearmanr(recorded[top], found[top])[0]), 3),
            "median_error_points": round(100 * float(np.median(errors)), 2),
            "best_accuracy": round(float(special.expit(best)), 4),
            "noise_points_at_best": round(100 * float(special.expit(best) - special.expit(best - spread)), 2),
            "noise_degrees_of_freedom": self.n_noise,
        }


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


Steps = list[tuple[int, float]]
"""Pairs of epochs spent and the accuracy, without noise, of the trial that looks best so far."""


class Problem(Protocol):
    """What is searched in a replay.

    Attributes:
        space: What samplers see.
        epochs: Of a whole trial.
        starts: What the first trials are; they are never pruned.
        default: Neighbours of the start-up are of this one.
    """

    epochs: int
    starts: Sequence[Params]
    default: Params

    @property
    def space(self) -> Domain: ...

    def train(self, params: Params, seed: int) -> tuple[Floats, float]:
        """Accuracies after every epoch, as one training would have them, and the last one without noise.

        Raises:
            InfeasibleError: They decode to nothing within the limits.
        """


def replay(setting: Setting, problem: Problem, seed: int, budget: int) -> Steps:
    """One study of the problem."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = make_pruner(default_pruner(setting.sampler), problem.epochs)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    space, starts = problem.space, problem.starts
    spent, slot, attempt, best, true_of_best = 0, 0, 0, -math.inf, 0.0
    steps: Steps = []
    while spent < budget:
        finished, chosen = len(steps), search.sampler_seed(seed, slot, attempt)
        fixed: dict[str, Any] | None = None
        if slot < len(starts):
            fixed = dict(starts[slot])
        elif setting.sampler == NO_SEARCH:
            break
        elif setting.near(finished):
            known = study.get_trials(deepcopy=False, states=FINISHED)
            best_known = best_of(known) if finished >= search.N_STARTUP_TRIALS else None
            centre = best_known.params if best_known else problem.default
            nth = slot - len(starts)
            if not setting.compares or search.near_is_better(space, centre, known[len(starts) :], nth):
                fixed = search.neighbour(space, centre, chosen)
        study.sampler = search.fixed_sampler(fixed) if fixed else search.make_sampler(setting.sampler, chosen)
        trial = study.ask(search.distributions(space))
        try:
            curve, true = problem.train(trial.params, search.training_seed(seed, slot))
        except InfeasibleError:  # drawn anew
            study.tell(trial, state=TrialState.FAIL)
            attempt += 1
            continue
        for epoch, accuracy in enumerate(curve.tolist()):
            trial.report(accuracy, epoch)
            spent += 1
            if slot >= len(starts) and epoch + 1 < problem.epochs and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, accuracy)
            if accuracy > best and spent <= budget:
                best, true_of_best = accuracy, true
        steps.append((spent, true_of_best))
        slot, attempt = slot + 1, 0
    return steps


def best_at(steps: Steps, epochs: int) -> float:
    """The accuracy of the best trial when `epochs` are spent."""
    return next((value for spent, value in reversed(steps) if spent <= epochs), 0.0)


def summary(name: str, by_way: dict[str, list[Steps]], budget: int) -> dict[str, Any]:
    """Means at a third of the budget and at the whole, and what the default has ahead, over the same seeds."""
    runs, of_default = by_way[name], by_way[next(iter(SETTINGS))]
    finals = np.array([best_at(run, budget) for run in runs])
    ahead = np.array([best_at(run, budget) for run in of_default])[: len(finals)] - finals
    curve = [round(statistics.fmean(best_at(run, epochs) for run in runs), 5) for epochs in range(1, budget + 1)]
    return {
        "name": name,
        "title": SETTINGS[name].title,
        "replays": len(runs),
        "trials": statistics.fmean(sum(spent <= budget for spent, _ in run) for run in runs),
        "at_third": statistics.fmean(best_at(run, budget // 3) for run in runs),
        "final": float(finals.mean()),
        "final_interval": evidence.t_interval(finals),
        "behind_default": float(ahead.mean()),
        "behind_default_interval": evidence.t_interval(ahead),
        "mean_curve": curve,
    }


def markdown(record: dict[str, Any]) -> str:
    """One row a way to choose trials."""
    head = ("sampler", "replays", "trials", "after a third", "at the end", "points behind the default sampler (95%)")
    rows = []
    for each in record["settings"]:
        is_default = each["name"] == next(iter(SETTINGS))
        behind = "" if is_default else evidence.points(each["behind_default"], each["behind_default_interval"])
        accuracies = (evidence.percent(each[key]) for key in ("at_third", "final"))
        rows.append((each["title"], str(each["replays"]), f"{each['trials']:.0f}", *accuracies, behind))
    return evidence.table(head, rows)


def draw(record: dict[str, Any], file: Path) -> None:
    """Mean accuracy of the best trial so far against epochs spent."""
    figure, [axes] = evidence.figure(8, 5.6)
    for each, colour in zip(record["settings"], COLOURS, strict=True):
        curve = 100 * np.array(each["mean_curve"])
        first = int(np.argmax(curve > 0))
        epochs = np.arange(1, len(curve) + 1)
        axes.plot(epochs[first:], curve[first:], color=colour, label=f"{each['title']} ({each['replays']} replays)")
    axes.set_ylim(bottom=min(100 * each["at_third"] for each in record["settings"]) - 1)
    axes.set(xlabel="epochs spent on all trials", ylabel="accuracy of the best trial so far, %, mean")
    config = record["config"]
    which = f"space {record['space']}, trials of {config['epochs']} epochs of {config['train_images']:,} images"
    axes.set_title(f"What ways to choose trials find, replayed on a surrogate\n{which}", fontsize=11)
    evidence.legend(figure, axes, columns=1)
    evidence.save(figure, file)


def block(results: Path = RESULTS) -> str:
    """What results/README.md says of the replays."""
    found = evidence.records(results / "replays")
    names = sorted((name for name in found if not name.endswith("-table")), key=len)
    return evidence.folded(
        [_block_of(name, found[name]) for name in names], "The same on a surrogate of fewer, longer trials"
    )


def _block_of(name: str, found: dict[str, Any]) -> str:
    config, quality, third, whole = found["config"], found["surrogate"], found["budget"] // 3, found["budget"]
    trials = f"{quality['n_trials']} trials of {config['epochs']} epochs of {config['train_images']:,} images"
    rank, upper = quality["spearman"], quality["spearman_of_upper_half"]
    return (
        f"{markdown(found)}\n\nMean of the surrogate's own accuracy, without noise, of the trial that looks best after "
        f"{third} and {whole} epochs ([all along](results/replays/{name}.png)); intervals are over replays on one "
        f"surrogate. It was fitted to {trials} ({quality['n_candidates']} candidates). On candidates that it was not "
        f"fitted to, its ranking has a Spearman correlation of {rank:.2f} with the recorded one ({upper:.2f} in the "
        f"better half), its median error is {quality['median_error_points']:.1f} points; one standard deviation "
        f"between seeds is {quality['noise_points_at_best']:.1f} points at the best, from "
        f"{quality['noise_degrees_of_freedom']} repeats ({evidence.command_of(found)})."
    )


def whole_studies_block(results: Path = RESULTS) -> str:
    """What results/README.md says of studies without pruning whose best trials were trained again."""
    name = "dilated-15000-table"
    found = evidence.read(results / "replays" / f"{name}.json")
    if found is None:
        return evidence.NOTHING
    config, studies, values = found["config"], found["studies"], defaultdict(list)
    for trial in found["trials"]:
        values[trial["candidate_id"]].append((trial["study"], trial["curve"][-1]))
    [default_id] = {trial["candidate_id"] for trial in found["trials"] if trial["anchor"] == "default"}
    default = [value for _, value in values[default_id]]
    searches = [each for each in studies if "rerank_of" not in studies[each]]
    rows = []
    for each in searches:
        sampled = [t for t in found["trials"] if t["study"] == each and t["anchor"] is None]
        final = [trial["curve"][-1] for trial in sampled]
        best = max(sampled, key=lambda trial: trial["curve"][-1])
        again = [v for of, v in values[best["candidate_id"]] if studies[of].get("rerank_of") == each]
        rows.append(
            (
                samplers.SAMPLERS[studies[each]["sampler"]].removesuffix(", pruned"),
                str(len(sampled)),
                evidence.percent(statistics.median(final)),
                evidence.percent(max(final)),
                evidence.percent(again[0] if again else None),
                f"{sum(value > statistics.mean(default) for value in final)} of {len(sampled)}",
            )
        )
    commands = [
        f"python -m study.rerank --study-name {study['rerank_of']} --top {study['complete']} "
        f"--epochs {config['epochs']} --train-images {config['train_images']}"
        if "rerank_of" in study
        else f"python -m study.run --trials {study['complete']} --pruner {study['pruner']} "
        f"--sampler {study['sampler']} --seed {study['seed']} --study-name {each}"
        for each, study in studies.items()
    ]
    folders = " ".join(f"results/runs/{each}" for each in searches)
    mean, low, high = (evidence.percent(of(default)) for of in (statistics.mean, min, max))
    head = ("sampler", "trials", "median of them", "best of them", "trained again", "better than the default")
    return (
        f"{evidence.table(head, rows)}\n\nSpace `dilated`, {config['epochs']} epochs of {config['train_images']:,} "
        f"images, validated on {config['val_images']:,}, not pruned, anchors not counted. The space's default has "
        f"{mean} (mean of {len(default)} trainings, {low} to {high}). [All trials](results/replays/{name}.json), made "
        f"by {', '.join(f'`{command}`' for command in commands)} and "
        f"`python scripts/{SCRIPT} --collect {folders} --name {name.removesuffix('-table')}`."
    )


if __name__ == "__main__":
    run_command(main)
