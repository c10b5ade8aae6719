"""CIFAR-10 is downloaded whole, or by the same command again; a server of the test's own stands in for the original."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from study.data.cifar10 import FILES, FOLDER, find_folder, load_test, load_train
from study.data.image_files import UnreadableImageError
from study.data.torchvision_sets import decode_torchvision
from study.errors import UserError

ARCHIVE = CIFAR10.filename


def contents() -> dict[str, bytes]:
    """The files of a data set of 10 training images and 2 test images."""
    names: dict[str, Any] = {"batches.meta": {"label_names": list("abcdefghij")}}
    for index, name in enumerate(FILES[:6]):
        names[name] = {"data": np.full((2, 3072), index, np.uint8), "labels": [index, index]}
    return {name: pickle.dumps(content) for name, content in names.items()}


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


class Server:
    """What it sends, of how many bytes it speaks, and how often it was asked."""

    def __init__(self, archive: bytes) -> None:
        self.archive, self.sends, self.asked = archive, len(archive), 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, user_cache: Path) -> Iterator[Server]:
    files = contents()
    state = Server(packed(files))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.archive)))
            self.end_headers()
            self.wfile.write(state.archive[: state.sends])

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    def md5(content: bytes) -> str:
        return hashlib.md5(content).hexdigest()

    monkeypatch.delenv("STUDY_DATA", raising=False)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(state.archive))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(files[name])] for name in FILES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[FILES[5], md5(files[FILES[5]])]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(files["batches.meta"])})
    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{listening.server_port}/{ARCHIVE}")
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


@pytest.fixture
def folder(user_cache: Path) -> Path:
    return user_cache / "small-cnn-study" / "data"


def whole(folder: Path) -> bool:
    """Whether the data set is there, and nothing beside it."""
    beside = [each.name for each in folder.iterdir()]
    return beside == [FOLDER] and len(load_train()) == 10 and len(load_test()) == 2


def test_it_is_downloaded_once_and_nothing_is_left_beside_it(server: Server, folder: Path) -> None:
    assert find_folder() == folder
    asked = server.asked
    assert find_folder() == folder
    assert whole(folder)
    assert server.asked == asked


def test_a_connection_that_breaks_leaves_nothing_and_the_same_command_goes_on(server: Server, folder: Path) -> None:
    server.sends = len(server.archive) // 2
    with pytest.raises(UserError, match=r"could not be downloaded .*\. Run the same command again") as caught:
        find_folder()
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []
    server.sends = len(server.archive)
    assert find_folder() == folder
    assert whole(folder)


def test_another_archive_is_not_unpacked(server: Server, folder: Path) -> None:
    server.archive = packed({"../../escaped": b"x"})
    with pytest.raises(UserError, match="could not be downloaded"):
        find_folder()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("left", ["nothing", "half", "cut", "other bytes", "a file"])
def test_what_a_kill_or_an_older_version_left_is_mended(
    left: str, server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".download-999999999" / FOLDER).mkdir(parents=True)  # of a process that is gone
    if left == "a file":
        (folder / FOLDER).write_text("x")
    elif left != "nothing":
        (folder / FOLDER).mkdir()
        for name, content in contents().items():
            if left == "half" and name == "data_batch_4":
                break
            damaged = content[:-9] if left == "cut" else content[:-9] + b"x" + content[-8:]
            (folder / FOLDER / name).write_bytes(damaged if name == "data_batch_2" and left != "half" else content)
    assert len(load_train()) == 10
    assert whole(folder)
    assert server.asked <= 2  # torchvision first asks whether the address leads elsewhere
    assert ("incomplete or damaged" in capsys.readouterr().out) == (left in ("cut", "other bytes"))


def test_a_named_folder_is_never_touched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine" / FOLDER).mkdir(parents=True)
    for name, content in contents().items():
        (tmp_path / "mine" / FOLDER / name).write_bytes(content[1:])
    with pytest.raises(UserError, match="incomplete or damaged"):
        load_train(str(tmp_path / "mine"))
    (tmp_path / "mine" / FOLDER / "data_batch_1").unlink()
    (tmp_path / "mine" / FOLDER / "data_batch_1").symlink_to("nowhere")
    with pytest.raises(UserError, match="incomplete or damaged"):
        load_train(str(tmp_path / "mine"))
    assert server.asked == 0


@pytest.mark.parametrize("error", [OSError("image file is truncated"), UnreadableImageError("broken data stream")])
def test_a_damaged_image_of_a_data_set_gets_a_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some keep their images as files."""

    class Damaged(list[int]):
        def __getitem__(self, row: Any) -> Any:
            if row == 3:
                raise error
            return Image.new("RGB", (40, 40)), row % 2

    monkeypatch.setattr("study.data.torchvision_sets.opened", lambda name, train: Damaged(range(5)))
    with pytest.raises(UserError, match=rf"^Image 3 of GTSRB cannot be read: {error}\. Remove GTSRB from .*again\.$"):
        decode_torchvision("", "GTSRB", True)
