"""Which study a command means when none is named."""

from __future__ import annotations

import argparse
from pathlib import Path

import optuna
import pytest

from search_spaces import DEFAULT_SPACE, GPU_SPACE, SPACES
from study.command_line import options as study_options
from study.command_line.options import add_study_options, default_space, place_of, study_name
from study.errors import UserError
from study.machine.paths import RUNS


def parsed(*words: str, space: bool = False, device: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_study_options(parser, creates=space)
    if device:
        parser.add_argument("--device", default="auto")
    return parser.parse_args(words)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_options, "has_gpu", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_options, "has_gpu", lambda: False)


def make(file: Path, name: str) -> None:
    optuna.create_study(study_name=name, storage=f"sqlite:///{file}")


def test_a_space_for_each_device(gpu: None) -> None:
    assert {DEFAULT_SPACE, GPU_SPACE} <= set(SPACES)
    assert (default_space(), default_space("cuda"), default_space("cpu")) == (GPU_SPACE, GPU_SPACE, DEFAULT_SPACE)
    assert study_name(parsed(space=True)) == GPU_SPACE
    assert study_name(parsed("--device", "cpu", space=True, device=True)) == DEFAULT_SPACE
    assert study_name(parsed("--space", "separable", space=True)) == "separable"
    assert study_name(parsed("--study-name", "mine", "--space", "separable", space=True)) == "mine"


def test_readers_find_the_study_of_either_device(gpu: None, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    assert study_name(parsed(*out)) == GPU_SPACE  # there is none yet
    make(tmp_path / "study.db", DEFAULT_SPACE)
    assert study_name(parsed(*out)) == DEFAULT_SPACE
    assert study_name(parsed("--storage", f"sqlite:///{tmp_path / 'study.db'}")) == DEFAULT_SPACE
    assert study_name(parsed(*out, space=True)) == GPU_SPACE  # study.run begins its own
    make(tmp_path / "study.db", GPU_SPACE)
    assert study_name(parsed(*out)) == GPU_SPACE


def test_without_a_gpu(no_gpu: None, tmp_path: Path) -> None:
    assert (default_space(), default_space("cuda")) == (DEFAULT_SPACE, GPU_SPACE)
    make(tmp_path / "study.db", GPU_SPACE)  # brought here from a machine that has one
    assert study_name(parsed("--out", str(tmp_path))) == GPU_SPACE


def test_files_that_are_no_storage_are_left_to_who_opens_them(no_gpu: None, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database")
    assert study_name(parsed("--out", str(tmp_path))) == DEFAULT_SPACE
    assert study_name(parsed("--storage", "postgresql://host/db")) == DEFAULT_SPACE


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_do_not_count(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr(Path, "is_dir", lambda self: True)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([self]))
    assert not study_options.has_gpu()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert study_options.has_gpu()


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\0b", "\x1b[31m", "caf\udce9", "x" * 501])
def test_what_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    for options in ((), ("--out", str(tmp_path)), ("--storage", "postgresql://host/db", "--out", "x")):
        with pytest.raises(UserError, match="--study-name must be 1 to 500 printable characters: ") as caught:
            place_of(parsed(*options, "--study-name", name))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "..", ".", ".hidden", "x" * 201, "ä" * 101])
def test_a_name_that_is_no_folder_needs_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"A study's folder has its name, .*--out"):
        place_of(parsed("--study-name", name))
    place = place_of(parsed("--study-name", name, "--out", str(tmp_path)))
    assert (place.name, place.out) == (name, tmp_path)


@pytest.mark.parametrize("name", ["dilated", "my study", "a..b", "x" * 200, "Größe", "100%", "~", "-x", "a\\b"])
def test_a_study_stays_in_the_folder_of_runs(name: str) -> None:
    assert place_of(parsed(f"--study-name={name}")).out.resolve().parent == RUNS.resolve()


def test_empty_options_mean_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--out must name a folder"):
        place_of(parsed("--out", ""))
    assert place_of(parsed("--storage", "", "--out", str(tmp_path))).url == ""  # refused by who opens it
