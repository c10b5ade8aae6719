"""A study by two processes on a PostgreSQL server that is started for the test and gone after it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import optuna
import pytest
from sqlalchemy import text

from search_spaces.reference import REFERENCE
from study import describe, report, rerank, retrain, run
from study.command_line.parser import run_command
from study.machine.paths import REPOSITORY
from study.storage import database
from study.storage.database import open_storage
from study.storage.patience import STORAGE_ERRORS, Patience

pytestmark = pytest.mark.slow

SCRIPT = REPOSITORY / "scripts" / "postgres_study.sh"
N_TRIALS = 4
SECRET = "s3cr3t-w0rd"


def run_script(data: str, out: Path, temporary: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "bash", str(SCRIPT), "--trials", str(N_TRIALS), "--epochs", "1", "--train-images", "100",
            "--val-images", "50", "--device", "cpu", "--out", str(out),
        ],
        env=os.environ | {"PYTHON": sys.executable, "STUDY_DATA": data, "TMPDIR": temporary},
        text=True, capture_output=True, timeout=900,
    )  # fmt: skip


@pytest.mark.postgres
@pytest.mark.cifar10
def test_two_processes_of_which_one_is_killed_finish_exactly_n(cifar10_folder: str, tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    installed = [str(folder) for folder in Path("/usr/lib/postgresql").glob("*/bin")]
    if not shutil.which("initdb", path=os.pathsep.join([*installed, os.environ.get("PATH", "")])):
        pytest.skip("PostgreSQL is not installed: there is no initdb")
    # The server may run as another user, who cannot enter the private folders of pytest.
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        done = run_script(cifar10_folder, tmp_path / "out", temporary)
        assert list(Path(temporary).glob("tmp.*")) == []  # the server's data is gone
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert re.search(rf"slots: {N_TRIALS} finished of {N_TRIALS}, at most [23] under way", done.stdout), printed
    assert re.search(r"trials: .*\bFAIL", done.stdout)  # those of the killed one
    shown = re.findall(r"postgresql\+psycopg://study:([^@]*)@127\.0\.0\.1", printed)
    assert shown
    assert set(shown) == {"***"}
    assert "password" not in printed
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.postgres
def test_a_server_that_goes_away_is_a_line_and_readers_need_no_more_than_reading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_server() as (server, url):
        with open_storage(url.format("study")).engine.begin() as connection:
            connection.execute(text("CREATE ROLE reader LOGIN"))
            connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"))
        storage = open_storage(url.format("study"))
        study = optuna.create_study(study_name="made", storage=storage, direction="maximize")
        study.add_trial(optuna.create_trial(value=0.5, user_attrs={"candidate": REFERENCE.to_json()}))
        storage.engine.dispose()
        options = ["--storage", url.format("reader"), "--study-name", "made", "--out", str(tmp_path)]
        capfd.readouterr()
        assert code_of(describe, "--trial", "0", *options) == 0
        assert "Trial 0 of made" in capfd.readouterr().out

        load = optuna.load_study

        def load_and_stop(**arguments: Any) -> optuna.Study:
            found = load(**arguments)
            server("stop", "-m", "immediate")
            return found

        monkeypatch.setattr(optuna, "load_study", load_and_stop)
        assert code_of(describe, "--trial", "0", *options) == 1
        line = capfd.readouterr().err
        assert line.startswith("failed: the storage does not answer (")
        assert line.count("\n") == 1
        for command in (run, rerank, retrain, report):
            assert code_of(command, *options) == 2
            line = capfd.readouterr().err
            assert "Check the URL, that the server runs" in line
            assert line.count("\n") == 1
            assert SECRET not in line


@pytest.mark.postgres
def test_who_sleeps_in_a_transaction_loses_its_locks_and_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "FORGOTTEN_S", 1)
    with running_server() as (_, url):
        asleep, awake = open_storage(url.format("study")), open_storage(url.format("study"))
        optuna.create_study(study_name="made", storage=awake)
        locked = text("SELECT * FROM studies FOR UPDATE")
        heard: list[str] = []
        got: list[Any] = []

        def look() -> None:
            with asleep.engine.connect() as connection:
                connection.execute(locked)

        def sleep() -> None:
            with asleep.engine.begin() as connection:
                connection.execute(locked)
                with awake.engine.begin() as other:
                    other.execute(text("SET LOCAL lock_timeout = '30s'"))
                    got.append(other.execute(locked).scalars().all())
                connection.execute(locked)

        with pytest.raises(STORAGE_ERRORS):
            sleep()
        assert len(got) == 1
        Patience(heard.append, lambda: False)(look)
        assert heard == []  # a new connection is there at once
        for storage in (asleep, awake):
            storage.engine.dispose()


@contextlib.contextmanager
def running_server() -> Iterator[tuple[Callable[..., None], str]]:
    """What passes words on to pg_ctl, and the URL of a server that runs, with a place for the user."""
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    folders = [str(folder) for folder in Path("/usr/lib/postgresql").glob("*/bin")]
    initdb = shutil.which("initdb", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    if not initdb:
        pytest.skip("PostgreSQL is not installed: there is no initdb")
    with socket.socket() as free, tempfile.TemporaryDirectory() as temporary:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        as_server: list[str] = []
        if os.geteuid() == 0:  # as which it refuses to run
            shutil.chown(temporary, "postgres")
            as_server = ["runuser", "-u", "postgres", "--"]

        def server(*words: str) -> None:
            pg_ctl = [str(Path(initdb).resolve().parent / "pg_ctl"), "-D", f"{temporary}/data", "-w", *words]
            subprocess.run([*as_server, *pg_ctl], cwd="/", check=True, stdout=subprocess.DEVNULL)

        server("initdb", "-o", "-U study -A trust --no-sync")
        free.close()
        listen = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c fsync=off"
        server("start", "-l", f"{temporary}/log", "-o", listen)
        try:
            yield server, f"postgresql+psycopg://{{}}:{SECRET}@127.0.0.1:{port}/postgres"
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                server("stop", "-m", "immediate")


def code_of(command: ModuleType, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: command.main(arguments))
    return cast(int, caught.value.code)


@pytest.mark.postgres
def test_without_a_server_installed_the_script_says_what_to_install(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "ls", "sort"):
        found = shutil.which(tool)
        assert found
        (tools / tool).symlink_to(found)
    script = tmp_path / "scripts" / SCRIPT.name
    script.parent.mkdir()
    script.write_text(SCRIPT.read_text().replace("/usr/lib/postgresql", str(tmp_path / "nowhere")))
    done = subprocess.run(["bash", str(script)], env={"PATH": str(tools)}, text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: PostgreSQL is not installed")
    assert "apt-get install postgresql" in done.stderr
