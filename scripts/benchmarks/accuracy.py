"""Validation accuracy after the same epochs, before and after a change of the program: it must not fall.

Trains one candidate, the earlier revision's default, from several seeds with this program and with that revision (its
files are taken from git's history into a temporary folder), side by side, on the same images, and gives the
difference with its 95% interval (Student's t, paired by seed). `--before cpu` compares the device with the CPU instead,
both with this program: images are the same, arithmetic is not, so accuracies are compared and not weights. Exit code 1
if more than half a point is surely lost.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evidence
from benchmarks.record import printed, write
from study.calibration.prices import calibrate
from study.command_line.wording import counted
from study.errors import UserError
from study.machine.paths import REPOSITORY

MARGIN = 0.005
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

candidate, data, precision, epochs, n_train, n_val, seed, device = sys.argv[1:]
torch.set_num_threads(max(1, n_cores() // 2))  # the other side trains at the same time
everything = load_train(data)
for_training, for_validation = search_split(everything.labels, int(n_train), int(n_val))
config = TrainingConfig(int(epochs), int(seed), device, precision, 0)
images, validation = everything.take(for_training), everything.take(for_validation)
records = train(Candidate.from_json(json.loads(candidate)), images, config, validation).records
print(records[-1].val_accuracy)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", default="ef911b3", metavar="REVISION", help="or cpu (default: ef911b3)")
    # Between seeds a difference has 0.6 points: of fewer the goal is hardly ever shown to be met.
    parser.add_argument("--seeds", type=int, default=16, help="of each side (default: 16)")
    parser.add_argument("--epochs", type=int, default=6, help="(default: 6)")
    parser.add_argument("--train-images", type=int, default=15_000, metavar="N", help="(default: 15,000)")
    parser.add_argument("--val-images", type=int, default=5_000, metavar="N", help="(default: 5,000)")


def run(options: argparse.Namespace) -> int:
    evidence.at_least(options, seeds=2, epochs=1)
    device, before = options.device, options.before
    precision = calibrate(device).precision
    sizes = [str(number) for number in (options.epochs, options.train_images, options.val_images)]
    found: dict[str, list[float]] = {"ours": [], "before": []}
    with tempfile.TemporaryDirectory() as folder:
        other = ("cpu", REPOSITORY) if before == "cpu" else (device, Path(folder))
        if before != "cpu":
            _unpack(before, Path(folder))
        candidate = _last_line(DEFAULT, [], other)
        for seed in range(options.seeds):
            words = [candidate, options.data, precision, *sizes, str(seed)]
            with ThreadPoolExecutor(2) as both:
                results = both.map(functools.partial(_last_line, ONE, words), ((device, REPOSITORY), other))
                for side, result in zip(found, results, strict=True):
                    found[side].append(float(result))
            print(f"seed {seed}: ours {found['ours'][-1]:.4f}, before {found['before'][-1]:.4f}", flush=True)
    losses = [before - ours for ours, before in zip(found["ours"], found["before"], strict=True)]
    loss, (low, high) = statistics.mean(losses), evidence.t_interval(losses)
    lost = f"{100 * loss:+.2f} points lost ({100 * low:+.2f} to {100 * high:+.2f})"
    print(lost)
    fidelity = f"{counted(options.epochs, 'epoch')} of {options.train_images:,} images"
    title = f"validation accuracy after {fidelity}; peer: {before}; {lost}"
    name = f"accuracy-{device}" + ("-against-cpu" if before == "cpu" else "")
    goal = f"at most {100 * MARGIN:g} points lost, with 95% confidence"
    more = {"loss": loss, "loss_interval_95": [low, high], "candidate": json.loads(candidate)}
    write(options, name, title, device, "accuracy", found["ours"], found["before"], goal, more=more)
    return int(high > MARGIN)


def _last_line(source: str, words: list[str], side: tuple[str, Path]) -> str:
    """What `source` prints last on a device with the program in a folder."""
    device, place = side
    command = [sys.executable, "-c", source, *words, device]
    return printed(command, place, PYTHONPATH=str(place)).strip().splitlines()[-1]


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
