"""How the C library keeps the memory of a training's tensors on a CPU."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_NEVER = -1
_BLOCK, _BLOCK_OF_OLDER = 2**30, 2**25  # bytes; older GNU C libraries take no more than 32 MiB


def keep() -> None:
    """Memory freed from now on is kept for the next tensors. Does nothing without the GNU C library.

    A training step frees all its activations, some hundred MiB. Large ones go back to the system at once, which
    hands them out again page by page, each cleared: that costs some per cent of a step.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        if not library.mallopt(_M_MMAP_THRESHOLD, _BLOCK):
            library.mallopt(_M_MMAP_THRESHOLD, _BLOCK_OF_OLDER)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back() -> None:
    """Hands kept memory back to the system, so that what one trial fragments does not add to the next one's."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
