"""Images per second on a machine that is busy: the collapse of threads that wait for each other, and its cure.

The threads of a training wait for each other at the end of every operation, so one that shares its core with a
neighbour stops them all; two trainings with a thread on every core each stop each other. Workers that own their
cores, with a thread for each, do not. Ours is as many workers as `--jobs auto` chooses; the peer is torch as it
comes, with a thread on every core. Beside them runs a process that never sleeps. Samples take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import evidence
from benchmarks.record import printed_number, write
from benchmarks.throughput_ours import sample
from search_spaces.reference import REFERENCE
from study.calibration.concurrency import best_jobs
from study.calibration.prices import calibrate
from study.errors import UserError
from study.machine.hardware import n_cores


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=5, help="of each kind (default: 5)")
    parser.add_argument("--images", type=int, default=3200, help="per training and sample (default: 3,200)")
    parser.add_argument("--jobs", type=int, metavar="N", help="our workers (default: what --jobs auto chooses)")


def run(options: argparse.Namespace) -> int:
    evidence.at_least(options, samples=1, images=128, jobs=1)
    if options.device != "cpu":
        raise UserError(f"neighbour is about waiting threads on a CPU: --device {options.device}. Add --device cpu.")
    calibration = calibrate("cpu")
    jobs = options.jobs or best_jobs(REFERENCE, calibration.training(calibration.precision))[0]
    ours = sample(options, "--threads", str(max(1, n_cores() // jobs)))
    torchs = sample(options, torch_first=True)
    kinds = {
        "ours alone": (ours, jobs, False),
        "torch alone": (torchs, 1, False),
        "ours beside": (ours, jobs, True),
        "torch beside": (torchs, 1, True),
        "two of torch": (torchs, 2, False),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(options.samples):
        for name, kind in kinds.items():
            found[name].append(_together(*kind))
        print(", ".join(f"{name}: {values[-1]:,.0f}" for name, values in found.items()), flush=True)
    of = {name: statistics.median(values) for name, values in found.items()}
    more = {
        "kinds": found,
        "kept": {side: of[f"{side} beside"] / of[f"{side} alone"] for side in ("ours", "torch")},
        "kept_by_two_of_torch": of["two of torch"] / of["torch alone"],
    }
    workers = f"{jobs} worker{'s' * (jobs > 1)}"
    title = f"training beside a busy process, {workers}; peer: torch's own threads and waiting"
    sides = (found["ours beside"], found["torch beside"])
    write(options, "neighbour-cpu", title, "cpu", "images/s", *sides, "no collapse", more=more)
    return 0


def _together(command: list[str], n: int, busy: bool) -> float:
    """Images per second of `n` samples at once, all together, beside a busy process if asked."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        with ThreadPoolExecutor(n) as pool:
            return sum(pool.map(printed_number, [command] * n))
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
