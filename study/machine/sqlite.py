"""SQLite files: how a URL names one, and connections that say what they wait for and which file is damaged."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, unquote

from study.errors import StudyFailed, UserError

LOCK_TIMEOUT_S = 60.0
"""For another process to free a file."""
_SILENT_S = 1.0
"""Of waiting: so long a busy writer may take."""
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DAMAGE = "{!r} is no whole database ({}). Restore a copy of it, or name another with --storage or --out."

T = TypeVar("T")

_URL = re.compile(r"sqlite(?:\+\w+)?:///(?P<database>[^?]*)(?:\?(?P<query>.*))?", re.DOTALL)


def sqlite_url(file: Path) -> str:
    """The SQLAlchemy URL of `file`, whatever characters its path has.

    Raises:
        UserError: The path is no text.
    """
    try:
        return f"sqlite:///{quote(os.path.abspath(file))}"  # not resolved: a link may lead to itself
    except UnicodeEncodeError as error:
        raise UserError(f"A folder's name must be UTF-8: {str(file)!r} is not. Choose another with --out.") from error


def sqlite_file(url: str) -> Path | None:
    """The file that a SQLAlchemy URL names; None for a server and for a database in memory."""
    found = _URL.fullmatch(url)
    if found is None:
        return None
    file, options = unquote(found["database"]), parse_qs(found["query"] or "")
    if "uri" in options and file.startswith("file:"):  # SQLite's own URI
        if options.get("mode") == ["memory"]:
            return None
        file = unquote(re.split("[?#]", re.sub("^file:(//(localhost)?(?=/))?", "", file))[0])
    return Path(file) if file and file != ":memory:" else None


class LockedError(sqlite3.OperationalError, StudyFailed):
    """Another process kept the file locked for too long."""


class DamagedError(sqlite3.DatabaseError, UserError):
    """The file is no database, or not a whole one."""


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        return _waiting(self.connection, lambda: super(_Cursor, self).execute(sql, parameters))

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        return _waiting(self.connection, lambda: super(_Cursor, self).executemany(sql, parameters))


class WaitingConnection(sqlite3.Connection):
    """A connection that waits for a file that another process locks, and says so on stderr.

    Args:
        database: File, or URI, as `sqlite3.connect` takes it.
        **kwargs: As it takes them, but for the timeout.
    """

    def __init__(self, database: str, **kwargs: Any) -> None:
        super().__init__(database, **{**kwargs, "timeout": _SILENT_S / 2})
        self.name = unquote(database.removeprefix("file:").partition("?")[0]) if kwargs.get("uri") else database

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        return self.cursor().execute(sql, parameters)

    def commit(self) -> None:
        _waiting(self, super().commit)


def _waiting(connection: Any, operation: Callable[[], T]) -> T:
    """What `operation` returns, which does nothing while the file is locked.

    Raises:
        LockedError: It stays so.
        DamagedError: The file is.
    """
    started, told = time.monotonic(), False
    while True:
        try:
            return operation()
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what extends it
            if code in _DAMAGED:
                raise DamagedError(_DAMAGE.format(connection.name, error)) from error
            if code != sqlite3.SQLITE_BUSY:
                raise
            waited = time.monotonic() - started
            if waited > LOCK_TIMEOUT_S:
                raise LockedError(
                    f"{connection.name!r} was locked by another process for too long. Nothing stored is lost: end that "
                    "process, and run the same command again."
                ) from error
        if waited > _SILENT_S and not told:
            wait = f"waiting for at most {LOCK_TIMEOUT_S:.0f} s"
            print(f"{connection.name!r} is locked by another process: {wait}", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.02)  # some locks are reported without any wait


def open_read_only(file: Path) -> sqlite3.Connection:
    """A connection that changes nothing, and needs no right to.

    Raises:
        UserError: There is no such right to read it either.
        LockedError, DamagedError: As above.
    """
    return sqlite3.connect(read_only_uri(file), uri=True, factory=WaitingConnection)


def read_only_uri(file: Path) -> str:
    """SQLite's URI of `file`, or of a copy: where there was a write-ahead log, SQLite reads nothing unless it may write
    a file beside it, or that is there already.

    Raises:
        UserError: It cannot be read.
    """
    uri = f"file:{quote(str(file.resolve()))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, factory=WaitingConnection)) as connection:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            _refuse_cut(file, connection)
        return uri
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise
    _copies.append(tempfile.TemporaryDirectory(prefix="small-cnn-study-"))
    copy = Path(_copies[-1].name) / file.name
    try:
        for suffix in ("", "-wal"):
            if suffix == "" or file.with_name(file.name + suffix).exists():
                shutil.copyfile(f"{file}{suffix}", f"{copy}{suffix}")
    except OSError as error:
        raise UserError(f"The database {str(file)!r} cannot be read: {error.strerror or error}.") from error
    return f"file:{quote(str(copy))}?mode=ro"


def _refuse_cut(file: Path, connection: sqlite3.Connection) -> None:
    """Refuses a file that lost its end, which SQLite does not notice within the last page.

    The file itself is not opened: a process that closes it drops all its locks on it, those of its other connections
    too, and another process may then remove the write-ahead log that they use.
    """
    logs = (file.with_name(f"{file.name}-{log}") for log in ("wal", "journal"))
    with contextlib.suppress(OSError):
        if any(log.exists() and log.stat().st_size for log in logs):
            return  # SQLite knows
        [(size,)], [(n,)] = (connection.execute(f"PRAGMA {each}").fetchall() for each in ("page_size", "page_count"))
        if file.stat().st_size < size * n:
            raise DamagedError(_DAMAGE.format(str(file), "its end is missing"))


_copies: list[tempfile.TemporaryDirectory[str]] = []
"""Kept until this process ends."""
