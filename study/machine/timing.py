"""How long something takes that is done again and again."""

from __future__ import annotations

import time
from collections.abc import Callable


def timed(run: Callable[[], object], for_s: float, at_least: int = 3, at_most: int | None = None) -> list[float]:
    """Seconds of every run.

    Args:
        run: What is timed. It is done twice before, since the first runs load code and take memory.
        for_s: The runs take so long together, but for these two.
        at_least, at_most: So many are counted, however long they take.
    """
    for _ in range(2):
        run()
    seconds: list[float] = []
    while len(seconds) < at_least or (sum(seconds) < for_s and (at_most is None or len(seconds) < at_most)):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return seconds
