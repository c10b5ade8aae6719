"""Benchmarks against the usual ways, side by side on one machine in one run.

    python scripts/benchmark.py throughput [--samples 5] [--images 6400] [--workers 2]

`throughput`: images per second training the reference network with augmentation. Ours is `study.training`;
the peer is `scripts/notebook_peer.py`. Each sample is a process of its own and the two take turns, so that
a busy moment of the machine hits both. Results go to results/benchmarks/<name>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from study.errors import UserError, run_command
from study.paths import REPOSITORY, RESULTS

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
GOAL = {"cpu": "2.0 times", "cuda": "10 times"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python scripts/benchmark.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=("throughput", "ours"))
    parser.add_argument("--samples", type=int, default=5, help="of each side (default: 5)")
    parser.add_argument("--images", type=int, default=6400, help="per sample (default: 6,400)")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of the peer (default: 2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmarks", help="(default: results/benchmarks)")
    options = parser.parse_args(argv)
    if options.samples < 1 or options.images < 128:
        raise UserError(f"--samples must be at least 1 and --images at least 128: {options.samples}, {options.images}.")
    from study.calibration import resolve_device
    from study.data import find_folder

    device, data = resolve_device(options.device), str(find_folder(options.data).resolve())
    if options.benchmark == "ours":
        print(_ours(data, options.images, device))
        return 0
    return _throughput(options, data, device)


def _throughput(options: argparse.Namespace, data: str, device: str) -> int:
    from study.calibration import hardware, versions

    scripts = REPOSITORY / "scripts"
    size = ["--images", str(options.images), "--device", device]
    ours = [sys.executable, str(scripts / "benchmark.py"), "ours", "--data", data, *size]
    peer = [sys.executable, str(scripts / "notebook_peer.py"), data, "--workers", str(options.workers), *size]
    samples: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(options.samples):
        for name, command in (("ours", ours), ("peer", peer)):
            samples[name].append(_printed_number(command))
            print(f"{name}: {samples[name][-1]:,.0f} images/s", flush=True)
    sides = {name: _summary(values) for name, values in samples.items()}
    name = f"throughput-{device}-{options.workers}-workers"
    record = {
        "name": name,
        "title": f"training the reference network with augmentation; peer: notebook way, {options.workers} workers",
        "device": device,
        "unit": "images/s",
        **sides,
        "ratio": sides["ours"]["median"] / sides["peer"]["median"],
        "goal": GOAL[device],
        "versions": versions(),
        "hardware": hardware(device),
        "command": f"python scripts/benchmark.py throughput --samples {options.samples} --images {options.images} "
        f"--workers {options.workers}",
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"ratio {record['ratio']:.2f} -> {options.out / f'{name}.json'}")
    return 0


def _printed_number(command: list[str]) -> float:
    """The last line a process prints, without the settings that importing `study` made here."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout.strip().splitlines()[-1])


def _ours(data: str, n_images: int, device: str) -> float:
    """Images per second of an epoch, after one that warms up. Augmentation as in the peer."""
    import dataclasses

    import numpy as np
    import torch

    from search_spaces.reference import REFERENCE
    from study.calibration import calibrate, n_cores, n_loaders
    from study.data import load_train
    from study.training import TrainingConfig, train

    torch.set_num_threads(n_cores())
    images = load_train(data).take(np.arange(n_images))
    augmentation = dataclasses.replace(REFERENCE.augmentation, affine_p=0.5, dropout_p=0.5)
    candidate = dataclasses.replace(REFERENCE, augmentation=augmentation)
    config = TrainingConfig(2, 0, device, calibrate(device).precision, n_loaders=n_loaders(device, 1))
    last = train(candidate, images, config).records[-1]
    return n_images // 128 * 128 / last.wall_s


def _summary(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "samples": values}


if __name__ == "__main__":
    run_command(main)
