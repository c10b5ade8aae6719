"""How many trials at once this machine finishes fastest: measured, not guessed.

Small networks leave a GPU idle between kernels, and threads that wait for each other at the end of every
small operation leave cores idle. Several trainings at once fill these gaps, until they get in each
other's way. Measured once on a machine (some seconds in all), kept in the user's cache.
Torch is imported by the processes that train: who only asks what is known needs none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.managers import SyncManager
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.architecture import identifier
from search_spaces.candidate import Candidate
from study.calibration.experience import reached
from study.calibration.prices import keep_unless
from study.command_line.waiting import said_while
from study.data.augmentation import AugmentedBatches, training_order
from study.data.cifar10 import Images
from study.errors import CaptureFailed, StudyFailed, TrialFailed, said
from study.machine import cache
from study.machine.hardware import hardware, n_cores, n_loaders, versions
from study.machine.neighbours import Neighbours
from study.machine.processes import begin, end_with_parent, without_ctrl_c
from study.training.records import TrainingConfig

if TYPE_CHECKING:
    from study.training.loop import Training

N_IMAGES = 12_800
PATIENCE_S = 60.0
"""For the others to be ready."""


@dataclass(frozen=True)
class Window:
    """How long trainings at once are watched.

    Attributes:
        warm_s: Seconds before, in which what was prepared ahead is used up.
        watched_s: Seconds that count.
        n_rounds: How often every number takes its turn; its best round counts, since neighbours only ever add time.
    """

    warm_s: float
    watched_s: float
    n_rounds: int


# Beside a GPU every second counts: it trains some hundred steps in one.
WINDOWS = {"cpu": Window(0.4, 1.0, 2), "cuda": Window(0.2, 0.5, 1)}
ABOUT_S = 10.0
LATE_S = 8.0
"""After which no number takes another turn."""

MOST = 8
WORTH = 1.05
"""A larger number must be faster by this factor: every trial more at once is one that its sampler
knows nothing about."""
CLEAR = 1.2
"""A number that is faster than all others by this factor need not be compared again."""


def best_jobs(candidate: Candidate, how: TrainingConfig) -> tuple[int, dict[int, float]]:
    """The number of trials like `candidate` at once, trained as `how` says, and the images per second of all together
    for every number."""
    measured = rates(candidate, how)
    return choose(reached(hardware(how.device), measured)), measured


def choose(measured: Mapping[int, float]) -> int:
    """The smallest number that no larger one beats by the factor WORTH."""
    numbers = sorted(measured)
    return next(n for n in numbers if all(measured[more] <= WORTH * measured[n] for more in numbers if more > n))


def gains(measured: Mapping[int, float], n_devices: int) -> dict[int, float]:
    """How much faster trainings at once are than one after another, by their number, as far as it is known.

    Args:
        measured: Images per second by number, on one device; may be empty: those that share one gain nothing then.
        n_devices: Trainings on different ones do not slow each other.
    """
    found = {jobs: float(jobs) for jobs in range(1, n_devices + 1)}
    if 1 in measured:
        found |= {n_devices * jobs: n_devices * rate / measured[1] for jobs, rate in measured.items()}
    return found


def rates(candidate: Candidate, how: TrainingConfig) -> dict[int, float]:
    """Images per second by number of trainings of `candidate` at once, from the cache or measured now."""
    known = known_rates(candidate, how)
    if known:
        return known
    with said_while("Measuring once how many trainings at once are fastest here", ABOUT_S):
        neighbours = Neighbours()
        measured = _measured(candidate, how)
        others = neighbours.share()
    keep_unless(others, _name(candidate, how), {str(jobs): rate for jobs, rate in measured.items()})
    return measured


def _measured(candidate: Candidate, how: TrainingConfig) -> dict[int, float]:
    numbers = candidates(n_cores(), how.device)
    while True:
        try:
            return measure(candidate, how, numbers)
        except (BrokenProcessPool, BrokenBarrierError, TrialFailed, CaptureFailed) as error:
            if len(numbers) == 1:
                why = "it was killed; is there enough memory?" if isinstance(error, BrokenProcessPool) else said(error)
                raise StudyFailed(f"no training could be measured on this machine: {why}") from error
            numbers = numbers[:-1]  # most likely too many for the memory


def known_rates(candidate: Candidate, how: TrainingConfig) -> dict[int, float]:
    """What was measured of `candidate` on this machine before; empty if nothing was."""
    return cache.recall(_name(candidate, how), _rates) or {}


def _rates(kept: dict[str, Any]) -> dict[int, float]:
    found = {int(jobs): float(rate) for jobs, rate in kept.items()}
    if not all(jobs >= 1 and 0 < rate < math.inf for jobs, rate in found.items()):
        raise ValueError("no numbers of trainings and their rates")
    return found


def candidates(cores: int, device: str) -> list[int]:
    """Powers of two: on a CPU up to a core each, on a GPU with a core for the augmentation besides."""
    most = min(MOST, cores if device == "cpu" else max(1, cores // 2))
    return [2**power for power in range(MOST.bit_length()) if 2**power <= most]


def measure(
    candidate: Candidate, how: TrainingConfig, numbers: Sequence[int], window: Window | None = None
) -> dict[int, float]:
    """Images per second by number of trainings at once, each in its turn.

    Raises:
        BrokenProcessPool: A training was killed; most likely memory ran out.
        BrokenBarrierError, TrialFailed, CaptureFailed: One could not begin.
    """
    window = window or WINDOWS[how.device]
    found, started = dict.fromkeys(numbers, 0.0), time.monotonic()
    with trainings(candidate, how, max(numbers)) as at_once:
        for _ in range(window.n_rounds):
            for jobs in numbers:
                found[jobs] = max(found[jobs], at_once(jobs, window))
            best, *others = sorted(found.values(), reverse=True)
            if not others or best > CLEAR * others[0] or time.monotonic() - started > LATE_S:
                break
    return found


@contextlib.contextmanager
def trainings(candidate: Candidate, how: TrainingConfig, most: int) -> Iterator[Any]:
    """Up to `most` trainings of `candidate`, each in a process of its own, started and made ready once.

    Yields:
        A function of a number and a window: images per second of so many at once, all together, augmentation
        included.
    """
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(end_with_parent)
    with manager, ProcessPoolExecutor(most, context, begin) as pool:

        def at_once(jobs: int, window: Window) -> float:
            barrier = manager.Barrier(jobs)  # a process that waits takes no second task
            with without_ctrl_c():
                found = [pool.submit(_train, candidate, how, jobs, window, barrier) for _ in range(jobs)]
            return sum(future.result() for future in found)

        at_once(most, Window(0.0, 0.0, 1))
        yield at_once


def _train(candidate: Candidate, how: TrainingConfig, jobs: int, window: Window, barrier: Any) -> float:
    from study.training.loop import failures_said

    try:
        with failures_said():
            return _images_per_second(_ready(candidate, how), jobs, window, barrier)
    except BaseException:  # raised again
        barrier.abort()  # the others must not wait for this one
        raise


def _images_per_second(training: Training, jobs: int, window: Window, barrier: Any) -> float:
    import torch

    from study.data.batches import batches

    torch.set_num_threads(max(1, n_cores() // jobs))
    device, candidate = training.config.device, training.candidate
    size, every = candidate.optimisation.batch_size, 1 if device == "cpu" else 16
    source = AugmentedBatches(training.images, candidate.augmentation, seed=0)
    order = training_order(N_IMAGES, size, seed=0, epochs=1_000_000)
    with contextlib.closing(batches(source, order, device, n_loaders(device, n_cores() // jobs))) as given:

        def images_per_second(seconds: float) -> float:
            started, n_steps = time.perf_counter(), 0
            while n_steps == 0 or time.perf_counter() - started < seconds:
                for _ in range(every):
                    training.train_on(next(given), 0.01, 0.01)
                n_steps += every
                if device == "cuda":
                    torch.cuda.synchronize()
            return n_steps * size / (time.perf_counter() - started)

        images_per_second(0.0)
        barrier.wait(timeout=PATIENCE_S)
        images_per_second(window.warm_s)
        return images_per_second(window.watched_s)


@functools.cache
def _ready(candidate: Candidate, how: TrainingConfig) -> Training:
    """This process's training: a GPU captures it once."""
    from study.training.loop import Training

    rng, n_classes = np.random.default_rng(0), candidate.architecture.n_classes
    images = Images(rng.integers(0, 256, (N_IMAGES, 32, 32, 3), dtype=np.uint8), rng.integers(0, n_classes, N_IMAGES))
    training = Training(candidate, images, how, None)
    training.network.train()
    training.prepare()
    return training


def _name(candidate: Candidate, how: TrainingConfig) -> str:
    kernels = sorted(how.native_depthwise)
    made = candidate.augmentation, candidate.optimisation
    trained = [candidate.architecture.architecture_id, dataclasses.asdict(made[0]), made[1].optimizer]
    of = [hardware(how.device), versions(), how.precision, kernels, *trained, made[1].batch_size]
    return f"jobs-{identifier(of)}"
