"""The SQLite recipe under several processes, and what a user reads when a storage cannot be used."""

from __future__ import annotations

import argparse
import contextlib
import os
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
from optuna_dashboard._storage_url import get_storage

from search_spaces.reference import REFERENCE
from study import describe, report, rerank, retrain, run
from study.command_line.options import _names_in, add_study_options, add_training_options
from study.command_line.parser import run_command
from study.command_line.wording import without_passwords
from study.errors import UserError
from study.machine.paths import REPOSITORY, default_storage
from study.machine.sqlite import sqlite_file
from study.storage import database as storage_module
from study.storage import patience
from study.storage.commands import command_of, dashboard_command, next_command
from study.storage.config import StudyConfig
from study.storage.database import (
    best_trial,
    checkpoint_sqlite,
    config_of,
    finished_trials,
    get_trial,
    hide_password,
    open_storage,
    open_study,
)
from study.storage.patience import make_tables
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


def refusal(url: str, read_only: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        open_storage(url, read_only)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The recipe


def test_every_connection_has_the_write_ahead_log(file: Path) -> None:
    engine = open_storage(url_of(file)).engine
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            pragma = connection.connection.cursor().execute
            assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)
            assert pragma("PRAGMA synchronous").fetchone() == (1,)


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


MAKER = """
import sys
import optuna
from study.storage.slots import SlotTable
from study.storage.database import open_storage
print("ready", flush=True)
sys.stdin.readline()
storage = open_storage(sys.argv[1])
study = optuna.create_study(study_name="made", storage=storage, direction="maximize", load_if_exists=True)
print(SlotTable(study, storage).claim(4).slot)
"""


def four_at_once(script: str, *arguments: str) -> list[str]:
    """What four processes print that begin at the same moment, after they said that they are ready."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
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
    return [out for out, _ in outputs]


def test_four_processes_share_sixty_slots_without_a_duplicate(file: Path) -> None:
    n_slots = 60
    claimed = [[int(line) for line in out.split()] for out in four_at_once(WORKER, url_of(file), str(n_slots))]
    assert sorted(slot for slots in claimed for slot in slots) == list(range(n_slots))
    study = optuna.load_study(study_name="made", storage=open_storage(url_of(file)))
    trials = study.get_trials()
    assert Counter(trial.user_attrs["slot"] for trial in trials) == Counter(range(n_slots))
    assert [trial.number for trial in trials] == list(range(n_slots))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_four_processes_make_one_file_between_them(tmp_path: Path) -> None:
    claimed = four_at_once(MAKER, url_of(tmp_path / "new" / "study.db"))
    assert sorted(map(int, claimed)) == list(range(4))


def test_tables_are_made_again_where_others_make_them_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Exception | str] = []

    def make() -> str:
        outcome = made.pop()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    there = sa.exc.OperationalError("CREATE TABLE studies", None, sqlite3.OperationalError("table already exists"))
    twice = sa.exc.IntegrityError("INSERT", None, sqlite3.IntegrityError("UNIQUE constraint failed"))
    other = sa.exc.OperationalError("CREATE TABLE studies", None, sqlite3.OperationalError("disk I/O error"))
    made += ["made", twice, there]
    assert make_tables(make) == "made"
    made += ["made", other]
    with pytest.raises(sa.exc.OperationalError, match="disk I/O"):
        make_tables(make)
    monkeypatch.setattr(patience, "MAKING_S", 0.0)
    made += [there] * 2
    with pytest.raises(sa.exc.OperationalError, match="already exists"):
        make_tables(make)


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


# Paths

STRANGE = (
    "what?x", "what?other=1", "a#b", "100%", "%41", "A", "a b", "me@here:5", "it's", 'so "called"', "$HOME", "`id`",
    "~", "-x", "{0}", "{SCHEMA_VERSION}", "Größe", "a\nb", "a&b=c;d", "file:x", "back\\slash", "*", "!x",
)  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_a_folder_may_be_called_anything(
    name: str, empty_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage, look-up and what is printed for pasting all mean the one file in it."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    url = default_storage("made", name)
    shutil.copy(empty_file, Path(name) / "study.db")
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    assert sqlite_file(url) == tmp_path / name / "study.db"
    assert open_study(url, "made").study_name == "made"
    assert _names_in(url) == ["made"]
    pasted = as_bash_reads(dashboard_command(url, Path(name) / "artifacts"))
    assert pasted == ["optuna-dashboard", url, "--artifact-dir", str(tmp_path / name / "artifacts")]
    assert [study.study_name for study in get_storage(pasted[1]).get_all_studies()] == ["made"]
    parser = argparse.ArgumentParser()
    add_study_options(parser)
    add_training_options(parser, "seeds")
    given = parser.parse_args([f"--out={name}", f"--storage={url}", f"--data={name}", "--cluster", "--worker-gpus=0.5"])
    typed = as_bash_reads(next_command("study.retrain", given, name))
    assert typed[:3] == ["python", "-m", "study.retrain"]
    assert parser.parse_args(typed[3:]) == argparse.Namespace(**vars(given) | {"study_name": name})
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def as_bash_reads(line: str) -> list[str]:
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_a_path_that_is_no_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"must be UTF-8: .*--out"):
        default_storage("made", "caf\udce9")


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///study.db", "study.db"),
        ("sqlite+pysqlite:////tmp/100%2525.db", "/tmp/100%25.db"),
        ("sqlite:///study.db?timeout=5", "study.db"),
        ("sqlite:///file:/tmp/a%253Fb.db?uri=true", "/tmp/a?b.db"),
        ("sqlite:///file:///tmp/x.db?mode=rw&uri=true", "/tmp/x.db"),
        ("sqlite:///file:x.db", "file:x.db"),
        ("sqlite:///file:x?mode=memory&uri=true", None),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("postgresql://host/db", None),
    ],
)
def test_the_file_of_a_url(url: str, file: str | None) -> None:
    assert sqlite_file(url) == (None if file is None else Path(file))


@pytest.mark.parametrize("path", ["what?x/study.db", "what?x=1/study.db", "study.db?"])
def test_a_question_mark_in_a_url_is_no_part_of_its_path(path: str, tmp_path: Path) -> None:
    assert "a path writes a question mark as %3F" in refusal(f"sqlite:///{tmp_path}/{path}")
    assert list(tmp_path.iterdir()) == []


def test_braces_in_a_url_stay_what_they_are(file: Path, tmp_path: Path) -> None:
    (tmp_path / "{SCHEMA_VERSION}").mkdir()
    there = Path(shutil.copy(file, tmp_path / "{SCHEMA_VERSION}"))
    assert open_study(f"sqlite:///{there}", "made").study_name == "made"


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


PASSWORDS = {
    "plain": f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/db",
    "encoded": f"postgresql+psycopg://user:{SECRET[:4]}%2F%40{SECRET[4:]}@127.0.0.1:1/db",
    "not encoded": f"postgresql+psycopg://user:x@/{SECRET}@127.0.0.1:1/db",
    "in the query": f"postgresql+psycopg://user@127.0.0.1:1/db?password={SECRET}&connect_timeout=1",
    "of a key": f"postgresql+psycopg://user@127.0.0.1:1/db?sslpassword={SECRET}&sslmode=prefer",
    "bad option": f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/db?nonsense=1",
    "bad port": f"postgresql+psycopg://user:{SECRET}@127.0.0.1:x/db",
    "no host": f"postgresql+psycopg://user:{SECRET}/db",
    "no scheme": f"user:{SECRET}@127.0.0.1/db",
    "unknown scheme": f"foo://user:{SECRET}@127.0.0.1/db",
    "no driver": f"oracle://user:{SECRET}@127.0.0.1/db",
}


@pytest.mark.parametrize("url", PASSWORDS.values(), ids=PASSWORDS)
def test_no_command_shows_a_password(url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--out", str(tmp_path / "out"))
    for command, arguments in (
        (run, ("--storage", url)),
        (run, (f"--storage={url}",)),
        (run, ("--storage", url, "--trials", "0")),
        (run, ("--storrage", url)),
        (run, (url,)),
        (rerank, ("--storage", url)),
        (retrain, ("--storage", url)),
        (report, ("--storage", url)),
        (describe, ("--storage", url, "--trial", "0")),
        (describe, (url,)),
    ):
        with pytest.raises(SystemExit) as caught:
            run_command(lambda command=command, arguments=arguments: command.main([*arguments, *options]))
        printed, line = capfd.readouterr()
        assert caught.value.code == 2, line
        assert printed.count("\n") <= 1  # what it is about to do
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        for part in (SECRET, SECRET[:4], SECRET[4:]):
            assert part not in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("url", PASSWORDS.values(), ids=PASSWORDS)
def test_no_command_that_is_kept_or_printed_holds_a_password(url: str, tmp_path: Path) -> None:
    typed = ["--storage", "postgresql://other:" + SECRET + "@host/db", f"--storage={url}", "--trials", "5"]
    kept = command_of("study.run", typed, url)
    assert kept.startswith("python -m study.run --storage 'postgresql://other:***@host/db' ")
    assert kept.endswith(" --trials 5")
    options = argparse.Namespace(storage=url, study_name=None, out=None)
    for text in (
        kept,
        hide_password(url),
        dashboard_command(url, tmp_path),
        next_command("study.retrain", options, "made"),
    ):
        assert SECRET[4:] not in text


def test_other_words_keep_their_form() -> None:
    for text in (
        "sqlite:////tmp/me@here:5/study.db", "The folder '/tmp/x' is at 12:30 somebody@host's", "--out a:b", "C:/x@y",
        "postgresql+psycopg://user@host:5432/db", "postgresql://host:5432/db", "postgresql://user@[::1]:5432/db",
    ):  # fmt: skip
        assert without_passwords(text) == text


def test_memory_is_no_storage_for_several_processes() -> None:
    assert "sqlite" in refusal("sqlite://")
    assert "sqlite" in refusal("sqlite:///:memory:")


def test_two_slashes_are_one_too_few() -> None:
    assert "three slashes, four before an absolute path: 'sqlite://x.db' has two" in refusal("sqlite://x.db")


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
    message = refusal(url_of(file), read_only=True)
    assert f"There is no study at {str(file)!r}" in message
    assert "python -m study.run" in message
    assert not file.parent.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "The folder of the storage, " in refusal(url_of(tmp_path / "file" / "study.db"))


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "gpfs", "fuse.glusterfs"])
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


# Reading

READ = """
import pathlib, sys
from study import describe, report
from study.command_line.parser import run_command

def code_of(main, *arguments):
    try:
        run_command(lambda: main(arguments))
    except SystemExit as end:
        print("ended with", end.code)

out, elsewhere = sys.argv[1:]
try:
    pathlib.Path(out, "probe").touch()
    print("it could be written")
except OSError:
    pass
code_of(describe.main, "--trial", "0", "--study-name", "read", "--out", out)
code_of(report.main, "--study-name", "read", "--out", out)
code_of(report.main, "--study-name", "read", "--storage", f"sqlite:///{out}/study.db", "--out", elsewhere)
"""


@pytest.mark.parametrize("kind", ["quiet", "while it runs", "never written by us"])
def test_a_read_only_copy_can_be_read_and_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    origin, out = tmp_path / "origin", tmp_path / "out"
    origin.mkdir()
    url = f"sqlite:///{origin / 'study.db'}"
    opened = optuna.storages.RDBStorage(url) if kind == "never written by us" else open_storage(url)
    study = optuna.create_study(study_name="read", storage=opened, direction="maximize")
    config = StudyConfig("dilated", 1, 6, 15_000, 5_000, 0, "halving", "tpe", "bfloat16")
    study.set_user_attr("config", config.to_json())
    study.add_trial(
        optuna.create_trial(
            value=0.5, user_attrs={"slot": 0, "candidate": REFERENCE.to_json(), "candidate_id": REFERENCE.candidate_id}
        )
    )
    if kind == "quiet":
        checkpoint_sqlite(opened)
        opened.engine.dispose()
    out.mkdir()
    for name in ("study.db", "study.db-wal"):
        if (origin / name).exists():
            shutil.copy(origin / name, out)
    assert (out / "study.db-wal").exists() == (kind == "while it runs")
    before = {file: file.read_bytes() for file in out.iterdir()}
    for file in out.iterdir():
        file.chmod(0o444)
    out.chmod(0o555)
    command = [sys.executable, "-c", READ, str(out), str(tmp_path / "elsewhere")]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and setpriv is not there to take that right away")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    out.chmod(0o755)
    assert "it could be written" not in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("ended")] == [
        "ended with 0", "ended with 2", "ended with 0",
    ], done.stderr  # fmt: skip
    assert done.stdout.count("Best validation accuracy 50.0%: trial 0") == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith("error: The report in ")
    assert "--storage and another folder with --out" in line
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    assert (tmp_path / "elsewhere" / "report.html").exists()


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_readers_write_nothing(mode: str, file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
    before = file.read_bytes()
    study = open_study(url_of(file), "made")
    with pytest.raises(optuna.exceptions.StorageInternalError):
        study.set_user_attr("written", True)
    assert file.read_bytes() == before


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
