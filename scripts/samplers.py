"""Is the search worth its cost? Samplers at equal budget, several seeds each.

    python scripts/samplers.py [--space dilated] [--seeds 3] [--trials 30] [--fuller-epochs 8] [-- options of study.run]

For every seed, a study with the default sampler runs to its number of trials; the epochs that it spent are the budget
of the others: random search and plain TPE with the same pruner, and the Gaussian process, which needs whole trials and
so sees fewer. A study of the space's anchors alone stands for no search. Each study's best candidate is then trained
longer by `study.rerank`. All of it on validation images.

Studies live in results/runs/samplers/ and are resumed; results/samplers/<space>.json is rewritten after each of them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from search_spaces import DEFAULT_SPACE, get_space
from search_spaces.constraints import Limits
from study.command_line.parser import Parser, run_command
from study.errors import StudyFailed, UserError
from study.machine.files import write_atomically
from study.machine.paths import REPOSITORY, RESULTS, RUNS, default_storage

NO_SEARCH = "none"
SAMPLERS = {
    "anchored": "TPE and neighbours of the default and the best, pruned",
    "random": "random, pruned",
    NO_SEARCH: "the space's anchors, no search",
    "tpe": "TPE, pruned",
    "gp": "Gaussian process, not pruned",
}
"""The first one sets the budget of the others."""

COLOURS = {"anchored": "#d95f02", "random": "#7f7f7f", "tpe": "#7570b3", "gp": "#1b9e77"}


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    split = given.index("--") if "--" in given else len(given)
    parser = Parser(
        description=__doc__, prog="python scripts/samplers.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", default=DEFAULT_SPACE, help=f"(default: {DEFAULT_SPACE})")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="studies of each sampler (default: 3)")
    parser.add_argument(
        "--trials", type=int, default=30, metavar="N", help="of the default sampler; they set the budget (default: 30)"
    )
    parser.add_argument("--fuller-epochs", type=int, default=8, help="of the winners' longer training (default: 8)")
    parser.add_argument("--fuller-images", type=int, metavar="N", help="(default: all 45,000)")
    parser.add_argument("--runs", type=Path, default=RUNS / "samplers", help="(default: results/runs/samplers)")
    parser.add_argument("--results", type=Path, default=RESULTS / "samplers", help="(default: results/samplers)")
    options = parser.parse_args(given[:split])
    for name in ("seeds", "trials", "fuller_epochs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1: {getattr(options, name)}.")
    run_options, command = given[split + 1 :], shlex.join(["python", "scripts/samplers.py", *given])
    studies: list[dict[str, Any]] = []
    budgets: dict[int, int] = {}
    for sampler, seed in product(SAMPLERS, range(options.seeds)):
        out = options.runs / f"{options.space}-{sampler}-{seed}"
        name = out.name
        search = ["--space", options.space, "--seed", str(seed), *run_options]
        identity = ["--study-name", name, "--out", str(out)]
        if sampler == NO_SEARCH:
            study = _search(search, identity, len(get_space(options.space).anchors(Limits())), None)
        else:
            study = _search([*search, "--sampler", sampler], identity, options.trials, budgets.get(seed))
        budgets.setdefault(seed, spent(study))
        fuller = ["--epochs", str(options.fuller_epochs), "--top", "1"]
        fuller += ["--train-images", str(options.fuller_images)] if options.fuller_images else []
        fuller += [word for pair in _pairs(run_options) if pair[0] in _SHARED for word in pair]
        _call("study.rerank", [*identity, *fuller])
        studies.append({"sampler": sampler, "seed": seed, **describe(study, budgets[seed]), **_fuller(study)})
        record = {
            "command": command,
            "space": options.space,
            "trials": options.trials,
            "config": {**study.user_attrs["config"], "sampler": None, "seed": None, "pruner": None},
            "fuller": {"epochs": options.fuller_epochs, "train_images": options.fuller_images},
            "hardware": study.user_attrs["hardware"],
            "versions": study.user_attrs["versions"],
            "studies": studies,
        }
        file = options.results / f"{options.space}.json"
        write_atomically(file, json.dumps(record, indent=1) + "\n")
        draw(record, file.with_suffix(".png"))
    print(markdown(record))
    return 0


_SHARED = ("--val-images", "--device", "--data", "--jobs")
"""Options of study.run that study.rerank has too."""


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=False))


def _search(search: list[str], identity: list[str], trials: int, budget: int | None) -> Any:
    """A study of `trials` trials, or of as many as spend `budget` epochs."""
    import optuna

    from study.storage.database import open_study

    url = default_storage(identity[1], identity[3])
    _call("study.run", ["--trials", str(1 if budget else trials), *search, *identity])
    while True:
        study: optuna.Study = open_study(url, identity[1])
        done = [trial for trial in study.get_trials() if trial.state.name in ("COMPLETE", "PRUNED")]
        if budget is None or spent(study) >= budget:
            return study
        # As many more as would spend the rest if they were like those before, but few enough to stop in time.
        per_trial = spent(study) / len(done)
        more = max(1, int((budget - spent(study)) / per_trial))
        _call("study.run", ["--trials", str(len(done) + more), *search, *identity])


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


def spent(study: Any) -> int:
    """Epochs of all finished trials."""
    return sum(
        len(trial.intermediate_values)
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name in ("COMPLETE", "PRUNED")
    )


def describe(study: Any, budget: int) -> dict[str, Any]:
    """What a study found within `budget` epochs.

    Returns:
        `steps`, pairs of epochs spent and best accuracy so far; `n_trials`; `best_val_accuracy`.
    """
    ended = [t for t in study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED")]
    ended.sort(key=lambda trial: trial.datetime_complete)
    epochs, best, n_trials = 0, 0.0, 0
    steps: list[list[float]] = []
    for trial in ended:
        epochs += len(trial.intermediate_values)
        if epochs > budget and steps:
            break
        n_trials += 1
        if trial.state.name == "COMPLETE":
            best = max(best, trial.value)
        steps.append([epochs, best])
    return {
        "budget": budget,
        "n_trials": n_trials,
        "steps": steps,
        "best_val_accuracy": best,
    }


def _fuller(study: Any) -> dict[str, Any]:
    from study.storage.database import best_trial
    from study.storage.reranked import find_rerank

    longer = find_rerank(study)
    return {"fuller_val_accuracy": None if longer is None else best_trial(longer).value}


def markdown(record: dict[str, Any]) -> str:
    """One row a sampler: means over its seeds, with the range."""
    head = ("sampler", "studies", "trials", "best trial", "its longer training")
    rows = [head, ("---",) * len(head)]
    for sampler, title in SAMPLERS.items():
        of = [study for study in record["studies"] if study["sampler"] == sampler]
        if of:
            trials = sum(study["n_trials"] for study in of) / len(of)
            best, fuller = (
                _mean([study[name] for study in of if study[name] is not None])
                for name in ("best_val_accuracy", "fuller_val_accuracy")
            )
            rows.append((title, str(len(of)), f"{trials:.0f}", best, fuller))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _mean(values: Sequence[float]) -> str:
    """Of fractions, in per cent, with the range."""
    if not values:
        return ""
    low, high = 100 * min(values), 100 * max(values)
    return f"{100 * sum(values) / len(values):.2f}% ({low:.2f} to {high:.2f})"


def draw(record: dict[str, Any], file: Path) -> None:
    """Best so far against epochs spent: every study thin, the mean of a sampler's studies thick."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for sampler, colour in COLOURS.items():
        title, of = SAMPLERS[sampler], [study for study in record["studies"] if study["sampler"] == sampler]
        if not of:
            continue
        grid = np.arange(1, min(study["budget"] for study in of) + 1)
        curves = []
        for study in of:
            epochs, best = np.array(study["steps"]).T
            at = np.searchsorted(epochs, grid, side="right") - 1
            curve = np.where(at >= 0, best[at], np.nan)
            curves.append(np.where(curve > 0, 100 * curve, np.nan))
            axes.step(grid, curves[-1], where="post", color=colour, alpha=0.3, linewidth=0.8)
        mean = np.mean(curves, axis=0)  # from where all of them have one
        axes.step(grid, mean, where="post", color=colour, linewidth=2, label=f"{title} ({len(of)} studies)")
    save(figure, axes, record["space"], "best validation accuracy so far, %", file)


def save(figure: Any, axes: Any, space: str, ylabel: str, file: Path) -> None:
    """Finishes a picture of curves over the epochs that studies of `space` spent, and writes it."""
    axes.set(xlabel="epochs spent on all trials", ylabel=ylabel, title=space)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    run_command(main)
