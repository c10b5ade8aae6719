"""The SQLite recipe under several processes, and what a user reads when a storage cannot be used."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from study.errors import UserError
from study.machine.paths import REPOSITORY
from study.storage import database as storage_module
from study.storage.database import (
    best_trial,
    checkpoint_sqlite,
    config_of,
    dashboard_command,
    finished_trials,
    get_trial,
    hide_password,
    open_storage,
    open_study,
)
from study.storage.slots import SlotTable

SECRET = "s3cr3t-w0rd"


@pytest.fixture(scope="module")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("empty") / "study.db"
    opened = open_storage(f"sqlite:///{file}")
    SlotTable(optuna.create_study(study_name="made", storage=opened, direction="maximize"), opened)
    checkpoint_sqlite(opened)
    opened.engine.dispose()
    return file


@pytest.fixture
def file(empty_file: Path, tmp_path: Path) -> Path:
    """A file with one empty study called "made"."""
    return Path(shutil.copy(empty_file, tmp_path))


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"


def refusal(url: str, must_exist: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        open_storage(url, must_exist)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The recipe


def test_every_connection_has_the_write_ahead_log_and_waits_for_locks(file: Path) -> None:
    engine = open_storage(url_of(file)).engine
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            pragma = connection.connection.cursor().execute
            assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)
            assert pragma("PRAGMA synchronous").fetchone() == (1,)
            assert pragma("PRAGMA busy_timeout").fetchone() == (60_000,)


def test_a_reader_that_may_write_holds_the_lock_from_its_first_statement(file: Path) -> None:
    engine = open_storage(url_of(file)).engine
    other = sqlite3.connect(file, timeout=0, isolation_level=None)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT * FROM studies")).all()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT count(*) FROM studies").fetchone() == (1,)  # readers never wait
    other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    other.close()


def test_all_transactions_of_optuna_begin_immediately(file: Path) -> None:
    opened = open_storage(url_of(file))
    statements: list[str] = []
    sa.event.listen(opened.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    study = optuna.load_study(study_name="made", storage=opened)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.tell(study.ask(), 0.5)
    begins = [statement for statement in statements if statement.startswith("BEGIN")]
    assert begins
    assert set(begins) == {"BEGIN IMMEDIATE"}


WORKER = """
import sys, warnings
import optuna
from study.storage.slots import SlotTable
from study.storage.database import open_storage
warnings.simplefilter("ignore")
storage = open_storage(sys.argv[1])
study = optuna.load_study(study_name="made", storage=storage)
slots = SlotTable(study, storage)
print("ready", flush=True)
sys.stdin.readline()
while (claim := slots.claim(int(sys.argv[2]))) is not None:
    trial = study.ask()
    trial.set_user_attr("slot", claim.slot)
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 0.5)
    slots.finish(claim)
    print(claim.slot, flush=True)
"""


def test_four_processes_share_sixty_slots_without_a_duplicate(file: Path) -> None:
    n_slots = 60
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, url_of(file), str(n_slots)],
            cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    for worker in workers:  # all begin at once, whenever they were started
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n", worker.communicate()[1]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, "".join(err for _, err in outputs)
    assert all("Error" not in err for _, err in outputs)
    claimed = [[int(line) for line in out.split()] for out, _ in outputs]
    assert sorted(slot for slots in claimed for slot in slots) == list(range(n_slots))
    study = optuna.load_study(study_name="made", storage=open_storage(url_of(file)))
    trials = study.get_trials()
    assert Counter(trial.user_attrs["slot"] for trial in trials) == Counter(range(n_slots))
    assert [trial.number for trial in trials] == list(range(n_slots))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_a_checkpoint_makes_a_plain_copy_whole(file: Path, tmp_path: Path) -> None:
    opened = open_storage(url_of(file))
    study = optuna.load_study(study_name="made", storage=opened)
    study.set_user_attr("newest", "yes")
    log = file.with_name(file.name + "-wal")
    assert log.stat().st_size > 0  # else there is nothing to test
    torn = Path(shutil.copy(file, tmp_path / "torn.db"))
    checkpoint_sqlite(opened)
    assert not log.exists() or log.stat().st_size == 0
    whole = Path(shutil.copy(file, tmp_path / "whole.db"))
    assert "newest" not in open_study(url_of(torn), "made").user_attrs
    assert open_study(url_of(whole), "made").user_attrs["newest"] == "yes"


def test_a_new_file_is_made_with_its_folders(tmp_path: Path) -> None:
    file = tmp_path / "a folder" / "deeper" / "study.db"
    assert open_storage(url_of(file)).get_all_studies() == []
    assert file.exists()


# Refusals


@pytest.mark.parametrize("url", ["study.db", "", "sqlite", "/home/me/study.db"])
def test_what_is_no_url_is_refused(url: str) -> None:
    assert "--storage must be a SQLAlchemy URL such as sqlite:///study.db" in refusal(url)


def test_an_unknown_scheme_is_refused() -> None:
    message = refusal(f"foo://user:{SECRET}@host/db")
    assert "foo://user:***@host/db cannot be used" in message
    assert SECRET not in message


def test_a_server_that_does_not_answer_is_refused() -> None:
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        message = refusal(f"postgresql+psycopg://user:{SECRET}@127.0.0.1:{taken.getsockname()[1]}/db")
    assert "user:***@127.0.0.1" in message
    assert "Connection refused" in message
    assert "that the server runs" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://user:{SECRET}@127.0.0.1:port/db",
        f"user:{SECRET}@host/db",
        f"postgresql+psycopg://user@127.0.0.1:1/db?password={SECRET}",
    ],
    ids=["bad port", "no scheme", "in the query"],
)
def test_a_malformed_url_is_refused_without_its_password(url: str) -> None:
    assert SECRET not in refusal(url)
    assert SECRET not in hide_password(url)


def test_memory_is_no_storage_for_several_processes() -> None:
    assert "sqlite" in refusal("sqlite://")
    assert "sqlite" in refusal("sqlite:///:memory:")


def test_a_text_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("Not a database, but notes of half a year.\n" * 100)
    before = file.read_bytes()
    assert "file is not a database" in refusal(url_of(file))
    assert file.read_bytes() == before


def test_the_tables_of_another_optuna_are_refused(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v2.4.0.a'")
    assert "cannot be used" in refusal(url_of(file))


def test_a_missing_file_is_not_created_by_reading(tmp_path: Path) -> None:
    file = tmp_path / "gone" / "study.db"
    message = refusal(url_of(file), must_exist=True)
    assert f"There is no study at {str(file)!r}" in message
    assert "python -m study.run" in message
    assert not file.parent.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "The folder of the storage, " in refusal(url_of(tmp_path / "file" / "study.db"))


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system_is_refused(kind: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_file_system", lambda folder: kind)
    message = refusal(url_of(file))
    assert "SQLite cannot lock on a network file system" in message
    assert "--storage postgresql+psycopg://" in message


def test_the_file_system_is_that_of_the_deepest_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside = tmp_path / "a share" / "runs"
    inside.mkdir(parents=True)
    mounts = f"/dev/x / ext4 rw 0 0\nserver:/y {str(tmp_path / 'a share').replace(' ', chr(92) + '040')} nfs4 rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda path: mounts)
    assert storage_module._file_system(inside) == "nfs4"
    assert storage_module._file_system(tmp_path) == "ext4"
    assert storage_module._file_system(tmp_path / "a shared folder") == "ext4"  # a prefix is no parent


def test_the_password_is_not_in_the_command_to_paste(tmp_path: Path) -> None:
    command = dashboard_command(f"postgresql+psycopg://user:{SECRET}@host/db", tmp_path / "artifacts")
    assert "user:***@host/db" in command
    assert str(tmp_path / "artifacts") in command
    assert SECRET not in command
    assert hide_password("sqlite:///study.db") == "sqlite:///study.db"


def test_an_unknown_study_is_refused_with_the_known_ones(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No study is called 'other' in .*; it holds: made\. .*--study-name"):
        open_study(url_of(file), "other")
    open_storage(url_of(tmp_path / "none.db"))
    with pytest.raises(UserError, match="it holds none"):
        open_study(url_of(tmp_path / "none.db"), "other")


def test_a_study_of_another_program_is_refused(file: Path) -> None:
    with pytest.raises(UserError, match=r"'made' was not made by study\.run"):
        config_of(open_study(url_of(file), "made"))


# Reading back


def trial_with(value: float | None, state: TrialState, **attrs: object) -> optuna.trial.FrozenTrial:
    return optuna.create_trial(value=value, state=state, user_attrs=attrs)


@pytest.fixture
def study() -> optuna.Study:
    made = optuna.create_study(study_name="made", direction="maximize")
    made.add_trial(trial_with(None, TrialState.FAIL))
    return made


def test_the_best_trial_is_the_first_of_the_highest_complete_ones(study: optuna.Study) -> None:
    with pytest.raises(UserError, match=r"no complete trial yet\. Run python -m study\.run"):
        best_trial(study)
    ours: dict[str, object] = {"slot": 0, "candidate": {}}
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED, intermediate_values={0: 0.99}, user_attrs=ours))
    with pytest.raises(UserError, match="no complete trial yet"):
        best_trial(study)
    for value in (0.4, 0.6, 0.6, 0.5):
        study.add_trial(trial_with(value, TrialState.COMPLETE, **ours))
    for attrs in ({}, {"slot": 1}, {"slot": "x", "candidate": {}}):  # somebody else's
        study.add_trial(trial_with(0.99, TrialState.COMPLETE, **attrs))
    assert best_trial(study).number == 3
    assert [trial.number for trial in finished_trials(study)] == [1, 2, 3, 4, 5]


def test_a_trial_is_chosen_by_a_number_that_exists_and_has_a_candidate(study: optuna.Study) -> None:
    study.add_trial(trial_with(0.5, TrialState.COMPLETE, candidate={}))
    assert get_trial(study, 1).number == 1
    for number in (-1, 2):
        with pytest.raises(UserError, match=f"--trial must be between 0 and 1 in 'made': {number}"):
            get_trial(study, number)
    with pytest.raises(UserError, match="Trial 0 ended before it had a candidate"):
        get_trial(study, 0)


def test_a_study_without_trials_says_so() -> None:
    with pytest.raises(UserError, match="no trial"):
        get_trial(optuna.create_study(study_name="empty"), 0)
