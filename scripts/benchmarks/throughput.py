"""Images per second training the reference network with augmentation.

Ours is `study.training.loop`; the peer is `scripts/notebook_peer.py`, the usual notebook. Each sample is a
process of its own and the two take turns, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.record import printed_number, write
from study.errors import UserError
from study.machine.paths import REPOSITORY

GOAL = {"cpu": "2.3 times", "cuda": "10 times"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=5, help="of each side (default: 5)")
    parser.add_argument("--images", type=int, default=6400, help="per sample (default: 6,400)")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of the peer (default: 2)")


def run(options: argparse.Namespace) -> int:
    if options.samples < 1 or options.images < 128:
        raise UserError(f"--samples must be at least 1 and --images at least 128: {options.samples}, {options.images}.")
    from study.calibration.prices import calibrate

    calibrate(options.device)  # before any sample, so that none pays for it
    scripts = REPOSITORY / "scripts"
    size = ["--images", str(options.images), "--device", options.device]
    ours = [sys.executable, str(scripts / "benchmark.py"), "throughput-ours", "--data", options.data, *size]
    peer = [sys.executable, str(scripts / "notebook_peer.py"), options.data, "--workers", str(options.workers), *size]
    samples: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(options.samples):
        for name, command in (("ours", ours), ("peer", peer)):
            samples[name].append(printed_number(command))
            print(f"{name}: {samples[name][-1]:,.0f} images/s", flush=True)
    write(
        options,
        f"throughput-{options.device}-{options.workers}-workers",
        f"training the reference network with augmentation; peer: notebook way, {options.workers} workers",
        options.device,
        "images/s",
        samples["ours"],
        samples["peer"],
        GOAL[options.device],
    )
    return 0
