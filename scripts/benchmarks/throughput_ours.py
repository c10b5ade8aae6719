"""One sample of our side of `throughput`: prints images per second."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from search_spaces.reference import REFERENCE
from study.machine.paths import REPOSITORY

AUGMENTATION = dataclasses.replace(REFERENCE.augmentation, affine_p=0.5, dropout_p=0.5)
CANDIDATE = dataclasses.replace(REFERENCE, augmentation=AUGMENTATION)


TORCH_FIRST = "import runpy, sys, torch; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
"""Runs a script with torch loaded before `study` says how its threads wait: as torch has them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=6400, help="(default: 6,400)")
    parser.add_argument("--threads", type=int, metavar="N", help="(default: one for each core)")


def sample(options: argparse.Namespace, *words: str, torch_first: bool = False) -> list[str]:
    """The command of a sample with the data, device and number of images of another benchmark."""
    start = [
        sys.executable,
        *(["-c", TORCH_FIRST] if torch_first else []),
        str(REPOSITORY / "scripts" / "benchmark.py"),
    ]
    where = ("--data", options.data, "--device", options.device, "--images", str(options.images))
    return [*start, "throughput-ours", *where, *words]


def run(options: argparse.Namespace) -> int:
    """An epoch after one that warms up."""
    import numpy as np
    import torch

    from study.calibration.prices import calibrate
    from study.data.cifar10 import load_train
    from study.machine.hardware import n_cores, n_loaders
    from study.training.loop import train
    from study.training.records import TrainingConfig

    threads, device = options.threads or n_cores(), options.device
    torch.set_num_threads(threads)
    images = load_train(options.data).take(np.arange(options.images))
    loaders = n_loaders(device, threads)
    config = TrainingConfig(2, 0, device, calibrate(device).precision, n_loaders=loaders)
    print(options.images // 128 * 128 / train(CANDIDATE, images, config).records[-1].wall_s)
    return 0
