"""How a command's end becomes an exit code, also where nobody takes its output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import cast

import pytest

from study.command_line.parser import run_command
from study.errors import Interrupted, StudyFailed, UserError
from study.machine.paths import REPOSITORY


def code_of(outcome: BaseException | int | None, says: str = "", resumes: bool = False) -> int:
    def main() -> int | None:
        if says:
            print(says)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(SystemExit) as caught:
        run_command(main, resumes)
    return cast(int, caught.value.code)


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (UserError("no"), 2, "error: no\n"),
        (StudyFailed("no"), 1, "failed: no\n"),
        (KeyboardInterrupt(), 130, ""),
        (Interrupted(signal.SIGINT), 130, ""),
        (Interrupted(signal.SIGTERM), 143, ""),
        (Interrupted(signal.SIGHUP), 129, ""),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),  # stderr's, perhaps
    ],
)
def test_outcomes(
    outcome: BaseException | int | None, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(outcome) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), FileNotFoundError(2, "x"), KeyError("x")])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_command(lambda: (_ for _ in ()).throw(error))


@contextmanager
def closed() -> Iterator[None]:
    """Standard output is a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream, redirect_stdout(stream):
        yield


@contextmanager
def full() -> Iterator[None]:
    """Standard output is a file on a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as stream, redirect_stdout(stream):
        yield


SAVED = "; what was done is saved, and the same command goes on\n"


@pytest.mark.parametrize("says", ["a line", "many lines\n" * 10_000])
@pytest.mark.parametrize(
    ("resumes", "line"), [(False, ""), (True, f"interrupted: nobody reads the output any more{SAVED}")]
)
def test_a_closed_pipe(says: str, resumes: bool, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with closed():
        assert code_of(0, says, resumes) == 141
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("says", ["a line", "many lines\n" * 10_000])
@pytest.mark.parametrize(("resumes", "end"), [(False, "\n"), (True, SAVED)])
def test_a_full_disk(says: str, resumes: bool, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    with full():
        assert code_of(0, says, resumes) == 1
    assert capsys.readouterr().err == f"failed: the output cannot be written (No space left on device){end}"


@pytest.mark.parametrize(("outcome", "code"), [(UserError("no"), 2), (Interrupted(signal.SIGHUP), 129)])
def test_a_lost_output_hides_no_other_end(outcome: BaseException, code: int) -> None:
    with closed():
        assert code_of(outcome, "a line") == code


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("output", "code", "said"), [("| :", 141, ""), ("> /dev/full", 1, "failed: the output")])
def test_a_whole_process(output: str, code: int, said: str, unbuffered: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m study.describe dilated {output}; exit ${{PIPESTATUS[0]}}"],
        cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == (1 if said else 0)
