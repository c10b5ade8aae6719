"""Is the search worth its cost? Samplers at equal budget, several seeds each.

    python scripts/experiments/samplers.py [--space dilated] [--seeds 3] [--trials 30] [-- options of study.run]

For every seed, a study with the default sampler runs to its number of trials; the epochs that it spent are the budget
of the others: random search and plain TPE with the same pruner, and the Gaussian process, which needs whole trials and
so sees fewer. A study of the space's anchors alone stands for no search. Each study's best candidate is then trained
longer by `study.rerank`. All of it on validation images.

Studies live in results/runs/samplers/ and are resumed; results/samplers/<space>.json and .png are rewritten after each
of them.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from search_spaces import DEFAULT_SPACE
from study.command_line.parser import run_command
from study.errors import StudyFailed
from study.machine.paths import REPOSITORY, RESULTS, RUNS, default_storage

if TYPE_CHECKING:
    import optuna

SCRIPT = "experiments/samplers.py"
NO_SEARCH = "none"
SAMPLERS = {
    "anchored": "TPE after neighbours of the default, pruned",
    "random": "random, pruned",
    NO_SEARCH: "the space's anchors, no search",
    "tpe": "TPE, pruned",
    "gp": "Gaussian process, not pruned",
}
"""The first one sets the budget of the others."""
COLOURS = {"anchored": "#d95f02", "random": "#7f7f7f", "tpe": "#7570b3", "gp": "#1b9e77"}
SHARED = ("--val-images", "--device", "--data", "--jobs")
"""Options of study.run that study.rerank has too."""


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    split = given.index("--") if "--" in given else len(given)
    parser = evidence.parser(SCRIPT, __doc__)
    parser.add_argument("--space", default=DEFAULT_SPACE, help=f"(default: {DEFAULT_SPACE})")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="studies of each sampler (default: 3)")
    parser.add_argument("--trials", type=int, default=30, metavar="N", help="of the default sampler (default: 30)")
    parser.add_argument("--fuller-epochs", type=int, default=8, help="of the winners' longer training (default: 8)")
    parser.add_argument("--fuller-images", type=int, metavar="N", help="(default: all 45,000)")
    parser.add_argument("--runs", type=Path, default=RUNS / "samplers", help="(default: results/runs/samplers)")
    parser.add_argument("--results", type=Path, default=RESULTS / "samplers", help="(default: results/samplers)")
    options, run_options = parser.parse_args(given[:split]), given[split + 1 :]
    evidence.at_least(options, seeds=1, trials=1, fuller_epochs=1)
    longer = ["--epochs", str(options.fuller_epochs), "--settings", "light"]
    longer += ["--train-images", str(options.fuller_images)] if options.fuller_images else []
    shared = argparse.ArgumentParser(allow_abbrev=False)
    for option in SHARED:
        shared.add_argument(option)
    for name, value in vars(shared.parse_known_args(run_options)[0]).items():
        longer += [] if value is None else [f"--{name.replace('_', '-')}", value]
    studies: list[dict[str, Any]] = []
    budgets: dict[int, int] = {}
    for sampler, seed in product(SAMPLERS, range(options.seeds)):
        out = options.runs / f"{options.space}-{sampler}-{seed}"
        search = ["--space", options.space, "--seed", str(seed), *run_options]
        identity = ["--study-name", out.name, "--out", str(out)]
        if sampler == NO_SEARCH:
            study = _anchors(search, identity)
        else:
            study = _search([*search, "--sampler", sampler], identity, options.trials, budgets.get(seed))
        budgets.setdefault(seed, spent(study))
        studies.append({"sampler": sampler, "seed": seed, **describe(study, budgets[seed])})
        place, number = best_within(study, budgets[seed])
        _call("study.rerank", [*identity, *longer, "--top", str(place)])
        studies[-1] |= {"trial": number, **_fuller(study, number)}
        record = {
            "command": evidence.command_line(SCRIPT, given),
            "space": options.space,
            "trials": options.trials,
            "config": {**study.user_attrs["config"], "sampler": None, "seed": None, "pruner": None},
            "fuller": {"epochs": options.fuller_epochs, "train_images": options.fuller_images},
            "hardware": study.user_attrs["hardware"],
            "versions": study.user_attrs["versions"],
            "studies": studies,
        }
        file = options.results / f"{options.space}.json"
        evidence.write(file, record)
        draw(record, file.with_suffix(".png"))
    print(markdown(record))
    return 0


def _search(search: list[str], identity: list[str], trials: int, budget: int | None) -> optuna.Study:
    """A study of `trials` trials, or of as many as spend `budget` epochs."""
    from study.storage.database import open_study

    wanted = 1 if budget else trials
    while True:
        _call("study.run", ["--trials", str(wanted), *search, *identity])
        study = open_study(default_storage(identity[1], identity[3]), identity[1])
        if budget is None or spent(study) >= budget:
            return study
        # As many more as would spend the rest if they were like those before, but few enough to stop in time.
        done = len(_ended(study))
        wanted = done + max(1, int((budget - spent(study)) / (spent(study) / done)))


def _anchors(search: list[str], identity: list[str]) -> optuna.Study:
    """A study of the anchors that its limits leave, and nothing else: the next slot would be a sample's."""
    study = _search(search, identity, 1, None)
    usable = _n_usable(study)
    return study if usable <= 1 else _search(search, identity, usable, None)


def _n_usable(study: optuna.Study) -> int:
    """Anchors of the space that meet the study's limits."""
    from study.search.creation import anchors
    from study.storage.config import open_space
    from study.storage.database import config_of, cost_model_of

    config = config_of(study)
    return len(anchors(open_space(config.space), config, cost_model_of(study)))


def _call(module: str, arguments: Sequence[str]) -> None:
    """Runs one of the study's commands, its output passed on.

    Raises:
        StudyFailed: It ended with an error.
    """
    command = [sys.executable, "-m", module, *arguments]
    print("+", shlex.join(["python", *command[1:]]), flush=True)
    code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    if code:
        raise StudyFailed(f"{module} ended with exit code {code}; the same command goes on")


def _ended(study: optuna.Study) -> list[Any]:
    """Finished trials in the order in which they ended."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]
    return sorted(ended, key=lambda trial: trial.datetime_complete)


def spent(study: optuna.Study) -> int:
    """Epochs of all finished trials."""
    return sum(len(trial.intermediate_values) for trial in _ended(study))


def describe(study: optuna.Study, budget: int) -> dict[str, Any]:
    """What a study found within `budget` epochs.

    Returns:
        `steps`, pairs of epochs spent and best accuracy so far; `n_trials`; `best_val_accuracy`.
    """
    epochs, best = 0, 0.0
    steps: list[list[float]] = []
    for trial in _within(study, budget):
        epochs += len(trial.intermediate_values)
        if trial.state.name == "COMPLETE":
            best = max(best, trial.value)
        steps.append([epochs, best])
    return {"budget": budget, "n_trials": len(steps), "steps": steps, "best_val_accuracy": best}


def _within(study: optuna.Study, budget: int) -> list[Any]:
    """The trials that ended within `budget` epochs: at least one."""
    ended = _ended(study)
    epochs = itertools.accumulate(len(trial.intermediate_values) for trial in ended)
    return ended[: max(1, sum(spent <= budget for spent in epochs))]


def best_within(study: optuna.Study, budget: int) -> tuple[int, int]:
    """Place among all, from 1, and number of the best trial within `budget` epochs: a better one may end later."""
    from study.storage.database import ranked_trials

    candidates = {trial.user_attrs["candidate_id"] for trial in _within(study, budget)}
    places = enumerate(ranked_trials(study), 1)
    return next((n, trial.number) for n, trial in places if trial.user_attrs["candidate_id"] in candidates)


def _fuller(study: optuna.Study, number: int) -> dict[str, Any]:
    """What the trial of that number had after its longer training."""
    from study.storage.database import ranked_trials
    from study.storage.reranked import find_rerank

    longer = find_rerank(study)
    assert longer is not None  # it has just run
    given, found = longer.user_attrs["given"], ranked_trials(longer)
    return {"fuller_val_accuracy": next(t.value for t in found if given[t.user_attrs["slot"]]["trial"] == number)}


def markdown(record: dict[str, Any]) -> str:
    """One row a sampler: means over its seeds, with the range."""
    rows = []
    for sampler, title in SAMPLERS.items():
        of = [study for study in record["studies"] if study["sampler"] == sampler]
        if of:
            trials = f"{np.mean([study['n_trials'] for study in of]):.0f}"
            accuracies = (_mean([study[f"{key}_val_accuracy"] for study in of]) for key in ("best", "fuller"))
            rows.append((title, str(len(of)), trials, *accuracies))
    return evidence.table(("sampler", "studies", "trials", "best trial", "its longer training"), rows)


def _mean(values: Sequence[float | None]) -> str:
    """Of fractions, in per cent, with the range."""
    known = [100 * value for value in values if value is not None]
    return f"{np.mean(known):.2f}% ({min(known):.2f} to {max(known):.2f})" if known else ""


def draw(record: dict[str, Any], file: Path) -> None:
    """Best so far against epochs spent: every study thin, the mean of a sampler's studies thick."""
    figure, [axes] = evidence.figure(8, 4.6)
    for sampler, colour in COLOURS.items():
        of = [study for study in record["studies"] if study["sampler"] == sampler]
        if not of:
            continue
        grid = np.arange(1, min(study["budget"] for study in of) + 1)
        curves = []
        for study in of:
            epochs, best = np.array([[0, np.nan], *study["steps"]]).T
            curve = 100 * best[np.searchsorted(epochs, grid, side="right") - 1]
            curves.append(np.where(curve > 0, curve, np.nan))
            axes.step(grid, curves[-1], where="post", color=colour, alpha=0.3, linewidth=0.8)
        mean = np.mean(curves, axis=0)  # from where all of them have one
        label = f"{SAMPLERS[sampler]} ({len(of)} studies)"
        axes.step(grid, mean, where="post", color=colour, linewidth=2, label=label)
    axes.set(xlabel="epochs spent on all trials", ylabel="best validation accuracy so far, %")
    which = f"space {record['space']}; thick: mean of a sampler's studies, thin: each study"
    axes.set_title(f"What samplers find in real studies\n{which}", fontsize=11)
    evidence.legend(figure, axes, columns=1)
    evidence.save(figure, file)


def block(results: Path = RESULTS) -> str:
    """What results/README.md says of it."""
    parts = []
    for name, found in evidence.records(results / "samplers").items():
        config, fuller = found["config"], found["fuller"]
        parts.append(
            f"{markdown(found)}\n\nSpace `{found['space']}`, means over studies, with the range "
            f"([best so far against epochs](results/samplers/{name}.png)). Trials of {config['epochs']} epochs of "
            f"{config['train_images']:,} images, {config['val_images']:,} to validate on; the best of each study "
            f"trained again for {fuller['epochs']} epochs of {fuller['train_images'] or 45_000:,} "
            f"({evidence.command_of(found)})."
        )
    return "\n\n".join(parts) or evidence.NOTHING


if __name__ == "__main__":
    run_command(main)
