"""Memory of a worker at the beginning of every trial of a long study: it must not grow.

One worker of `study.run` runs many tiny trials; each stores the worker's resident memory as it begins, when
the previous one has been collected (on a GPU, its allocated device memory too). The slope is a least-squares
line over the trials after the first ones, which fill caches and pools. Its 95% interval takes the trials'
deviations from the line as independent. Also draws <name>.png.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import linregress, t

import evidence
from benchmarks.record import write
from benchmarks.trials_per_hour import SPACE, search, trials
from study.errors import StudyFailed

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

GOAL = "flat: less than 1 MiB a trial"
NAMES = {"rss_mib": "resident memory", "device_mib": "allocated memory of the GPU"}
MIN_FITTED = 3
"""A line through fewer trials has no interval."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, default=50, metavar="N", help="(default: 50)")
    parser.add_argument("--settle", type=int, default=10, metavar="N", help="first trials left out (default: 10)")
    parser.add_argument("--train-images", type=int, default=500, metavar="N", help="(default: 500)")
    parser.add_argument("--val-images", type=int, default=200, metavar="N", help="(default: 200)")


def run(options: argparse.Namespace) -> int:
    evidence.at_least(options, settle=0, trials=options.settle + MIN_FITTED)
    with tempfile.TemporaryDirectory() as folder:
        search(options, folder, trials=options.trials, epochs=1, jobs=1)
        found = trials(folder, SPACE)
    lines = {name: samples(found, name) for name in ("rss_mib", "device_mib")[: 2 if options.device == "cuda" else 1]}
    trends = {name: fit(values, options.settle) for name, values in lines.items()}
    rss = lines["rss_mib"]
    more: dict[str, Any] = {"trials": len(rss), "settle": options.settle}
    more |= {name: values for name, values in lines.items() if name != "rss_mib"}
    more |= {f"trend_{name}": trend for name, trend in trends.items()}
    name = f"memory-{options.device}"
    title = f"resident memory of a worker at the beginning of each of {len(rss)} trials"
    write(options, name, title, options.device, "MiB", rss, goal=GOAL, higher_is_better=False, more=more)
    draw(evidence.read(options.out / f"{name}.json"), options.out / f"{name}.png")
    for name, trend in trends.items():
        print(f"{name}: {_slope(trend)} over trials {trend['first_trial']} to {trend['last_trial']}")
    return 0


def samples(found: Sequence[FrozenTrial], name: str) -> list[float]:
    """The user attribute `name` of every trial, in the order in which one worker ran them.

    Raises:
        StudyFailed: A trial has none, or a worker died, so that they are not of one process.
    """
    for trial in found:
        if name not in trial.user_attrs:
            reason = trial.user_attrs.get("reason", "")
            raise StudyFailed(
                f"every trial must tell {name!r} of the same process: trial {trial.number} has not {reason}"
            )
    return [float(trial.user_attrs[name]) for trial in sorted(found, key=lambda trial: trial.number)]


def fit(values: Sequence[float], settle: int) -> dict[str, Any]:
    """The least-squares line through `values`, MiB by trial counted from zero, without the first `settle` ones."""
    x, y = np.arange(settle, len(values)), np.asarray(values[settle:])
    line = linregress(x, y)
    slope, margin = float(line.slope), float(t.ppf(0.975, len(x) - 2) * line.stderr)
    return {
        "first_trial": settle,
        "last_trial": len(values) - 1,
        "slope_mib_per_trial": slope,
        "interval_95_mib_per_trial": (slope - margin, slope + margin),
        "intercept_mib": float(line.intercept),
        "growth_mib": float(y[-1] - y[0]),
    }


def _slope(trend: Mapping[str, Any]) -> str:
    low, high = trend["interval_95_mib_per_trial"]
    return f"{trend['slope_mib_per_trial']:+.2f} MiB a trial (95%: {low:+.2f} to {high:+.2f})"


def draw(record: dict[str, Any], file: Path) -> None:
    """The picture of a record."""
    lines = {"rss_mib": record["ours"]["samples"], "device_mib": record.get("device_mib")}
    known = {name: values for name, values in lines.items() if values}
    evidence.save(figure(known, {name: record[f"trend_{name}"] for name in known}), file)


def figure(lines: Mapping[str, Sequence[float]], trends: Mapping[str, Mapping[str, Any]]) -> Any:
    """Memory by trial, MiB, with its trend, from 0."""
    drawn, [axes] = evidence.figure(8, 4.4)
    for (name, values), colour in zip(lines.items(), ("#0b6fb8", "#b3261e"), strict=False):
        trend = trends[name]
        axes.plot(range(len(values)), values, ".-", color=colour, linewidth=1, label=NAMES.get(name, name))
        ends = np.array([trend["first_trial"], trend["last_trial"]])
        fitted = trend["intercept_mib"] + trend["slope_mib_per_trial"] * ends
        axes.plot(ends, fitted, "--", color="#555555", linewidth=1.2, label=_slope(trend))
    axes.set(xlabel="trial", ylabel="MiB when the trial begins", ylim=(0, 1.15 * max(map(max, lines.values()))))
    axes.set_title("Memory of one worker, trial after trial", fontsize=11)
    evidence.legend(drawn, axes, columns=2)
    return drawn
