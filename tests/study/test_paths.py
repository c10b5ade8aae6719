"""Names of files that the system refuses to look at, or that no terminal should be shown: one line each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Candidate
from study import describe, predict, report, retrain, run
from study.data.cifar10 import find_folder
from study.data.image_files import UnreadableImageError, read_image
from study.errors import UserError
from study.machine.files import what_is
from study.machine.paths import REPOSITORY
from study.model.network import build

CANDIDATE = Candidate(Architecture((Conv(8, stride=2),)))


def _loop(folder: Path) -> str:
    (folder / "loop").symlink_to(folder / "loop")
    return str(folder / "loop")


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


HOSTILE: dict[str, Callable[[Path], str]] = {
    "too long": lambda folder: str(folder / ("x" * 300)),
    "far too long": lambda folder: str(folder / ("x/" * 3_000)),
    "null": lambda folder: str(folder / "a\0b"),
    "a loop": _loop,
    "a pipe": _pipe,
    "a device": lambda _: "/dev/zero",
    "no UTF-8": lambda folder: str(folder / os.fsdecode(b"\xff\xfe")),
    "half a character": lambda folder: str(folder / "\ud800"),
    "escapes": lambda folder: str(folder / "\x1b[2J\nred\u202e"),
    "below a file": lambda _: str(REPOSITORY / "README.md" / "below"),
}


@pytest.fixture(params=HOSTILE)
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return HOSTILE[request.param](tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("best")
    (folder / "candidate.json").write_text(json.dumps(CANDIDATE.to_json()))
    (folder / "metrics.json").write_text('{"test_accuracy_shipped": 0.5}')
    torch.save(build(CANDIDATE.architecture, seed=3).state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / "good.png")
    return str(tmp_path / "good.png")


def test_the_other_images_are_predicted(
    hostile: str, bundle: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main([str(bundle), hostile, picture]) == 2
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err.count("\n") == 1
    assert "cannot be read: it " in err
    assert err.rstrip("\n").isprintable()


COMMANDS: dict[str, Callable[[str, Path], Any]] = {
    "bundle to predict": lambda path, _: predict.main([path, "image.png"]),
    "bundle to describe": lambda path, _: describe.main([path]),
    "bundle to evaluate": lambda path, _: retrain.main(["--evaluate", path]),
    "data": lambda path, bundle: retrain.main(["--evaluate", str(bundle), "--data", path]),
    "variable": lambda path, bundle: retrain.main(["--evaluate", str(bundle)]),
    "folder to report": lambda path, _: report.main(["--out", path]),
    "folder to search": lambda path, _: run.main(["--out", path, "--data", path]),
    "trial's folder": lambda path, _: describe.main(["--trial", "0", "--out", path]),
    "storage": lambda path, _: report.main(["--storage", f"sqlite:///{path}"]),
    "study": lambda path, _: report.main(["--study-name", path]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_it_in_one_line(
    command: str, hostile: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "variable":
        if "\0" in hostile or "\ud800" in hostile:
            pytest.skip("no environment variable holds that")
        monkeypatch.setenv("STUDY_DATA", hostile)
    with pytest.raises(UserError) as caught:
        COMMANDS[command](hostile, bundle)
    assert str(caught.value).endswith((".", "databases."))


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "..", "."])
def test_a_study_s_name_does_not_lead_elsewhere(name: str) -> None:
    with pytest.raises(UserError, match=r"A study's folder has its name, .* Name a folder with --out"):
        report.main(["--study-name", name])


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, whom no folder is closed to."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_closed_folder_is_said(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with nobody():
        assert what_is(closed / "inside") == "cannot be opened (Permission denied)"
        with pytest.raises(UserError, match="Permission denied"):
            find_folder(str(closed))
        with pytest.raises(UserError, match="Permission denied"):
            describe.main([str(closed / "inside")])
        with pytest.raises(UserError, match="Permission denied"):
            report.main(["--out", str(closed / "inside")])
        with pytest.raises(UnreadableImageError, match="Permission denied"):
            read_image(closed / "inside.png", 32)


@pytest.mark.parametrize("environment", [{"LANG": "C", "LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}], ids=str)
def test_any_name_is_printed_in_any_encoding(environment: dict[str, str], bundle: Path, tmp_path: Path) -> None:
    names = [os.fsencode(tmp_path) + b"/" + name for name in (b"\xff\n\x1b[31m.png", "ä→.png".encode())]
    for name in names:
        with open(name, "wb") as file:
            Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file, "PNG")
    command = [sys.executable, "-m", "study.predict", str(bundle), *names, names[0] + b"gone"]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stdout.count(b"\n") == 2
    assert done.stderr.count(b"\n") == 1
    assert b"does not exist" in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
