"""Ctrl-C and SIGTERM while seeds train: the progress is saved first."""

from __future__ import annotations

import multiprocessing
import signal
import time
from typing import Any


class InterruptFlag:
    """Within it, the first Ctrl-C (or SIGTERM) only sets `raised`; the training saves and stops itself.

    Args:
        pass_on: Whether child processes are told of a SIGTERM, which comes to one process. Ctrl-C comes to all.
    """

    TOGETHER_S = 1.0
    """One wish to stop may arrive twice, directly and passed on."""

    def __init__(self, pass_on: bool = False) -> None:
        self.raised = False
        self._pass_on = pass_on
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        def note(signum: int, frame: Any) -> None:
            if self.raised and time.monotonic() - self._at > self.TOGETHER_S:
                raise KeyboardInterrupt
            if not self.raised and self._pass_on and signum == signal.SIGTERM:
                for child in multiprocessing.active_children():
                    child.terminate()
            self.raised, self._at = True, time.monotonic()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, note)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
