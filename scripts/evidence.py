"""What experiments, benchmarks and publishing share: command lines, records, tables, intervals, pictures."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from study.command_line.options import place_of
from study.command_line.parser import Parser
from study.command_line.wording import counted
from study.data.torchvision_sets import SETS
from study.errors import UserError
from study.machine.files import write_atomically

if TYPE_CHECKING:
    import optuna

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

N_BOOTSTRAP = 2000
NOTHING = "Not measured yet."
PLACES = ("--checkpoints", "--data", "--digits", "--out", "--results", "--runs", "--storage")
"""Options that name folders of this machine."""


# Command lines


def parser(script: str, doc: str | None) -> Parser:
    """The parser of `scripts/<script>`, whose docstring is its help."""
    return Parser(
        prog=f"python scripts/{script}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def at_least(options: argparse.Namespace, **least: int) -> None:
    """Refuses options that are smaller than they may be; None passes.

    Raises:
        UserError: One is.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise UserError(f"--{name.replace('_', '-')} must be at least {bound}: {value}.")


def command_line(script: str, words: Sequence[str]) -> str:
    """The line that repeats a call of `scripts/<script>`, without the places of this machine."""
    return without_places(shlex.join(["python", f"scripts/{script}", *words]))


def without_places(command: str) -> str:
    """`command` without the options that name folders of this machine; a data set of torchvision's is none."""
    kept: list[str] = []
    words = iter(shlex.split(command))
    for word in words:
        option, equals, value = word.partition("=")
        if option not in PLACES:
            kept.append(word)
        elif (value if equals else (value := next(words, ""))) in SETS:
            kept += [option, value]
    return shlex.join(kept)


def command_of(record: dict[str, Any]) -> str:
    """The command that repeats a record, as Markdown. Older ones were made before the experiments had a folder."""
    moved = re.sub(r"scripts/(fidelity|pruners|replays|samplers)[.]", r"scripts/experiments/\1.", record["command"])
    return f"`{moved}`"


def named_study(options: argparse.Namespace) -> tuple[str, optuna.Study]:
    """Name and study that the options of `add_study_options` mean."""
    from study.storage.database import open_study

    place = place_of(options)
    return place.name, open_study(place.url, place.name)


# Records


def read(file: Path) -> Any:
    """What `write` wrote; None where there is nothing."""
    return json.loads(file.read_text()) if file.exists() else None


def write(file: Path, record: Any) -> None:
    """Writes a record whole or not at all."""
    write_atomically(file, json.dumps(record, indent=1) + "\n")


def records(folder: Path) -> dict[str, Any]:
    """All records of a folder by name."""
    return {file.stem: read(file) for file in sorted(folder.glob("*.json"))}


# Markdown


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"


def points(value: float, bounds: Sequence[float]) -> str:
    """A difference of accuracies and its interval, in percentage points."""
    low, high = (100 * bound for bound in bounds)
    return f"{100 * value:.2f} ({low:.2f} to {high:.2f})"


def machine(hardware: dict[str, Any]) -> str:
    return str(hardware.get("gpu") or f"{counted(hardware['n_cores'], 'core')} of {hardware['cpu']}")


def folded(parts: Sequence[str], summary: str = "") -> str:
    """The first of `parts` as it is, the others folded away."""
    hidden = (f"<details><summary>{summary}</summary>\n\n{part}\n\n</details>" for part in parts[1:])
    return "\n\n".join([parts[0], *hidden]) if parts else NOTHING


# Intervals


def t_interval(values: Sequence[float] | Floats) -> tuple[float, float]:
    """95% interval of the mean (Student's t); of differences, that of a paired comparison."""
    found = np.asarray(values, dtype=float)
    half = float(stats.t.ppf(0.975, len(found) - 1) * stats.sem(found))
    return float(found.mean()) - half, float(found.mean()) + half


def bootstrap(n: int, statistic: Callable[[Integers], float]) -> tuple[float, float]:
    """95% bootstrap interval (percentile) of a statistic of `n` things, which gets the rows that were drawn."""
    draws = np.random.default_rng(0).integers(0, n, (N_BOOTSTRAP, n))
    low, high = np.nanpercentile([statistic(rows) for rows in draws], (2.5, 97.5))
    return float(low), float(high)


# Pictures


def figure(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its axes, side by side."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = list(drawn.subplots(1, columns, squeeze=False)[0])
    for each in axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def legend(drawn: Any, *axes: Any, columns: int = 3) -> None:
    """One legend for all of `axes`, below them, where it hides nothing."""
    found: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    drawn.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def save(drawn: Any, file: Path) -> None:
    """As PNG, the same bytes for the same picture."""
    drawn.savefig(file, dpi=130, metadata={"Software": None})
