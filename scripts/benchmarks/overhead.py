"""What a trial costs beside its training, with 50, 500 and 5,000 trials recorded.

Real studies of tiny trials: the time from one trial's beginning to the next one's, less the epochs between them.
Sampling, storing, pruning, the dashboard's notes and pictures and the way to the worker and back are all in it. The
peer is the usual script, which only samples and reports: `study.optimize` on plain SQLite with Optuna's defaults.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from benchmarks.record import printed, write
from search_spaces import DEFAULT_SPACE, get_space
from study.errors import UserError
from study.machine.paths import REPOSITORY
from study.search.sampling import distributions
from study.storage.database import open_storage, stored
from study.storage.slots import SlotTable

EPOCHS, PRUNED_AFTER = 6, 3
TINY = ("--epochs", str(EPOCHS), "--train-images", "500", "--val-images", "100", "--study-name", "overhead")
SPACE = get_space(DEFAULT_SPACE)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recorded", type=int, nargs="+", default=(50, 500, 5000), metavar="N", help="(default: 50 500 5000)"
    )
    parser.add_argument("--samples", type=int, default=15, help="trials at each N (default: 15)")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once; then without a peer (default: 1)")
    parser.add_argument(
        "--revision", type=Path, default=REPOSITORY, metavar="DIR", help="checkout to measure (default: this one)"
    )


def run(options: argparse.Namespace) -> int:
    if options.samples < 2 or min(options.recorded) < 20:
        raise UserError(
            "--samples must be at least 2, and --recorded at least 20, from where on the sampler learns: "
            f"{options.samples}, {min(options.recorded)}."
        )
    for n_recorded in sorted(set(options.recorded)):
        with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
            first, ours = overhead(options, n_recorded, Path(folder))
            usual = peer(Path(folder), n_recorded, options.samples) if options.jobs == 1 else None
        write(
            options,
            f"overhead-{options.device}-{n_recorded}" + (f"-{options.jobs}-jobs" if options.jobs > 1 else ""),
            f"a trial beside its training with {n_recorded:,} recorded, publishing included"
            + (f", {options.jobs} at once" if options.jobs > 1 else "")
            + ("; peer: Optuna's defaults on plain SQLite, sampling and reporting only" if usual else ""),
            options.device,
            "ms/trial",
            ours,
            usual,
            "<= 200 ms, 1% of a 20 s trial",
            higher_is_better=False,
            more={"n_recorded": n_recorded, "first_trial_ms": first},
        )
    return 0


def overhead(options: argparse.Namespace, n_recorded: int, folder: Path) -> tuple[float, list[float]]:
    """Milliseconds beside its epochs of the first trial of a run, its workers' start included, and of each later one.

    Of several at once, only the mean over all later ones is known: their workers' time less all epochs.
    """

    def run_study(trials: int) -> None:
        command = [sys.executable, "-m", "study.run", *TINY, "--trials", str(trials), "--jobs", str(options.jobs)]
        command += ["--out", str(folder / "out"), "--data", options.data, "--device", options.device]
        printed(command, options.revision, PYTHONPATH=str(options.revision))

    run_study(2)
    fill(open_storage(f"sqlite:///{folder / 'out' / 'study.db'}"), "overhead", n_recorded)
    n_before = len(trials_of(folder / "out" / "study.db"))
    run_study(n_recorded + options.samples + options.jobs)
    trials = trials_of(folder / "out" / "study.db")[n_before:]
    epochs_ms = [1000 * sum(epoch["wall_s"] for epoch in stored(trial, "curve")) for trial in trials]
    begins = [1000 * trial.datetime_start.timestamp() for trial in trials if trial.datetime_start]
    ends = [1000 * trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete]
    first = ends[0] - begins[0] - epochs_ms[0]
    if options.jobs == 1:
        return first, [begins[i + 1] - begins[i] - epochs_ms[i] for i in range(1, len(trials) - 1)]
    jobs = options.jobs  # from when all workers had their second trial until the first of them had no more to do
    rest = range(jobs, len(trials))
    spent = jobs * (statistics.fmean(sorted(ends)[-jobs:]) - statistics.fmean(sorted(ends)[:jobs]))
    return first, [(spent - sum(epochs_ms[i] for i in rest)) / len(rest)]


def trials_of(file: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="overhead", storage=open_storage(f"sqlite:///{file}")).trials


def recorded(n: int, attributes: dict[str, Any]) -> list[FrozenTrial]:
    """`n` finished trials of random parameters, two of three pruned."""
    rng, found = random.Random(0), []
    for slot in range(n):
        pruned = slot % 3 > 0
        curve = [rng.uniform(0.2, 0.4) + 0.05 * epoch for epoch in range(PRUNED_AFTER if pruned else EPOCHS)]
        found.append(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                value=None if pruned else curve[-1],
                params=SPACE.sample(rng),
                distributions=distributions(SPACE),
                intermediate_values=dict(enumerate(curve, 1)),
                user_attrs={**attributes, "slot": slot},
                system_attrs={"completed_rung_0": curve[PRUNED_AFTER - 1]},
            )
        )
    return found


def fill(storage: optuna.storages.RDBStorage, name: str, n: int) -> None:
    """Adds recorded trials to the study `name`, with all that a run stores of each, until there are `n`."""
    study = optuna.load_study(study_name=name, storage=storage)
    n_there, study_id, template = len(study.trials), storage.get_study_id_from_name(name), study.trials[0]
    notes = [value for key, value in storage.get_study_system_attrs(study_id).items() if ":note_str:" in key]
    attributes = {name: value for name, value in template.user_attrs.items() if name != "anchor"}
    attributes |= {name: stored(template, name) for name in ("candidate", "curve")}
    study.add_trials(recorded(n, attributes)[n_there:])
    for trial in study.get_trials(deepcopy=False)[n_there:]:
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        storage.set_study_system_attr(study_id, f"dashboard:{trial_id}:note_str:0", notes[-1])
        storage.set_study_system_attr(study_id, f"dashboard:{trial_id}:note_ver", 1)
    SlotTable(study, storage).reconcile()
    storage.engine.dispose()


def peer(folder: Path, n_recorded: int, n: int) -> list[float]:
    """Milliseconds of each trial of the usual script."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = folder / "peer.db"
    study = optuna.create_study(storage=f"sqlite:///{file}", direction="maximize")
    study.add_trials(recorded(n_recorded, {}))
    rng = random.Random(1)

    def objective(trial: optuna.Trial) -> float:
        for name, distribution in distributions(SPACE).items():
            if isinstance(distribution, optuna.distributions.CategoricalDistribution):
                trial.suggest_categorical(name, distribution.choices)
            elif isinstance(distribution, optuna.distributions.IntDistribution):
                trial.suggest_int(name, distribution.low, distribution.high)
            elif isinstance(distribution, optuna.distributions.FloatDistribution):
                trial.suggest_float(
                    name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
                )
        for epoch in range(EPOCHS):
            trial.report(rng.random(), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return rng.random()

    found = []
    for _ in range(n):
        started = time.perf_counter()
        study.optimize(objective, n_trials=1)
        found.append(1000 * (time.perf_counter() - started))
    return found
