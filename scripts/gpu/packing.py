"""Folders in pieces of a limited size, for a machine that has no network: data, packages, results.

A piece is named `<payload>.<number>-of-<how many>`, so that a folder of them says by itself what is missing.
CIFAR-10 travels as lossless WebP mosaics, a little over half of its size, and is restored byte for byte.
Needs numpy and Pillow for that, nothing else.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import lzma
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from PIL import Image

from study.errors import UserError
from study.machine.paths import REPOSITORY

MIB = 2**20
_PIECE = re.compile(r"(.+)\.(\d{3})-of-(\d{3})")
_PIXELS = 3 * 32 * 32
_ACROSS, _DOWN = 40, 25
"""Images in a mosaic."""
UNPACKED = ".unpacked"
"""In a folder: the pieces that it was made of."""


class IncompleteError(Exception):
    """Pieces are missing or damaged."""


# There and back


def prepare(parts: Path, part_mib: float, data: str | None, packages: Mapping[str, str] | None, python: str) -> None:
    """Packs the data set, and wheels of `packages` if given, into folders of `parts` that fit beside the tree.

    Raises:
        UserError: `parts` is in use, or the tree leaves no room.
    """
    from study.data.cifar10 import FOLDER, find_folder

    if parts.exists() and any(parts.iterdir()):
        raise UserError(f"PARTS must be a new or an empty folder: {str(parts)!r} has files. Name another.")
    tree = tracked_bytes(REPOSITORY)
    room = int(part_mib * MIB) - tree
    if room < MIB:
        raise UserError(f"--part-mib must leave a MiB beside the {tree / MIB:.1f} MiB of the tree: {part_mib:g}.")
    source = find_folder(data) / FOLDER
    parts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parts) as work:
        if packages is not None:
            print("packages: " + " ".join(f"{name}=={version}" for name, version in packages.items()), flush=True)
            site = Path(work) / "packages"
            download_packages(packages, python, site)
            shutil.rmtree(site / "optuna_dashboard" / "public", ignore_errors=True)  # pages for browsers
            pack_folder(site, Path(work) / "site.tar.xz")
            cut(Path(work) / "site.tar.xz", _rooms(parts, room))
        print(f"data: {source}", flush=True)
        pack_cifar10(source, Path(work) / "cifar10.pack")
        cut(Path(work) / "cifar10.pack", _rooms(parts, room))
    for part in sorted(path for path in parts.iterdir() if path.is_dir()):
        names = ", ".join(sorted(file.name for file in part.iterdir()))
        print(f"{part}: {_size(part.iterdir()) / MIB:.1f} MiB ({names})")


def _rooms(folder: Path, bytes_each: int) -> Iterator[tuple[Path, int]]:
    """Folders `1`, `2`, ... in `folder` with the room that is left in each."""
    for number in itertools.count(1):
        yield folder / str(number), bytes_each - _size((folder / str(number)).glob("*"))


def unpack_all(places: Sequence[Path], folder: Path) -> bool:
    """Unpacks into `folder` what arrived in `places`, as far as it is whole.

    Returns:
        Whether this machine lives on what was carried to it, now or in an earlier call: all stays in the folder then.

    Raises:
        IncompleteError: Something is damaged.
    """
    carried = folder / "carried"
    targets = {"site.tar.xz": folder / "site", "cifar10.pack": folder / "data"}
    if places:
        receive(places, carried, {piece for target in targets.values() for piece in _unpacked(target)})
    if not missing(carried, "results.tar") and not (folder / "state.json").exists():
        unpack_folder(joined(carried, "results.tar"), folder)
    for name, target in targets.items():
        if not missing(carried, name):
            pieces = sorted(map(_named, carried.glob(f"{name}.*-of-*")))
            if name == "site.tar.xz":
                unpack_folder(joined(carried, name), target)
            else:
                unpack_cifar10(joined(carried, name), target / "cifar-10-batches-py")
            (target / UNPACKED).write_text("\n".join(pieces))
    return carried.is_dir() or (folder / "data").is_dir()


def pack_results(folder: Path, target: Path, mib: float) -> list[Path]:
    """Everything of `folder` that cannot be had elsewhere, in pieces of at most `mib`; an older set is replaced."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        payload = Path(work) / "results.tar"
        # Not compressed: weights hardly shrink, and this is done when time is up.
        pack_folder(folder, payload, lambda name: _is_left_out(folder, name), compress=False)
        for old in target.glob("results.tar.*"):
            old.unlink()
        return cut(payload, itertools.repeat((target, int(mib * MIB))))


def _is_left_out(folder: Path, name: str) -> bool:
    """What was carried here, what can be made again, and snapshots whose answers on the test images are kept."""
    if name.split("/")[0] in ("carried", "site", "data") or name.endswith("results.tar"):
        return True
    if name.startswith("runs/"):  # the report, also among the dashboard's files, is mostly plotly
        with (folder / name).open("rb") as file:
            if file.read(15).lower() == b"<!doctype html>":
                return True
    if name.startswith("cache/"):  # but for what was measured: the decoded data set and compiled kernels are large
        return not Path(name).match("cache/small-cnn-study/*.json")
    at = name.find(".snapshots/")
    return at >= 0 and (folder / f"{name[:at]}.npz").exists()


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


def receive(places: Sequence[Path], folder: Path, unpacked: Collection[str] = ()) -> None:
    """Copies the pieces in `places` into `folder`, but for those that were unpacked before."""
    folder.mkdir(parents=True, exist_ok=True)
    for piece in (piece for place in places for piece in place.glob("*-of-*")):
        there = (folder / piece.name).exists() or _named(piece) in unpacked
        if _PIECE.fullmatch(piece.name) and not there:
            shutil.copyfile(piece, folder / piece.name)


def _named(piece: Path) -> str:
    """A piece as `UNPACKED` tells it."""
    return f"{piece.name} {hashlib.sha256(piece.read_bytes()).hexdigest()}"


def _unpacked(target: Path) -> list[str]:
    """The pieces of which the folder `target` was made."""
    file = target / UNPACKED
    return file.read_text().splitlines() if file.exists() else []


def missing(folder: Path, name: str) -> int:
    """How many pieces of the payload `name` are not in `folder` yet; all count if there is none."""
    found = [match for file in folder.glob(f"{name}.*-of-*") if (match := _PIECE.fullmatch(file.name))]
    return int(found[0][3]) - len(found) if found else 1


def joined(folder: Path, name: str) -> io.BufferedReader:
    """The payload `name`, put together in `folder` from its pieces, which are removed.

    Raises:
        IncompleteError: Pieces are missing.
    """
    if missing(folder, name):
        raise IncompleteError(f"{missing(folder, name)} pieces of {name} are missing in {folder}.")
    with (folder / name).open("wb") as target:
        for piece in sorted(folder.glob(f"{name}.*-of-*")):
            with piece.open("rb") as source:
                shutil.copyfileobj(source, target)
            piece.unlink()
    return (folder / name).open("rb")


# Folders


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


def tracked_bytes(repository: Path) -> int:
    """Size of the files that git tracks in `repository`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True).stdout
    return _size(repository / name.decode() for name in listed.split(b"\0") if name)


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
    with ProcessPoolExecutor() as pool:
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            raw = file.read_bytes()
            start, end = _pixels_of(raw)
            images = np.frombuffer(raw[start:end], np.uint8).reshape(-1, _PIXELS)
            mosaics = list(pool.map(_mosaic, np.split(images, range(_ACROSS * _DOWN, len(images), _ACROSS * _DOWN))))
            around = lzma.compress(raw[:start]), lzma.compress(raw[end:])
            records.append((file.name, hashlib.sha256(raw).hexdigest(), mosaics, around))
    payload.write_bytes(pickle.dumps(records))


def unpack_cifar10(payload: io.BufferedReader, folder: Path) -> None:
    """The inverse of `pack_cifar10`, checked against what was packed.

    Raises:
        IncompleteError: A file is not what it was.
    """
    found = {}
    try:
        with payload:
            records = pickle.load(payload)  # our own file, carried from a machine of ours
        for name, digest, mosaics, (head, tail) in records:
            raw = lzma.decompress(head) + b"".join(_unmosaic(*mosaic) for mosaic in mosaics) + lzma.decompress(tail)
            if hashlib.sha256(raw).hexdigest() != digest:
                raise IncompleteError(f"{name} is not what was packed.")
            found[name] = raw
    except (pickle.UnpicklingError, lzma.LZMAError, ValueError, TypeError, EOFError, OSError) as error:
        raise IncompleteError(f"{payload.name} is damaged: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)  # a folder that is there is taken for whole
    for name, raw in found.items():
        (folder / name).write_bytes(raw)
    Path(payload.name).unlink()


def _pixels_of(raw: bytes) -> tuple[int, int]:
    """Where in a pickled batch its pixels lie: behind a "T" (BINSTRING) and their length. Empty in other files."""
    for match in re.finditer(b"T(?=(.{4}))", raw, re.DOTALL):
        (length,) = struct.unpack("<I", match[1])
        if length >= _ACROSS * _DOWN * _PIXELS and length % _PIXELS == 0 and match.end() + 4 + length <= len(raw):
            return match.end() + 4, match.end() + 4 + length
    return len(raw), len(raw)


def _mosaic(rows: np.ndarray) -> tuple[int, bytes]:
    """The number of planar images [N, 3072], and all as one picture; the last one of a batch may have empty tiles."""
    full = np.zeros((_ACROSS * _DOWN, _PIXELS), np.uint8)
    full[: len(rows)] = rows
    tiles = full.reshape(_DOWN, _ACROSS, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(_DOWN * 32, _ACROSS * 32, 3)
    out = io.BytesIO()
    Image.fromarray(tiles).save(out, "WEBP", lossless=True, quality=100, method=4)
    return len(rows), out.getvalue()


def _unmosaic(n: int, picture: bytes) -> bytes:
    tiles = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    rows = tiles.reshape(_DOWN, 32, _ACROSS, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, _PIXELS)
    return rows[:n].tobytes()


# Packages


def needed_packages(project: str, there: Iterable[str]) -> dict[str, str]:
    """Versions installed here of what `project` needs, less what is `there` and what only that needs."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    skipped = {canonicalize_name(name) for name in there}
    found: dict[str, str] = {}
    waiting = [project]
    while waiting:
        for requirement in map(Requirement, distribution(waiting.pop()).requires or ()):
            name = canonicalize_name(requirement.name)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and name not in skipped and name not in found:
                try:
                    found[name] = distribution(name).version
                except PackageNotFoundError:
                    continue
                waiting.append(name)
    return found


def download_packages(versions: Mapping[str, str], python: str, target: Path) -> None:
    """Unpacks wheels of `versions` for Linux on x86-64 and `python` (as "3.12") into `target`."""
    tags = [*(f"manylinux_2_{minor}" for minor in range(39, 4, -1)), "manylinux2014", "manylinux1"]
    platforms = [word for tag in tags for word in ("--platform", f"{tag}_x86_64")]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms]
    with tempfile.TemporaryDirectory() as wheels:
        what = [f"{name}=={version}" for name, version in versions.items()]
        subprocess.run([*pip, "--python-version", python, "--implementation", "cp", "-d", wheels, *what], check=True)
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
