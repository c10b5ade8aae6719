"""How many trials at once: the choice, its cache, and one real measurement."""

from __future__ import annotations

import json
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from study import concurrency


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 104.0}, 1),  # too little to be worth a sampler that knows less
        ({1: 100.0, 2: 106.0}, 2),
        ({1: 100.0, 2: 150.0, 4: 155.0, 8: 140.0}, 2),
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


def test_it_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(concurrency, "n_cores", lambda: 4)
    asked = []

    def images_per_second(device: str, precision: str, jobs: int, n_images: int) -> float:
        asked.append(jobs)
        if jobs == 4:
            raise BrokenProcessPool("no memory")
        return 100.0 * jobs

    monkeypatch.setattr(concurrency, "images_per_second", images_per_second)
    assert concurrency.known_rates("cpu", "float32") == {}
    assert concurrency.best_jobs("cpu", "float32") == (2, {1: 100.0, 2: 200.0})
    assert concurrency.best_jobs("cpu", "float32") == (2, {1: 100.0, 2: 200.0})
    assert asked == [1, 2, 4]
    assert concurrency.known_rates("cpu", "bfloat16") == {}
    (file,) = tmp_path.rglob("jobs-*.json")
    file.write_text("{damaged")
    assert concurrency.known_rates("cpu", "float32") == {}
    file.write_text(json.dumps([1, 2]))
    assert concurrency.known_rates("cpu", "float32") == {}


def test_trainings_at_once_are_really_run() -> None:
    assert concurrency.images_per_second("cpu", "float32", 2, 128) > 0
