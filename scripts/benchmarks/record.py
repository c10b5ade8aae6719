"""What every benchmark writes: one JSON file with both sides' samples, the machine and the command; and their table."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evidence
from study.machine.hardware import hardware, versions
from study.machine.paths import REPOSITORY, RESULTS

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""What importing `study` sets in the environment; a peer's process must not inherit it."""


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest and largest of `values`, and all of them."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "samples": list(values)}


def write(
    options: argparse.Namespace,
    name: str,
    title: str,
    device: str,
    unit: str,
    ours: Sequence[float],
    peer: Sequence[float] | None = None,
    goal: str | None = None,
    higher_is_better: bool = True,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `<options.out>/<name>.json` and prints its figures.

    Args:
        options: Of the benchmark's command: its `out` folder and `command`, the line that repeats it.
        name: Of the file; ends with the device.
        title: What was measured, and against what.
        device: "cpu" or "cuda".
        unit: Of `ours` and `peer`.
        ours: One value per sample.
        peer: Likewise, taken in turns with `ours`; None where nothing is compared.
        goal: In words.
        higher_is_better: Whether a higher value is; a ratio above 1 always means that ours is better.
        more: Further figures for the file.
    """
    sides: dict[str, Any] = {"ours": summary(ours)}
    shown = f"{sides['ours']['median']:,.4g} {unit}"
    if peer is not None:
        sides["peer"] = summary(peer)
        ratio = sides["ours"]["median"] / sides["peer"]["median"]
        sides["ratio"] = ratio if higher_is_better else 1 / ratio
        shown += f", peer {sides['peer']['median']:,.4g}, ratio {sides['ratio']:.2f}"
    about = {"name": name, "title": title, "device": device, "unit": unit}
    machine = {"versions": versions(), "hardware": hardware(device), "command": options.command}
    file: Path = options.out / f"{name}.json"
    evidence.write(file, {**about, **sides, "goal": goal, **(more or {}), **machine})
    print(f"{shown} -> {file}", flush=True)
    return file


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without the settings that importing `study` made in it."""
    return {name: value for name, value in os.environ.items() if name not in SETTINGS} | extra


def printed(command: Sequence[str], place: Path = REPOSITORY, **environment: str) -> str:
    """Runs a command in a process of its own and returns what it prints.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    env = clean_environment(**environment)
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def printed_number(command: Sequence[str]) -> float:
    """The last line that `command` prints."""
    return float(printed(command).strip().splitlines()[-1])


def seconds(command: Sequence[str]) -> float:
    """Wall time of a command, from its start to its end."""
    started = time.perf_counter()
    printed(command)
    return time.perf_counter() - started


def block(results: Path = RESULTS) -> str:
    """The table of all benchmarks in results/README.md."""
    rows = []
    for file in sorted((results / "benchmarks").rglob("*.json"), key=lambda file: (file.name, file.parent)):
        b = evidence.read(file)
        sides = [f"{_spread(b[side])} {b['unit']}" if side in b else "" for side in ("ours", "peer")]
        # The title of a row about accuracy has the paired difference, which a ratio of medians would only blur.
        ratio = f"**{b['ratio']:.2f}**" if "ratio" in b and "loss" not in b else ""
        trend = b.get("trend_rss_mib")
        title = b["title"] + (f"; {trend['slope_mib_per_trial']:+.2f} MiB a trial" if trend else "")
        rows.append((title, *sides, ratio, b["goal"] or "", evidence.machine(b["hardware"]), f"`{b['command']}`"))
    return evidence.table(("benchmark", "ours", "peer", "ratio", "goal", "machine", "command"), rows)


def _spread(side: dict[str, Any]) -> str:
    """Median and range, with as many digits as they deserve."""
    shown = [
        f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        for value in (side[key] for key in ("median", "min", "max"))
    ]
    return "{} ({} to {})".format(*shown)
