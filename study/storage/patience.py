"""A storage that does not answer is waited for."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

import optuna
import sqlalchemy

from study.command_line.wording import without_passwords
from study.errors import StudyFailed, UserError, as_told, said

MAKING_S = 10.0
"""In which others that begin with this process have made what they are at: tables, or a study."""
OUTAGE_S = 120.0
"""For a storage to come back. Claims of slots last longer (`study.storage.slots.LEASE_S`)."""

STORAGE_ERRORS = (
    optuna.exceptions.StorageInternalError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InternalError,  # of a transaction that the server has ended
)

T = TypeVar("T")


class Patience:
    """Does something again and again while the storage does not answer.

    Args:
        say: Hears once, of each outage, what is waited for.
        given_up: Whether to wait no more.
        check: Refuses what must not be done any more.
    """

    def __init__(
        self, say: Callable[[str], None], given_up: Callable[[], bool], check: Callable[[], None] = lambda: None
    ) -> None:
        self._say, self._given_up, self._check = say, given_up, check

    def __call__(self, operation: Callable[[], T]) -> T:
        """What `operation` returns. It may be done twice: an error leaves open whether it was done.

        Raises:
            STORAGE_ERRORS: For too long.
        """
        deadline, pause = time.monotonic() + OUTAGE_S, 0.5
        while True:
            try:
                self._check()
                try:
                    return operation()
                except KeyError:  # Optuna's word for what is not there
                    self._check()
                    raise
            except STORAGE_ERRORS as error:
                hopeless = isinstance(root_of(error), UserError)  # the file is damaged
                if hopeless or time.monotonic() > deadline or self._given_up():
                    raise
                if pause == 0.5:
                    self._say(f"the storage does not answer ({cause_of(error)}): waiting for at most {OUTAGE_S:.0f} s")
            time.sleep(pause)
            pause = min(5.0, 2 * pause)


def make_tables(operation: Callable[[], T]) -> T:
    """What `operation` returns, done again while other processes make the tables that it makes where none are.

    Neither Optuna nor SQLAlchemy locks between looking for a table and making it.
    """
    deadline = time.monotonic() + MAKING_S
    while True:
        try:
            return operation()
        except sqlalchemy.exc.DBAPIError as error:
            there = isinstance(error, sqlalchemy.exc.IntegrityError) or "already exists" in str(error.orig)
            if not there or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.02, 0.1))


def cause_of(error: BaseException) -> str:
    """What the database said, in one line."""
    return without_passwords(said(root_of(error)))


def root_of(error: BaseException) -> BaseException:
    """The driver's own error, which Optuna and SQLAlchemy wrap."""
    inner = getattr(error, "orig", None)
    if inner is None and isinstance(error, optuna.exceptions.StorageInternalError):
        inner = error.__cause__
    return error if inner is None else root_of(inner)


@as_told.register(sqlite3.Error)
@as_told.register(optuna.exceptions.StorageInternalError)
@as_told.register(sqlalchemy.exc.DBAPIError)
@as_told.register(sqlalchemy.exc.TimeoutError)
def _(error: BaseException) -> UserError | StudyFailed:
    """What goes wrong between us and a database is no bug, wherever it comes up."""
    root = root_of(error)
    if isinstance(root, (UserError, StudyFailed)):
        return root
    safe = "What is stored is safe; mend it and run the same command."
    return StudyFailed(f"the storage does not answer ({cause_of(error)}). {safe}")
