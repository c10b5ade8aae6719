"""Folders in pieces of a limited size, for a machine that has no network: data, packages, results.

A piece is named `<payload>.<number>-of-<how many>`, so that a folder of them says by itself what is missing.
CIFAR-10 travels as lossless WebP mosaics, a little over half of its size, and is restored byte for byte.
Needs numpy and Pillow for that, nothing else.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import pickle
import re
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

MIB = 2**20
_PIECE = re.compile(r"(.+)\.(\d{3})-of-(\d{3})")
_STRING = b"T"
"""The opcode that begins a batch's pixels in its pickle (protocol 2, BINSTRING), before their length."""
_PIXELS = 3 * 32 * 32
_ACROSS, _DOWN = 40, 25
"""Images in a mosaic."""


class IncompleteError(Exception):
    """Pieces are missing or damaged."""


# Pieces


def cut(payload: Path, sizes: Iterator[tuple[Path, int]]) -> list[Path]:
    """Cuts a file into pieces, each in the folder and of at most the bytes that `sizes` gives; removes the file."""
    plan: list[tuple[Path, int]] = []
    left = payload.stat().st_size
    while left > 0 or not plan:
        folder, room = next(sizes)
        if room > 0:
            plan.append((folder, min(room, left)))
            left -= plan[-1][1]
    pieces = []
    with payload.open("rb") as source:
        for number, (folder, size) in enumerate(plan):
            folder.mkdir(parents=True, exist_ok=True)
            pieces.append(folder / f"{payload.name}.{number:03d}-of-{len(plan):03d}")
            pieces[-1].write_bytes(source.read(size))
    payload.unlink()
    return pieces


def missing(folder: Path, name: str) -> int:
    """How many pieces of the payload `name` are not in `folder` yet; all count if there is none."""
    total, found = 1, set()
    for file in folder.glob(f"{name}.*-of-*"):
        match = _PIECE.fullmatch(file.name)
        if match is not None:
            total = int(match[3])
            found.add(int(match[2]))
    return total - len(found)


def joined(folder: Path, name: str) -> io.BufferedReader:
    """The payload `name`, put together in `folder` from its pieces, which are removed.

    Raises:
        IncompleteError: Pieces are missing.
    """
    if missing(folder, name):
        raise IncompleteError(f"{missing(folder, name)} pieces of {name} are missing in {folder}.")
    whole = folder / name
    with whole.open("wb") as target:
        for piece in sorted(folder.glob(f"{name}.*-of-*")):
            with piece.open("rb") as source:
                shutil.copyfileobj(source, target)
            piece.unlink()
    return whole.open("rb")


# Folders


def pack_folder(
    source: Path, payload: Path, leave_out: Callable[[str], bool] = lambda name: False, compress: bool = True
) -> None:
    """Writes the files of `source` into the archive `payload`; `leave_out` is asked of every relative path."""
    with tarfile.open(payload, "w:xz", preset=6) if compress else tarfile.open(payload, "w") as archive:
        for file in sorted(source.rglob("*")):
            name = file.relative_to(source).as_posix()
            if file.is_file() and not file.is_symlink() and not leave_out(name):
                archive.add(file, name)


def unpack_folder(payload: io.BufferedReader, target: Path) -> None:
    """The inverse of `pack_folder`.

    Raises:
        IncompleteError: The archive is damaged.
    """
    try:
        with payload, tarfile.open(fileobj=payload) as archive:
            archive.extractall(target, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise IncompleteError(f"{payload.name} is damaged: {error}") from error
    Path(payload.name).unlink()


# CIFAR-10


def pack_cifar10(folder: Path, payload: Path) -> None:
    """Writes the files of `folder` (torchvision's cifar-10-batches-py) into `payload`."""
    records = []
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        raw = file.read_bytes()
        start, end = _pixels_of(raw)
        with ProcessPoolExecutor() as pool:
            mosaics = list(pool.map(_mosaic, _rows(raw[start:end])))
        head, tail = lzma.compress(raw[:start]), lzma.compress(raw[end:])
        records.append((file.name, hashlib.sha256(raw).hexdigest(), head, mosaics, tail))
    payload.write_bytes(pickle.dumps(records))


def unpack_cifar10(payload: io.BufferedReader, folder: Path) -> None:
    """The inverse of `pack_cifar10`, checked against what was packed.

    Raises:
        IncompleteError: A file is not what it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with payload:
        records = pickle.load(payload)  # our own file, carried from a machine of ours
    for name, digest, head, mosaics, tail in records:
        raw = lzma.decompress(head) + b"".join(_unmosaic(mosaic) for mosaic in mosaics) + lzma.decompress(tail)
        if hashlib.sha256(raw).hexdigest() != digest:
            raise IncompleteError(f"{name} is not what was packed.")
        (folder / name).write_bytes(raw)
    Path(payload.name).unlink()


def _pixels_of(raw: bytes) -> tuple[int, int]:
    """Where in a pickled batch its pixels lie; an empty stretch in other files."""
    at = raw.find(_STRING)
    while at >= 0:
        start = at + 1 + 4
        (length,) = struct.unpack_from("<I", raw, at + 1) if len(raw) >= start else (0,)
        if length >= _ACROSS * _DOWN * _PIXELS and length % _PIXELS == 0 and start + length <= len(raw):
            return start, start + length
        at = raw.find(_STRING, at + 1)
    return len(raw), len(raw)


def _rows(pixels: bytes) -> list[np.ndarray]:
    """[N, 3072] planar images, as many together as fill a mosaic."""
    images = np.frombuffer(pixels, np.uint8).reshape(-1, _PIXELS)
    return [images[at : at + _ACROSS * _DOWN] for at in range(0, len(images), _ACROSS * _DOWN)]


def _mosaic(rows: np.ndarray) -> tuple[int, bytes]:
    """The number of images, and all of them as one picture; the last one of a batch may have empty tiles."""
    full = np.zeros((_ACROSS * _DOWN, _PIXELS), np.uint8)
    full[: len(rows)] = rows
    tiles = full.reshape(_DOWN, _ACROSS, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(_DOWN * 32, _ACROSS * 32, 3)
    out = io.BytesIO()
    Image.fromarray(tiles).save(out, "WEBP", lossless=True, quality=100, method=4)
    return len(rows), out.getvalue()


def _unmosaic(mosaic: tuple[int, bytes]) -> bytes:
    n, picture = mosaic
    tiles = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    rows = tiles.reshape(_DOWN, 32, _ACROSS, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, _PIXELS)
    return rows[:n].tobytes()


# Packages


def needed_packages(project: str, there: Iterable[str]) -> dict[str, str]:
    """Versions installed here of what `project` needs, less what is `there` and what only that needs."""
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    skipped = {canonicalize_name(name) for name in there}
    found: dict[str, str] = {}

    def walk(name: str) -> None:
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            needed = canonicalize_name(requirement.name)
            if needed in skipped or needed in found:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            try:
                found[needed] = distribution(needed).version
            except PackageNotFoundError:
                continue
            walk(needed)

    walk(project)
    return found


def download_packages(versions: dict[str, str], python: str, target: Path) -> None:
    """Unpacks wheels of `versions` for Linux on x86-64 and `python` (as "3.12") into `target`."""
    import subprocess
    import sys
    import tempfile
    import zipfile

    platforms: list[str] = []
    for minor in (*range(39, 4, -1),):
        platforms += ["--platform", f"manylinux_2_{minor}_x86_64"]
    platforms += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]
    with tempfile.TemporaryDirectory() as wheels:
        for name, version in versions.items():
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"),
                    *("--python-version", python, "--implementation", "cp", *platforms, "-d", wheels),
                    f"{name}=={version}",
                ],
                check=True,
            )
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)


def tracked_bytes(repository: Path) -> int:
    """Size of the files that git tracks in `repository`."""
    import subprocess

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True).stdout
    files = [repository / name.decode() for name in listed.split(b"\0") if name]
    return sum(file.stat().st_size for file in files if file.is_file())


def parts(folder: Path, bytes_each: int) -> Iterator[tuple[Path, int]]:
    """Folders `1`, `2`, ... in `folder` with the room that is left in each."""
    number = 1
    while True:
        part = folder / str(number)
        used = sum(file.stat().st_size for file in part.glob("*"))
        yield part, bytes_each - used
        number += 1


def receive(places: Sequence[Path], folder: Path) -> None:
    """Copies the pieces in `places` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in places:
        for piece in place.glob("*-of-*"):
            if _PIECE.fullmatch(piece.name) and not (folder / piece.name).exists():
                shutil.copyfile(piece, folder / piece.name)
