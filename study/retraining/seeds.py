"""Training seeds to their end: from their checkpoints, several at once."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.candidate import Candidate
from study.calibration.concurrency import known_rates, rates
from study.command_line.wording import duration, percent
from study.data.cifar10 import load_train
from study.errors import CaptureFailed, StudyFailed
from study.machine.hardware import n_cores
from study.machine.interrupts import InterruptFlag
from study.machine.processes import end_with_parent
from study.training.checkpoints import checkpoint_name, forget_snapshots, load_progress, save_progress
from study.training.records import EpochRecord, Progress, TrainingConfig

CHECKPOINT_S = 60


@dataclass(frozen=True)
class Seed:
    """One training to its end.

    Attributes:
        candidate, config: What is trained, and how.
        data, n_train: On the first so many training images of this folder.
        checkpoints: Folder of the file that keeps it.
        n_threads: Of torch.
        teacher: The training of the network to learn from, if it learns from one; ended before this one begins.
        role: Begins the file's name.
    """

    candidate: Candidate
    config: TrainingConfig
    data: str
    n_train: int
    checkpoints: Path
    n_threads: int
    teacher: Seed | None = None
    role: str = ""

    @property
    def file(self) -> Path:
        """Where it is kept, finished or not."""
        taught_by = [] if self.teacher is None else [self.teacher.file.stem]
        name = checkpoint_name(self.candidate, self.config, self.n_train, *taught_by)
        return self.checkpoints / f"{self.role}{name}.pt"

    @property
    def tested(self) -> Path:
        """Where its logits on the test images are kept."""
        return self.file.with_suffix(".npz")

    def changed(self, **config: Any) -> Seed:
        """The same training with another configuration."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **config))


def finished(seed: Seed) -> Progress:
    """What the finished training of `seed` left.

    Raises:
        StudyFailed: It is not finished, or cannot be read.
    """
    progress = load_progress(seed.file, (seed.candidate, seed.config))
    if progress is None or progress.epoch < seed.config.epochs:
        raise StudyFailed(f"{seed.file} does not hold a finished training; run the same command again.")
    return progress


def seeds_at_once(asked: int | None, n_seeds: int, device: str, precision: str) -> tuple[int, float]:
    """How many seeds train at once, and how much faster all of them are for it than one after another."""

    def places(jobs: int) -> int:
        """The last round may be a partial one, and takes as long as the others."""
        return -(-n_seeds // jobs) * jobs

    if asked is not None:
        measured = known_rates(device, precision)
        jobs = min(asked, n_seeds, n_cores())
    elif n_seeds == 1:
        return 1, 1.0
    else:
        measured = rates(device, precision)
        possible = [number for number in measured if number <= n_seeds] or [1]
        jobs = min(possible, key=lambda number: (places(number) / measured[number], number))
    if jobs not in measured or 1 not in measured:
        # Not measured: seeds at once share the cores of a CPU and gain nothing there.
        return jobs, 1.0 if device == "cpu" else float(jobs)
    return jobs, n_seeds / places(jobs) * measured[jobs] / measured[1]


def train_all(seeds: Sequence[Seed], jobs: int) -> None:
    """Trains all of `seeds`, `jobs` at a time; where a GPU cannot capture its step, with less of that.

    Raises:
        TrialFailed, StudyFailed, KeyboardInterrupt: As `_train_together`.
    """
    try:
        if jobs > 1:
            _train_together(seeds, jobs)
        else:
            for seed in seeds:
                train_seed(seed)
        return
    except CaptureFailed as error:
        print(f"a CUDA graph could not be captured ({error}): goes on without compiling", flush=True)
    # In other processes: this one's allocator may be out of order. What is finished stays so.
    try:
        _train_together([seed.changed(compiled=False) for seed in seeds], jobs)
    except CaptureFailed as error:
        print(f"a CUDA graph could not be captured ({error}): goes on without graphs, slowly", flush=True)
        _train_together([seed.changed(compiled=False, capture=False) for seed in seeds], jobs)


def _train_together(seeds: Sequence[Seed], jobs: int) -> None:
    """`train_seed` for each of `seeds`, `jobs` at a time, each in a process that ends with this one.

    Raises:
        TrialFailed, CaptureFailed: As `train_seed`.
        StudyFailed: One of the processes was killed.
        KeyboardInterrupt: Ctrl-C or SIGTERM, once all of them have saved their progress.
    """
    interrupted = InterruptFlag(pass_on=True)
    context = multiprocessing.get_context("spawn")
    try:
        with interrupted, ProcessPoolExecutor(jobs, context, end_with_parent) as pool:
            # Round by round: after Ctrl-C none must begin what another left.
            for start in range(0, len(seeds), jobs):
                finished = list(pool.map(_trains_to_its_end, seeds[start : start + jobs]))
                if interrupted.raised or not all(finished):
                    raise KeyboardInterrupt
    except BrokenProcessPool as error:
        if interrupted.raised:  # it was stopped where there was nothing to save yet
            raise KeyboardInterrupt from error
        raise StudyFailed(
            "a process that trains a seed was killed (is there enough memory?); the same command goes on from its "
            "checkpoint, --jobs 1 needs less"
        ) from error


def _trains_to_its_end(seed: Seed) -> bool:
    """Whether `train_seed` was not interrupted."""
    try:
        train_seed(seed)
    except KeyboardInterrupt:
        return False
    return True


def train_seed(seed: Seed) -> None:
    """Trains one seed to its end, from its file if it was begun before, and leaves the result there.

    Raises:
        TrialFailed: It diverged or ran out of memory.
        CaptureFailed: The step cannot be captured on this GPU; this process must train no more.
        KeyboardInterrupt: Ctrl-C; the progress is saved first.
    """
    import torch

    from study.model.network import build
    from study.training.loop import train

    config, name = seed.config, f"seed {seed.config.seed}"
    torch.set_num_threads(seed.n_threads)
    images = load_train(seed.data).take(np.arange(seed.n_train))
    resume = load_progress(seed.file, (seed.candidate, seed.config))
    forget_snapshots(seed.file, resume)
    if resume is not None:
        if resume.epoch >= config.epochs:
            return
        print(f"{name}: goes on at epoch {resume.epoch + 1}, step {resume.batch + 1}", flush=True)
    seed.tested.unlink(missing_ok=True)  # it was of another training
    teacher = None
    if seed.teacher is not None:
        teacher = build(seed.teacher.candidate.architecture)
        teacher.load_state_dict(finished(seed.teacher).ema)
    interrupted = InterruptFlag()
    saved = time.monotonic()

    def on_epoch(record: EpochRecord) -> None:
        left = (config.epochs - record.epoch - 1) * record.wall_s
        print(
            f"{name} epoch {record.epoch + 1}/{config.epochs}: train loss {record.train_loss:.3f}, "
            f"accuracy {percent(record.train_accuracy, 2)}, {record.wall_s:.0f} s; {duration(left)} left",
            flush=True,
        )

    def on_checkpoint(capture: Callable[[], Progress]) -> None:
        nonlocal saved
        if not interrupted.raised and time.monotonic() - saved < CHECKPOINT_S:
            return
        save_progress(capture(), seed.file)
        saved = time.monotonic()
        if interrupted.raised:
            print(f"{name}: stopped; the same command goes on from here", flush=True)
            raise KeyboardInterrupt

    with interrupted:
        trained = train(
            seed.candidate,
            images,
            config,
            on_epoch=on_epoch,
            resume=resume,
            on_checkpoint=on_checkpoint,
            teacher=teacher,
        )
    end = Progress(
        epoch=config.epochs,
        ema=trained.ema.state_dict(),
        records=trained.records,
        snapshots=trained.snapshots,
        compiled=trained.compiled,
    )
    save_progress(end, seed.file)
