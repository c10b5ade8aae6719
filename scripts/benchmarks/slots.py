"""Images per second of several trainings at once on one device, against one at a time.

`study.run --jobs auto` decides by the same measurement of its space's default, made once. Every number takes its turn
in every round.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics

import evidence
from benchmarks.record import summary, write
from search_spaces.reference import REFERENCE
from study.calibration.concurrency import WINDOWS, candidates, choose, trainings
from study.calibration.prices import calibrate
from study.machine.hardware import n_cores


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=5, help="of each number (default: 5)")
    parser.add_argument("--seconds", type=float, help="watched each time (default: as --jobs auto)")


def run(options: argparse.Namespace) -> int:
    evidence.at_least(options, samples=1)
    device = options.device
    window = dataclasses.replace(WINDOWS[device], watched_s=options.seconds or WINDOWS[device].watched_s)
    found: dict[int, list[float]] = {jobs: [] for jobs in candidates(n_cores(), device)}
    calibration = calibrate(device)
    how = calibration.training(calibration.precision)
    with trainings(REFERENCE, how, max(found)) as at_once:
        for _ in range(options.samples):
            for jobs, rates in found.items():
                rates.append(at_once(jobs, window))
            print(", ".join(f"{jobs} at once: {rates[-1]:,.0f} images/s" for jobs, rates in found.items()), flush=True)
    chosen = choose({jobs: statistics.median(rates) for jobs, rates in found.items()})
    what = f"{chosen} training{'s' * (chosen > 1)} of the reference network at once (chosen as --jobs auto does)"
    title = f"{what}; peer: one at a time"
    more = {"chosen": chosen, "by_number": {str(jobs): summary(rates) for jobs, rates in found.items()}}
    write(
        options,
        f"throughput-slots-{device}",
        title,
        device,
        "images/s",
        found[chosen],
        found[1],
        "best number chosen",
        more=more,
    )
    return 0
