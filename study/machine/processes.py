"""Which processes live; children that do not outlive the one that made them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import threading


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


def _wait() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
