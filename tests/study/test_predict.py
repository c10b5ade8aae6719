"""`study.predict`: the same answer for an image however its file holds it, and a line for every bad file."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Candidate
from study.data.batches import normalise
from study.data.cifar10 import CLASSES
from study.errors import UserError
from study.machine.paths import REPOSITORY
from study.model.network import build
from study.predict import UnreadableImageError, main, read_image

CANDIDATE = Candidate(Architecture((Conv(8, stride=2), Conv(8, dilation=2, separable=True))))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of a bundle a prediction needs."""
    folder = tmp_path_factory.mktemp("best")
    (folder / "candidate.json").write_text(json.dumps(CANDIDATE.to_json()))
    (folder / "metrics.json").write_text("{}")
    torch.save(build(CANDIDATE.architecture, seed=3).state_dict(), folder / "weights.pt")
    return folder


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


@pytest.mark.parametrize("case", ["RGB", "RGBA", "P", "transparent P", "upscaled", "wide", "tall", "exif", "BMP"])
def test_the_same_picture_in_any_form(pixels: np.ndarray, tmp_path: Path, case: str) -> None:
    image, file = Image.fromarray(pixels), tmp_path / "image.png"
    options: dict[str, Any] = {}
    expected, tolerance = pixels, 0
    if case == "RGBA":
        image.putalpha(255)
    elif case == "P":
        image = image.quantize(256)
        tolerance = 24
    elif case == "transparent P":
        image = Image.fromarray(np.zeros((32, 32), np.uint8), "L").convert("P")
        options = {"transparency": 0}
        expected = np.full((32, 32, 3), 255, np.uint8)
    elif case == "upscaled":
        image = image.resize((32 * 40, 32 * 40), Image.Resampling.NEAREST)
    elif case in ("wide", "tall"):
        framed = np.zeros((32, 64, 3), np.uint8)
        framed[:, 16:48] = pixels
        expected = pixels if case == "wide" else pixels.transpose(1, 0, 2)
        image = Image.fromarray(framed if case == "wide" else framed.transpose(1, 0, 2))
    elif case == "exif":
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # "rotate by 90 degrees clockwise to view"
        options = {"exif": exif}
    elif case == "BMP":
        file = tmp_path / "image.bmp"
    image.save(file, **options)
    found = read_image(file, 32)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16", "I;16B", "I", "CMYK", "HSV", "YCbCr"])
def test_grey_and_exotic_modes(pixels: np.ndarray, tmp_path: Path, mode: str) -> None:
    file = tmp_path / {"CMYK": "image.tif", "YCbCr": "image.tif", "I;16B": "image.tif", "I": "image.pgm"}.get(
        mode, "image.png"
    )
    if mode.startswith("I"):
        grey = pixels[..., 0].astype(np.uint16) * 256
        image = Image.fromarray(grey.astype({"I;16": np.uint16, "I;16B": ">u2", "I": np.int32}[mode]))
    else:
        image = Image.fromarray(pixels).convert("L" if mode == "LA" else mode)
        image = image.convert(mode)
    if mode == "HSV":
        image = image.convert("RGB")
    image.save(file)
    found = read_image(file, 32)
    assert found.shape == (32, 32, 3)
    if mode.startswith("I"):
        assert np.array_equal(found, np.repeat(pixels[..., :1], 3, axis=2))
    assert np.ptp(found) > 120, "the contrast was lost"


def png(depth: int, kind: int, row: list[int], *, transparent: bytes) -> bytes:
    """A PNG of 32 equal rows of samples, and the tRNS chunk that Pillow does not write at every depth."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    bits = "".join(format(sample, f"0{depth}b") for sample in row)
    rows = (b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")) * 32
    header = struct.pack(">IIBBBBB", len(row) // (3 if kind == 2 else 1), 32, depth, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", [0, 2], ids=["grey", "colour"])
def test_what_is_transparent_is_white_at_every_depth(depth: int, kind: int, tmp_path: Path) -> None:
    """One half is of the transparent colour, the other is black."""
    if kind == 2 and depth < 8:
        pytest.skip("PNG knows no such depth of colours")
    n_samples, clear = 3 if kind == 2 else 1, 2**depth * 3 // 7 or 1
    samples = [clear] * 16 * n_samples + [0] * 16 * n_samples
    transparent = struct.pack(">H", clear) * n_samples
    (tmp_path / "image.png").write_bytes(png(depth, kind, samples, transparent=transparent))
    found = read_image(tmp_path / "image.png", 32)
    assert (found[:, :16] == 255).all()
    assert (found[:, 16:] == 0).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_no_known_range_are_not_guessed(mode: str, tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)).convert(mode).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match="no known range; save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tif", 32)


def test_lab_is_converted_or_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32, 3), (137, 0, 0), np.uint8), "LAB").save(tmp_path / "a.tif")
    with contextlib.suppress(UnreadableImageError):  # older versions of Pillow do not convert it
        assert np.abs(read_image(tmp_path / "a.tif", 32).astype(int) - 128).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_one_counts(pixels: np.ndarray, tmp_path: Path, suffix: str) -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert read_image(tmp_path / f"a.{suffix}", 32)[0, 0].tolist() == [pytest.approx(255, abs=2), 0, 0]


def test_a_palette_may_be_half_transparent(tmp_path: Path) -> None:
    image = Image.new("P", (32, 32))
    image.putpalette([0, 0, 0] * 256)
    image.save(tmp_path / "a.png", transparency=bytes([127] * 256))
    assert read_image(tmp_path / "a.png", 32)[0, 0].tolist() == [128] * 3


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (5, 400)])
def test_small_and_odd_sizes(pixels: np.ndarray, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(pixels).resize(size).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png", 32).shape == (32, 32, 3)


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


def test_damage_anywhere_in_a_file_is_never_a_traceback(pixels: np.ndarray, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp"):
        good = tmp_path / f"good.{suffix}"
        Image.fromarray(pixels).save(good)
        data = np.frombuffer(good.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
            (tmp_path / "bad").write_bytes(damaged.tobytes())
            with contextlib.suppress(UnreadableImageError):
                assert read_image(tmp_path / "bad", 32).shape == (32, 32, 3)


def test_a_missing_bundle_is_the_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        main([str(tmp_path / "nowhere"), "image.png"])


def test_command_exit_codes(bundle: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "image.png")
    command = [sys.executable, "-m", "study.predict", str(bundle), str(tmp_path / "image.png"), "gone.png"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1
    assert "image.png" in done.stdout
    assert done.stderr == "error: 'gone.png' cannot be read: it does not exist.\n"
