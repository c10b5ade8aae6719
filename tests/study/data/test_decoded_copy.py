"""The decoded copy of the data set in the user's cache is a convenience: without it images are decoded anew."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torchvision

from study.data.cifar10 import FOLDER, load_test, load_train
from study.machine import cache

SAID = "note: the decoded copy of CIFAR-10 in the cache cannot be used ("


@pytest.fixture
def made(
    tmp_path: Path,
    user_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    decoding: Callable[[pytest.MonkeyPatch], None],
) -> str:
    """A folder of 20 made images."""

    def decoded(root: str, train: bool) -> SimpleNamespace:
        return SimpleNamespace(data=np.full((20, 32, 32, 3), 7, np.uint8), targets=[i % 10 for i in range(20)])

    monkeypatch.setattr("torchvision.datasets.CIFAR10", decoded)
    decoding(monkeypatch)
    cache.complain.cache_clear()
    folder = tmp_path / "made" / FOLDER
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(b"made")
    return str(folder.parent)


def loads(made: str) -> bool:
    """Whether the images are there; as a map, if they come out of the cache."""
    images = load_train(made)
    assert images.pixels.shape == (20, 32, 32, 3)
    assert int(images.pixels.min()) == int(images.pixels.max()) == 7
    assert images.labels.tolist() == [i % 10 for i in range(20)]
    return isinstance(images.pixels, np.memmap)


def complaints(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return captured.err.splitlines()


def test_a_cache_that_is_a_file(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not loads(made)
    assert not loads(made)
    (said,) = complaints(capsys)
    assert said.startswith(SAID + "NotADirectoryError")


def test_no_home(made: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as of a user without an entry
    assert not loads(made)
    cache.keep("what", {})
    assert cache.recall("what", dict) is None
    said = complaints(capsys)
    assert len(said) == 3
    assert all("$XDG_CACHE_HOME names one" in line for line in said)


def test_a_cache_that_cannot_be_written(
    made: str, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk(0)))
    assert not loads(made)
    (said,) = complaints(capsys)
    assert said.startswith(SAID + "OSError")
    assert "Read-only file system" in said


def test_a_full_disk(
    made: str,
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = small_disk(48)  # KiB; the images take 60
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
    read, n_reads = torchvision.datasets.CIFAR10, []
    monkeypatch.setattr("torchvision.datasets.CIFAR10", lambda *of, **more: (n_reads.append(of), read(*of, **more))[1])
    assert not loads(made)
    assert len(n_reads) == 2  # to be kept, in vain, and to be used
    (said,) = complaints(capsys)
    assert "No space left on device" in said
    assert not list(disk.rglob("output.pkl*"))  # half a copy would keep the disk full


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _of_others(content: object) -> Callable[[Path], object]:
    return lambda file: joblib.dump(content, file)


def _in_the_way(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": _cut,
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no pickle"),
    "a pickle": lambda file: file.write_bytes(pickle.dumps([1, 2])),
    "other shapes": _of_others((np.zeros((20, 8, 8, 3), np.uint8), np.zeros(20, np.int64))),
    "other numbers": _of_others((np.zeros((20, 32, 32, 3), np.float32), np.zeros(20, np.int64))),
    "fewer labels": _of_others((np.zeros((20, 32, 32, 3), np.uint8), np.zeros(19, np.int64))),
    "one array": _of_others(np.zeros((20, 32, 32, 3), np.uint8)),
    "a folder": _in_the_way,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_made_anew(
    damage: str, made: str, user_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loads(made)
    assert load_test(made)
    assert complaints(capsys) == []
    for file in user_cache.rglob("output.pkl"):
        DAMAGE[damage](file)
    assert loads(made)
    (said,) = complaints(capsys)
    assert said.startswith(SAID)
    assert loads(made)
    assert complaints(capsys) == []
    shutil.rmtree(user_cache)
    assert loads(made)
