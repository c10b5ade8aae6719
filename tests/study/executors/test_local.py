"""Workers as real processes: what they say, how they die, and how they are stopped."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contract import ends, hear, trains_asks_and_is_used_again, work_of

from study.command_line.options import ClusterOptions
from study.errors import UserError
from study.executors import local, worker
from study.executors.local import LocalExecutor
from study.executors.messages import Died, Ended, EpochEnded, Work, WorkerSetup
from study.executors.workplace import workplace
from study.machine.paths import REPOSITORY
from study.training.checkpoints import load_progress

SETUP = WorkerSetup("", 200, 100, "cpu", 1, 600.0)


def test_a_cluster_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.executors.workplace.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--cluster needs Ray, which is not installed"):
        workplace(ClusterOptions("auto", None, None), "auto")


@pytest.fixture
def executor(made_cifar10: Path) -> Iterator[LocalExecutor]:
    found = LocalExecutor(dataclasses.replace(SETUP, data=str(made_cifar10)))
    yield found
    found.close()


@pytest.mark.slow
def test_workers_train_ask_and_are_used_again(executor: LocalExecutor, tmp_path: Path) -> None:
    trains_asks_and_is_used_again(executor, tmp_path)
    assert len(executor._workers) == 1
    [process] = [each.process for each in executor._workers]
    assert executor.close() == []
    assert not process.is_alive()


@pytest.mark.slow
def test_a_killed_worker_is_heard_of_and_replaced(executor: LocalExecutor, tmp_path: Path) -> None:
    executor.submit(work_of(1, tmp_path, asks_after=(0,)))
    hear(executor, len)  # it waits for an answer
    os.kill(executor._workers[0].process.pid or 0, signal.SIGKILL)
    assert hear(executor, ends()) == [Died(1, "the worker was killed by SIGKILL (is there enough memory?)")]
    executor.answer(1, True)  # too late, and harmless
    executor.submit(work_of(2, tmp_path, epochs=1))
    assert isinstance(hear(executor, ends())[-1], Ended)
    os.kill(executor._workers[0].process.pid or 0, signal.SIGKILL)  # without work
    executor._workers[0].process.join()
    executor.submit(work_of(3, tmp_path, epochs=1))
    assert isinstance(hear(executor, ends())[-1], Ended)


@pytest.mark.slow
def test_a_stopped_worker_saves_its_progress_first(executor: LocalExecutor, tmp_path: Path) -> None:
    work = work_of(1, tmp_path, epochs=1000)
    executor.submit(work)
    n_heard = len(hear(executor, lambda said: len(said) >= 2))
    said = executor.close()
    progress = load_progress(work.checkpoint)
    assert progress is not None
    n_heard += len(said)
    assert progress.epoch == n_heard
    assert executor._workers == []


@pytest.mark.slow
def test_one_that_waits_for_an_answer_is_stopped_too(executor: LocalExecutor, tmp_path: Path) -> None:
    """Whoever would have answered may be interrupted, or have no storage any more."""
    work = work_of(1, tmp_path, epochs=1000, asks_after=tuple(range(1000)))
    executor.submit(work)
    hear(executor, len)
    said = executor.close()
    assert all(isinstance(message, EpochEnded | Died) for message in said)
    assert load_progress(work.checkpoint) is not None


@pytest.mark.slow
def test_a_bug_ends_its_worker_with_the_traceback(
    executor: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor.submit(dataclasses.replace(work_of(1, tmp_path), asks_after=None))  # type: ignore[arg-type]
    [died] = hear(executor, ends())
    assert isinstance(died, Died)
    assert died.reason.startswith("TypeError: ")
    assert "Traceback" in died.traceback
    assert "in tell" in died.traceback
    executor.submit(work_of(2, tmp_path, epochs=1))  # not to the one that is about to end
    assert isinstance(hear(executor, ends())[-1], Ended)


def test_a_worker_knows_neither_optuna_nor_a_storage() -> None:
    code = (
        "import sys, study.executors.worker\n"
        "heavy = {'optuna', 'sqlalchemy', 'plotly', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# GPUs


class StandIn:
    """A worker without a process."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.gpu = setup.gpu
        self.work: Work | None = None
        self.process = SimpleNamespace(is_alive=lambda: True, terminate=lambda: None, join=lambda *args: None)

    def give(self, work: Work) -> bool:
        self.work = work
        return True

    def stop(self) -> None:
        pass


def test_workers_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "_Worker", StandIn)
    executor = LocalExecutor(SETUP, gpus=("2", "5"))
    for key in range(4):
        executor.submit(work_of(key, tmp_path))
    assert [each.gpu for each in executor._workers] == ["2", "5", "2", "5"]
    executor.withdraw(1)  # its GPU is left to the next
    executor.submit(work_of(4, tmp_path))
    assert [each.gpu for each in executor._workers] == ["2", "2", "5", "5"]
    for gpus in ((), ("0",)):
        executor = LocalExecutor(SETUP, gpus)
        executor.prepare(1)
        assert [each.gpu for each in executor._workers] == [None]


def test_a_started_process_sees_its_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with local._visible("1"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    with local._visible(None):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with local._visible("3"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_capture_that_fails_ends_the_worker_with_a_line(monkeypatch: pytest.MonkeyPatch, made_cifar10: Path) -> None:
    """It would leave torch's allocator counting; another worker goes on with the trial."""
    from study.errors import CaptureFailed

    def refuse(*args: Any) -> None:
        raise CaptureFailed("RuntimeError: operation not permitted when stream is capturing")

    monkeypatch.setattr(worker, "run", refuse)
    sent: list[Any] = []
    connection = SimpleNamespace(recv=lambda: work_of(5, made_cifar10), send=sent.append)
    with pytest.raises(SystemExit):
        worker._serve(
            connection,  # type: ignore[arg-type]
            dataclasses.replace(SETUP, data=str(made_cifar10)),
            lambda: False,  # type: ignore[arg-type]
        )
    assert sent == [
        Died(
            5,
            "a CUDA graph could not be captured (RuntimeError: operation not permitted when stream is capturing)",
            in_capture=True,
        )
    ]
