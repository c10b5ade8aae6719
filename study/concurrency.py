"""How many trials at once this machine finishes fastest: measured, not guessed.

Small networks leave a GPU idle between kernels, and threads that wait for each other at the end of every
small operation leave cores idle. Several trainings at once fill these gaps, until they get in each
other's way. Measured once on a machine (some seconds for every number tried), kept in the user's cache.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.managers import SyncManager
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np

from search_spaces.architecture import identifier
from search_spaces.reference import REFERENCE
from study.calibration import hardware, n_cores, n_loaders, versions
from study.errors import TrialFailed
from study.paths import cache_dir
from study.processes import end_with_parent

N_IMAGES = {"cpu": 3_840, "cuda": 102_400}
"""Images of an epoch of each training: some seconds. Beside a GPU far more than loaders prepare ahead."""
N_EPOCHS = 3

MOST = 8
WORTH = 1.05
"""A larger number must be faster by this factor: every trial more at once is one that its sampler
knows nothing about."""


def best_jobs(device: str, precision: str) -> tuple[int, dict[int, float]]:
    """The number of trials at once, and the images per second of all together for every number tried."""
    measured = rates(device, precision)
    return choose(measured), measured


def choose(measured: Mapping[int, float]) -> int:
    """The smallest number that no larger one beats by the factor WORTH."""
    best = min(measured)
    for jobs in sorted(measured):
        if measured[jobs] > WORTH * measured[best]:
            best = jobs
    return best


def rates(device: str, precision: str) -> dict[int, float]:
    """Images per second by number of trainings at once, from the cache or measured now."""
    known = known_rates(device, precision)
    if known:
        return known
    print("Measuring once how many trainings at once are fastest here (some seconds for each number)", flush=True)
    measured: dict[int, float] = {}
    for jobs in candidates(n_cores(), device):
        try:
            measured[jobs] = images_per_second(device, precision, jobs, N_IMAGES[device])
        except (BrokenProcessPool, BrokenBarrierError, TrialFailed):
            if not measured:
                raise
            break  # too many for the memory: the numbers before it stand
    file = _file(device, precision)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".new")
        temporary.write_text(json.dumps({str(jobs): rate for jobs, rate in measured.items()}))
        temporary.replace(file)
    except OSError:  # a cache that cannot be written only costs the next run some seconds
        pass
    return measured


def known_rates(device: str, precision: str) -> dict[int, float]:
    """What was measured on this machine before; empty if nothing was."""
    try:
        return {int(jobs): float(rate) for jobs, rate in json.loads(_file(device, precision).read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def candidates(cores: int, device: str) -> list[int]:
    """Powers of two: on a CPU up to a core each, on a GPU with a core for the augmentation besides."""
    most = min(MOST, cores if device == "cpu" else max(1, cores // 2))
    return [2**power for power in range(MOST.bit_length()) if 2**power <= most]


def images_per_second(device: str, precision: str, jobs: int, n_images: int) -> float:
    """Of `jobs` trainings of the reference network at once, all together, augmentation included.

    Raises:
        BrokenProcessPool: One of them was killed; most likely memory ran out.
    """
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(end_with_parent)
    with manager:
        barrier = manager.Barrier(jobs)
        with ProcessPoolExecutor(jobs, context, end_with_parent) as pool:
            found = [pool.submit(_train, device, precision, jobs, n_images, barrier) for _ in range(jobs)]
            return sum(future.result() for future in found)


def _train(device: str, precision: str, jobs: int, n_images: int, barrier: Any) -> float:
    import torch

    from study.data import Images
    from study.training import EpochRecord, TrainingConfig, train

    torch.set_num_threads(max(1, n_cores() // jobs))
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (n_images, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n_images))

    def together(record: EpochRecord) -> None:
        if record.epoch + 1 < N_EPOCHS:  # the first one warms up; the others are run by all at once
            barrier.wait(timeout=120)

    config = TrainingConfig(N_EPOCHS, 0, device, precision, n_loaders(device, jobs))
    records = train(REFERENCE, images, config, on_epoch=together).records[1:]
    seconds = min(record.wall_s for record in records)  # neighbours on the machine only ever add time
    return n_images // REFERENCE.optimisation.batch_size * REFERENCE.optimisation.batch_size / seconds


def _file(device: str, precision: str) -> Path:
    return cache_dir() / f"jobs-{identifier([hardware(device), versions(), precision])}.json"
