"""Data sets that torchvision downloads, by their names there."""

from __future__ import annotations

from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

import numpy as np

from study.command_line.wording import printable
from study.data.cifar10 import SIDE, own_folder
from study.data.folders import Part, as_part
from study.errors import UserError, said


@dataclass(frozen=True)
class Known:
    """What torchvision does not say of a data set.

    Attributes:
        by_split: Whether its parts are called split="train" and split="test", else train=True and train=False.
        mirrored: As in `DataSet`.
    """

    by_split: bool = False
    mirrored: bool = True


SETS = {
    "CIFAR10": Known(),
    "CIFAR100": Known(),
    "FashionMNIST": Known(),
    "GTSRB": Known(by_split=True, mirrored=False),
    "KMNIST": Known(mirrored=False),
    "MNIST": Known(mirrored=False),
    "STL10": Known(by_split=True),
    "SVHN": Known(by_split=True, mirrored=False),
    "USPS": Known(mirrored=False),
}
"""Those with a training and a test part of one label for each image. CIFAR10 has files of its own here."""


def opened(name: str, train: bool) -> Any:
    """A part of the data set as torchvision has it, downloaded into the user's cache unless it is there.

    Raises:
        UserError: It cannot be.
    """
    from torchvision import datasets

    folder = own_folder()
    if folder is None:
        raise UserError(f"No home folder is known to download {name} to; $XDG_CACHE_HOME names one.")
    part: dict[str, Any] = {"split": "train" if train else "test"} if SETS[name].by_split else {"train": train}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return getattr(datasets, name)(str(folder), download=True, **part)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"{name} could not be downloaded ({said(error)}). Run the same command again, or put its files into "
            f"{str(folder)!r} as torchvision has them."
        ) from error


def decode_torchvision(folder: str, name: str, train: bool) -> tuple[Part, tuple[str, ...], int]:
    """One part of the data set `name`, resized to 32x32; its classes; and the number of test images.

    Raises:
        UserError: It cannot be downloaded, or is damaged.
    """
    from study.data.image_files import UnreadableImageError, fitted

    source = opened(name, train)
    print(f"Reading {len(source):,} images of {printable(name)}, once, resized to {SIDE}x{SIDE}", flush=True)
    pixels, labels = np.empty((len(source), SIDE, SIDE, 3), np.uint8), np.empty(len(source), np.int64)
    for row in range(len(source)):
        try:
            image, label = source[row]  # some sets open a file here
            pixels[row], labels[row] = fitted(image, SIDE), label
        except (OSError, SyntaxError, UnreadableImageError) as error:
            raise UserError(
                f"Image {row} of {name} cannot be read: {said(error)}. Remove {name} from {str(own_folder())!r}, and "
                "the same command downloads it again."
            ) from error
    classes = tuple(map(str, getattr(source, "classes", range(int(labels.max()) + 1))))
    return as_part(pixels, labels, classes), classes, len(opened(name, False)) if train else len(source)
