"""Images per second beside a busy neighbour: how far throughput falls, with torch's waiting and with ours.

The threads of a training wait for each other at the end of every operation. By default a waiting thread
keeps its core busy, so a neighbour that holds another core stops the whole training. Ours give the core
up after a moment. The neighbour is one process that never sleeps; samples take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from benchmarks.record import printed_number, write
from study.errors import UserError
from study.paths import REPOSITORY


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=5, help="of each kind (default: 5)")
    parser.add_argument("--images", type=int, default=3200, help="per sample (default: 3,200)")


def run(options: argparse.Namespace) -> int:
    if options.samples < 1 or options.images < 128:
        raise UserError(f"--samples must be at least 1 and --images at least 128: {options.samples}, {options.images}.")
    if options.device != "cpu":
        raise UserError(f"neighbour is about waiting threads on a CPU: --device {options.device}. Add --device cpu.")
    from study.calibration import calibrate

    calibrate("cpu")
    ours = [sys.executable, str(REPOSITORY / "scripts" / "benchmark.py"), "throughput-ours", "--data", options.data]
    ours += ["--device", "cpu", "--images", str(options.images)]
    sides = {"ours": ours, "torch": [*ours, "--torch-waiting"]}
    found: dict[str, list[float]] = {f"{side} {place}": [] for place in ("alone", "beside") for side in sides}
    for _ in range(options.samples):
        for side, command in sides.items():
            found[f"{side} alone"].append(printed_number(command))
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"], env=dict(os.environ))
        try:
            for side, command in sides.items():
                found[f"{side} beside"].append(printed_number(command))
        finally:
            neighbour.kill()
            neighbour.wait()
        print(", ".join(f"{name}: {values[-1]:,.0f}" for name, values in found.items()), flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    write(
        options,
        "neighbour-cpu",
        "the same training beside a busy process; peer: torch's own waiting",
        "cpu",
        "images/s",
        found["ours beside"],
        found["torch beside"],
        "no collapse",
        more={
            "alone": {side: found[f"{side} alone"] for side in sides},
            "kept": {side: medians[f"{side} beside"] / medians[f"{side} alone"] for side in sides},
        },
    )
    return 0
