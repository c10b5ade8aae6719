"""Image files: the same picture however its file holds it, and one reason for every bad file."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from study.data.image_files import UnreadableImageError, read_image, read_picture


@pytest.fixture
def pixels() -> np.ndarray:
    """uint8 [32, 32, 3], smooth, not symmetric."""
    rows, columns = np.mgrid[0:32, 0:32]
    return np.stack([rows * 8, columns * 8, (rows + 2 * columns) * 2], axis=2).astype(np.uint8)


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


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_damaged_exif_data_say_nothing(pixels: np.ndarray, tmp_path: Path, form: str) -> None:
    plain, spoiled = tmp_path / "plain", tmp_path / "spoiled"
    Image.fromarray(pixels).save(plain, form)
    Image.fromarray(pixels).save(spoiled, form, exif=b"Exif\0\0no such thing")
    assert np.array_equal(read_image(spoiled, 32), read_image(plain, 32))


OLD_PILLOW = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 cannot read such a TIFF"
)


@pytest.mark.parametrize(
    "mode", ["L", "LA", "1", "I;16", "I;16B", "I", "CMYK", "HSV", pytest.param("YCbCr", marks=OLD_PILLOW)]
)
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


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(a program) run\n%%EOF\n"


def iptc(content: bytes) -> bytes:
    """A file of grey pixels that are told by another file within it."""

    def field(record: int, number: int, data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, number, len(data)) + data

    size = struct.pack(">I", 32)
    told = {(3, 20): size, (3, 30): size, (3, 60): b"\x01\x00", (3, 120): b"\x00\x00\x00\x05", (8, 10): content}
    return b"".join(field(*tag, data) for tag, data in told.items()) + bytes(5)


@pytest.mark.parametrize("name", ["a.eps", "photo.png"])
@pytest.mark.parametrize("content", [EPS, iptc(EPS)], ids=["EPS", "EPS within IPTC"])
def test_a_picture_runs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes) -> None:
    """PostScript is one: Pillow by itself would give it to Ghostscript, whatever the file is called."""
    interpreter = tmp_path / "bin" / "gs"
    interpreter.parent.mkdir()
    interpreter.write_text(f"#!/bin/sh\ntouch {tmp_path}/run\nexit 1\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it is looked for once
    (tmp_path / name).write_bytes(content)
    with pytest.raises(subprocess.CalledProcessError), Image.open(tmp_path / name) as opened:
        opened.load()
    (tmp_path / "run").unlink()
    with pytest.raises(UnreadableImageError, match="of a format that is not read here"):
        read_image(tmp_path / name, 32)
    assert not (tmp_path / "run").exists()


def test_cmyk_of_a_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    """Adobe's programs write them inverted."""
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = read_image(tmp_path / "a.jpg", 32)[0, 0].tolist()
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize(
    ("suffix", "n_frames"), [("gif", 1), ("gif", 2), ("png", 1), ("png", 2), ("tif", 3), ("webp", 2)]
)
def test_several_pictures_are_said(tmp_path: Path, suffix: str, n_frames: int) -> None:
    first, *others = (Image.new("RGB", (32, 32), (80 * n, 0, 0)) for n in range(n_frames))
    first.save(tmp_path / f"a.{suffix}", save_all=bool(others), append_images=others)
    assert read_picture(tmp_path / f"a.{suffix}", 32).several == (n_frames > 1)


def test_a_damaged_second_frame_does_not_spoil_the_first(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "one.gif")
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    whole, one = ((tmp_path / f"{name}.gif").read_bytes() for name in ("two", "one"))
    (tmp_path / "cut.gif").write_bytes(whole[: len(one) + 15])
    assert read_image(tmp_path / "cut.gif", 32)[0, 0].tolist() == [pytest.approx(255, abs=2), 0, 0]


def test_a_stream_is_read_as_a_file_is(pixels: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    assert np.array_equal(read_picture(stream, 32).pixels, pixels)
    with pytest.raises(UnreadableImageError, match="no image"):
        read_picture(io.BytesIO(b"not an image"), 32)
