"""Workers as processes of this machine, each with cores or a GPU of its own."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection as mp_connection
from typing import Any, TypeVar

from study.executors import worker
from study.executors.messages import SAVING_S, Died, EpochEnded, Executor, Message, Work, WorkerSetup
from study.machine.hardware import gpus, n_cores
from study.machine.processes import without_ctrl_c

T = TypeVar("T")
_CONTEXT = multiprocessing.get_context("spawn")


class ThisMachine:
    """Workers that share the cores and GPUs of this machine. See `study.executors.workplace.Workplace`."""

    def __init__(self, device: str) -> None:
        self.device = device

    def room(self) -> int | None:
        return None

    def cores(self, jobs: int) -> int:
        return max(1, n_cores() // jobs)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    def executor(self, setup: WorkerSetup) -> Executor:
        return LocalExecutor(setup, gpus(self.device))


class LocalExecutor:
    """Keeps one process for each piece of work at once, and replaces those that die. See `Executor`.

    Args:
        setup: Of every worker.
        gpus: The GPUs to share the workers among, as CUDA_VISIBLE_DEVICES names them; with fewer than two there is
            nothing to choose.
    """

    def __init__(self, setup: WorkerSetup, gpus: Sequence[str] = ()) -> None:
        self._setup, self._gpus = setup, gpus
        self._workers: list[_Worker] = []

    def prepare(self, n: int) -> None:
        while len(self._workers) < n:
            self._start()

    def submit(self, work: Work) -> None:
        for idle in [each for each in self._workers if each.work is None]:
            if idle.process.is_alive() and idle.give(work):
                return
            self._remove(idle)  # it died without work, so nothing is lost
        self._start().give(work)

    def answer(self, key: int, go_on: bool) -> None:
        for each in self._workers:
            if each.work is not None and each.work.key == key:
                with suppress(OSError):  # its death is heard of by the next wait
                    each.connection.send(go_on)

    def wait(self, timeout_s: float) -> list[Message]:
        busy = [each for each in self._workers if each.work is not None]
        handles = [handle for each in busy for handle in (each.connection, each.process.sentinel)]
        ready = mp_connection.wait(handles, timeout_s)
        said: list[Message] = []
        for each in busy:
            if each.connection not in ready and each.process.sentinel not in ready:
                continue
            heard = each.said()
            if not each.process.is_alive():
                heard += each.last_words()
            if not each.process.is_alive() or any(isinstance(message, Died) for message in heard):
                self._remove(each)  # one that said so is not to be given work while it ends
            said += heard
        return said

    def withdraw(self, key: int) -> None:
        for each in [each for each in self._workers if each.work is not None and each.work.key == key]:
            self._remove(each)

    def close(self) -> list[Message]:
        for each in [each for each in self._workers if each.work is None]:
            self._remove(each)  # nothing to save
        for each in self._workers:
            each.process.terminate()
            if each.work is not None:
                self.answer(each.work.key, True)  # it may have asked somebody who was stopped before he answered
        deadline, said = time.monotonic() + SAVING_S, list[Message]()
        for each in self._workers:
            # It may wait until somebody reads what it says.
            while each.work is not None and each.process.is_alive() and time.monotonic() < deadline:
                for message in (heard := each.said()):
                    if isinstance(message, EpochEnded) and message.asks:
                        self.answer(message.key, True)  # it leaves after the next step, and will ask again
                said += heard
                each.process.join(0.02)
            said += each.said()
        for each in list(self._workers):
            self._remove(each)
        return said

    def _start(self) -> _Worker:
        gpu = None
        if len(self._gpus) > 1:  # the one that the fewest work on
            used = [each.gpu for each in self._workers]
            gpu = min(self._gpus, key=used.count)
        self._workers.append(_Worker(dataclasses.replace(self._setup, gpu=gpu)))
        return self._workers[-1]

    def _remove(self, each: _Worker) -> None:
        self._workers.remove(each)
        each.stop()


class _Worker:
    """A worker process and what it works on."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.gpu = setup.gpu
        self.work: Work | None = None
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=worker.main, args=(theirs, setup), name="trial-worker")
        with _visible(setup.gpu), without_ctrl_c():
            self.process.start()
        theirs.close()

    def give(self, work: Work) -> bool:
        """Whether the process took it."""
        self.work = work
        try:
            self.connection.send(work)
        except OSError:
            return False  # a new one's death is heard of by the next wait
        return True

    def said(self) -> list[Message]:
        """All that can be read now."""
        found: list[Message] = []
        with suppress(EOFError, OSError):
            while self.connection.poll():
                message: Any = self.connection.recv()
                found.append(message)
                if not isinstance(message, EpochEnded):
                    self.work = None
        return found

    def last_words(self) -> list[Message]:
        """Of a dead process: what is still to be read, and why it died unless it said so."""
        found = self.said()
        if self.work is not None:
            found.append(Died(self.work.key, self._death()))
        return found

    def stop(self) -> None:
        """Ends the process at once, whatever it does."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()

    def _death(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            hint = " (is there enough memory?)" if -code == signal.SIGKILL else ""
            return f"the worker was killed by {signal.Signals(-code).name}{hint}"
        return f"the worker exited with code {code}"


@contextmanager
def _visible(gpu: str | None) -> Iterator[None]:
    """Lets a process that is started meanwhile see this GPU alone: torch reads the setting when it loads,
    which in a spawned process is before any code of ours."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    if gpu is not None:
        os.environ[name] = gpu
    try:
        yield
    finally:
        if gpu is not None:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
