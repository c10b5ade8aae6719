"""CIFAR-10 as memory-mapped uint8 arrays, and the fixed split.

The training files and the test file are decoded and loaded by separate functions; only the code
that tests a finished model calls `load_test`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from study.errors import UserError
from study.machine.files import is_folder, what_is
from study.machine.paths import cache_dir

FOLDER = "cifar-10-batches-py"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
"""Of every image, in pixels."""
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
"""Per-channel mean and standard deviation of the training images, in [0, 1]."""

N_TRAINING = 50_000
N_VALIDATION = 5_000
N_SEARCH = N_TRAINING - N_VALIDATION
SPLIT_SEED = 0
"""Seed of the split into N_SEARCH images to search on and N_VALIDATION to validate; the same for every study."""


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        pixels: uint8 [N, 32, 32, 3], RGB.
        labels: int64 [N], indices into CLASSES.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Images:
        return Images(self.pixels[indices], self.labels[indices])


def find_folder(data: str | None = None) -> Path:
    """The folder that contains `cifar-10-batches-py`: `data`, else $STUDY_DATA, else the user's cache,
    into which it is downloaded.

    Raises:
        UserError: The named folder has no data set, or it cannot be downloaded.
    """
    named = data or os.environ.get("STUDY_DATA")
    if named:
        found = what_is(Path(named) / FOLDER)
        if found != "is a folder":
            origin = "--data" if data else "$STUDY_DATA"
            raise UserError(
                f"{origin} must name the folder that contains {FOLDER}, and in {named!r} it {found}. "
                "Name another, or leave it out to download CIFAR-10."
            )
        return Path(named)
    folder = cache_dir() / "data"
    if not is_folder(folder / FOLDER):
        _download(folder)
    return folder


def load_train(data: str | None = None) -> Images:
    """All training images, memory-mapped from the user's cache."""
    return _load(find_folder(data), train=True)


def load_test(data: str | None = None) -> Images:
    """The test images. For final models alone: nothing may be chosen from them."""
    return _load(find_folder(data), train=False)


def check_sizes(n_train: int, n_val: int) -> None:
    """Refuses subsets larger than the split's parts.

    Raises:
        UserError: More images are asked for than there are, or too few to have every class.
    """
    for option, value, most in (("--train-images", n_train, N_SEARCH), ("--val-images", n_val, N_VALIDATION)):
        if not 10 <= value <= most:
            raise UserError(f"{option} must be between 10 (one per class) and {most:,}: {value:,}.")


def search_split(
    labels: np.ndarray, n_train: int = N_SEARCH, n_val: int = N_VALIDATION
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into the training images: (to train on, to validate on), stratified and disjoint.

    Both are prefixes of fixed orders in which the classes take turns, so a smaller study trains on
    a subset of a larger one's images and no training image ever validates.

    Args:
        labels: int64 [N_TRAINING], all training labels.
        n_train: Images to train on, at most N_SEARCH.
        n_val: Images to validate on, at most N_VALIDATION.
    """
    check_sizes(n_train, n_val)
    rng = np.random.default_rng(SPLIT_SEED)
    rounds = [rng.permutation(np.flatnonzero(labels == label)) for label in range(len(CLASSES))]
    order = np.stack(rounds, axis=1).reshape(-1)
    return np.sort(order[N_VALIDATION : N_VALIDATION + n_train]), np.sort(order[:n_val])


def _load(folder: Path, train: bool) -> Images:
    import joblib  # whoever looks for the data set alone, as --help does, need not wait for it

    files = sorted((folder / FOLDER).glob("data_batch_*" if train else "test_batch"))
    # The cache notices a file that changed; a damaged one then fails its checksum.
    stamp = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    memory = joblib.Memory(cache_dir(), mmap_mode="r", verbose=0)
    pixels, labels = memory.cache(decode, ignore=["folder"])(str(folder.resolve()), stamp, train)
    return Images(pixels, labels)


def decode(folder: str, stamp: tuple[tuple[str, int, int], ...], train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Reads and checks the original files: uint8 [N, 32, 32, 3] and int64 [N]. `stamp` keys the cache.

    Raises:
        UserError: A file is missing or is not the original.
    """
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(folder, train=train)
    except RuntimeError as error:
        raise UserError(
            f"CIFAR-10 in {folder!r} is incomplete or damaged (a file's MD5 is not the original's). "
            f"Remove {FOLDER} there and download it again."
        ) from error
    return np.ascontiguousarray(data.data), np.asarray(data.targets, dtype=np.int64)


def _download(folder: Path) -> None:
    from torchvision.datasets import CIFAR10

    print(f"Downloading CIFAR-10 (170 MB) to {folder}", flush=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        CIFAR10(str(folder), train=True, download=True)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; torchvision adds RuntimeError
        raise UserError(
            f"CIFAR-10 could not be downloaded ({error}). Name a folder that contains {FOLDER} "
            "with --data or $STUDY_DATA."
        ) from error
