"""A study by two processes on a PostgreSQL server that is started for the test and gone after it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from study.machine.paths import REPOSITORY

pytestmark = pytest.mark.slow

SCRIPT = REPOSITORY / "scripts" / "postgres_study.sh"
N_TRIALS = 4


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
