"""What every benchmark writes: one JSON file with both sides' samples, the machine and the command."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
        name: `throughput...`, `trials_per_hour...`, `overhead...`; ends with the device.
        title: What was measured, and against what.
        device: "cpu" or "cuda".
        unit: Of `ours` and `peer`.
        ours: One value per sample.
        peer: Likewise, taken in turns with `ours`; None where nothing is compared.
        goal: In words.
        higher_is_better: Whether a higher value is; a ratio above 1 always means that ours is better.
        more: Further figures for the file.
    """
    from study.machine.hardware import hardware, versions

    sides: dict[str, Any] = {"ours": summary(ours)}
    if peer is not None:
        sides["peer"] = summary(peer)
        ratio = sides["ours"]["median"] / sides["peer"]["median"]
        sides["ratio"] = ratio if higher_is_better else 1 / ratio
    record = {
        "name": name,
        "title": title,
        "device": device,
        "unit": unit,
        **sides,
        "goal": goal,
        **(more or {}),
        "versions": versions(),
        "hardware": hardware(device),
        "command": options.command,
    }
    file: Path = options.out / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    shown = f"{sides['ours']['median']:,.4g} {unit}"
    if peer is not None:
        shown += f", peer {sides['peer']['median']:,.4g}, ratio {sides['ratio']:.2f}"
    print(f"{shown} -> {file}", flush=True)
    return file


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without the settings that importing `study` made in it."""
    return {name: value for name, value in os.environ.items() if name not in SETTINGS} | extra


def printed_number(command: Sequence[str]) -> float:
    """Runs a sample in a process of its own and returns the last line it prints.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout.strip().splitlines()[-1])
