"""Trial workers: one supervised process per slot at work.

A worker trains what it is told and nothing else; claims, retries and counting are the supervisor's
(`study.run`). A worker that dies takes one trial with it, never the study.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from study.errors import CaptureFailed
from study.machine import heap
from study.machine.processes import end_with_parent
from study.model.layers import DepthwiseClass
from study.search.objective import Slot

COLLECT_ALL_EVERY = 20
"""Trials between two garbage collections that look at everything."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to start.

    Attributes:
        storage_url, study_name: Where trials are written.
        data: Folder that contains the data set.
        device: "cpu" or "cuda".
        n_threads: Threads of torch in this worker.
        n_loaders: Its augmenting processes.
        artifacts: Folder of the dashboard's artifacts.
        gpu: What CUDA_VISIBLE_DEVICES is to say in this worker; None leaves it as it is.
        native_depthwise: See `TrainingConfig`.
    """

    storage_url: str
    study_name: str
    data: str
    device: str
    n_threads: int
    n_loaders: int
    artifacts: str
    gpu: str | None = None
    native_depthwise: frozenset[DepthwiseClass] = frozenset()


@dataclass(frozen=True)
class Started:
    """A trial began."""

    trial_number: int


@dataclass(frozen=True)
class Epoch:
    """A trial finished an epoch."""

    epoch: int
    val_accuracy: float
    wall_s: float


@dataclass(frozen=True)
class Ended:
    """A trial ended.

    Attributes:
        state: Name of Optuna's state.
        value: Validation accuracy; of a pruned one its last.
        reason: Why it was pruned or failed.
        infeasible: It failed because it broke a limit, before any training.
    """

    trial_number: int
    state: str
    value: float | None
    reason: str
    wall_s: float
    infeasible: bool = False


@dataclass(frozen=True)
class Crashed:
    """A bug: the worker's last words."""

    traceback: str


class Worker:
    """The supervisor's handle on a worker process.

    Attributes:
        slot: What it works on; None if idle.
        trial_number: Of the running trial, once known.
        gpu: The one it works on; None without a choice.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_main, args=(theirs, setup), name="trial-worker")
        with _visible(setup.gpu):
            self.process.start()
        theirs.close()
        self.gpu = setup.gpu
        self.slot: Slot | None = None
        self.trial_number: int | None = None

    def run(self, slot: Slot) -> None:
        """Gives an idle worker something to do."""
        self.slot, self.trial_number = slot, None
        self.connection.send(slot)

    def stop(self) -> None:
        """Ends the process at once, whatever it does."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()

    def death(self) -> str:
        """Why a dead process died, for people."""
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (is there enough memory?)" if -code == signal.SIGKILL else ""
            return f"the worker was killed by {name}{hint}"
        return f"the worker exited with code {code}"


_CONTEXT = multiprocessing.get_context("spawn")


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


def _main(connection: Connection, setup: WorkerSetup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    end_with_parent()
    try:
        _serve(connection, setup)
    except (EOFError, BrokenPipeError):
        pass  # the supervisor is gone
    except CaptureFailed as error:  # the trial failed; another worker takes this one's place
        connection.send(Crashed(f"a CUDA graph could not be captured: {error}"))
        raise SystemExit(1) from None
    except Exception:  # not swallowed: told, and the process ends with an error
        connection.send(Crashed(traceback.format_exc()))
        raise SystemExit(1) from None


def _set_aside(n_trials: int) -> None:
    """Keeps the collector, which every trial ends with, from walking through all recorded trials again.

    What was set aside is freed like everything else, except in cycles; so at times everything is collected.
    """
    if n_trials % COLLECT_ALL_EVERY == 0:
        gc.unfreeze()
        gc.collect()
    gc.freeze()


def _give_back_memory(device: str) -> None:
    """Hands freed memory back to the system."""
    if device == "cuda":
        import torch

        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()  # others share the device
    heap.give_back()


def _serve(connection: Connection, setup: WorkerSetup) -> None:
    import optuna
    import torch

    from search_spaces.cost import CostModel
    from study.data.cifar10 import load_train, search_split
    from study.errors import TrialFailed
    from study.reporting import dashboard
    from study.search.objective import Objective
    from study.search.pruning import make_pruner
    from study.search.sampling import SlotSampler, make_sampler
    from study.storage.config import open_space
    from study.storage.database import config_of, open_study
    from study.training.records import EpochRecord

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # failures are told by the supervisor, once
    torch.set_num_threads(setup.n_threads)
    study = open_study(setup.storage_url, setup.study_name)
    config = config_of(study)
    cost = CostModel.from_json(study.user_attrs["cost_model"])
    space = open_space(config.space)
    study.pruner = make_pruner(config.pruner, config.epochs)
    everything = load_train(setup.data)
    for_training, for_validation = search_split(everything.labels, config.train_images, config.val_images)
    images, validation = everything.take(for_training), everything.take(for_validation)

    def on_epoch(record: EpochRecord) -> None:
        connection.send(Epoch(record.epoch, record.val_accuracy or 0.0, record.wall_s))

    kept, n_trials = SlotSampler(), 0
    while True:
        slot: Slot = connection.recv()
        study.sampler = make_sampler(config.sampler, slot.sampler_seed, slot.fixed, kept)
        numbers: list[int] = []

        def on_start(number: int, numbers: list[int] = numbers) -> None:
            numbers.append(number)
            connection.send(Started(number))

        objective = Objective(
            slot,
            space,
            config,
            cost,
            images,
            validation,
            setup.device,
            setup.n_loaders,
            on_start,
            on_epoch,
            setup.native_depthwise,
        )
        study.optimize(objective, n_trials=1, catch=(TrialFailed,), gc_after_trial=True)
        n_trials += 1
        _set_aside(n_trials)
        _give_back_memory(setup.device)
        trial = study._storage.get_trial(
            study._storage.get_trial_id_from_study_id_trial_number(study._study_id, numbers[0])
        )
        if trial.state.name != "FAIL":
            dashboard.publish_trial(study, trial, Path(setup.artifacts))
        values: dict[int, Any] = trial.intermediate_values
        reason = str(trial.user_attrs.get("reason", ""))
        connection.send(
            Ended(
                trial_number=trial.number,
                state=trial.state.name,
                value=trial.value if trial.value is not None else (values[max(values)] if values else None),
                reason=reason,
                wall_s=trial.user_attrs["wall_s"],
                infeasible=reason.startswith("infeasible"),
            )
        )
