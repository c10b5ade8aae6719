"""`python -m study.predict`: classify image files with a bundle, on the CPU in float32."""

from __future__ import annotations

import argparse
import json
import struct
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from study.bundle.files import Bundle, load_bundle
from study.command_line.parser import EXIT_USAGE, Parser, run_command
from study.command_line.waiting import say_first
from study.command_line.wording import aligned, printable
from study.data.cifar10 import CLASSES
from study.errors import said
from study.machine.files import is_file, what_is

_TOP = 3
_BATCH = 256
_EPILOG = """\
examples:
  python -m study.predict results/runs/dilated/best photo.jpg
  python -m study.predict results/runs/dilated/best photos/*.png --json

An image of any size is cropped to its centre square and resized to what the network takes.
"""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a prediction for every readable image, then one line for every other one.

    Returns:
        0, or 2 if at least one image could not be read.

    Raises:
        UserError: The bundle cannot be read.
    """
    options = _parser().parse_args(argv)
    say_first(f"Loading {options.bundle}", sys.stderr)
    bundle = load_bundle(Path(options.bundle))
    readable: list[str] = []
    pixels: list[np.ndarray] = []
    problems: list[str] = []
    for name in options.images:
        try:
            pixels.append(read_image(Path(name), bundle.candidate.architecture.image_size))
            readable.append(name)
        except UnreadableImageError as error:
            problems.append(printable(f"{name!r} cannot be read: {error}."))
    found = predictions(bundle, readable, pixels)
    if options.json:
        print(json.dumps(found, indent=2))
    elif found:
        print("\n".join(_lines(found)))
    sys.stdout.flush()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return EXIT_USAGE if problems else 0


def read_image(file: Path, size: int) -> np.ndarray:
    """An image file as the network takes it: uint8 [size, size, 3].

    Turned as its EXIF data say, put on white where transparent, converted to RGB, cropped to the
    centre square, and resized: averaged over areas when it shrinks, bicubic when it grows.

    Raises:
        UnreadableImageError: It does not exist, is no image, or does not say which of its numbers are white.
    """
    if not is_file(file):
        raise UnreadableImageError(f"it {what_is(file)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of files that Pillow reads all the same
            with Image.open(file) as opened:
                _scale_transparency(opened)
                image = _rgb(ImageOps.exif_transpose(opened), opened.format)
    except UnidentifiedImageError as error:
        raise UnreadableImageError("it is no image, or of a format that Pillow does not know") from error
    except _DAMAGED as error:
        raise UnreadableImageError(said(error)) from error
    method = Image.Resampling.BOX if min(image.size) >= size else Image.Resampling.BICUBIC
    return np.asarray(ImageOps.fit(image, (size, size), method))


def predictions(bundle: Bundle, names: Sequence[str], pixels: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Class, probability and the most likely classes of each image (uint8 [H, W, 3]), in order."""
    import torch

    from study.model.network import Deployable

    module = Deployable(bundle.network).eval()
    found = []
    for start in range(0, len(pixels), _BATCH):
        batch = torch.from_numpy(np.stack(pixels[start : start + _BATCH]))
        images = batch.permute(0, 3, 1, 2).float() / 255  # [N, H, W, 3] -> [N, 3, H, W] in [0, 1]
        with torch.inference_mode():
            probabilities, classes = module(images).softmax(1).sort(dim=1, descending=True, stable=True)
        for name, row, order in zip(names[start:], probabilities.tolist(), classes.tolist(), strict=False):
            likely = zip(order[:_TOP], row, strict=False)
            top = [{"class": CLASSES[label], "probability": probability} for label, probability in likely]
            found.append({"path": name, **top[0], "top": top})
    return found


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m study.predict",
        description="Classify image files with a trained network.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by study.retrain")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file of any size")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    return parser


def _lines(found: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for item in found:
        likely = ", ".join(f"{each['class']} {each['probability']:.3f}" for each in item["top"])
        rows.append((printable(item["path"]), item["class"], f"{item['probability']:.3f}", f"({likely})"))
    return aligned(rows)


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
        grey = np.asarray(image)
        seen = np.where(grey == image.info.get("transparency", -1), 255, grey.clip(0, 65535) // 256)
        return Image.fromarray(seen.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


if __name__ == "__main__":
    run_command(main)
