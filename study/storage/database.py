"""Opening Optuna storages safely, and reading studies back.

SQLite under several processes runs queued trials twice with Optuna's defaults. Every connection
here uses write-ahead logging and starts its transactions with BEGIN IMMEDIATE, so that a reader that
will write already holds the lock.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from search_spaces.candidate import Candidate
from search_spaces.cost import CostModel
from search_spaces.fields import DescriptionError
from study.command_line.wording import without_passwords
from study.errors import StudyFailed, UserError, said
from study.machine.files import unwritten, what_is
from study.machine.sqlite import (
    DamagedError,
    LockedError,
    WaitingConnection,
    open_read_only,
    read_only_uri,
    sqlite_file,
)
from study.storage.config import StudyConfig
from study.storage.patience import cause_of, make_tables, root_of

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
METRIC = "val_accuracy"
FIRST_STEP = "first_step"
"""Attribute of a study: how Optuna counts its epochs."""
HIDDEN = "small_cnn_study:"
"""Begins the names of system attributes of a trial, which optuna-dashboard does not show: it prints every user
attribute on one line, and a candidate's makes a page of seven thousand pixels."""
MOST_SHOWN = 100
"""Characters of a user attribute that fit the page of a trial there."""
FORGOTTEN_S = 20
"""In which nothing is heard within a transaction before the server ends it; ours take milliseconds."""
_FULL = ("database or disk is full", "disk I/O error")
"""What SQLite says where there is no room, the second of the memory that it shares with other processes."""


def hide_password(url: str) -> str:
    """The URL, fit to print."""
    if "://" not in url and "@" in url:
        return "<unreadable URL>"
    # All up to the last @, whatever a password holds that should have been encoded.
    return without_passwords(re.sub("(://[^:/@]*):.*@", r"\1:***@", url, flags=re.DOTALL))


def open_storage(url: str, read_only: bool = False) -> optuna.storages.RDBStorage:
    """Opens the storage at `url`, made ready for several processes.

    Args:
        url: Any SQLAlchemy URL that Optuna takes.
        read_only: Change nothing, and refuse what is not there.

    Raises:
        UserError: It cannot be reached, read or used.
        LockedError: Another process does not free its file.
        StudyFailed: There is no room for it.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        shown = "what was given" if "@" in url or "://" in url else repr(url)  # it may hold a password
        raise UserError(f"--storage must be a SQLAlchemy URL such as sqlite:///study.db: {shown} is not.") from error
    if "@" in (parsed.host or ""):
        raise UserError("--storage has more than one @: in a user's name or a password write it as %40.")
    is_sqlite, asked = parsed.get_backend_name() == "sqlite", url
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if is_sqlite:
        # isolation_level None: transactions are begun by the event below, not by the driver.
        engine = {"connect_args": {"factory": WaitingConnection, "isolation_level": None}}
    try:
        if is_sqlite:
            file = _sqlite_file(url)
            _check_sqlite_file(file, read_only)
            if read_only:
                database, _, query = read_only_uri(file).partition("?")
                url = f"sqlite:///{quote(database)}?{query}&uri=true"
        literal = url.replace("{", "{{").replace("}", "}}")  # Optuna takes braces for places to fill in
        storage = make_tables(lambda: optuna.storages.RDBStorage(literal, engine, skip_table_creation=read_only))
        if is_sqlite:
            _begin_transactions(storage.engine, read_only)
        elif parsed.get_backend_name() == "postgresql":
            _end_forgotten_transactions(storage.engine)
        storage.get_all_studies()
        return storage
    except (
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        optuna.exceptions.StorageInternalError,
        ImportError,
        RuntimeError,
        ValueError,
        AssertionError,
    ) as error:
        if isinstance(root := root_of(error), (LockedError, DamagedError)):
            raise root from (None if root is error else error)
        cause = cause_of(error).replace("$STORAGE_URL", shlex.quote(hide_password(asked)))
        if cause in _FULL:
            room = "Make room, then run the same command."
            raise StudyFailed(f"the storage {hide_password(asked)} cannot be used: {cause}. {room}") from error
        advice = "Check the URL, that the server runs, and that the file is an Optuna database."
        if isinstance(error, RuntimeError):  # Optuna's, of another version's tables, which says what to do
            advice = ""
        raise UserError(f"The storage {hide_password(asked)} cannot be used: {cause}. {advice}".strip()) from error


def open_study(url: str, name: str) -> optuna.Study:
    """An existing study, for reading or retraining.

    Raises:
        UserError: There is no such storage or study.
    """
    storage = open_storage(url, read_only=True)
    known = [study.study_name for study in storage.get_all_studies()]
    if name not in known:
        there = f"it holds: {', '.join(sorted(known))}" if known else "it holds none"
        raise UserError(f"No study is called {name!r} in {hide_password(url)}; {there}. Choose with --study-name.")
    return optuna.load_study(study_name=name, storage=storage)


def config_of(study: optuna.Study) -> StudyConfig:
    """The stored fingerprint.

    Raises:
        UserError: The study was not made by this program, or by another version of it.
    """
    stored = study.user_attrs.get("config")
    if not isinstance(stored, dict):
        raise UserError(f"The study {study.study_name!r} was not made by study.run: it has no configuration.")
    try:
        return StudyConfig.from_json(stored)
    except DescriptionError as error:
        raise UserError(
            f"The configuration of the study {study.study_name!r} cannot be read: {said(error)}."
        ) from error


def storage_of(study: optuna.Study) -> optuna.storages.BaseStorage:
    """Where a loaded study is stored. The one private name of Optuna's that we read: a study does not say otherwise."""
    return study._storage


def is_ours(trial: FrozenTrial) -> bool:
    """Whether this program made it: people add trials of their own to a study."""
    return isinstance(trial.user_attrs.get("slot"), int)


def stored(trial: FrozenTrial, name: str) -> Any:
    """What is kept of a trial out of optuna-dashboard's sight; None if nothing is. Older studies keep it in user
    attributes.

    Args:
        trial: Of ours.
        name: "candidate", the candidate's JSON, "curve", a list of epoch records, "versions", by package, "repairs", a
            list, or "reason", whole.
    """
    return trial.system_attrs.get(HIDDEN + name, trial.user_attrs.get(name))


def first_step(study: optuna.Study) -> int:
    """Optuna's step of the first epoch: 1, but older studies count from zero."""
    return 1 if study.user_attrs.get(FIRST_STEP) == 1 else 0


def has_result(trial: FrozenTrial) -> bool:
    """Whether it is a complete or pruned trial of ours."""
    return trial.state in FINISHED and is_ours(trial) and stored(trial, "candidate") is not None


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Our complete and pruned trials, by number."""
    return [trial for trial in study.get_trials(deepcopy=False, states=FINISHED) if has_result(trial)]


def best_of(finished: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The complete one with the highest validation accuracy, of equal ones the first; None if none is complete."""
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def ranked_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Our complete trials of different candidates, the best first; of equal ones the first."""
    complete = [trial for trial in finished_trials(study) if trial.state == TrialState.COMPLETE]
    complete.sort(key=lambda trial: (-(trial.value or 0.0), trial.number))
    different: dict[Any, FrozenTrial] = {}
    for trial in complete:
        different.setdefault(trial.user_attrs.get("candidate_id", trial.number), trial)
    return list(different.values())


def best_trial(study: optuna.Study) -> FrozenTrial:
    """Our complete trial with the highest validation accuracy.

    Raises:
        UserError: None is complete yet.
    """
    best = best_of(finished_trials(study))
    if best is None:
        raise UserError(f"The study {study.study_name!r} has no complete trial yet. Run python -m study.run first.")
    return best


def get_trial(study: optuna.Study, number: int) -> FrozenTrial:
    """Trial `number`, which must hold a candidate.

    Raises:
        UserError: There is none, or it failed before it had a candidate.
    """
    trials = study.get_trials(deepcopy=False)
    if not trials:
        raise UserError(f"The study {study.study_name!r} has no trial yet. Run python -m study.run first.")
    if not 0 <= number < len(trials):
        raise UserError(f"--trial must be between 0 and {len(trials) - 1} in {study.study_name!r}: {number}.")
    if stored(trials[number], "candidate") is None:
        raise UserError(f"Trial {number} ended before it had a candidate. Choose another with --trial.")
    return trials[number]


def candidate_of(trial: FrozenTrial) -> Candidate:
    """The candidate stored with a trial.

    Raises:
        UserError: It is none.
    """
    try:
        return Candidate.from_json(stored(trial, "candidate"))
    except DescriptionError as error:
        raise UserError(f"Trial {trial.number} cannot be read: {said(error)}.") from error


def cost_model_of(study: optuna.Study) -> CostModel:
    """What was measured when a study was made.

    Raises:
        UserError: It is not stored.
    """
    try:
        return CostModel.from_json(study.user_attrs.get("cost_model"))
    except DescriptionError as error:
        raise UserError(f"The study {study.study_name!r} has no cost model of ours: {said(error)}.") from error


def checkpoint_sqlite(storage: optuna.storages.RDBStorage) -> None:
    """Moves the newest commits from the write-ahead log into the file, so that a plain copy is whole; where there is no
    room they stay in the log."""
    if storage.engine.dialect.name == "sqlite":
        with contextlib.suppress(sqlite3.OperationalError), storage.engine.connect() as connection:
            connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]


def _begin_transactions(engine: sqlalchemy.Engine, read_only: bool) -> None:
    if not read_only:

        @sqlalchemy.event.listens_for(engine, "connect")
        def on_connect(connection: Any, _: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=NORMAL")
            cursor.close()

    @sqlalchemy.event.listens_for(engine, "begin")
    def on_begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    engine.dispose()  # connections opened before the events must not be used again


def _end_forgotten_transactions(engine: sqlalchemy.Engine) -> None:
    """Has the server take the locks from a process that was suspended, or whose machine vanished, while it held them.

    Without it everybody else waits for as long as that process sleeps.
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{FORGOTTEN_S}s'")
        cursor.close()
        connection.commit()

    engine.dispose()  # connections opened before the event must not be used again


_SQLITE_OPTIONS = frozenset({"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"})


def _sqlite_file(url: str) -> Path:
    """The file of a SQLite URL.

    Raises:
        UserError: It names none, or another one than it seems to.
    """
    path, mark, query = url.partition("?")
    if re.match(r"[\w+]+://[^/]", path):
        raise UserError(f"A SQLite URL has three slashes, four before an absolute path: {url!r} has two.")
    options = {option.partition("=")[0] for option in query.split("&")} if mark else set()
    if "uri" not in options and not options <= _SQLITE_OPTIONS:
        raise UserError(f"In a SQLite URL a path writes a question mark as %3F: {url!r} names {path!r} with options.")
    file = sqlite_file(url)
    if file is None:
        raise UserError(f"--storage must be a file or a server, which workers can share: {url!r} is in memory.")
    return file


_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "ceph", "fuse.ceph", "lustre", "9p"}
    | {"gpfs", "beegfs", "glusterfs", "fuse.glusterfs"}
)


def _check_sqlite_file(file: Path, read_only: bool) -> None:
    standing = what_is(file)
    if read_only and standing == "does not exist":
        raise UserError(
            f"There is no study at {str(file)!r}. Start one with python -m study.run, or name another --storage."
        )
    if standing not in ("does not exist", "is a file"):
        raise UserError(f"--storage must name a file: {str(file)!r} {standing}. Name one in it, or another.")
    if standing == "is a file":
        with contextlib.closing(open_read_only(file)) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if "studies" not in tables and (tables or read_only):
            what = "is another program's" if tables else "is empty"
            raise UserError(f"The database {str(file)!r} {what}: it holds no study. Name another --storage or --out.")
    if read_only:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"The folder of the storage, {str(file.parent)!r},"
        raise unwritten(what, error, "Name another --storage or --out.") from error
    if _file_system(file.parent) in _NETWORK_FILE_SYSTEMS:
        raise UserError(
            f"SQLite cannot lock on a network file system: {str(file)!r}. "
            "Use a local folder, or PostgreSQL: --storage postgresql+psycopg://user@host/database."
        )


def _file_system(folder: Path) -> str:
    """Type of the file system that holds `folder`, from Linux's mount table; empty elsewhere."""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    target = str(folder.resolve())
    best, kind = "", ""
    for line in lines:
        _, mount, found, *_ = line.split(" ")
        mount = mount.replace("\\040", " ")
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind
