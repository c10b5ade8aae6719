"""What the README says is true: its commands run, its figures are those of the files."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from search_spaces import SPACES
from study.machine.paths import REPOSITORY, RESULTS

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"^python -m study\..*$", README, re.MULTILINE)]


def _tiny(command: str, out: Path, photo: Path) -> tuple[str, list[str]]:
    """The module and the arguments of a README command, at a size that takes seconds."""
    _, _, module, *arguments = shlex.split(command)
    here = {"results/dilated/best": str(out / "best"), "photo.png": str(photo)}
    replaced = {
        "--trials": {"50": "2", "100": "3"},
        "--top": {"4": "2"},
        "--trial": {"12": "1"},
        "--epochs": {"100": "1"},
        "--seeds": {"3": "2"},
    }
    for index, word in enumerate(arguments):
        arguments[index] = here.get(word, word)
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


def test_every_command_of_the_readme_runs(made_cifar10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from PIL import Image

    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(photo)
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        module, arguments = _tiny(command, tmp_path / "out", photo)
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


def test_figures_are_those_of_the_files(tmp_path: Path):
    sys.path.insert(0, str(REPOSITORY))
    publish = importlib.import_module("scripts.publish")
    copy = tmp_path / "README.md"
    copy.write_text(README)
    assert not publish.update_readme(copy), "run python scripts/publish.py --readme"


def test_files_and_trees_that_it_shows_are_there():
    for path in re.findall(r"\]\(((?:results|CHANGELOG)[^)]*)\)", README):
        assert (REPOSITORY / path).exists(), path
    for space in SPACES.values():
        tree = [line.strip() for line in space.tree.splitlines()]
        shown = [line.strip() for line in README.splitlines()]
        assert [line for line in tree if line and line not in shown] == []


def test_published_networks_meet_the_limits():
    import json

    for file in RESULTS.glob("*/best/metrics.json"):
        found = json.loads(file.read_text())
        assert found["params"] < 200_000
        assert found["receptive_field"] > 44
        assert found["target_met"] == (found["test_accuracy_mean"] > found["target_accuracy"])
