"""Validation accuracy after the same epochs, before and after a change of the program: it must not fall.

Trains one candidate, the earlier revision's default, from several seeds with this program and with that revision (its
files are taken from git's history into a temporary folder), side by side, on the same images, and gives the
difference with its 95% interval (Student's t, paired by seed).
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
import statistics
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.record import clean_environment, write
from study.errors import UserError
from study.machine.paths import REPOSITORY

DEFAULT = """
import json
from search_spaces import get_space
from search_spaces.constraints import Limits

space, limits = get_space("dilated"), Limits()
print(json.dumps(space.decode(space.anchors(limits)["default"], limits).candidate.to_json()))
"""
ONE = """
import json
import sys
import numpy as np
import torch
from search_spaces.candidate import Candidate
try:
    from study.data.cifar10 import load_train, search_split
    from study.machine.hardware import n_cores
    from study.training.loop import train
    from study.training.records import TrainingConfig
except ImportError:  # a revision from before the rooms
    from study.calibration import n_cores
    from study.data import load_train, search_split
    from study.training import TrainingConfig, train

candidate, data, device, precision, epochs, n_train, n_val, seed = sys.argv[1:]
torch.set_num_threads(max(1, n_cores() // 2))  # the other side trains at the same time
everything = load_train(data)
for_training, for_validation = search_split(everything.labels, int(n_train), int(n_val))
config = TrainingConfig(int(epochs), int(seed), device, precision, 0)
images, validation = everything.take(for_training), everything.take(for_validation)
records = train(Candidate.from_json(json.loads(candidate)), images, config, validation).records
print(records[-1].val_accuracy)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", default="ef911b3", metavar="REVISION", help="to compare with (default: ef911b3)")
    parser.add_argument("--seeds", type=int, default=5, help="of each side (default: 5)")
    parser.add_argument("--epochs", type=int, default=6, help="(default: 6)")
    parser.add_argument("--train-images", type=int, default=15_000, metavar="N", help="(default: 15,000)")
    parser.add_argument("--val-images", type=int, default=5_000, metavar="N", help="(default: 5,000)")


def run(options: argparse.Namespace) -> int:
    if options.seeds < 2:
        raise UserError(f"--seeds must be at least 2 for an interval: {options.seeds}.")
    from scipy import stats

    from study.calibration.prices import calibrate

    precision = calibrate(options.device).precision
    sizes = [str(number) for number in (options.epochs, options.train_images, options.val_images)]
    found: dict[str, list[float]] = {"ours": [], "before": []}
    with tempfile.TemporaryDirectory() as folder:
        _unpack(options.before, Path(folder))
        candidate = _printed([sys.executable, "-c", DEFAULT], Path(folder))
        for seed in range(options.seeds):
            words = [candidate, options.data, options.device, precision, *sizes, str(seed)]
            command = [sys.executable, "-c", ONE, *words]
            with ThreadPoolExecutor(2) as both:
                results = both.map(functools.partial(_printed, command), (REPOSITORY, Path(folder)))
                for side, result in zip(found, results, strict=True):
                    found[side].append(float(result))
            print(f"seed {seed}: ours {found['ours'][-1]:.4f}, before {found['before'][-1]:.4f}", flush=True)
    losses = [before - ours for ours, before in zip(found["ours"], found["before"], strict=True)]
    loss, error = statistics.mean(losses), statistics.stdev(losses) / math.sqrt(len(losses))
    half = float(stats.t.ppf(0.975, len(losses) - 1)) * error
    lost = f"{100 * loss:+.2f} points lost ({100 * (loss - half):+.2f} to {100 * (loss + half):+.2f})"
    print(lost)
    write(
        options,
        f"accuracy-{options.device}",
        f"validation accuracy after {options.epochs} epochs of {options.train_images:,} images; "
        f"peer: {options.before}; {lost}",
        options.device,
        "accuracy",
        found["ours"],
        found["before"],
        "at most 0.5 points lost, with 95% confidence",
        more={"loss": loss, "loss_interval_95": [loss - half, loss + half], "candidate": json.loads(candidate)},
    )
    return 0


def _printed(command: list[str], place: Path) -> str:
    """The last line that `command` prints with the program in `place`."""
    environment = clean_environment(PYTHONPATH=str(place))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=place, check=False)
    if done.returncode:
        raise RuntimeError(f"a training failed:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def _unpack(revision: str, folder: Path) -> None:
    """The files of `revision`, from the history of this clone.

    Raises:
        UserError: There is no such revision here.
    """
    command = ["git", "-C", str(REPOSITORY), "archive", revision, "study", "search_spaces"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode().strip().splitlines()[-1]
        raise UserError(f"--before must name a revision of this clone: {revision!r} ({reason}).")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
