"""One sample of our side of `throughput`: prints images per second."""

from __future__ import annotations

import argparse
import os

from benchmarks.record import SETTINGS


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=6400, help="(default: 6,400)")
    parser.add_argument("--threads", type=int, metavar="N", help="(default: one for each core)")
    parser.add_argument("--torch-waiting", action="store_true", help="leave waiting threads as torch has them")


def run(options: argparse.Namespace) -> int:
    """An epoch after one that warms up, augmented as the peer does it."""
    if options.torch_waiting:  # read when torch is imported
        for setting in SETTINGS:
            os.environ.pop(setting, None)
    import dataclasses

    import numpy as np
    import torch

    from search_spaces.reference import REFERENCE
    from study.calibration.prices import calibrate
    from study.data.cifar10 import load_train
    from study.machine.hardware import n_cores, n_loaders
    from study.training.loop import train
    from study.training.records import TrainingConfig

    threads = options.threads or n_cores()
    torch.set_num_threads(threads)
    images = load_train(options.data).take(np.arange(options.images))
    augmentation = dataclasses.replace(REFERENCE.augmentation, affine_p=0.5, dropout_p=0.5)
    candidate = dataclasses.replace(REFERENCE, augmentation=augmentation)
    device = options.device
    config = TrainingConfig(
        2, 0, device, calibrate(device).precision, n_loaders=n_loaders(device, n_cores() // threads)
    )
    last = train(candidate, images, config).records[-1]
    print(options.images // 128 * 128 / last.wall_s)
    return 0
