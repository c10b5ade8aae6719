"""What README files say is true: commands and code run, figures are those of the files, links lead somewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from search_spaces import SPACES
from search_spaces.architecture import Architecture, Conv
from search_spaces.teacher import TEACHER
from study import describe
from study.command_line.own import own_limits
from study.data.cifar10 import CLASSES
from study.machine.paths import REPOSITORY, RESULTS

MAX_LINES = 150
"""Of README.md: who reads it first reads all of it, or nothing."""

READMES = {folder: REPOSITORY / folder / "README.md" for folder in (".", "results", "search_spaces")}
PAGES = {**READMES, "study": REPOSITORY / "study" / "README.md"}
"""Those without generated figures too."""

README = READMES["."].read_text()
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"^python -m study\..*$", README, re.MULTILINE)]


def _tiny(command: str, out: Path, photo: Path) -> tuple[str, list[str]]:
    """The module and the arguments of a README command, at a size that takes seconds."""
    _, _, module, *arguments = shlex.split(command)
    here = {"results/best/trial-0": str(out / "best"), "photo.png": str(photo), "/tmp/try": str(out / "try")}
    here["/tmp/net.onnx"] = str(out / "net.onnx")
    replaced = {
        "--trials": {"50": "2", "100": "3"},
        "--top": {"4": "2"},
        "--trial": {"12": "1"},
        "--epochs": {"100": "1"},
        "--seeds": {"3": "2"},
    }
    arguments = [here.get(word, word) for word in arguments]
    if "--out" in arguments:  # a try, small as it stands
        smaller = {"4": "2", "500": "100", "200": "100", "2": "1"}
        return module, [smaller.get(word, word) for word in arguments]
    for index, word in enumerate(arguments):
        if index and arguments[index - 1] in replaced:
            arguments[index] = replaced[arguments[index - 1]][word]
    study_out = ["--out", str(out if "small" not in arguments else out / "small")]
    if module == "study.run":
        arguments += ["--train-images", "200", "--val-images", "100", "--epochs", "1", "--pruner", "none", *study_out]
    elif module == "study.retrain" and "--evaluate" not in arguments:
        arguments += [*(["--epochs", "1"] if "--epochs" not in arguments else []), "--train-images", "200", *study_out]
    elif module == "study.rerank":
        arguments += ["--train-images", "200", "--val-images", "100", "--epochs", "1", *study_out]
    elif module == "study.report":
        arguments += study_out
    return module, arguments


@pytest.mark.slow
def test_every_command_of_the_readme_runs(
    made_cifar10: Path,
    tmp_path: Path,
    all_cores: Callable[[], contextlib.AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    teacher = Architecture((Conv(16, stride=2), Conv(32, stride=2)))  # in place of one of a million parameters
    monkeypatch.setattr("study.retraining.teacher.TEACHER", dataclasses.replace(TEACHER, architecture=teacher))
    photo = tmp_path / "photo.png"
    _photo(photo)
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        module, arguments = _tiny(command, tmp_path / "out", photo)
        is_try = "--out /tmp/try" in command
        with all_cores() if is_try else contextlib.nullcontext():
            assert importlib.import_module(module).main(arguments) == 0, command
    shown = capsys.readouterr().out
    assert "The same" in shown
    assert "175,696" in shown


def test_set_up_commands_are_one_line_each():
    for name in ("main command", "test command"):
        block = README.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0]
        lines = [line for line in block.strip().splitlines() if not line.startswith("```")]
        assert len(lines) == 1
        assert lines[0].startswith("python3 -m venv .venv && ")


def test_it_is_short():
    assert len(README.splitlines()) <= MAX_LINES


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    return importlib.import_module("publish")


def test_figures_are_those_of_the_files(publish: ModuleType):
    assert sorted(publish.READMES) == sorted(file.resolve() for file in READMES.values())
    for file in publish.READMES:
        assert publish.rewritten(file) == file.read_text(), f"{file}: run python scripts/publish.py --readme"


def test_every_block_stands_in_one_file(publish: ModuleType):
    shown = [name for file in READMES.values() for name in re.findall(r"<!-- results:(\S+) -->", file.read_text())]
    assert sorted(shown) == sorted(publish.BLOCKS)


@pytest.mark.parametrize("folder", PAGES)
def test_links_lead_somewhere(folder: str):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[folder].read_text())
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, section = link.partition("#")
        file = PAGES[folder].parent / path if path else PAGES[folder]
        assert file.exists(), link
        if section:
            assert section in _sections(file), link


def _sections(file: Path) -> list[str]:
    """The anchors that a page of Markdown has for its headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_trees_are_those_of_the_spaces():
    shown = [line.strip() for line in READMES["search_spaces"].read_text().splitlines()]
    for name, space in SPACES.items():
        assert [line for line in space.tree.splitlines() if line.strip() and line.strip() not in shown] == []
        for file in (READMES["."], READMES["search_spaces"]):
            assert f"`{name}`" in file.read_text()


def _blocks(file: Path) -> list[str]:
    """The blocks of Python in `file`."""
    return re.findall(r"^```python\n(.*?)^```$", file.read_text(), re.MULTILINE | re.DOTALL)


def test_the_network_is_used_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "results").symlink_to(RESULTS)
    _photo(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    (block,) = _blocks(READMES["."])
    exec(block, {})
    assert capsys.readouterr().out.strip() in CLASSES


def _photo(file: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(file)


@pytest.mark.slow
def test_a_space_of_your_own_meets_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "inverted.py"
    file.write_text(_blocks(READMES["search_spaces"])[0])
    try:
        assert describe.main([f"{file}:InvertedSpace", "--check"]) == 0, capsys.readouterr().out
    finally:
        SPACES.pop("inverted", None)


def test_a_limit_of_your_own_is_one(tmp_path: Path):
    (tmp_path / "mine.py").write_text(_blocks(READMES["search_spaces"])[1])
    (limit,) = own_limits([f"{tmp_path / 'mine.py'}:activations"]).limits
    assert (limit.name, limit.bound) == ("largest_map_kb", 150.0)


def test_published_networks_meet_the_limits():
    import json

    files = list(RESULTS.glob("*/*/metrics.json"))
    assert files
    for file in files:
        found = json.loads(file.read_text())
        assert found["params"] < 200_000
        assert found["receptive_field"] > 44
        assert found["target_met"] == (found["test_accuracy_mean"] > found["target_accuracy"])
