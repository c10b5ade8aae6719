"""What goes wrong in a database is one line of every command, wherever it comes up."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import sqlalchemy

from study import describe, report, rerank, retrain, run
from study.command_line.parser import run_command
from study.errors import StudyFailed, UserError, as_told
from study.machine.sqlite import DamagedError
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
    assert printed == ""
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
