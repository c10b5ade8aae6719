"""Workers as actors of a Ray cluster.

The supervisor alone has the study, the data set's files and the checkpoints. The decoded images lie once in the
cluster's object store, from which the workers of a node read them without copies. A checkpoint travels back as soon as
it is written, and out again with the work that goes on from it, so a node that is lost takes no more with it than a
killed process does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

import search_spaces
import study
from study.command_line.options import ClusterOptions
from study.data.cifar10 import Images
from study.errors import UserError, first_line, said
from study.executors import worker
from study.executors.messages import SAVING_S, Died, EpochEnded, Executor, Message, Work, WorkerSetup
from study.training.checkpoints import parts, put
from study.training.records import EpochRecord

T = TypeVar("T")
REACH_S = 10.0
DOUBT_S = 3.0
"""For a cluster to notice that a machine is gone."""
_remote: Any = ray.remote  # its overloads know neither keywords nor functions of any arguments


def connect(options: ClusterOptions, device: str) -> Cluster:
    """Makes this process a driver of a running cluster.

    Raises:
        UserError: There is none, or nothing in it can run a worker.
    """
    # Workers run this very code, wherever they are.
    code = [str(Path(module.__path__[0])) for module in (study, search_spaces)]
    try:
        _reach(options.address)
        ray.init(
            options.address, runtime_env={"py_modules": code}, logging_level=logging.WARNING, ignore_reinit_error=True
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise UserError(
            f"--cluster {options.address}: {said(error)}. Start a cluster with ray start --head, run this on one of "
            "its machines, or name its address."
        ) from error
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if device == "auto":
        device = "cuda" if found.get("GPU") else "cpu"
    n_gpus = options.gpus if options.gpus is not None else float(device == "cuda")
    n_cpus = options.cpus
    if n_cpus is None:  # beside a GPU its share of the cores, which augment
        n_cpus = 1 if device == "cpu" else max(1, int(found.get("CPU", 1) / max(1.0, found.get("GPU", 1)) * n_gpus))
    cluster = Cluster(device, n_cpus, n_gpus)
    if cluster.room() == 0:
        raise UserError(
            "No machine of the cluster has the cores and GPUs of a worker. Ask for less by --worker-cpus (now "
            f"{n_cpus}) or --worker-gpus (now {n_gpus:g})."
        )
    return cluster


def _reach(address: str) -> None:
    """Ray itself tries for minutes.

    Raises:
        OSError: Nothing answers there.
    """
    asked = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = asked.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACH_S).close()


def _machines() -> dict[str, dict[str, float]]:
    """What each machine has that is there."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


def _lives(machine: str) -> bool:
    """Whether a machine on which a worker died is there, as far as a moment later is known."""
    deadline = time.monotonic() + DOUBT_S
    while machine in _machines():
        if time.monotonic() > deadline:
            return True
        time.sleep(0.1)
    return False


class Cluster:
    """A place for workers of so many cores and GPUs each. See `study.executors.workplace.Workplace`."""

    def __init__(self, device: str, n_cpus: int, n_gpus: float) -> None:
        self.device = device
        self._n_cpus = n_cpus
        self._each = {"num_cpus": n_cpus, "num_gpus": n_gpus}

    def room(self) -> int:
        return sum(self._fits(has) for has in _machines().values())

    def _fits(self, has: Mapping[str, float]) -> int:
        """Workers that a machine has room for; several of a fraction may share a GPU, none is spread over two."""
        by_cpu, gpus = int(has.get("CPU", 0) // self._n_cpus), has.get("GPU", 0.0)
        n_gpus = self._each["num_gpus"]
        if n_gpus == 0:
            return by_cpu
        return min(by_cpu, int(gpus) * int(1 / n_gpus + 1e-6) if n_gpus < 1 else int(gpus // n_gpus))

    def cores(self, jobs: int) -> int:
        return self._n_cpus

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        there = _remote(max_calls=1, **self._each)(_with_cores)  # a process that ends with it
        try:
            result: T = ray.get(there.remote(self._n_cpus, function, *arguments))
        except RayTaskError as error:
            raise error.cause from None
        return result

    def executor(self, setup: WorkerSetup) -> Executor:
        return ClusterExecutor(setup, self._each)


class ClusterExecutor:
    """Keeps one actor for each piece of work at once, and replaces those that die. See `Executor`.

    Work waits here until an actor has started: when a machine is lost, those that are left do all of it.

    Args:
        setup: Of every worker.
        resources: That an actor takes from its machine, in Ray's words.
    """

    def __init__(self, setup: WorkerSetup, resources: Mapping[str, float]) -> None:
        self._class = _remote(max_concurrency=4, **resources)(_Worker)  # it is spoken to while it listens
        self._setup = setup
        self._images = [ray.put(images) for images in worker.images_of(setup)]
        self._waiting: list[Work] = []
        self._actors: list[_Actor] = []

    def prepare(self, n: int) -> None:
        while len(self._actors) < n:
            self._actors.append(_Actor(self._class.remote(self._setup, *self._images)))

    def submit(self, work: Work) -> None:
        self._waiting.append(work)
        self._hand_out()

    def answer(self, key: int, go_on: bool) -> None:
        for each in self._at(key):
            each.handle.answer.remote(go_on)

    def wait(self, timeout_s: float) -> list[Message]:
        said: list[Message] = []
        for each in self._ready(timeout_s):
            said += self._hear(each)
        self._hand_out()
        return said

    def withdraw(self, key: int) -> None:
        self._waiting = [work for work in self._waiting if work.key != key]
        for each in self._at(key):
            self._remove(each)

    def close(self) -> list[Message]:
        self._waiting.clear()
        for each in self._actors:
            each.handle.leave.remote()
            each.handle.answer.remote(True)  # it may have asked somebody who was stopped before he answered
        deadline, said = time.monotonic() + SAVING_S, list[Message]()
        while any(each.work for each in self._actors) and time.monotonic() < deadline:
            for message in (heard := self.wait(0.1)):
                if isinstance(message, EpochEnded) and message.asks:
                    self.answer(message.key, True)  # it leaves after the next step, and will ask again
            said += heard
        for each in list(self._actors):
            self._remove(each)
        return said

    def _at(self, key: int) -> list[_Actor]:
        return [each for each in self._actors if each.work is not None and each.work.key == key]

    def _ready(self, timeout_s: float) -> list[_Actor]:
        """The actors that said something, or died."""
        by_answer = {each.answer: each for each in self._actors}
        if not by_answer:
            time.sleep(timeout_s)
            return []
        first, others = ray.wait(list(by_answer), timeout=timeout_s)
        more = ray.wait(others, num_returns=len(others), timeout=0)[0] if first and others else []
        return [by_answer[answer] for answer in (*first, *more)]

    def _hand_out(self) -> None:
        """Gives work to the actors that are free, and starts as many as will be wanted."""
        self.prepare(len(self._waiting) + sum(each.work is not None for each in self._actors))
        for each in self._actors:
            if self._waiting and each.machine is not None and each.work is None:
                each.give(self._waiting.pop(0))

    def _hear(self, each: _Actor) -> list[Message]:
        """What is ready; checkpoints among it are put where the supervisor keeps them."""
        work = each.work
        try:
            heard = each.hear()
            if each.is_doubted and work is not None:  # what it said meanwhile may have been lost
                raise RayError("it could not be reached for a while")
            each.is_doubted = False
        except RayError as error:
            if isinstance(error, ActorUnavailableError) and not each.is_doubted:  # a moment later more is known
                each.is_doubted, each.answer = True, each.handle.listen.remote()
                return []
            return self._lost(each, work, error)
        except OSError as error:  # of a checkpoint: without the result that it holds there is nothing to go on with
            assert work is not None
            heard = [Died(work.key, f"the checkpoint {work.checkpoint} cannot be written: {error}.")]
            self._remove(each)
        else:
            if any(isinstance(message, Died) for message in heard):
                self._remove(each)
        return heard

    def _lost(self, each: _Actor, work: Work | None, error: RayError) -> list[Message]:
        self._remove(each)
        if work is None and each.machine is None and self._waiting:
            work = self._waiting.pop(0)  # it could not start: who waits for it must know
        if work is None:
            return []
        # A worker that died where others live may have died of its work; of an interrupted line nobody can.
        blameless = each.machine is not None and not (isinstance(error, ActorDiedError) and _lives(each.machine))
        return [Died(work.key, f"the worker is lost ({first_line(error)})", machine_lost=blameless)]

    def _remove(self, each: _Actor) -> None:
        self._actors.remove(each)
        ray.kill(each.handle)


class _Actor:
    """An actor, what it works on, and its next answer.

    Attributes:
        machine: Where it runs, once it has started.
        answer: To the question what it has to say.
        is_doubted: It could not be reached; whether it lives, the next answer will tell.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.work: Work | None = None
        self.machine: str | None = None
        self.is_doubted = False
        self.answer = handle.listen.remote()

    def give(self, work: Work) -> None:
        self.work = work
        kept = parts(work.checkpoint)
        taught = {} if work.teacher is None else parts(work.teacher.checkpoint)
        self.handle.train.remote(work, kept, taught)

    def hear(self) -> list[Message]:
        """What is ready.

        Raises:
            RayError: It is lost.
            OSError: A result cannot be written.
        """
        heard: list[Message] = []
        for message in ray.get(self.answer):
            if isinstance(message, _Started):
                self.machine = message.machine
            elif isinstance(message, _Kept):
                self._keep(message)
            elif not isinstance(message, _Left):
                heard.append(message)
            if not isinstance(message, _Started | EpochEnded | _Kept):
                self.work = None
        self.answer = self.handle.listen.remote()
        return heard

    def _keep(self, kept: _Kept) -> None:
        assert self.work is not None
        try:
            put(kept.parts, self.work.checkpoint.parent)
        except OSError as error:
            if self.work.keeps_result:
                raise
            print(
                f"{self.work.title}: its checkpoint cannot be written ({error}). It goes on without.", file=sys.stderr
            )


@dataclass(frozen=True)
class _Started:
    """The worker is ready, on this machine."""

    machine: str


@dataclass(frozen=True)
class _Kept:
    """A checkpoint was written: its files that are new."""

    parts: Mapping[str, bytes]


@dataclass(frozen=True)
class _Left:
    """The training was left, as was asked; its checkpoint is written."""


class _Worker:
    """The actor: trains in a thread of its own, so that it can be spoken to.

    Args:
        setup: As of every worker; folders in it are not of this machine.
        images, validation: In the memory of the machine's object store, to be read only.
    """

    def __init__(self, setup: WorkerSetup, images: Images, validation: Images | None) -> None:
        self._setup, self._images, self._validation = setup, images, validation
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._leave = threading.Event()
        self._n_done = 0
        self._said.put(_Started(ray.get_runtime_context().get_node_id()))

    def listen(self) -> list[Any]:
        """All that was said since the last call; waits until there is something."""
        said = [self._said.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                said.append(self._said.get_nowait())
        return said

    def answer(self, go_on: bool) -> None:
        self._answers.put(go_on)

    def leave(self) -> None:
        self._leave.set()

    def train(self, work: Work, kept: Mapping[str, bytes], taught: Mapping[str, bytes]) -> None:
        """Begins with `work`, from the checkpoint `kept`, with the teacher that `taught` holds."""
        threading.Thread(target=self._train, args=(work, kept, taught), daemon=True).start()

    def _train(self, work: Work, kept: Mapping[str, bytes], taught: Mapping[str, bytes]) -> None:
        try:
            said = self._last_words(work, kept, taught)
        except SystemExit:
            said = _Left()
        except Exception as error:  # told, and another worker takes this one's place
            said = worker.died(work.key, error)
        self._n_done += 1
        with contextlib.suppress(Exception):  # of a device that is lost; whoever waits must hear
            worker.tidy(self._setup.device, self._n_done)
        self._said.put(said)

    def _last_words(self, work: Work, kept: Mapping[str, bytes], taught: Mapping[str, bytes]) -> Any:
        torch.set_num_threads(self._setup.n_threads)
        with tempfile.TemporaryDirectory(prefix="small-cnn-study-") as folder:
            checkpoint, known = Path(folder) / work.checkpoint.name, set(kept)
            here = dataclasses.replace(work, checkpoint=checkpoint)
            put(kept, checkpoint.parent)
            if work.teacher is not None:
                there = Path(folder) / "teacher" / work.teacher.checkpoint.name
                here = dataclasses.replace(here, teacher=dataclasses.replace(work.teacher, checkpoint=there))
                put(taught, there.parent)

            def tell(record: EpochRecord) -> bool:
                asks = record.epoch in work.asks_after
                self._said.put(EpochEnded(work.key, record, asks))
                return self._answers.get() if asks else True

            def saved() -> None:
                found = parts(checkpoint)
                self._said.put(
                    _Kept({name: found[name] for name in found if name not in known or name == checkpoint.name})
                )
                known.update(found)

            every = self._setup.checkpoint_s
            return worker.run(here, self._images, self._validation, tell, every, self._leave.is_set, saved)


def _with_cores(n: int, function: Callable[..., T], *arguments: Any) -> T:
    """What `function` returns when it sees so many cores."""
    with contextlib.suppress(AttributeError, OSError):  # where cores cannot be chosen
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n])
    return function(*arguments)
