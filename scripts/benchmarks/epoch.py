"""Seconds an epoch of the reference network, augmentation and validation on, beside what bounds it.

It is trained as a trial of so many epochs is: validated on all images where the default pruner compares them. The
shares of validation and averaging are of all epochs together, the seconds of those after the first, which warms up.

The bounds: how many images per second all cores can augment, and on a GPU the time that moving the
unavoidable bytes takes (2 MB an image, forward and backward, at the bandwidth of a large copy measured here).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.record import write
from study.errors import UserError

BYTES_PER_IMAGE = 2e6
BATCH = 128


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=6, help="the first one warms up (default: 6)")
    parser.add_argument("--images", type=int, default=45_000, help="an epoch (default: 45,000)")
    parser.add_argument("--val-images", type=int, default=5_000, help="validated on (default: 5,000)")


def run(options: argparse.Namespace) -> int:
    if options.epochs < 2:
        raise UserError(f"--epochs must be at least 2, since the first one warms up: {options.epochs}.")
    import torch

    from search_spaces.reference import REFERENCE
    from study.calibration.prices import calibrate
    from study.data.cifar10 import load_train, search_split
    from study.machine.hardware import n_cores, n_loaders
    from study.search.plan import DEFAULT_PRUNER
    from study.search.pruning import compared_epochs
    from study.training.loop import Training
    from study.training.records import TrainingConfig

    device = options.device
    torch.set_num_threads(n_cores())
    everything = load_train(options.data)
    for_training, for_validation = search_split(everything.labels, options.images, options.val_images)
    images, validation = everything.take(for_training), everything.take(for_validation)
    config = TrainingConfig(
        options.epochs,
        0,
        device,
        calibrate(device).precision,
        n_loaders(device, 1),
        whole_validations=compared_epochs(DEFAULT_PRUNER, options.epochs),
    )
    training = Training(REFERENCE, images, config, validation)
    records = training.run(lambda record: print(f"{record.wall_s:.2f} s", flush=True), None, None).records
    seconds = [record.wall_s for record in records[1:]]
    total_s = sum(record.wall_s for record in records)
    epoch_s = statistics.median(seconds)
    validation_share = sum(record.val_frac * record.wall_s for record in records) / total_s
    ema_share = _ema_seconds(training) * training.n_steps / total_s
    ceiling = _augmented_per_second()
    more: dict[str, Any] = {
        "images": options.images,
        "val_images": options.val_images,
        "validation_share": validation_share,
        "ema_share": ema_share,
        "waiting_share": statistics.median(record.wait_frac for record in records[1:]),
        "augmentation_ceiling_images_per_s": ceiling,
        "share_of_ceiling": options.images / epoch_s / ceiling,
    }
    shares = f"{validation_share + ema_share:.1%}"
    if device == "cuda":
        bandwidth = _bytes_per_second()
        more["copy_bandwidth_bytes_per_s"] = bandwidth
        more["floor_s"] = BYTES_PER_IMAGE * options.images / bandwidth
    write(
        options,
        f"epoch-{device}-{options.images}",
        f"an epoch of the reference network, {options.images:,} images, validated on {options.val_images:,}"
        f" as a trial of {options.epochs} epochs is; validation and averages take {shares} of it",
        device,
        "s",
        seconds,
        goal="at most 0.5 s, 5%" if device == "cuda" else "at most 5%",
        higher_is_better=False,
        more=more,
    )
    print(", ".join(f"{name} {value:,.4g}" for name, value in more.items()))
    return 0


def _ema_seconds(training: Any) -> float:
    """Of one update, as the step has it: on a GPU within a graph."""
    import torch

    from study.training.step import graph_of

    on_gpu = training.config.device == "cuda"

    weight = torch.tensor(0.01, device="cuda") if on_gpu else 0.01

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def update() -> None:
        training.ema.update(weight)

    again = graph_of(update).replay if on_gpu else update
    wait()
    started = time.perf_counter()
    for _ in range(50):
        again()
    wait()
    return (time.perf_counter() - started) / 50


def _augmented_per_second() -> float:
    """Images per second that all cores augment together, doing nothing else, as the reference network has them."""
    from study.machine.hardware import n_cores

    cores = n_cores()
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_augment, [1] * cores))  # imports
        n_batches = 60
        started = time.perf_counter()
        list(pool.map(_augment, [n_batches] * cores))
        return cores * n_batches * BATCH / (time.perf_counter() - started)


def _augment(n_batches: int) -> None:
    import numpy as np

    from search_spaces.reference import REFERENCE
    from study.data.augmentation import AugmentedBatches, BatchSpec
    from study.data.cifar10 import Images

    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
    batches = AugmentedBatches(Images(pixels, np.zeros(BATCH, np.int64)), REFERENCE.augmentation, seed=0)
    for number in range(n_batches):
        batches[BatchSpec(0, number, np.arange(BATCH))]


def _bytes_per_second() -> float:
    """Of a large copy on the GPU, bytes read plus bytes written."""
    import torch

    source = torch.randint(0, 255, (2**30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    times = []
    for _ in range(10):
        events[0].record()
        target.copy_(source)
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]) / 1e3)
    return float(2 * source.numel() / statistics.median(times))
