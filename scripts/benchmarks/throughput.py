"""Images per second training the reference network with augmentation.

Ours is `study.training.loop`; the peer is `scripts/benchmarks/peers/notebook_peer.py`, the usual notebook. Each sample
is a process of its own and the two take turns, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import evidence
from benchmarks.record import printed_number, write
from benchmarks.throughput_ours import CANDIDATE, sample
from study.calibration.prices import calibrate
from study.command_line.wording import counted

GOAL = {"cpu": "2.3 times", "cuda": "10 times"}
PEER = Path(__file__).parent / "peers" / "notebook_peer.py"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=5, help="of each side (default: 5)")
    parser.add_argument("--images", type=int, default=6400, help="per sample (default: 6,400)")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of the peer (default: 2)")


def run(options: argparse.Namespace) -> int:
    evidence.at_least(options, samples=1, images=128, workers=0)
    calibrate(options.device)  # before any sample, so that none pays for it
    samples: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(CANDIDATE.to_json(), file)
        file.flush()
        peer = [sys.executable, str(PEER), options.data, "--candidate", file.name, "--workers", str(options.workers)]
        peer += ["--images", str(options.images), "--device", options.device]
        for _ in range(options.samples):
            for name, command in (("ours", sample(options)), ("peer", peer)):
                samples[name].append(printed_number(command))
                print(f"{name}: {samples[name][-1]:,.0f} images/s", flush=True)
    workers = counted(options.workers, "worker")
    title = f"training the reference network with augmentation; peer: notebook way, {workers}"
    name = f"throughput-{options.device}-{options.workers}-workers"
    write(options, name, title, options.device, "images/s", samples["ours"], samples["peer"], GOAL[options.device])
    return 0
