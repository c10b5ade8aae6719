"""Ctrl-C, SIGTERM, a lost terminal or output that nobody takes while something trains: the progress is saved first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any, NoReturn

from study.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptFlag:
    """Within it, the first of these signals only sets `raised`; the training saves and stops itself. A second one ends
    this process at once, and with it those that it started.

    Only a main thread can be told of signals: in another one nothing happens, and `raised` stays False. A SIGHUP that
    is ignored, as nohup does, stays so.
    """

    TOGETHER_S = 1.0
    """One wish to stop may arrive twice, to this process and to its group."""

    def __init__(self) -> None:
        self._cause: BaseException | None = None
        self._at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def raised(self) -> bool:
        return self._cause is not None

    def end(self) -> NoReturn:
        """Ends what was saved.

        Raises:
            Interrupted: By a signal.
            OSError: By output that cannot be written.
        """
        assert self._cause is not None
        raise self._cause

    def say(self, line: str) -> None:
        """Prints `line`. Where nobody reads any more, or the disk is full, that is a wish to stop like any other."""
        try:
            print(line, flush=True)
        except OSError as error:
            self._cause = self._cause or error

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, signum: int, frame: Any) -> None:
        if self._at and time.monotonic() - self._at > self.TOGETHER_S:
            with contextlib.suppress(OSError):
                os.write(2, b"Ended at once; the same command goes on from what is saved.\n")
            os._exit(128 + signum)
        self._cause, self._at = self._cause or Interrupted(signum), self._at or time.monotonic()
