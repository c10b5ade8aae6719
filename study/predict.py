"""`python -m study.predict`: classify image files with a bundle, on the CPU in float32, or serve a page that does."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from study.bundle.files import load_bundle
from study.command_line.numbers import at_least, between
from study.command_line.parser import EXIT_USAGE, Parser, run_command
from study.command_line.waiting import say_first
from study.command_line.wording import aligned, printable
from study.data.image_files import UnreadableImageError, formats, read_picture
from study.errors import UserError
from study.machine.files import is_folder
from study.machine.hardware import use_no_more_threads

_BATCH = 256
_PORT = 8000
_STDIN, _MOST_STDIN = "-", 2**28
_EPILOG = """\
examples:
  python -m study.predict results/runs/dilated/best photo.jpg
  python -m study.predict results/runs/dilated/best photos/ --top 1 --csv > classes.csv
  curl -s https://example.org/cat.jpg | python -m study.predict results/runs/dilated/best - --json
  python -m study.predict results/runs/dilated/best --serve

An image of any size is cropped to its centre square and resized to what the network takes. Of a folder every image
file in it and below it counts, but hidden ones. Of an animation or of several pages the first picture counts.
"""
_Answers = Iterator[list[dict[str, Any]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a prediction for every readable image and a line for every other one, batch by batch.

    Returns:
        0, or 2 if at least one image could not be read.

    Raises:
        UserError: The bundle cannot be read, or the options do not fit together.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.serve is None) != bool(options.images):
        raise UserError(
            "Name images, or --serve alone for a page that takes them: "
            f"{'both are' if options.images else 'neither is'} given."
        )
    if options.serve is not None:
        parser.refuse_beside("--serve", options, ("top", "json", "csv"))
    if options.images.count(_STDIN) > 1:
        times = options.images.count(_STDIN)
        raise UserError(f"Standard input can be read once, and {_STDIN} names it {times} times: name it once.")
    say_first(f"Loading {options.bundle}", sys.stderr)
    bundle = load_bundle(Path(options.bundle))
    from study.bundle.classifier import Classifier

    use_no_more_threads()
    model = Classifier(bundle)
    if options.serve is not None:
        from study.serving.server import serve

        serve(model, bundle, options.serve)
        return 0
    problems: list[str] = []
    form = _as_json if options.json else _as_csv if options.csv else _as_text
    top = min(options.top, len(model.classes))
    for line in form(_answers(model, options.images, top, problems), top):
        print(line)
    return EXIT_USAGE if problems else 0


def _answers(model: Any, names: Sequence[str], top: int, problems: list[str]) -> _Answers:
    """Class, probability and the most likely classes of every readable image, a batch at a time: what is named may be
    a folder of more than the memory holds. Whoever takes a batch prints it; what is to be said of its files follows.

    Args:
        model: Of the class `Classifier`.
        names: Of files and folders.
        top: How many classes.
        problems: Gets the name of the last file that could not be read.
    """
    from study.bundle.classifier import most_likely

    sources = chain.from_iterable(map(_sources, names))
    while batch := list(islice(sources, _BATCH)):
        readable: list[str] = []
        pixels: list[np.ndarray] = []
        remarks: list[str] = []
        for name, source in batch:
            try:
                if isinstance(source, UnreadableImageError):
                    raise source
                picture = read_picture(source, model.preprocessing.image_size)
            except UnreadableImageError as error:
                remarks.append(f"error: {printable(f'{name!r} cannot be read: {error}.')}")
                problems[:] = [name]
                continue
            readable.append(name)
            pixels.append(picture.pixels)
            if picture.several:
                remarks.append(f"note: {printable(repr(name))} holds several pictures; the first one is classified.")
        if pixels:
            answers = most_likely(model, np.stack(pixels), top)
            yield [
                {
                    "path": name,
                    "class": likely[0][0],
                    "probability": likely[0][1],
                    "top": [{"class": label, "probability": probability} for label, probability in likely],
                }
                for name, likely in zip(readable, answers, strict=True)
            ]
        sys.stdout.flush()
        for remark in remarks:
            print(remark, file=sys.stderr)


def _sources(name: str) -> Iterator[tuple[str, Path | BinaryIO | UnreadableImageError]]:
    """What is to be read where `name` is a file, a folder or standard input, each with its own name."""
    if name == _STDIN:
        if sys.stdin is None:
            yield name, UnreadableImageError("it is closed")
            return
        content = sys.stdin.buffer.read(_MOST_STDIN + 1)
        too_much = UnreadableImageError(f"it is larger than {_MOST_STDIN:,} bytes")
        yield name, io.BytesIO(content) if len(content) <= _MOST_STDIN else too_much
    elif is_folder(name):
        found = False
        for source in _inside(name):
            found = True
            yield source
        if not found:
            yield name, UnreadableImageError("it is a folder without image files")
    else:
        yield name, Path(name)


def _inside(folder: str) -> Iterator[tuple[str, Path | UnreadableImageError]]:
    """The image files in a folder and below it in the order of their names, and folders that cannot be looked into."""
    closed: list[OSError] = []
    read = formats()
    suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in read}
    root, linked = os.path.realpath(folder), set[str]()
    for where, folders, files in os.walk(folder, onerror=closed.append, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [name for name in folders if os.path.islink(os.path.join(where, name))]:
            real = os.path.realpath(os.path.join(where, name))
            # What lies within the folder comes by its own name, and nothing twice.
            if os.path.commonpath((root, real)) in (root, real) or real in linked:
                folders.remove(name)
            linked.add(real)
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                path = os.path.join(where, name)
                yield path, Path(path)
    for error in closed:
        yield str(error.filename), UnreadableImageError(f"it cannot be opened ({error.strerror})")


def _as_text(answers: _Answers, top: int) -> Iterator[str]:
    for batch in answers:
        rows = []
        for item in batch:
            likely = ", ".join(f"{printable(each['class'])} {each['probability']:.3f}" for each in item["top"])
            rest = (f"({likely})",) if top > 1 else ()
            rows.append((printable(item["path"]), printable(item["class"]), f"{item['probability']:.3f}", *rest))
        yield from aligned(rows)


def _as_json(answers: _Answers, top: int) -> Iterator[str]:
    """One list, an image on each line."""
    yield "["
    last = None
    for item in chain.from_iterable(answers):
        if last is not None:
            yield f"  {last},"
        last = json.dumps(item)
    if last is not None:
        yield f"  {last}"
    yield "]"


def _as_csv(answers: _Answers, top: int) -> Iterator[str]:
    """A row for each image: its path, its class and the probability of that, then those of the next class and so on."""
    more = [f"{what}_{place}" for place in range(2, top + 1) for what in ("class", "probability")]
    yield _row(["path", "class", "probability", *more])
    for item in chain.from_iterable(answers):
        yield _row([item["path"], *(cell for each in item["top"] for cell in each.values())])


def _row(cells: Sequence[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(cells)
    return stream.getvalue()


def _parser() -> Parser:
    parser = Parser(
        prog="python -m study.predict",
        description="Classify image files with a trained network.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by study.retrain")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="image file of any size, a folder of them, or - (stdin)"
    )
    parser.add_argument("--top", default=3, action=at_least(1), help="how many classes of each image (default: 3)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON list")
    form.add_argument("--csv", action="store_true", help="print a CSV table with a head")
    parser.add_argument(
        "--serve",
        nargs="?",
        const=_PORT,
        metavar="PORT",
        action=between(0, 65_535),
        help=f"serve a page for your own pictures, to this machine alone (default: {_PORT}; 0: any free port)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
