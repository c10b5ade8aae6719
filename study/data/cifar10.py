"""CIFAR-10 as memory-mapped uint8 arrays, and the fixed split.

The training files and the test file are decoded and loaded by separate functions; only the code
that tests a finished model calls `load_test`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np

from study.command_line.wording import printable
from study.data.dataset import MOST_VALIDATION, DataSet
from study.data.decoded import decoded
from study.errors import UserError, said
from study.machine.files import is_file, what_is
from study.machine.paths import cache_dir
from study.machine.processes import lives

FOLDER = "cifar-10-batches-py"
FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
_UNFINISHED = ".download-"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
"""Of every image, in pixels."""
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
"""Per-channel mean and standard deviation of the training images, in [0, 1]."""

N_TRAINING = 50_000
CIFAR10 = DataSet("CIFAR-10", CLASSES, MEAN, STD, N_TRAINING, 10_000)
N_VALIDATION, N_SEARCH = CIFAR10.n_validation, CIFAR10.n_search
SPLIT_SEED = 0
"""Seed of the split into images to search on and images to validate; the same for every study."""


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        pixels: uint8 [N, 32, 32, 3], RGB.
        labels: int64 [N], indices into the classes of `of`.
        of: The data set that they are of.
    """

    pixels: np.ndarray
    labels: np.ndarray
    of: DataSet = CIFAR10

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Images:
        return Images(self.pixels[indices], self.labels[indices], self.of)


def find_folder(data: str | None = None) -> Path:
    """The folder that contains `cifar-10-batches-py`: `data`, else $STUDY_DATA, else the user's cache,
    into which it is downloaded.

    Raises:
        UserError: The named folder has no data set, or it cannot be downloaded.
    """
    named = data or os.environ.get("STUDY_DATA")
    if named and named != "CIFAR10":  # as torchvision calls it
        found = what_is(Path(named) / FOLDER)
        if found != "is a folder":
            origin = "--data" if data else "$STUDY_DATA"
            raise UserError(
                f"{origin} must name a data set of torchvision's, as SVHN, or a folder that contains train/<class>/ "
                f"with images, or {FOLDER}, which in {named!r} {found}. Name another, or leave it out to download "
                "CIFAR-10."
            )
        return Path(named)
    folder = own_folder()
    if folder is None:
        raise UserError(f"No home folder is known to download CIFAR-10 to. Name a folder with {FOLDER} by --data.")
    if not all(is_file(folder / FOLDER / name) for name in FILES):
        _download(folder)
    return folder


def own_folder() -> Path | None:
    """Where the data set is downloaded to; None where there is no home."""
    try:
        return cache_dir() / "data"
    except FileNotFoundError:
        return None


def load_train(data: str | None = None) -> Images:
    """All training images, memory-mapped from the user's cache."""
    return _load(find_folder(data), train=True)


def load_test(data: str | None = None) -> Images:
    """The test images. For final models alone: nothing may be chosen from them."""
    return _load(find_folder(data), train=False)


def check_sizes(n_train: int, n_val: int, of: DataSet = CIFAR10) -> None:
    """Refuses subsets larger than the split's parts.

    Raises:
        UserError: More images are asked for than there are, or too few to have every class.
    """
    least = len(of.classes)
    kept = f"of the {of.n_train:,} training images a tenth, at most {MOST_VALIDATION:,}, is kept to validate on"
    for option, value, most in (("--train-images", n_train, of.n_search), ("--val-images", n_val, of.n_validation)):
        if not least <= value <= most:
            raise UserError(
                f"{option} must be between {least} (one per class) and {most:,} ({kept}): {value:,}. Name one of "
                "these, or leave it out."
            )


def search_split(
    labels: np.ndarray, n_train: int = N_SEARCH, n_val: int = N_VALIDATION, of: DataSet = CIFAR10
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into the training images: (to train on, to validate on), stratified and disjoint.

    Both are prefixes of fixed orders that begin with an image of every class and in which the classes take turns, so a
    smaller study trains on a subset of a larger one's images and no training image ever validates.

    Args:
        labels: int64 [N], all training labels.
        n_train: Images to train on, at most `of.n_search`.
        n_val: Images to validate on, at most `of.n_validation`.
        of: Their data set.
    """
    check_sizes(n_train, n_val, of)
    order = in_turns(labels, len(of.classes))
    training = order[of.n_validation :]
    _, firsts = np.unique(labels[training], return_index=True)  # the next turn of a rare class may be far
    training = np.concatenate([training[np.sort(firsts)], np.delete(training, firsts)])
    return np.sort(training[:n_train]), np.sort(order[:n_val])


def in_turns(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """All indices in a seeded random order in which the classes take turns, larger ones more often."""
    rng = np.random.default_rng(SPLIT_SEED)
    rounds = [rng.permutation(np.flatnonzero(labels == label)) for label in range(n_classes)]
    turns = np.concatenate([np.arange(len(each)) / max(1, len(each)) for each in rounds])
    return np.concatenate(rounds)[np.argsort(turns, kind="stable")]


def _load(folder: Path, train: bool) -> Images:
    try:
        return _loaded(folder, train)
    except UserError:
        if folder != own_folder():
            raise
        print(f"CIFAR-10 in {printable(str(folder))} is incomplete or damaged.", flush=True)
    _download(folder)
    return _loaded(folder, train)


def _loaded(folder: Path, train: bool) -> Images:
    files = sorted((folder / FOLDER).glob("data_batch_*" if train else "test_batch"))
    # The cache notices a file that changed; a damaged one then fails its checksum.
    try:
        stamp = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except OSError as error:  # a link that leads nowhere
        raise _damaged(folder) from error
    return Images(*decoded(decode, (str(folder.resolve()), stamp, train), _checked, "CIFAR-10"))


def _checked(found: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = found
    fits = pixels.shape == (len(labels), SIDE, SIDE, 3) and pixels.dtype == np.uint8
    if not fits or labels.dtype != np.int64:
        raise ValueError(f"it holds {pixels.dtype} {pixels.shape} and {labels.dtype} {labels.shape}")
    return found


def decode(folder: str, stamp: tuple[tuple[str, int, int], ...], train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Reads and checks the original files: uint8 [N, 32, 32, 3] and int64 [N]. `stamp` keys the cache.

    Raises:
        UserError: A file is missing or is not the original.
    """
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(folder, train=train)
    except (OSError, RuntimeError) as error:
        raise _damaged(Path(folder)) from error
    return np.ascontiguousarray(data.data), np.asarray(data.targets, dtype=np.int64)


def _damaged(folder: Path) -> UserError:
    return UserError(
        f"CIFAR-10 in {str(folder)!r} is incomplete or damaged: a file cannot be read or has not the original's MD5. "
        "Name another folder with --data, or leave it out to download CIFAR-10."
    )


def _download(folder: Path) -> None:
    """Downloads, checks and unpacks the data set beside its place, into which it is then renamed.

    Raises:
        UserError: It cannot be; nothing is left of it.
    """
    from torchvision.datasets import CIFAR10

    print(f"Downloading CIFAR-10 (170 MB) to {printable(str(folder))}", flush=True)
    new = folder / f"{_UNFINISHED}{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_UNFINISHED}*"):
            if not lives(left.name.removeprefix(_UNFINISHED)):
                shutil.rmtree(left, ignore_errors=True)
        CIFAR10(str(new), train=True, download=True)
        if what_is(folder / FOLDER) != "does not exist":  # half of one, or a damaged one
            (folder / FOLDER).rename(new / "old")
        (new / FOLDER).rename(folder / FOLDER)
    except (OSError, RuntimeError, HTTPException) as error:  # urllib's errors are OSErrors; torchvision's RuntimeErrors
        raise UserError(
            f"CIFAR-10 could not be downloaded ({said(error)}). Run the same command again, or name a folder that "
            f"contains {FOLDER} with --data or $STUDY_DATA."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
