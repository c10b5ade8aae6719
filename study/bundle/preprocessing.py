"""What stands between an image and a network, and between its answer and a name: config.json of a bundle."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from search_spaces.fields import DescriptionError, Within, check_fields, from_fields
from study.data.cifar10 import CLASSES, MEAN, SIDE, STD
from study.data.image_files import RESIZE
from study.errors import said
from study.machine.files import DamagedFileError, read_json, what_is

CONFIG = "config.json"
_Mean = Annotated[float, Within(0, 1)]
_Std = Annotated[float, Within(1e-6, 1)]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes what a network takes, and what its answers are called.

    Attributes:
        classes: Their names, in the order of the logits.
        image_size: Width and height in pixels.
        mean, std: Of red, green and blue, each in [0, 1]: what the pixels are normalised by.
        resize: How an image gets that size, in words.
        data: Name of the data set.
    """

    classes: Annotated[tuple[str, ...], Within(1, 2**16)] = CLASSES
    image_size: Annotated[int, Within(1, 512)] = SIDE
    mean: Annotated[tuple[_Mean, ...], Within(3, 3)] = MEAN
    std: Annotated[tuple[_Std, ...], Within(3, 3)] = STD
    resize: str = RESIZE
    data: str = "CIFAR-10"

    def __post_init__(self) -> None:
        check_fields(self)

    def to_json(self) -> dict[str, Any]:
        """The contents of config.json."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """config.json itself."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"


CIFAR_10 = Preprocessing()


def read_preprocessing(folder: Path) -> Preprocessing:
    """What config.json in `folder` says; CIFAR-10's where there is none, as in bundles of earlier versions.

    Raises:
        DamagedFileError: It cannot be read, or an entry is missing or not of its type.
    """
    if what_is(folder / CONFIG) == "does not exist":
        return CIFAR_10
    data = read_json(folder / CONFIG)
    names = [field.name for field in dataclasses.fields(Preprocessing)]
    if missing := [name for name in names if name not in data]:
        raise DamagedFileError(f"it lacks {missing[0]!r}")
    values = {name: tuple(data[name]) if isinstance(data[name], list) else data[name] for name in names}
    try:
        return from_fields(Preprocessing, values)
    except DescriptionError as error:
        raise DamagedFileError(said(error)) from error
