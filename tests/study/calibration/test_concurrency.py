"""How many trials at once: the choice, its cache, and one real measurement."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from search_spaces.candidate import Candidate
from search_spaces.reference import REFERENCE
from study.calibration import concurrency
from study.errors import StudyFailed, TrialFailed
from study.training.records import TrainingConfig

HOW = TrainingConfig(1, 0, "cpu", "float32")


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 104.0}, 1),  # too little to be worth a sampler that knows less
        ({1: 100.0, 2: 106.0}, 2),
        ({1: 100.0, 2: 150.0, 4: 155.0, 8: 140.0}, 2),
        ({1: 100.0, 2: 104.0, 4: 108.0}, 2),
        ({1: 100.0, 2: 90.0, 4: 300.0}, 4),
        ({4: 300.0, 1: 100.0, 2: 200.0}, 4),
    ],
)
def test_the_smallest_number_that_no_larger_one_clearly_beats(measured: dict[int, float], chosen: int) -> None:
    assert concurrency.choose(measured) == chosen


@pytest.mark.parametrize(
    ("cores", "device", "numbers"),
    [
        (1, "cpu", [1]),
        (2, "cpu", [1, 2]),
        (6, "cpu", [1, 2, 4]),
        (64, "cpu", [1, 2, 4, 8]),
        (1, "cuda", [1]),
        (2, "cuda", [1]),
        (16, "cuda", [1, 2, 4, 8]),
    ],
)
def test_numbers_tried(cores: int, device: str, numbers: list[int]) -> None:
    assert concurrency.candidates(cores, device) == numbers


def test_it_is_measured_once(user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "n_cores", lambda: 4)
    asked = []

    def measure(candidate: Candidate, how: TrainingConfig, numbers: list[int]) -> dict[int, float]:
        asked.append(numbers)
        if 4 in numbers:
            raise BrokenProcessPool("no memory")
        return {jobs: 100.0 * jobs for jobs in numbers}

    monkeypatch.setattr(concurrency, "measure", measure)
    monkeypatch.setattr(concurrency.Neighbours, "share", lambda self: 0.0)
    assert concurrency.known_rates(REFERENCE, HOW) == {}
    assert concurrency.best_jobs(REFERENCE, HOW) == (2, {1: 100.0, 2: 200.0})
    assert concurrency.best_jobs(REFERENCE, HOW) == (2, {1: 100.0, 2: 200.0})
    assert asked == [[1, 2, 4], [1, 2]]
    for changed in ({"precision": "bfloat16"}, {"native_depthwise": frozenset({(3, False, 32)})}):
        assert concurrency.known_rates(REFERENCE, dataclasses.replace(HOW, **changed)) == {}
    small = dataclasses.replace(REFERENCE.optimisation, batch_size=32)
    assert concurrency.known_rates(dataclasses.replace(REFERENCE, optimisation=small), HOW) == {}
    lengthened = dataclasses.replace(REFERENCE.augmentation, affine_p=0.9)
    assert concurrency.known_rates(dataclasses.replace(REFERENCE, augmentation=lengthened), HOW) == {}
    (file,) = user_cache.rglob("jobs-*.json")
    file.write_text("{damaged")
    assert concurrency.known_rates(REFERENCE, HOW) == {}
    file.write_text(json.dumps([1, 2]))
    assert concurrency.known_rates(REFERENCE, HOW) == {}


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (TrialFailed("out of memory"), "this machine: out of memory"),
        (BrokenProcessPool("a child ended"), "this machine: it was killed; is there enough memory?"),
    ],
)
def test_a_machine_that_trains_none_says_why(
    failure: Exception, words: str, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(candidate: Candidate, how: TrainingConfig, numbers: list[int]) -> dict[int, float]:
        raise failure

    monkeypatch.setattr(concurrency, "measure", measure)
    with pytest.raises(StudyFailed, match=re.escape(words)):
        concurrency.rates(REFERENCE, HOW)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_memory_that_runs_out_while_it_is_measured_is_told_from_a_bug(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ready(*args: object) -> None:
        raise error

    monkeypatch.setattr(concurrency, "_ready", ready)
    barrier = threading.Barrier(1)
    with pytest.raises(TrialFailed, match="out of memory"):
        concurrency._train(REFERENCE, HOW, 1, concurrency.WINDOWS["cpu"], barrier)
    assert barrier.broken


def test_a_gpu_is_watched_for_a_few_seconds() -> None:
    window = concurrency.WINDOWS["cuda"]
    n_numbers = len(concurrency.candidates(64, "cuda"))
    assert window.n_rounds * n_numbers * (window.warm_s + window.watched_s) < 4  # of 10 with processes and captures


@pytest.mark.slow
def test_trainings_at_once_are_really_run() -> None:
    found = concurrency.measure(REFERENCE, HOW, [1, 2], concurrency.Window(0.0, 0.1, 1))
    assert set(found) == {1, 2}
    assert min(found.values()) > 0
