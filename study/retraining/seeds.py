"""Training seeds to their end: from their checkpoints, several at once, by workers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.candidate import Candidate
from study.calibration.concurrency import gains, known_rates, rates
from study.command_line.wording import duration, percent
from study.errors import StudyFailed, TrialFailed
from study.executors.messages import Died, EpochEnded, Failed, Message, Work, WorkerSetup
from study.executors.workplace import Workplace
from study.machine.hardware import n_cores, n_devices, warn_of_jobs
from study.machine.interrupts import InterruptFlag
from study.training.checkpoints import checkpoint_name, load_progress
from study.training.records import EpochRecord, TrainingConfig

CHECKPOINT_S = 60.0
MAX_LOSSES_IN_A_ROW = 3
TICK_S = 0.5


@dataclass(frozen=True)
class Seed:
    """One training to its end.

    Attributes:
        candidate, config: What is trained, and how.
        data, n_train: On so many training images of the data set that has this source.
        checkpoints: Folder of the file that keeps it.
        n_threads: Of torch.
        teacher: The training of the network to learn from, if it learns from one; ended before this one begins.
        role: Begins the file's name.
        digest: Of the data set.
    """

    candidate: Candidate
    config: TrainingConfig
    data: str
    n_train: int
    checkpoints: Path
    n_threads: int
    teacher: Seed | None = None
    role: str = ""
    digest: str = ""

    @property
    def file(self) -> Path:
        """Where it is kept, finished or not."""
        taught_by = [] if self.teacher is None else [self.teacher.file.stem]
        more = [*taught_by, *([self.digest] if self.digest else [])]
        name = checkpoint_name(self.candidate, self.config, self.n_train, *more)
        return self.checkpoints / f"{self.role}{name}.pt"

    @property
    def tested(self) -> Path:
        """Where its logits on the test images are kept."""
        return self.file.with_suffix(".npz")

    def changed(self, **config: Any) -> Seed:
        """The same training with another configuration."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **config))


def seeds_at_once(
    asked: int | None, n_seeds: int, place: Workplace, candidate: Candidate, how: TrainingConfig
) -> tuple[int, float]:
    """How many seeds of `candidate`, trained as `how` says, train at once, and how much faster they are for it than one
    after another."""

    def gain(jobs: int, faster: float) -> float:
        """The last round may be a partial one, and takes as long as the others."""
        return n_seeds / (-(-n_seeds // jobs) * jobs) * faster

    room = place.room()
    if room is not None:
        jobs = min(asked or room, n_seeds)
        return jobs, gain(jobs, jobs)
    if asked is not None:
        warn_of_jobs(asked)
    elif n_seeds == 1:
        return 1, 1.0
    measured = rates(candidate, how) if asked is None else known_rates(candidate, how)
    faster = gains(measured, n_devices(how.device))
    if asked is not None:
        jobs = min(asked, n_seeds)
        return jobs, gain(jobs, max(found for number, found in faster.items() if number <= jobs))
    possible = [number for number in faster if number <= min(n_seeds, n_cores())]
    jobs = max(possible, key=lambda number: (gain(number, faster[number]), -number))
    return jobs, gain(jobs, faster[jobs])


def train_all(seeds: Sequence[Seed], place: Workplace, jobs: int) -> None:
    """Trains all of `seeds` that are not finished, `jobs` at a time, each from its file if it was begun before.

    A worker that is lost is replaced. Where a GPU cannot capture its step, the rest is trained with less of that.

    Raises:
        TrialFailed: One diverged or ran out of memory.
        StudyFailed: Workers of one seed were lost again and again, or its result cannot be written.
        Interrupted: By a signal; the progress is saved first.
        OSError: What is said cannot be written; likewise.
    """
    waiting = [training for seed in seeds if not (training := _Training(seed)).is_finished]
    if not waiting:
        return
    first = waiting[0].seed
    setup = WorkerSetup(
        data=first.data,
        train_images=first.n_train,
        val_images=None,
        device=first.config.device,
        n_threads=first.n_threads,
        checkpoint_s=CHECKPOINT_S,
        digest=first.digest,
    )
    executor, interrupted = place.executor(setup), InterruptFlag()
    running: dict[int, _Training] = {}
    with interrupted:
        try:
            executor.prepare(min(jobs, len(waiting)))
            while waiting or running:
                while waiting and len(running) < jobs:
                    each = waiting.pop(0)
                    running[each.seed.config.seed] = each
                    executor.submit(each.work())
                for message in executor.wait(TICK_S):
                    each = running[message.key]
                    if not isinstance(message, EpochEnded):
                        del running[message.key]
                    if each.hear(message, interrupted):
                        waiting.insert(0, each)
                if interrupted.raised:
                    break
        finally:
            executor.close()
    if interrupted.raised:
        for each in running.values():
            interrupted.say(f"{each.name}: stopped; the same command goes on from here")
        interrupted.end()


class _Training:
    """One seed's way to its end, over as many workers as it takes."""

    def __init__(self, seed: Seed) -> None:
        self.seed, self.name = seed, f"seed {seed.config.seed}"
        progress = load_progress(seed.file, (seed.candidate, seed.config))
        if progress is None:
            seed.file.unlink(missing_ok=True)  # damaged, which was said
        self._n_told = 0 if progress is None else progress.epoch
        self._n_lost = 0
        self.is_finished = self._n_told >= seed.config.epochs
        if not self.is_finished:
            seed.tested.unlink(missing_ok=True)  # it was of another training
        if progress is not None and not self.is_finished:
            print(f"{self.name}: goes on at epoch {progress.epoch + 1}, step {progress.batch + 1}", flush=True)

    def work(self) -> Work:
        return _work(self.seed, self.name)

    def hear(self, message: Message, interrupted: InterruptFlag) -> bool:
        """Whether it has to be given to another worker.

        Raises:
            TrialFailed, StudyFailed: As `train_all`.
        """
        if isinstance(message, EpochEnded):
            self._epoch_ended(message.record, interrupted)
        elif isinstance(message, Failed):
            raise TrialFailed(message.reason)
        elif isinstance(message, Died):
            if not interrupted.raised:  # else it was told to end as this process was
                self._lost(message, interrupted)
            return True
        return False

    def _epoch_ended(self, record: EpochRecord, interrupted: InterruptFlag) -> None:
        if record.epoch < self._n_told:
            return  # of its checkpoint
        self._n_told, self._n_lost = record.epoch + 1, 0
        epochs = self.seed.config.epochs
        left = record.wall_s * sum(map(self._pixels, range(record.epoch + 1, epochs))) / self._pixels(record.epoch)
        interrupted.say(
            f"{self.name} epoch {record.epoch + 1}/{epochs}: train loss {record.train_loss:.3f}, "
            f"accuracy {percent(record.train_accuracy, 2)}, {record.wall_s:.0f} s; {duration(left)} left"
        )

    def _pixels(self, epoch: int) -> int:
        """Of an image, in that epoch."""
        side = self.seed.candidate.architecture.image_size
        return self.seed.candidate.optimisation.side_in(epoch, self.seed.config.epochs, side) ** 2

    def _lost(self, died: Died, interrupted: InterruptFlag) -> None:
        config = self.seed.config
        if died.in_capture and config.capture:
            less = {"compiled": False} if config.compiled else {"capture": False}
            self.seed = self.seed.changed(**less)
            how = "without compiling" if config.compiled else "without graphs, slowly"
            interrupted.say(f"{self.name}: {died.reason}: goes on {how}")
            return
        if died.for_all:
            raise StudyFailed(died.reason)
        self._n_lost += not died.machine_lost
        if died.traceback:
            print(died.traceback, file=sys.stderr, flush=True)
        if died.traceback or self._n_lost == MAX_LOSSES_IN_A_ROW:
            raise StudyFailed(
                f"{self.name}: {died.reason}. The same command goes on from its checkpoint; --jobs 1 needs less memory."
            )
        interrupted.say(f"{self.name}: {died.reason}: goes on from its checkpoint")


def _work(seed: Seed, title: str) -> Work:
    return Work(
        key=seed.config.seed,
        candidate=seed.candidate,
        config=seed.config,
        asks_after=frozenset(),
        checkpoint=seed.file,
        title=title,
        keeps_result=True,
        teacher=None if seed.teacher is None else _work(seed.teacher, "teacher"),
    )
