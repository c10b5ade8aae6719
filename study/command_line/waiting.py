"""Saying that something takes a while, before and while it does."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from study.command_line.wording import printable


@contextlib.contextmanager
def said_while(what: str, about_s: float) -> Iterator[None]:
    """Says `what` is done and about how long it takes; on a terminal every second how long it has taken, and at the
    end everywhere.

    Args:
        what: Begins the line.
        about_s: Seconds that it is expected to take.
    """
    started, over = time.monotonic(), threading.Event()
    line = f"{what} (about {about_s:.0f} s)"

    def tick() -> None:
        while not over.wait(1.0):
            _say(f"\r{line}: {time.monotonic() - started:.0f} s", end="")

    _say(line, end="" if sys.stdout.isatty() else "\n")
    ticking = threading.Thread(target=tick, daemon=True)
    if sys.stdout.isatty():
        ticking.start()
    try:
        yield
    finally:
        over.set()
        if ticking.is_alive():
            ticking.join()
        if sys.stdout.isatty():
            _say(f"\r{line}: {time.monotonic() - started:.0f} s")
        else:
            _say(f"... took {time.monotonic() - started:.0f} s")


def say_first(line: str, on: TextIO | None = None) -> None:
    """Says `line` before what takes long to load: a command answers within a second.

    Args:
        line: What it is about to do.
        on: A terminal, where the command's output is a result that others read: nothing is said elsewhere.
    """
    if on is None:
        _say(printable(line))
    elif on.isatty():
        with contextlib.suppress(OSError):
            print(printable(line), file=on, flush=True)


def _say(text: str, end: str = "\n") -> None:
    with contextlib.suppress(OSError):  # whoever prints the result finds out
        print(text, end=end, flush=True)
