"""A worker trains what it is told and nothing else: it opens no storage and knows no Optuna."""

from __future__ import annotations

import functools
import gc
import itertools
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from study.command_line.wording import percent
from study.data.cifar10 import Images, in_turns, search_split
from study.data.opening import load_train, refuse_changed
from study.errors import CaptureFailed, StudyFailed, TrialFailed, UserError, first_line
from study.executors.messages import Died, Ended, EpochEnded, Failed, Work, WorkerSetup
from study.machine import heap
from study.machine.hardware import memory
from study.machine.processes import end_with_parent
from study.model.network import build
from study.reporting.pictures import curve_png
from study.training.checkpoints import finished, forget_snapshots, load_progress, save_progress
from study.training.loop import train
from study.training.records import EpochRecord, Progress

COLLECT_ALL_EVERY = 20
"""Trials between two garbage collections that look at everything."""


class _Stopped(Exception):
    """The supervisor wants this training to end here."""


class _Leave:
    """Whether this process was asked to save what it does and end."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # so is the end of its terminal
        signal.signal(signal.SIGTERM, self._ask)

    def __call__(self) -> bool:
        return self._asked

    def _ask(self, signum: int, frame: Any) -> None:
        self._asked = True


def main(connection: Connection, setup: WorkerSetup) -> None:
    """Serves one supervisor until that is gone or ends this process."""
    leave = _Leave()
    end_with_parent()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the supervisor is gone
        _serve(connection, setup, leave)


def _serve(connection: Connection, setup: WorkerSetup, leave: Callable[[], bool]) -> None:
    torch.set_num_threads(setup.n_threads)
    try:
        images, validation = images_of(setup)
    except (StudyFailed, UserError) as error:
        connection.send(Died(_next(connection).key, str(error), for_all=True))
        raise SystemExit(1) from None
    for n_done in itertools.count(1):
        if leave():
            return
        work = _next(connection)

        def tell(record: EpochRecord, work: Work = work) -> bool:
            asks = record.epoch in work.asks_after
            connection.send(EpochEnded(work.key, record, asks))
            return bool(connection.recv()) if asks else True

        try:
            connection.send(run(work, images, validation, tell, setup.checkpoint_s, leave))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # told, and the process ends with it; another one takes its place
            connection.send(died(work.key, error))
            raise SystemExit(1) from None
        tidy(setup.device, n_done)


def _next(connection: Connection) -> Work:
    """What to do next. An answer may come that is not asked for any more."""
    while True:
        found = connection.recv()
        if isinstance(found, Work):
            return found


def images_of(setup: WorkerSetup) -> tuple[Images, Images | None]:
    """What a worker trains on, and what it validates on.

    Raises:
        StudyFailed: They were changed since.
    """
    everything = load_train(setup.data)
    refuse_changed(everything, setup.digest)
    if setup.val_images is None:
        if setup.train_images >= len(everything):
            return everything, None  # mapped from the disk, for all workers once
        order = in_turns(everything.labels, len(everything.of.classes))
        return everything.take(np.sort(order[: setup.train_images])), None
    for_training, for_validation = search_split(everything.labels, setup.train_images, setup.val_images, everything.of)
    return everything.take(for_training), everything.take(for_validation)


def died(key: int, error: Exception) -> Died:
    """What a worker says that ends because of `error`."""
    if isinstance(error, CaptureFailed):
        return Died(key, f"a CUDA graph could not be captured ({error})", in_capture=True)
    if isinstance(error, StudyFailed):  # of a disk, which is every worker's
        return Died(key, str(error), for_all=True)
    return Died(key, first_line(error), traceback.format_exc())


def run(
    work: Work,
    images: Images,
    validation: Images | None,
    tell: Callable[[EpochRecord], bool],
    checkpoint_s: float,
    leave: Callable[[], bool] = lambda: False,
    saved: Callable[[], None] = lambda: None,
) -> Ended | Failed:
    """Trains `work` to its end, from its checkpoint if there is one.

    Args:
        work: What.
        images, validation: What to train and to validate on.
        tell: Hears of every epoch, those before an interruption first; whether to go on after it.
        checkpoint_s: Seconds between two checkpoints.
        leave: Whether to save the progress and end this process.
        saved: Hears of every checkpoint that was written.

    Raises:
        CaptureFailed: This process must train no more.
        StudyFailed: The result that is wanted cannot be written.
        SystemExit: `leave` says so; the progress is saved.
    """
    started = saved_at = time.monotonic()
    before = memory(work.config.device)  # what the trials before left behind
    records: list[EpochRecord] = []
    complained = False

    def on_epoch(record: EpochRecord) -> None:
        records.append(record)
        if not tell(record):
            raise _Stopped

    def on_checkpoint(capture: Callable[[], Progress]) -> None:
        nonlocal saved_at, complained
        if not leave() and time.monotonic() - saved_at < checkpoint_s:
            return
        try:
            save_progress(capture(), work.checkpoint)
            saved()
        except StudyFailed as error:  # a trial is worth more than its checkpoint
            if work.keeps_result:
                raise
            if not complained:
                print(f"{work.title}: {error} It goes on without.", file=sys.stderr, flush=True)
            complained = True
        saved_at = time.monotonic()
        if leave():
            raise SystemExit(0)

    resume = load_progress(work.checkpoint, (work.candidate, work.config))
    forget_snapshots(work.checkpoint, resume)
    teacher = None
    if work.teacher is not None:
        teacher = build(work.teacher.candidate.architecture)
        teacher.load_state_dict(finished(work.teacher.checkpoint, work.teacher.candidate, work.teacher.config).ema)
    earlier_s = 0.0
    if resume is not None:  # and of the epoch that was cut off
        earlier_s = sum(record.wall_s for record in resume.records) + resume.sums.get("wall_s", 0.0)

    def wall_s() -> float:
        return earlier_s + time.monotonic() - started

    stopped = False
    try:
        for record in () if resume is None else resume.records:
            on_epoch(record)
        if work.keeps_result and resume is not None and resume.epoch >= work.config.epochs:
            return Ended(work.key, stopped, wall_s(), before)  # it was lost after its result was saved
        trained = train(work.candidate, images, work.config, validation, on_epoch, resume, on_checkpoint, teacher)
        if work.keeps_result:
            save_progress(trained.progress(), work.checkpoint)
            saved()
    except _Stopped:
        stopped = True
    except TrialFailed as error:
        return Failed(work.key, str(error), wall_s(), before)
    return Ended(work.key, stopped, wall_s(), before, {} if work.keeps_result else _pictures(work, records, stopped))


def _pictures(work: Work, records: Sequence[EpochRecord], stopped: bool) -> dict[str, bytes]:
    last = records[-1]
    outcome = f"{'pruned' if stopped else 'done'} after epoch {last.epoch + 1}"
    accuracy = "" if last.val_accuracy is None else f", validation accuracy {percent(last.val_accuracy, 2)}"
    try:
        return {"curve.png": curve_png([asdict(each) for each in records], f"{work.title}: {outcome}{accuracy}")}
    except Exception as error:  # whatever drawing fails by, the trial is worth more than its picture
        _do_without(f"curves ({first_line(error)})")
        return {}


@functools.cache
def _do_without(what: str) -> None:
    """Says once what optuna-dashboard will not show."""
    print(f"optuna-dashboard will show no {what}. The study goes on without.", file=sys.stderr, flush=True)


def tidy(device: str, n_done: int) -> None:
    """Hands freed memory back to the system and to those who share the device.

    A collection walks through all that was imported, a fifth of a second, so what is there is set aside after every
    trial. It is freed like everything else, except in cycles; so at times everything is collected.
    """
    if n_done % COLLECT_ALL_EVERY == 0:
        gc.unfreeze()
    gc.collect()
    gc.freeze()
    if device == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
    heap.give_back()
