"""Seconds an epoch of the reference network, augmentation and validation on.

It is trained as a trial of so many epochs is: validated on all images where the default pruner compares them. The
shares of validation and averaging are of all epochs together, the seconds of those after the first, which warms up.
The share of time in which the training waits for images is recorded beside them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

import evidence
from benchmarks.record import write
from search_spaces.reference import REFERENCE
from study.calibration.prices import calibrate
from study.command_line.wording import counted
from study.data.cifar10 import load_train, search_split
from study.machine.hardware import n_cores, n_loaders
from study.search.plan import DEFAULT_PRUNER
from study.search.pruning import compared_epochs
from study.training.loop import Training
from study.training.records import TrainingConfig
from study.training.step import graph_of


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=6, help="the first one warms up (default: 6)")
    parser.add_argument("--images", type=int, default=45_000, help="an epoch (default: 45,000)")
    parser.add_argument("--val-images", type=int, default=5_000, help="validated on (default: 5,000)")


def run(options: argparse.Namespace) -> int:
    evidence.at_least(options, epochs=2)
    device = options.device
    torch.set_num_threads(n_cores())
    everything = load_train(options.data)
    for_training, for_validation = search_split(everything.labels, options.images, options.val_images)
    images, validation = everything.take(for_training), everything.take(for_validation)
    whole = compared_epochs(DEFAULT_PRUNER, options.epochs)
    precision, loaders = calibrate(device).precision, n_loaders(device, n_cores())
    config = TrainingConfig(options.epochs, 0, device, precision, loaders, whole_validations=whole)
    training = Training(REFERENCE, images, config, validation)
    records = training.run(lambda record: print(f"{record.wall_s:.2f} s", flush=True), None, None).records
    seconds = [record.wall_s for record in records[1:]]
    total_s = sum(record.wall_s for record in records)
    validation_share = sum(record.val_frac * record.wall_s for record in records) / total_s
    ema_share = _ema_seconds(training) * training.n_steps / total_s
    more: dict[str, Any] = {
        "images": options.images,
        "val_images": options.val_images,
        "validation_share": validation_share,
        "ema_share": ema_share,
        "waiting_share": statistics.median(record.wait_frac for record in records[1:]),
    }
    title = (
        f"an epoch of the reference network, {options.images:,} images, validated on {options.val_images:,} as a trial "
        f"of {counted(options.epochs, 'epoch')} is; validation and averages take "
        f"{validation_share + ema_share:.1%} of it"
    )
    goal = "at most 0.5 s, 5%" if device == "cuda" else "at most 5%"
    name = f"epoch-{device}-{options.images}"
    write(options, name, title, device, "s", seconds, goal=goal, higher_is_better=False, more=more)
    print(", ".join(f"{name} {value:,.4g}" for name, value in more.items()))
    return 0


def _ema_seconds(training: Training) -> float:
    """Of one update, as the step has it: on a GPU within a graph."""
    on_gpu = training.config.device == "cuda"
    weight = torch.tensor(0.01, device="cuda") if on_gpu else 0.01

    def update() -> None:
        training.ema.update(weight)

    again = graph_of(update).replay if on_gpu else update
    n_times = 50
    again()
    started = time.perf_counter()
    for _ in range(n_times):
        again()
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / n_times
