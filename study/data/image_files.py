"""Image files as a network takes them, whatever holds the picture."""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from study.errors import said
from study.machine.files import is_file, what_is

RESIZE = "centre square, then Pillow's BOX filter where it shrinks and BICUBIC where it grows"
"""What `fitted` does, for those who have to do it without this project."""
FOREIGN = ("EPS", "IPTC")
"""Formats of which Pillow hands the content to another program, or to whatever reader asks for it: never opened here,
where images are strangers'."""
# What Pillow raises on damaged files, by format and by where the damage is.
_DAMAGED = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableImageError(Exception):
    """A file is no image that can be read; one line with the reason."""


@dataclass(frozen=True)
class Picture:
    """A file's first picture.

    Attributes:
        pixels: uint8 [size, size, 3], RGB.
        several: Whether the file holds more of them: frames of an animation, pages.
    """

    pixels: np.ndarray
    several: bool


def formats() -> list[str]:
    """Names of the formats that are read, in the order in which Pillow tries them."""
    Image.init()
    return [name for name in Image.ID if name not in FOREIGN]


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of files that Pillow reads all the same
            yield
    except UnidentifiedImageError as error:
        raise UnreadableImageError("it is no image, or of a format that is not read here") from error
    except _DAMAGED as error:
        raise UnreadableImageError(said(error)) from error


def read_image(file: Path, size: int) -> np.ndarray:
    """The pixels of `read_picture`: uint8 [size, size, 3]."""
    return read_picture(file, size).pixels


def read_picture(source: Path | BinaryIO, size: int) -> Picture:
    """The first picture of an image file, or of a stream that can seek, as `fitted` makes it.

    Raises:
        UnreadableImageError: It does not exist, is no image, or does not say which of its numbers are white.
    """
    if isinstance(source, Path) and not is_file(source):
        raise UnreadableImageError(f"it {what_is(source)}")
    several = False
    with _in_one_line(), Image.open(source, formats=formats()) as opened:
        pixels = fitted(opened, size)
        with contextlib.suppress(*_DAMAGED):  # of a frame that is not asked for
            several = bool(getattr(opened, "is_animated", False))
    return Picture(pixels, several)


@_in_one_line()
def fitted(image: Image.Image, size: int) -> np.ndarray:
    """An image of any mode and size as the network takes it: uint8 [size, size, 3].

    Turned as its EXIF data say, put on white where transparent, converted to RGB, cropped to the
    centre square, and resized: averaged over areas when it shrinks, bicubic when it grows.

    Raises:
        UnreadableImageError: It is damaged, or does not say which of its numbers are white.
    """
    _scale_transparency(image)
    colours = _rgb(_turned(image), image.format)
    method = Image.Resampling.BOX if min(colours.size) >= size else Image.Resampling.BICUBIC
    return np.asarray(ImageOps.fit(colours, (size, size), method))


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED:  # in the EXIF data, which say nothing then; damaged pixels are noticed by who reads them
        return image


def _scale_transparency(image: Image.Image) -> None:
    """Makes the transparent colour of a PNG, which is told in the file's depth, one of the 8 bits that Pillow reads."""
    tiles = getattr(image, "tile", None)
    colour, depth = image.info.get("transparency"), tiles[0][3] if tiles else None
    if depth in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * 255 // (2 ** int(depth[2:]) - 1)
    elif depth == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value // 256 for value in colour)


def _rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and file_format != "PPM"):  # that one is scaled to 16 bits when read
        raise UnreadableImageError("its pixels are 32-bit numbers of no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip to white
        grey = np.asarray(image).astype(np.int32)  # its own byte order, compared with -1, ends early releases of numpy
        seen = np.where(grey == image.info.get("transparency", -1), 255, grey.clip(0, 65535) // 256)
        return Image.fromarray(seen.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
