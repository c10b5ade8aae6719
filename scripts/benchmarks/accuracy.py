"""Validation accuracy after the same epochs, before and after a change of the program: it must not fall.

Trains the space's default candidate from several seeds with this program and with an earlier revision of it
(its files are taken from git's history into a temporary folder), in turns, on the same images, and gives the
difference with its 95% interval (Student's t, paired by seed).
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.record import clean_environment, write
from study.errors import UserError
from study.paths import REPOSITORY

ONE = """
import sys
import numpy as np
import torch
from search_spaces import get_space
from search_spaces.constraints import Limits
from study.calibration import n_cores
from study.data import load_train, search_split
from study.training import TrainingConfig, train

data, device, precision, epochs, n_train, n_val, seed = sys.argv[1:]
torch.set_num_threads(n_cores())
everything = load_train(data)
for_training, for_validation = search_split(everything.labels, int(n_train), int(n_val))
space, limits = get_space("dilated"), Limits()
candidate = space.decode(space.anchors(limits)["default"], limits).candidate
config = TrainingConfig(int(epochs), int(seed), device, precision, 0)
records = train(candidate, everything.take(for_training), config, everything.take(for_validation)).records
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

    from study.calibration import calibrate

    precision = calibrate(options.device).precision
    sizes = [str(number) for number in (options.epochs, options.train_images, options.val_images)]
    found: dict[str, list[float]] = {"ours": [], "before": []}
    with tempfile.TemporaryDirectory() as folder:
        _unpack(options.before, Path(folder))
        for seed in range(options.seeds):
            for side, place in (("ours", REPOSITORY), ("before", Path(folder))):
                command = [sys.executable, "-c", ONE, options.data, options.device, precision, *sizes, str(seed)]
                found[side].append(_printed(command, place))
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
        more={"loss": loss, "loss_interval_95": [loss - half, loss + half]},
    )
    return 0


def _printed(command: list[str], place: Path) -> float:
    environment = clean_environment(PYTHONPATH=str(place))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=place, check=False)
    if done.returncode:
        raise RuntimeError(f"a training failed:\n{done.stderr}")
    return float(done.stdout.strip().splitlines()[-1])


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
