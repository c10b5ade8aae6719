"""Ctrl-C, SIGTERM and the end of a terminal, noted instead of obeyed: what is at work is saved first."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptFlag:
    """Within it, the first of these signals only sets `raised`; whoever is at work saves and stops itself.

    A second one raises KeyboardInterrupt. Outside the main thread, which alone may handle signals, it does nothing.

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
        self._handle(self._note)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def ignored(self) -> Iterator[None]:
        """No signal interrupts what is done meanwhile."""
        self._handle(signal.SIG_IGN)
        try:
            yield
        finally:
            self._handle(self._note)

    def _handle(self, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before.setdefault(number, signal.getsignal(number))
                signal.signal(number, handler)

    def _note(self, signum: int, frame: Any) -> None:
        if self.raised and time.monotonic() - self._at > self.TOGETHER_S:
            raise KeyboardInterrupt
        if not self.raised and self._pass_on and signum == signal.SIGTERM:
            for child in multiprocessing.active_children():
                child.terminate()
        self.raised, self._at = True, time.monotonic()
