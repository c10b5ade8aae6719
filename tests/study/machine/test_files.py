"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from study.machine import cache
from study.machine.files import DamagedFileError, read_tensors, replaced, write_atomically


@pytest.mark.parametrize("lasting", [False, True])
def test_a_file_is_made_and_replaced(tmp_path: Path, lasting: bool) -> None:
    file = tmp_path / "new" / "folder" / "file.json"
    for content in ("first: ä", b"second"):
        write_atomically(file, content, lasting)
        assert file.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(file.parent.iterdir()) == [file]


def test_the_older_file_is_there_until_the_end(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("older")
    with replaced(file) as temporary:
        temporary.write_text("newer")
        assert file.read_text() == "older"
        assert temporary.parent == file.parent  # a rename must not cross file systems
    assert file.read_text() == "newer"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=type)
def test_an_error_leaves_the_older_file_and_nothing_beside_it(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "file"
    file.write_text("older")

    def fail() -> None:
        with replaced(file) as temporary:
            temporary.write_text("the first half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert {each: each.read_text() for each in tmp_path.iterdir()} == {file: "older"}


@pytest.mark.parametrize("failing", ["write_bytes", "replace", "fsync"])
def test_a_full_disk_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(target: Path, *_: object) -> None:
        if failing == "write_bytes":
            target.write_text("the first half")
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "file"
    file.write_text("older")
    monkeypatch.setattr(os if failing == "fsync" else Path, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"newer", lasting=True)
    assert {each: each.read_text() for each in tmp_path.iterdir()} == {file: "older"}


def test_two_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    with replaced(tmp_path / "a") as first, replaced(tmp_path / "a") as second:  # processes may share their number
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_tensors_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "tensors.pt"
    torch.save({"a": torch.arange(100.0)}, file)
    assert torch.equal(read_tensors(file)["a"], torch.arange(100.0))
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place])
        with pytest.raises(DamagedFileError) as caught:
            read_tensors(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(DamagedFileError, match="it does not exist"):
        read_tensors(tmp_path / "missing.pt")


def test_a_cache_that_cannot_be_used_is_an_empty_one(user_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.complain.cache_clear()
    assert cache.recall("what", dict) is None
    cache.keep("what", {"a": 1})
    assert cache.recall("what", dict) == {"a": 1}
    assert capsys.readouterr().err == ""
    (file,) = (each for each in user_cache.rglob("*") if each.is_file())
    for damage in (b"{", b"[1]", b"null", b"\xff", b"[" * 100_000):
        file.write_bytes(damage)
        assert cache.recall("what", dict) is None
    file.write_text('{"of": "another version"}')
    assert cache.recall("what", lambda kept: kept["a"]) is None
    said = capsys.readouterr().err.splitlines()
    assert all(line.startswith("note: what.json in the cache cannot be read (") for line in said)
    assert len(said) == len(set(said)) >= 5
    file.unlink()
    file.mkdir()
    (file / "in the way").touch()
    cache.keep("what", {"a": 1})
    assert "what was measured cannot be kept (" in capsys.readouterr().err
    assert cache.recall("what", dict) is None
    assert [each.name for each in file.parent.iterdir()] == [file.name]
