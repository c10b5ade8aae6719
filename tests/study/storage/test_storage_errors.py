"""What goes wrong in a database is one line of every command, wherever it comes up."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import sqlalchemy

from study import describe, report, rerank, retrain, run
from study.command_line.parser import run_command
from study.errors import StudyFailed, UserError, as_told
from study.machine.paths import REPOSITORY
from study.machine.sqlite import DamagedError, WaitingConnection
from study.storage.database import checkpoint_sqlite, open_storage
from study.storage.patience import Patience

COMMANDS = [(run, ()), (rerank, ()), (retrain, ()), (report, ()), (describe, ("--trial", "0"))]
"""Every command that opens a storage."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with the study that commands mean by default, on a CPU."""
    file = tmp_path_factory.mktemp("made") / "study.db"
    study = optuna.create_study(study_name="dilated", storage=f"sqlite:///{file}", direction="maximize")
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs={"candidate": {}}))
    return file.read_bytes()


def told(command: ModuleType, arguments: tuple[str, ...], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line and the exit code of a command that fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: command.main([*arguments, "--out", str(out)]))
    printed, line = capsys.readouterr()
    assert re.fullmatch(r"((Searching|Re-ranking|Retraining): .+\n)?", printed)
    assert line.count("\n") == 1, line
    return f"{caught.value.code} {line}"


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_an_error_of_the_database_is_a_line(
    command: ModuleType,
    arguments: tuple[str, ...],
    made: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was opened, and then goes away."""
    file, load = tmp_path / "study.db", optuna.load_study
    file.write_bytes(made)

    def load_from_ruins(**arguments: Any) -> optuna.Study:
        study = load(**arguments)
        with contextlib.closing(sqlite3.connect(file)) as connection:
            for table in ("study_user_attributes", "trials"):
                connection.execute(f"DROP TABLE {table}")
        return study

    monkeypatch.setattr(optuna, "load_study", load_from_ruins)
    line = told(command, arguments, tmp_path, capsys)
    assert line.startswith("1 failed: the storage does not answer (no such table: ")


def changed(statement: str) -> Callable[[Path, bytes], object]:
    """How to damage a database by a statement of SQL."""

    def change(file: Path, whole: bytes) -> None:
        file.write_bytes(whole)
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute(statement)
            connection.commit()

    return change


UPGRADE = "Please execute `$ optuna storage upgrade --storage sqlite:///"
DAMAGES: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "half": (
        lambda file, whole: file.write_bytes(whole[: len(whole) // 2]),
        "no whole database (database disk image is malformed)",
    ),
    "last bytes": (lambda file, whole: file.write_bytes(whole[:-10]), "no whole database (its end is missing)"),
    "first bytes": (lambda file, whole: file.write_bytes(whole[:60]), "no whole database (database disk image is mal"),
    "middle": (
        lambda file, whole: file.write_bytes(whole[:8192] + b"x" * (len(whole) - 8192)),
        "no whole database (database disk image is malformed)",
    ),
    "text": (lambda file, whole: file.write_text("notes\n" * 99), "no whole database (file is not a database)"),
    "other program": (
        lambda file, whole: changed("CREATE TABLE notes (x)")(file, b""),
        "is another program's: it holds",
    ),
    "older": (changed("UPDATE alembic_version SET version_num = 'v2.4.0.a'"), UPGRADE),
    "newer": (changed("UPDATE alembic_version SET version_num = 'v99'"), "Please try updating optuna to the latest"),
    "folder": (lambda file, whole: file.mkdir(), "--storage must name a file"),
    "pipe": (lambda file, whole: os.mkfifo(file), "--storage must name a file"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_no_whole_study_is_a_line_and_left_alone(
    kind: str, made: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = DAMAGES[kind]
    file = tmp_path / "study.db"
    damage(file, made)
    before = file.read_bytes() if file.is_file() else b""
    for command, arguments in COMMANDS:
        line = told(command, arguments, tmp_path, capsys)
        assert line.startswith("2 error: ")
        assert str(file) in line
        assert words in line
    assert [each.name for each in tmp_path.iterdir() if each.suffix not in (".db-shm", ".db-wal")] == ["study.db"]
    assert not before or file.read_bytes() == before


def test_an_empty_file_holds_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is what a kill in the moment of its creation leaves, so that study.run goes on with it."""
    (tmp_path / "study.db").touch()
    for command, arguments in COMMANDS:
        if command is not run:
            assert "is empty: it holds no study" in told(command, arguments, tmp_path, capsys)
    assert open_storage(f"sqlite:///{tmp_path / 'study.db'}").get_all_studies() == []


def test_a_file_that_may_not_be_read(made: bytes, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(made)
    (tmp_path / "study.db").chmod(0)
    command = [sys.executable, "-m", "study.describe", "--trial", "0", "--out", str(tmp_path)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may read everything, and setpriv is not there to take that right away")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: The database '{tmp_path / 'study.db'}' cannot be read: Permission denied.\n"


@pytest.mark.parametrize("kind", ["commit", "statement", "pool"])
def test_errors_are_told_by_their_cause(kind: str) -> None:
    error: Exception = sqlalchemy.exc.OperationalError("SELECT 1", {}, sqlite3.OperationalError("it is gone\nfor good"))
    if kind == "commit":
        outer = optuna.exceptions.StorageInternalError("An exception is raised during the commit.")
        outer.__cause__, error = error, outer
    elif kind == "pool":
        error = sqlalchemy.exc.TimeoutError("it is gone")
    found = as_told(error)
    assert isinstance(found, StudyFailed)
    assert str(found).startswith("the storage does not answer (it is gone). What is stored is safe")


def test_a_disk_without_room_is_told_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")

    def full(*each: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(WaitingConnection, "execute", full)
    checkpoint_sqlite(storage)  # what is new stays in the log
    with pytest.raises(StudyFailed, match=r"disk I/O error\. Make room"):
        open_storage(f"sqlite:///{tmp_path / 'study.db'}")


def test_bugs_are_not_told() -> None:
    for error in (KeyError("x"), sqlalchemy.exc.InvalidRequestError("x"), ValueError("x"), OSError("x")):
        assert as_told(error) is None


def test_a_damaged_file_is_not_waited_for() -> None:
    damage = optuna.exceptions.StorageInternalError("An exception is raised during the commit.")
    damage.__cause__ = sqlalchemy.exc.DatabaseError("COMMIT", {}, DamagedError("'study.db' is no whole database"))

    def fail() -> None:
        raise damage

    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        Patience(pytest.fail, lambda: False)(fail)
    assert isinstance(as_told(caught.value), UserError)
