"""Ctrl-C, SIGTERM and a lost terminal while something trains: the progress is saved first."""

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
    """Within it, the first of these signals only sets `raised`; the training saves and stops itself.

    Only a main thread can be told of signals: in another one nothing happens, and `raised` stays False. A SIGHUP that
    is ignored, as nohup does, stays so.

    Args:
        pass_on: Whether child processes are told of a SIGTERM or SIGHUP, which may come to one process alone. Ctrl-C
            comes to all.
    """

    TOGETHER_S = 1.0
    """One wish to stop may arrive twice, directly and passed on."""

    def __init__(self, pass_on: bool = False) -> None:
        self.raised = False
        self._pass_on = pass_on
        self._at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    @contextlib.contextmanager
    def ignored(self) -> Iterator[None]:
        """No further signal interrupts what is done meanwhile."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        try:
            yield
        finally:
            for number in self._before:
                signal.signal(number, self._note)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, signum: int, frame: Any) -> None:
        if self.raised and time.monotonic() - self._at > self.TOGETHER_S:
            raise KeyboardInterrupt
        if not self.raised and self._pass_on and signum != signal.SIGINT:
            for child in multiprocessing.active_children():
                child.terminate()
        self.raised, self._at = True, time.monotonic()
