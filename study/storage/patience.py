"""A storage that does not answer is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import optuna
import sqlalchemy

from study.errors import StudyFailed

OUTAGE_S = 120.0
"""For a storage to come back. Claims of slots last longer (`study.storage.slots.LEASE_S`)."""

STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.OperationalError)

T = TypeVar("T")


class Patience:
    """Does something again and again while the storage does not answer.

    Args:
        say: Hears once, of each outage, what is waited for.
        given_up: Whether to wait no more.
    """

    def __init__(self, say: Callable[[str], None], given_up: Callable[[], bool]) -> None:
        self._say, self._given_up = say, given_up

    def __call__(self, operation: Callable[[], T]) -> T:
        """What `operation` returns. It may be done twice: an error leaves open whether it was done.

        Raises:
            STORAGE_ERRORS: For too long.
        """
        deadline, pause = time.monotonic() + OUTAGE_S, 0.5
        while True:
            try:
                return operation()
            except STORAGE_ERRORS as error:
                if time.monotonic() > deadline or self._given_up():
                    raise
                if pause == 0.5:
                    self._say(f"the storage does not answer ({cause_of(error)}): waiting for at most {OUTAGE_S:.0f} s")
            time.sleep(pause)
            pause = min(5.0, 2 * pause)


@contextmanager
def storage_failures() -> Iterator[None]:
    """Turns a storage that cannot be written into the end of the run.

    Raises:
        StudyFailed: It is so.
    """
    try:
        yield
    except STORAGE_ERRORS as error:
        raise StudyFailed(
            f"the storage cannot be written ({cause_of(error)}). Finished trials are safe; mend it and run the same "
            "command."
        ) from error


def cause_of(error: BaseException) -> str:
    """What the database said, in one line."""
    return str(error.__cause__ or error).splitlines()[0]
