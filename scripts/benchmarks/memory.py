"""Memory of a worker at the beginning of every trial of a long study: it must not grow.

One worker of `study.run` runs many tiny trials; each stores the worker's resident memory as it begins, when
the previous one has been collected (on a GPU, its allocated device memory too). The slope is a least-squares
line over the trials after the first ones, which fill caches and pools. Its 95% interval takes the trials'
deviations from the line as independent. Also draws <name>.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.record import write
from benchmarks.trials_per_hour import SPACE, search_command, seconds, trials
from study.errors import StudyFailed, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

GOAL = "flat: less than 1 MiB a trial"
MIN_FITTED = 3
"""A line through fewer trials has no interval."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, default=50, metavar="N", help="(default: 50)")
    parser.add_argument("--settle", type=int, default=10, metavar="N", help="first trials left out (default: 10)")
    parser.add_argument("--train-images", type=int, default=500, metavar="N", help="(default: 500)")
    parser.add_argument("--val-images", type=int, default=200, metavar="N", help="(default: 200)")


def run(options: argparse.Namespace) -> int:
    if options.settle < 0 or options.trials < options.settle + MIN_FITTED:
        raise UserError(
            f"--trials must be at least {MIN_FITTED} more than --settle, which must not be negative: "
            f"{options.trials}, {options.settle}."
        )
    with tempfile.TemporaryDirectory() as folder:
        _search(options, folder)
        found = trials(folder, SPACE)
    rss = samples(found, "rss_mib")
    trends = {"rss_mib": fit(rss, options.settle)}
    lines = {"resident memory of the worker": rss}
    more: dict[str, object] = {"trials": len(rss), "settle": options.settle}
    if options.device == "cuda":
        device = samples(found, "device_mib")
        trends["device_mib"] = fit(device, options.settle)
        lines["allocated device memory"] = device
        more["device_mib"] = device
    name = f"memory-{options.device}"
    write(
        options,
        name,
        f"resident memory of a worker at the beginning of each of {len(rss)} trials",
        options.device,
        "MiB",
        rss,
        goal=GOAL,
        higher_is_better=False,
        more=more | {f"trend_{key}": dataclasses.asdict(trend) for key, trend in trends.items()},
    )
    figure(lines, list(trends.values())).savefig(options.out / f"{name}.png", dpi=150)
    for key, trend in trends.items():
        low, high = trend.interval_95_mib_per_trial
        print(
            f"{key}: {trend.slope_mib_per_trial:+.3f} MiB a trial ({low:+.3f} to {high:+.3f}) "
            f"over trials {trend.first_trial} to {trend.last_trial}"
        )
    return 0


def _search(options: argparse.Namespace, folder: str) -> None:
    words = ("--space", SPACE, "--trials", str(options.trials), "--epochs", "1", "--jobs", "1")
    sizes = ("--train-images", str(options.train_images), "--val-images", str(options.val_images))
    seconds(search_command(options, folder, *words, *sizes))


@dataclass(frozen=True)
class Trend:
    """A least-squares line over trials, counted from zero.

    Attributes:
        first_trial, last_trial: The trials it is fitted to.
        slope_mib_per_trial: Of the line.
        interval_95_mib_per_trial: Of the slope, from Student's distribution.
        intercept_mib: The line at trial 0.
        growth_mib: The last fitted trial's memory less the first one's.
    """

    first_trial: int
    last_trial: int
    slope_mib_per_trial: float
    interval_95_mib_per_trial: tuple[float, float]
    intercept_mib: float
    growth_mib: float


def samples(found: Sequence[FrozenTrial], name: str) -> list[float]:
    """The user attribute `name` of every trial, in the order in which one worker ran them.

    Raises:
        StudyFailed: A trial has none, or a worker died, so that they are not of one process.
    """
    for trial in found:
        if name not in trial.user_attrs:
            raise StudyFailed(f"every trial must have stored {name!r} when it began: trial {trial.number} has not")
        if str(trial.user_attrs.get("reason", "")).startswith("the worker"):
            raise StudyFailed(f"memory must be of one process: trial {trial.number}: {trial.user_attrs['reason']}")
    return [float(trial.user_attrs[name]) for trial in sorted(found, key=lambda trial: trial.number)]


def fit(values: Sequence[float], settle: int) -> Trend:
    """The line through `values` without the first `settle` ones."""
    from scipy.stats import linregress, t

    x = np.arange(settle, len(values))
    y = np.asarray(values[settle:])
    line = linregress(x, y)
    margin = float(t.ppf(0.975, len(x) - 2) * line.stderr)
    slope = float(line.slope)
    return Trend(
        first_trial=settle,
        last_trial=len(values) - 1,
        slope_mib_per_trial=slope,
        interval_95_mib_per_trial=(slope - margin, slope + margin),
        intercept_mib=float(line.intercept),
        growth_mib=float(y[-1] - y[0]),
    )


def figure(lines: dict[str, list[float]], trends: Sequence[Trend]) -> Figure:
    """Memory by trial, with its trend, from 0.

    Args:
        lines: MiB per trial, by what was measured.
        trends: One for each of `lines`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    for (name, values), trend, colour in zip(lines.items(), trends, ("#0b6fb8", "#b3261e")[: len(trends)], strict=True):
        axes.plot(range(len(values)), values, ".-", color=colour, linewidth=1, label=name)
        ends = np.array([trend.first_trial, trend.last_trial])
        slope = trend.slope_mib_per_trial
        low, high = trend.interval_95_mib_per_trial
        label = f"{slope:+.2f} MiB a trial (95%: {low:+.2f} to {high:+.2f})"
        axes.plot(ends, trend.intercept_mib + slope * ends, "--", color="#555555", linewidth=1.2, label=label)
    axes.set_xlabel("trial")
    axes.set_ylabel("MiB when the trial begins")
    axes.set_xlim(-0.5, max(len(values) for values in lines.values()) - 0.5)
    axes.set_ylim(0, 1.15 * max(max(values) for values in lines.values()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return drawn
