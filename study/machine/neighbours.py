"""How busy other processes keep our cores while something is measured."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Neighbours:
    """Watches the cores of this process from now on. Where the system does not say (not Linux), nobody is there."""

    def __init__(self) -> None:
        self._started, self._busy_s, self._own_s = time.monotonic(), _busy_seconds(), _own_seconds()

    def share(self) -> float:
        """The share of all our cores' time that others took, in [0, 1]. Children of this process are not others, if
        they have ended."""
        busy_s = _busy_seconds()
        if busy_s is None or self._busy_s is None:
            return 0.0
        there_s = len(_cores()) * (time.monotonic() - self._started)
        others_s = busy_s - self._busy_s - (_own_seconds() - self._own_s)
        return min(1.0, max(0.0, others_s / max(there_s, 1e-9)))


def _own_seconds() -> float:
    return sum(os.times()[:4])


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _busy_seconds() -> float | None:
    """Seconds that our cores were not idle since the machine started, whoever used them, other machines too."""
    ours, found = {f"cpu{core}" for core in _cores()}, 0.0
    try:
        for line in Path("/proc/stat").read_text().splitlines():
            name, *ticks = line.split()
            if name in ours:
                user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, ticks[:8])
                found += user + nice + system + irq + softirq + steal
    except (OSError, ValueError):
        return None
    return found / os.sysconf("SC_CLK_TCK")
