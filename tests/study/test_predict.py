"""`study.predict`: an answer for every image, and a line for every bad file."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from older_bundle import CANDIDATE, write_older_bundle
from PIL import Image

from study import predict
from study.data.batches import normalise
from study.data.cifar10 import CLASSES
from study.errors import StudyFailed, UserError
from study.machine.paths import REPOSITORY
from study.model.network import build
from study.predict import main


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_older_bundle(tmp_path_factory.mktemp("best"))


@pytest.fixture
def pixels() -> np.ndarray:
    """uint8 [32, 32, 3], smooth, not symmetric."""
    rows, columns = np.mgrid[0:32, 0:32]
    return np.stack([rows * 8, columns * 8, (rows + 2 * columns) * 2], axis=2).astype(np.uint8)


def test_prediction_is_the_network_s(
    bundle: Path, pixels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for index, picture in enumerate((pixels, 255 - pixels)):
        names.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(picture).save(names[-1])
    assert main([str(bundle), *names, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    network = build(CANDIDATE.architecture, seed=3).eval()
    with torch.inference_mode():
        expected = network(normalise(torch.from_numpy(np.stack([pixels, 255 - pixels])))).softmax(1)
    assert [item["path"] for item in found] == names
    for item, row in zip(found, expected, strict=True):
        order = row.argsort(descending=True)[:3]
        assert item["class"] == CLASSES[order[0]]
        assert [other["class"] for other in item["top"]] == [CLASSES[label] for label in order]
        probabilities = [other["probability"] for other in item["top"]]
        assert probabilities == pytest.approx(row[order].tolist(), abs=1e-5)
        assert item["probability"] == probabilities[0]
    main([str(bundle), *names])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[item["path"], item["class"]] for item in found]


def test_bad_files_get_a_line_each_after_the_good_ones(
    bundle: Path, pixels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, last = tmp_path / "good.png", tmp_path / "last.png"
    for file in (good, last):
        Image.fromarray(pixels).save(file)
    broken, text, folder = tmp_path / "broken.png", tmp_path / "text.png", tmp_path / "folder"
    broken.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    text.write_text("not an image")
    folder.mkdir()
    (tmp_path / "empty.jpg").touch()
    bad = [broken, text, folder, tmp_path / "missing.png", tmp_path / "empty.jpg"]
    files = [str(file) for file in (broken, good, *bad[1:], last)]
    assert main([str(bundle), *files, "--json"]) == 2
    captured = capsys.readouterr()
    assert [item["path"] for item in json.loads(captured.out)] == [str(good), str(last)]
    lines = captured.err.splitlines()
    assert len(lines) == len(bad)
    for line, file in zip(lines, bad, strict=True):
        assert line.startswith(f"error: {str(file)!r} cannot be read: ")
    assert main([str(bundle), str(text)]) == 2
    assert capsys.readouterr().out == ""


def test_a_missing_bundle_is_the_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        main([str(tmp_path / "nowhere"), "image.png"])


def test_answers_that_are_no_numbers_are_none(bundle: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "huge")
    weights = torch.load(tmp_path / "huge" / "weights.pt")
    torch.save({n: t * 1e30 if t.is_floating_point() else t for n, t in weights.items()}, tmp_path / "huge/weights.pt")
    save(pixels, tmp_path / "a.png")
    with pytest.raises(StudyFailed, match="answers with NaN"):
        main([str(tmp_path / "huge"), str(tmp_path / "a.png"), "--json"])


def test_command_exit_codes(bundle: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "image.png")
    command = [sys.executable, "-m", "study.predict", str(bundle), str(tmp_path / "image.png"), "gone.png"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1
    assert "image.png" in done.stdout
    assert done.stderr == "error: 'gone.png' cannot be read: it does not exist.\n"


def save(pixels: np.ndarray, *files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def test_a_folder_is_all_images_below_it(
    bundle: Path, pixels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    names = ["b.png", "c.JPG", "sub/a.png", "sub/deep/d.webp"]
    save(pixels, *(folder / name for name in (*names, ".hidden.png", ".trash/e.png")))
    (folder / "labels.csv").write_text("no image")
    (folder / "sub" / "broken.png").write_text("no image either")
    (folder / "loop").symlink_to(folder)
    save(pixels, tmp_path / "elsewhere" / "f.png")
    for link in ("sub/more", "sub/same", "sub/around"):
        (folder / link).symlink_to(tmp_path / "elsewhere" if link != "sub/around" else tmp_path)
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "sub")
    (folder / "latest").symlink_to(folder / "sub")
    names.append("sub/more/f.png")
    assert main([str(bundle), str(folder), "--json"]) == 2
    out, err = capsys.readouterr()
    assert [item["path"] for item in json.loads(out)] == [str(folder / name) for name in names]
    assert err.count("\n") == 1
    assert "broken.png' cannot be read: it is no image" in err
    (tmp_path / "none").mkdir()
    assert main([str(bundle), str(tmp_path / "none"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == []
    assert err.endswith("cannot be read: it is a folder without image files.\n")


def test_a_folder_streams(
    bundle: Path,
    pixels: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """However many there are, no more than a batch is held."""
    monkeypatch.setattr(predict, "_BATCH", 3)
    files = [tmp_path / f"{index}.png" for index in range(7)]
    save(pixels, *files)
    shown: list[int] = []
    read = predict.read_picture

    def reading(source: Path, size: int) -> object:
        shown.append(capsys.readouterr().out.count("\n"))
        return read(source, size)

    monkeypatch.setattr(predict, "read_picture", reading)
    main([str(bundle), str(tmp_path)])
    assert shown == [0, 0, 0, 3, 0, 0, 3]
    assert capsys.readouterr().out.count("\n") == 1


def test_standard_input_is_an_image(
    bundle: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    for content, code in ((stream.getvalue(), 0), (b"nonsense", 2)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        assert main([str(bundle), "-", "--json"]) == code
        out, err = capsys.readouterr()
        assert [item["path"] for item in json.loads(out)] == ["-"] * (code == 0)
        assert err.startswith("error: '-' cannot be read: it is no image") == (code == 2)
    monkeypatch.setattr(sys, "stdin", None)  # as a shell's <&- leaves it
    assert main([str(bundle), "-"]) == 2
    assert "'-' cannot be read: it is closed" in capsys.readouterr().err


@pytest.mark.parametrize("top", [1, 2, 10, 99])
def test_a_table_for_other_programs(
    bundle: Path, pixels: np.ndarray, tmp_path: Path, top: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [tmp_path / "a, b.png", tmp_path / 'quoted ".png']
    save(pixels, *names)
    assert main([str(bundle), *map(str, names), "--csv", "--top", str(top)]) == 0
    head, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    n_classes = min(top, len(CLASSES))
    assert head == ["path", "class", "probability"] + [
        f"{what}_{place}" for place in range(2, n_classes + 1) for what in ("class", "probability")
    ]
    assert [row[0] for row in rows] == list(map(str, names))
    for row in rows:
        assert len(row) == len(head)
        assert set(row[1::2]) <= set(CLASSES)
        probabilities = list(map(float, row[2::2]))
        assert probabilities == sorted(probabilities, reverse=True)
        assert n_classes < 10 or sum(probabilities) == pytest.approx(1)


def test_an_animation_is_said(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert main([str(bundle), str(tmp_path / "a.gif"), "--top", "1"]) == 0
    out, err = capsys.readouterr()
    assert len(out.split()) == 3
    assert err == f"note: {str(tmp_path / 'a.gif')!r} holds several pictures; the first one is classified.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "neither is given"),
        (["a.png", "--serve"], "both are given"),
        (["-", "a.png", "-"], "- names it 2 times: name it once"),
        (["a.png", "--top", "0"], "--top must be at least 1: 0"),
        (["--serve", "--top", "1"], "--serve takes no --top. Leave it out."),
        (["--serve", "--csv"], "--serve takes no --csv"),
        (["--serve", "99999"], "--serve must be between 0 and 65,535: 99,999"),
        (["a.png", "--json", "--csv"], "not allowed with argument --json"),
    ],
)
def test_what_cannot_be_meant_is_refused(bundle: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        main([str(bundle), *arguments])
