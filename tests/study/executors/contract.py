"""What every executor's workers do, wherever they run, and how a test listens to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search_spaces.reference import REFERENCE
from study.executors.messages import Ended, EpochEnded, Executor, Message, Work
from study.training.records import EpochRecord, TrainingConfig

PATIENCE_S = 600  # a cap for busy machines; nothing waits that long otherwise


def work_of(key: int, folder: Path, epochs: int = 2, asks_after: tuple[int, ...] = ()) -> Work:
    config = TrainingConfig(epochs=epochs, seed=key, precision="float32")
    return Work(key, REFERENCE, config, frozenset(asks_after), folder / f"{key}.pt", f"Trial {key}")


def hear(executor: Executor, wanted: Callable[[list[Message]], Any]) -> list[Message]:
    said: list[Message] = []
    deadline = time.monotonic() + PATIENCE_S
    while not wanted(said):
        assert time.monotonic() < deadline, said
        said += executor.wait(0.5)
    return said


def ends(n: int = 1) -> Callable[[list[Message]], bool]:
    return lambda said: sum(not isinstance(message, EpochEnded) for message in said) >= n


def trains_asks_and_is_used_again(executor: Executor, folder: Path) -> list[EpochRecord]:
    """What the second of two works, which is not asked about, tells."""
    executor.prepare(1)
    executor.submit(work_of(1, folder, epochs=3, asks_after=(0, 1)))
    for epoch, go_on in ((0, True), (1, False)):
        [asked] = hear(executor, len)
        assert isinstance(asked, EpochEnded)
        assert (asked.key, asked.record.epoch, asked.asks) == (1, epoch, True)
        executor.answer(1, go_on)
    [ended] = hear(executor, ends())
    assert isinstance(ended, Ended)
    assert ended.stopped
    executor.submit(work_of(2, folder))
    *epochs, ended = hear(executor, ends())
    assert isinstance(ended, Ended)
    assert (ended.key, ended.stopped) == (2, False)
    assert ended.pictures["curve.png"].startswith(b"\x89PNG")
    records = [message.record for message in epochs if isinstance(message, EpochEnded)]
    assert [record.epoch for record in records] == [0, 1]
    return records
