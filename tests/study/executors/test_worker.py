"""A worker trains what it is told: to its end, to where it is stopped, and on from where it was interrupted."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces.candidate import Augmentation, Candidate
from search_spaces.reference import REFERENCE
from study.data import cifar10
from study.data.cifar10 import Images
from study.errors import CaptureFailed, StudyFailed
from study.executors import worker
from study.executors.messages import Ended, Failed, Work, WorkerSetup
from study.search.pruning import compared_epochs
from study.training.loop import Training
from study.training.records import EpochRecord, TrainingConfig

EPOCHS = 3


def work_of(tmp_path: Path, candidate: Candidate = REFERENCE, **config: Any) -> Work:
    training = TrainingConfig(**{"epochs": EPOCHS, "seed": 3, "precision": "float32", **config})
    return Work(7, candidate, training, frozenset({0, 1}), tmp_path / "trial.pt", "Trial 7")


class Told:
    """Hears of epochs; says after which to stop."""

    def __init__(self, last: int = EPOCHS) -> None:
        self.records: list[EpochRecord] = []
        self.last = last

    def __call__(self, record: EpochRecord) -> bool:
        self.records.append(record)
        return record.epoch < self.last


def run(
    work: Work, images: Images, told: Callable[[EpochRecord], bool], leave: Callable[[], bool] = lambda: False
) -> Ended | Failed:
    half = np.arange(100)
    return worker.run(work, images.take(half), images.take(half + 100), told, 0.0, leave)


def learned(records: list[EpochRecord]) -> list[dict[str, Any]]:
    """All of the records that must not depend on interruptions."""
    timed = {"wall_s", "wait_frac", "val_frac"}
    return [{k: v for k, v in dataclasses.asdict(record).items() if k not in timed} for record in records]


def test_a_candidate_is_trained_to_its_end(tiny_images: Images, tmp_path: Path) -> None:
    told = Told()
    ended = run(work_of(tmp_path), tiny_images, told)
    assert isinstance(ended, Ended)
    assert (ended.key, ended.stopped) == (7, False)
    assert [record.epoch for record in told.records] == [0, 1, 2]
    assert ended.wall_s > 0
    assert ended.pictures["curve.png"].startswith(b"\x89PNG")


def test_a_stopped_one_ends_after_that_epoch(tiny_images: Images, tmp_path: Path) -> None:
    told = Told(last=1)
    ended = run(work_of(tmp_path), tiny_images, told)
    assert isinstance(ended, Ended)
    assert ended.stopped
    assert [record.epoch for record in told.records] == [0, 1]


def leaves_after(n: int) -> Callable[[], bool]:
    """Asked to leave after so many steps (it is asked twice after each)."""
    calls = iter(range(10_000))
    return lambda: next(calls) >= n


@pytest.mark.parametrize("n_steps", [0, 1, 3, 5])
def test_an_interrupted_one_goes_on_to_the_same_digits(n_steps: int, tiny_images: Images, tmp_path: Path) -> None:
    whole, first, second = Told(), Told(), Told()
    small = dataclasses.replace(REFERENCE, optimisation=dataclasses.replace(REFERENCE.optimisation, batch_size=32))
    run(work_of(tmp_path / "whole", small), tiny_images, whole)
    work = work_of(tmp_path / "cut", small)
    with pytest.raises(SystemExit):
        run(work, tiny_images, first, leaves_after(n_steps))
    assert work.checkpoint.exists()
    ended = run(work, tiny_images, second)
    assert isinstance(ended, Ended)
    assert learned(second.records) == learned(whole.records)  # those before the interruption are told again


def test_seconds_of_the_epoch_that_was_cut_off_count(
    tiny_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(REFERENCE, optimisation=dataclasses.replace(REFERENCE.optimisation, batch_size=32))
    work, told = work_of(tmp_path, small), Told()
    with pytest.raises(SystemExit):
        run(work, tiny_images, told, leaves_after(1))
    load = worker.load_progress

    def aged(*each: Any) -> Any:
        progress = load(*each)
        assert progress is not None
        progress.sums["wall_s"] += 1_000.0
        return progress

    monkeypatch.setattr(worker, "load_progress", aged)
    ended = run(work, tiny_images, told)
    assert isinstance(ended, Ended)
    assert 1_000.0 < sum(record.wall_s for record in told.records) <= ended.wall_s


def test_a_pruner_is_asked_again_about_what_was_told_again(tiny_images: Images, tmp_path: Path) -> None:
    work = work_of(tmp_path)
    with pytest.raises(SystemExit):
        run(work, tiny_images, Told(), leaves_after(4))
    told = Told(last=0)
    ended = run(work, tiny_images, told)
    assert isinstance(ended, Ended)
    assert ended.stopped
    assert [record.epoch for record in told.records] == [0]


def test_a_damaged_checkpoint_means_a_new_start(
    tiny_images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = work_of(tmp_path)
    work.checkpoint.write_bytes(b"not a checkpoint")
    told = Told()
    assert isinstance(run(work, tiny_images, told), Ended)
    assert len(told.records) == EPOCHS
    assert "starts anew" in capsys.readouterr().out


def test_a_checkpoint_of_another_network_means_a_new_start(
    tiny_images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = work_of(tmp_path)
    with pytest.raises(SystemExit):
        run(work, tiny_images, Told(), leaves_after(3))
    data = torch.load(work.checkpoint, weights_only=True)
    data["network"]["classifier.weight"] = torch.zeros(10, 3, 1, 1)
    torch.save(data, work.checkpoint)
    told = Told()
    assert isinstance(run(work, tiny_images, told), Ended)
    assert len(told.records) == EPOCHS
    assert "(ValueError: its weights are of another network): this training starts anew" in capsys.readouterr().out


def test_a_full_disk_costs_the_checkpoint_and_not_the_trial(
    tiny_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert isinstance(run(work_of(tmp_path), tiny_images, Told()), Ended)
    error = capsys.readouterr().err
    assert error.count("No space left on device") == 1  # said once
    assert "goes on without" in error


@pytest.mark.parametrize(("pruner", "validated_on"), [("halving", [20, 20, 100, 20, 20, 100]), ("none", [100] * 6)])
def test_halving_needs_all_validation_images_only_where_it_compares(
    tiny_images: Images, tmp_path: Path, pruner: str, validated_on: list[int]
) -> None:
    told = Told(last=9)
    run(work_of(tmp_path, epochs=6, whole_validations=compared_epochs(pruner, 6)), tiny_images, told)
    assert [record.n_val for record in told.records] == validated_on


def test_few_images_of_a_sorted_data_set_are_of_every_class(
    tiny_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = tiny_images.take(np.argsort(tiny_images.labels, kind="stable"))
    monkeypatch.setattr(worker, "load_train", lambda source: everything)
    few, none = worker.images_of(WorkerSetup("sorted", 30, None, "cpu", 1, 1.0))
    assert none is None
    assert np.bincount(few.labels).tolist() == [3] * 10
    whole, _ = worker.images_of(WorkerSetup("sorted", 200, None, "cpu", 1, 1.0))
    np.testing.assert_array_equal(whole.pixels, everything.pixels)  # in the order of the files


def test_images_that_were_changed_are_refused(tiny_images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = dataclasses.replace(tiny_images, of=dataclasses.replace(tiny_images.of, digest="new"))
    monkeypatch.setattr(worker, "load_train", lambda source: changed)
    setup = WorkerSetup("folder", 30, None, "cpu", 1, 1.0, digest="old")
    with pytest.raises(StudyFailed, match="were changed"):
        worker.images_of(setup)
    near, far = multiprocessing.Pipe()
    far.send(True)  # an answer that came too late for what was asked
    far.send(Work(5, REFERENCE, TrainingConfig(1, 0), frozenset(), Path("none"), "it"))
    with pytest.raises(SystemExit):
        worker._serve(near, setup, lambda: False)
    died = far.recv()
    assert (died.key, died.traceback, died.for_all) == (5, "", True)
    assert "were changed" in died.reason


def test_one_that_was_lost_after_its_result_was_saved_is_over(
    tiny_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = dataclasses.replace(work_of(tmp_path), keeps_result=True)
    run(work, tiny_images, Told())
    monkeypatch.setattr(worker, "train", None)
    told = Told()
    ended = run(work, tiny_images, told)
    assert isinstance(ended, Ended)
    assert [record.epoch for record in told.records] == [0, 1, 2]
    assert not ended.stopped


def test_no_test_image_is_loaded(tiny_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a worker asked for test images")

    monkeypatch.setattr(cifar10, "load_test", refuse)
    monkeypatch.setattr(cifar10, "_load", refuse)
    assert isinstance(run(work_of(tmp_path), tiny_images, Told()), Ended)


def test_one_that_diverges_fails_with_the_reason(tiny_images: Images, tmp_path: Path) -> None:
    hot = dataclasses.replace(REFERENCE, optimisation=dataclasses.replace(REFERENCE.optimisation, lr=1e30))
    failed = run(work_of(tmp_path, hot), tiny_images, Told())
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("diverged: ")
    assert "lr=1e+30" in failed.reason
    assert failed.wall_s > 0


def test_a_checkpoint_that_cannot_be_read_now_stops_every_worker(
    tiny_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that failed for it would be drawn anew, and its checkpoint forgotten."""
    work = work_of(tmp_path)
    with pytest.raises(SystemExit):
        run(work, tiny_images, Told(), lambda: True)

    def away(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("zipfile.ZipFile.testzip", away)
    with pytest.raises(StudyFailed, match="cannot be read now") as caught:
        run(work, tiny_images, Told())
    died = worker.died(work.key, caught.value)
    assert (died.for_all, died.traceback) == (True, "")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory: "),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "out of memory or killed: "),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "no kernel runs this network: "),
    ],
)
def test_one_without_memory_or_kernels_fails_with_the_reason(
    error: Exception, reason: str, tiny_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*args: Any) -> None:
        raise error

    monkeypatch.setattr(Training, "_epoch", run_out)
    failed = run(work_of(tmp_path), tiny_images, Told())
    assert isinstance(failed, Failed)
    assert failed.reason.startswith(reason)


def test_one_whose_augmentation_dies_fails_with_the_reason(
    tiny_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # as where memory runs out

    monkeypatch.setattr("study.data.batches._help", killed)
    candidate = dataclasses.replace(
        REFERENCE,
        augmentation=Augmentation(dropout_p=0.5),
        optimisation=dataclasses.replace(REFERENCE.optimisation, batch_size=32),
    )
    failed = run(work_of(tmp_path, candidate, n_loaders=1), tiny_images, Told())
    assert isinstance(failed, Failed)
    assert failed.reason == "a process that augments died (exit code -9)"


@pytest.mark.parametrize("error", [IndexError("a bug"), CaptureFailed("the stream is capturing")])
def test_a_bug_is_not_taken_for_a_failed_trial(
    error: Exception, tiny_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(Training, "_epoch", fail)
    with pytest.raises(type(error), match=str(error)):
        run(work_of(tmp_path), tiny_images, Told())
