"""A folder of the user's, train/<class>/ with images of any size, as a data set; test/<class>/ may be beside train/."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from study.command_line.wording import counted, printable
from study.data.cifar10 import SIDE, in_turns
from study.data.dataset import Colours
from study.errors import UserError, shortened
from study.machine.files import what_is

TRAIN, TEST = "train", "test"
TEST_SHARE, MOST_TEST = 6, 10_000
"""Of so many images one is kept for the test where there is no test folder, as of CIFAR-10's."""
LEAST_OF_A_CLASS = 10
"""Images to train and validate on."""
Part = tuple[np.ndarray, np.ndarray, tuple[Colours, Colours], str]
"""Pixels uint8 [N, 32, 32, 3], labels int64 [N], mean and standard deviation per channel, digest."""


@dataclass(frozen=True)
class Listing:
    """The files of a data set, not yet opened.

    Attributes:
        root: Its folder.
        classes: Names of the folders, sorted.
        train, test: (file, label) of every image; of the training images every prefix has all classes.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...]

    @property
    def stamp(self) -> str:
        """Changes with every file that comes, goes or changes."""
        digest = hashlib.sha256()
        for file, _ in (*self.train, *self.test):
            found = file.stat() if file.exists() else file.lstat()  # a link that leads nowhere
            told = f"{file.relative_to(self.root)}\0{found.st_size}\0{found.st_mtime_ns}\0"
            digest.update(told.encode(errors="surrogateescape"))  # a name may be of another encoding
        return digest.hexdigest()

    @property
    def mirrored(self) -> bool:
        """Not where the classes are digits or letters."""
        return not all(len(name) == 1 or name.isdigit() for name in self.classes)


def is_data(folder: Path | str) -> bool:
    """Whether it is a folder of images by class, or is meant to be one."""
    return what_is(Path(folder) / TRAIN) == "is a folder"


def listing(root: Path) -> Listing:
    """The files of `root`, split where there is no test folder: stratified, by a fixed seed.

    Raises:
        UserError: There is something else than images by class, or too few of them; names it.
    """
    try:
        train = _by_class(root / TRAIN)
        test = _by_class(root / TEST) if what_is(root / TEST) != "does not exist" else None
    except OSError as error:
        raise UserError(f"--data {str(root)!r} cannot be read: {error.strerror or error}.") from error
    classes = tuple(sorted(train))
    if len(classes) < 2:
        raise UserError(f"{str(root / TRAIN)!r} must hold a folder for each of two or more classes: {len(classes)}.")
    if test is not None and (other := sorted(test.keys() ^ train.keys())):
        raise UserError(
            f"{TEST}/ must have the classes of {TRAIN}/, and {shortened(other[0])!r} is in one of them only. Rename or "
            f"remove it, or leave {TEST}/ out to have images kept for it."
        )
    files = [(file, label) for label, name in enumerate(classes) for file in train[name]]
    files = [files[index] for index in in_turns(np.array([label for _, label in files]), len(classes))]
    kept = [(file, label) for label, name in enumerate(classes) for file in (test or {}).get(name, [])]
    if test is None:
        n_test = min(MOST_TEST, max(len(classes), len(files) // TEST_SHARE))
        kept, files = files[:n_test], files[n_test:]
    counts = np.bincount([label for _, label in files], minlength=len(classes))
    if (fewest := int(counts.min())) < LEAST_OF_A_CLASS:
        beside = "" if test is not None else f" beside the {len(kept):,} that are kept for the test"
        raise UserError(
            f"A class needs at least {LEAST_OF_A_CLASS} training images{beside}, and "
            f"{shortened(classes[int(counts.argmin())])!r} has {fewest}. Add some, or remove its folder."
        )
    return Listing(root, classes, tuple(files), tuple(kept))


def _by_class(part: Path) -> dict[str, list[Path]]:
    """The image files of every folder in `part`, by the folder's name."""
    if what_is(part) != "is a folder":
        raise UserError(f"{str(part)!r} must be a folder with one for each class, and it {what_is(part)}.")
    found: dict[str, list[Path]] = {}
    for folder in _shown(part):
        if not folder.is_dir():
            raise UserError(
                f"{str(part)!r} must hold one folder for each class and nothing else: {folder.name!r} is a file. Put "
                "it into the folder of its class, or elsewhere."
            )
        if not folder.name.isprintable():  # a class is shown, and written into the bundle
            raise UserError(f"The name of a class must be of printable characters: {str(folder)!r}. Rename its folder.")
        found[folder.name] = list(_shown(folder))
        if not found[folder.name]:
            raise UserError(f"The folder of a class must hold images, and {str(folder)!r} is empty. Remove it.")
        for file in found[folder.name]:
            if file.is_dir():
                raise UserError(
                    f"The folder of a class holds images and no further folders: {str(file)!r}. Move its images up, or "
                    "remove it."
                )
    return found


def _shown(folder: Path) -> Iterator[Path]:
    """What is in it but for what systems leave there."""
    yield from sorted(each for each in folder.iterdir() if not each.name.startswith(".") and each.name != "Thumbs.db")


def decode_folder(folder: str, stamp: str, train: bool) -> Part:
    """Reads one part of the data set in `folder`, resized to 32x32. `stamp` keys the cache.

    Raises:
        UserError: A file is no image that can be read.
    """
    from study.data.image_files import UnreadableImageError, read_image

    found = listing(Path(folder))
    files = found.train if train else found.test
    print(
        f"Reading {counted(len(files), 'image')} to {'train' if train else 'test'} on from "
        f"{printable(folder)}, once, resized to {SIDE}x{SIDE}",
        flush=True,
    )
    pixels = np.empty((len(files), SIDE, SIDE, 3), np.uint8)
    # What is tested on is read and forgotten here: not after hours of training is it found to be damaged.
    for row, (file, _) in enumerate([*files, *(found.test if train else ())]):
        try:
            image = read_image(file, SIDE)
        except UnreadableImageError as error:
            raise UserError(f"Every file of a class must be an image, and {str(file)!r} is none: {error}.") from error
        if row < len(files):
            pixels[row] = image
    return as_part(pixels, np.array([label for _, label in files], np.int64), found.classes)


def as_part(pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Part:
    """The images with what is measured of them."""
    return pixels, labels, _mean_and_std(pixels), digest_of(pixels, labels, classes)


def digest_of(pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> str:
    """Tells images, in their order, from all others."""
    digest = hashlib.sha256("\0".join(classes).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()[:12]


def _mean_and_std(pixels: np.ndarray) -> tuple[Colours, Colours]:
    """Per channel, in [0, 1]; counted by value, so that it is exact however many images there are."""
    values, found = np.arange(256) / 255, []
    for channel in range(3):
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
        mean = float((counts * values).sum() / counts.sum())
        std = float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
        found.append((round(mean, 4), round(max(std, 0.001), 4)))  # a channel that is the same everywhere
    (red, red_std), (green, green_std), (blue, blue_std) = found
    return (red, green, blue), (red_std, green_std, blue_std)
