"""The data set that `--data` or $STUDY_DATA means: CIFAR-10, another one of torchvision's, or the user's own folder."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from study.data import cifar10
from study.data.cifar10 import CIFAR10, FOLDER, SIDE, Images, own_folder
from study.data.dataset import DataSet
from study.data.decoded import decoded
from study.data.folders import Part, decode_folder, is_data, listing
from study.data.torchvision_sets import SETS, decode_torchvision
from study.errors import StudyFailed, UserError, shortened
from study.machine.files import what_is


def is_cifar10(data: str | None = None) -> bool:
    """Whether that is what is meant, whether or not it is there."""
    named = data or os.environ.get("STUDY_DATA") or "CIFAR10"
    if named in SETS:
        return named == "CIFAR10"
    return what_is(Path(named) / FOLDER) == "is a folder" or not is_data(named)


def open_data(data: str | None = None) -> DataSet:
    """The data set that is meant; other ones than CIFAR-10 are read and measured, if they were not before.

    Raises:
        UserError: There is none, it cannot be downloaded, or its files are not as they should be.
    """
    _refuse_mistyped(data)
    if is_cifar10(data):
        return dataclasses.replace(CIFAR10, source=str(cifar10.find_folder(data).resolve()))
    return _other(data or os.environ["STUDY_DATA"], train=True).of


def _refuse_mistyped(data: str | None) -> None:
    """Refuses what is no folder and almost the name of a data set.

    Raises:
        UserError: It is that.
    """
    named = data or os.environ.get("STUDY_DATA") or "CIFAR10"
    if named in SETS or os.sep in named or what_is(Path(named)) != "does not exist":
        return
    by_letters = {"".join(filter(str.isalnum, name.lower())): name for name in SETS}
    near = difflib.get_close_matches("".join(filter(str.isalnum, named.lower())), by_letters, 1)
    if near:
        raise UserError(
            f"{'--data' if data else '$STUDY_DATA'} must be a folder or one of {', '.join(SETS)}: {shortened(named)!r} "
            f"is neither. Did you mean {by_letters[near[0]]}?"
        )


def load_train(source: str) -> Images:
    """All training images of the data set whose `source` it is, memory-mapped from the user's cache."""
    return cifar10.load_train(source) if is_cifar10(source) else _other(source, train=True)


def load_test(source: str) -> Images:
    """Its test images. For final models alone: nothing may be chosen from them."""
    if is_cifar10(source):
        return cifar10.load_test(source)
    return dataclasses.replace(_other(source, train=False), of=_other(source, train=True).of)


def refuse_changed(images: Images, digest: str) -> None:
    """Refuses images of a data set that is no longer the one of `digest`: a folder without test/ is split anew with
    every file that comes or goes, so that one may be tested on what it was trained on.

    Raises:
        StudyFailed: They are.
    """
    if images.of.digest != digest:
        raise StudyFailed(
            f"the images in {images.of.source!r} were changed while they were in use, and with them which are trained "
            "on. Put them back and run the same command to go on; changed images need another --out."
        )


def open_data_of(classes: Sequence[str], image_size: int, data: str | None) -> DataSet:
    """The data set that `data` means, for a network of `classes` that takes images of `image_size` pixels a side.

    Raises:
        UserError: As `open_data`, or it has other classes, or images of another size.
    """
    _refuse_mistyped(data)
    if image_size != SIDE:
        raise UserError(f"The network takes images of {image_size} pixels, and ours have {SIDE}.")
    found = CIFAR10 if is_cifar10(data) else open_data(data)  # not downloaded to be refused
    if found.classes != tuple(classes):
        named = shortened(", ".join(classes))
        raise UserError(
            f"The network is for other classes ({named}) than those of {found.name}. Name the data set that it was "
            "trained on by --data."
        )
    return open_data(data) if found is CIFAR10 else found


def _other(source: str, train: bool) -> Images:
    """A part of another data set than CIFAR-10; of test images `of` holds what was measured of them."""
    if source in SETS:
        name, mirrored, arguments = source, SETS[source].mirrored, (str(own_folder()), source, train)

        def whole(found: tuple[Part, tuple[str, ...], int]) -> tuple[Part, tuple[str, ...], int]:
            _whole(found[0])
            return found

        part, classes, n_test = decoded(decode_torchvision, arguments, whole, name)
    else:
        found = listing(Path(source).resolve())
        name, source = found.root.name, str(found.root)
        part = decoded(decode_folder, (source, found.stamp, train), _whole, name)
        classes, n_test, mirrored = found.classes, len(found.test), found.mirrored
    pixels, labels, (mean, std), digest = part
    of = DataSet(name, classes, mean, std, len(labels), n_test, digest, mirrored, source)
    return Images(pixels, labels, of)


def _whole(part: Part) -> Part:
    pixels, labels, _, digest = part
    if pixels.shape != (len(labels), SIDE, SIDE, 3) or pixels.dtype != np.uint8 or not isinstance(digest, str):
        raise ValueError("it holds other arrays")
    return part
