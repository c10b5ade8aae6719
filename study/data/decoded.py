"""Decoded images, kept in the user's cache and read as memory maps."""

from __future__ import annotations

import contextlib
import multiprocessing
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from study.errors import UserError, first_line
from study.machine.cache import complain
from study.machine.paths import cache_dir

KEPT = timedelta(days=60)
"""After its last use, of a copy."""
T = TypeVar("T")


def decoded(decode: Callable[..., T], arguments: tuple[Any, ...], checked: Callable[[T], T], name: str) -> T:
    """What `decode` returns, its arrays as maps of a copy in the cache, which is made if there is none.

    Args:
        decode: Reads the original files of a data set: its first argument, `folder`, is where they lie, and the others
            tell them from all others.
        arguments: Of `decode`.
        checked: Returns what it is given, or raises where that is no such copy.
        name: Of the data set.

    Raises:
        UserError: The original files are missing or damaged.
    """
    with contextlib.suppress(Exception):  # a cache that cannot be used is told of below
        if not _remembered(decode).check_call_in_cache(*arguments):
            _memory().reduce_size(age_limit=KEPT)  # of folders that changed or went: nobody reads those any more
    for _ in range(2):  # a damaged copy is made anew
        copy: Any = None
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", module="joblib")  # a copy that cannot be written is a warning of its
                copy = _remembered(decode).call_and_shelve(*arguments)
                return checked(copy.get())
        except UserError:
            raise
        except Exception as error:  # whatever joblib, pickle and the system have against the copy
            if multiprocessing.parent_process() is None:  # which loads it first, and says so for its workers
                complain(f"the decoded copy of {name} in the cache cannot be used ({first_line(error)}): decoded anew")
            with contextlib.suppress(Exception):  # half a copy must not stay, least of all on a full disk
                if copy is not None:
                    copy.clear()
                else:
                    _remembered(decode).clear(warn=False)
            if isinstance(error, Warning):
                break  # there is no place for it
    return decode(*arguments)


def _remembered(decode: Callable[..., Any]) -> Any:
    return _memory().cache(decode, ignore=["folder"])


def _memory() -> Any:
    import joblib  # whoever looks for the data set alone, as --help does, need not wait for it

    return joblib.Memory(cache_dir(), mmap_mode="r", verbose=0)
