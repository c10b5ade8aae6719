"""Which processes live; children that do not outlive the one that made them, however that ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator


def lives(pid: str) -> bool:
    """Whether a process of that number may still be at work."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def end_with_parent() -> None:
    """Ends this process, a child made by `multiprocessing`, as soon as its parent has ended, even by a kill."""
    threading.Thread(target=_wait, daemon=True).start()


def begin() -> None:
    """What a child of a pool begins with: Ctrl-C ends it without a word, as the end of its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Lets a process that is started meanwhile ignore Ctrl-C from its first moment: its parent handles that."""
    if threading.current_thread() is not threading.main_thread():  # which alone may choose, and is told of signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _wait() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
