"""Another process locks the SQLite file: every command says so, goes on when it is free, or ends with a line."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import optuna
import pytest

from study import describe, report, rerank, retrain, run
from study.command_line.options import _names_in
from study.command_line.parser import run_command
from study.errors import as_told
from study.machine import sqlite
from study.machine.sqlite import LockedError, open_read_only
from study.storage.database import open_storage, open_study
from study.storage.patience import STORAGE_ERRORS

LOCKED = "is locked by another process: waiting for at most"


@pytest.fixture(scope="module")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("empty") / "study.db"
    optuna.create_study(study_name="made", storage=f"sqlite:///{file}", direction="maximize")
    return file


@pytest.fixture(params=["delete", "wal"])
def locked(request: pytest.FixtureRequest, empty_file: Path, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that keeps tmp_path/study.db from everybody else, with or without a write-ahead log."""
    file = tmp_path / "study.db"
    file.write_bytes(empty_file.read_bytes())
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute(f"PRAGMA journal_mode={request.param}")
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("DELETE FROM version_info WHERE 0")
        yield connection


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (run, ()),
        (rerank, ()),
        (retrain, ()),
        (report, ()),
        (describe, ("--trial", "0")),
        (report, ("--study-name", "made")),
    ],
)
def test_every_command_says_what_it_waits_for_and_ends_with_a_line(
    command: ModuleType,
    arguments: tuple[str, ...],
    locked: sqlite3.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sqlite, "_SILENT_S", 0.02)
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT_S", 0.06)
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: command.main([*arguments, "--out", str(tmp_path)]))
    assert caught.value.code == 1
    waiting, end = capsys.readouterr().err.splitlines()
    assert waiting == f"'{tmp_path / 'study.db'}' {LOCKED} 0 s"
    assert end.startswith(f"failed: '{tmp_path / 'study.db'}' was locked by another process for too long. Nothing")


@pytest.mark.parametrize("read_only", [True, False])
def test_it_goes_on_when_the_file_is_free(
    read_only: bool, locked: sqlite3.Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timer = threading.Timer(1.3, locked.close)
    timer.start()
    url, started = f"sqlite:///{tmp_path / 'study.db'}", time.monotonic()
    assert [study.study_name for study in open_storage(url, read_only).get_all_studies()] == ["made"]
    assert 1.2 < time.monotonic() - started < 30
    assert capsys.readouterr().err.count(LOCKED) == 1
    timer.join()


def test_a_busy_writer_is_not_talked_about(
    empty_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process of the study writes for a moment."""
    file = tmp_path / "study.db"
    file.write_bytes(empty_file.read_bytes())
    storage = open_storage(f"sqlite:///{file}")
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.1, lambda: other.execute("COMMIT"))
    timer.start()
    optuna.load_study(study_name="made", storage=storage).set_user_attr("written", True)
    timer.join()
    other.close()
    assert capsys.readouterr().err == ""


def test_readers_do_not_wait_for_a_writer(empty_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT_S", 0.0)
    file = tmp_path / "study.db"
    file.write_bytes(empty_file.read_bytes())
    url = f"sqlite:///{file}"
    open_storage(url)  # from here on with a write-ahead log
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert open_study(url, "made").user_attrs == {}
        assert _names_in(url) == ["made"]


def test_a_lock_in_the_middle_of_a_command_is_told_too(
    empty_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT_S", 0.0)
    file = tmp_path / "study.db"
    file.write_bytes(empty_file.read_bytes())
    storage = open_storage(f"sqlite:///{file}")
    study = optuna.load_study(study_name="made", storage=storage)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(STORAGE_ERRORS) as caught:
            study.set_user_attr("written", True)
    assert isinstance(as_told(caught.value), LockedError)


def test_looking_at_a_file_leaves_the_locks_of_this_process(tmp_path: Path) -> None:
    """Closing a file drops all locks of a process on it. Another process then takes itself for the last one, and
    removes the write-ahead log that this one goes on with."""
    file = tmp_path / "study.db"
    url = f"sqlite:///{file}"
    storage = open_storage(url)
    study = optuna.create_study(study_name="open", storage=storage)
    with storage.engine.connect() as held:
        held.exec_driver_sql("SELECT count(*) FROM trials")
        held.rollback()
        for look in (lambda: open_storage(url), lambda: open_read_only(file).close(), lambda: open_study(url, "open")):
            look()
        other = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('DELETE FROM trials'); c.commit()"
        subprocess.run([sys.executable, "-c", f"{other}; c.close()", str(file)], check=True)
        assert file.with_name("study.db-wal").exists()
    study.add_trial(optuna.create_trial(value=0.5))
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
