"""One frozen description of a study, stored with it and compared on resume."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from search_spaces import SearchSpace, UnknownSpaceError, get_space
from search_spaces.constraints import Limits
from search_spaces.fields import Within, check_fields, from_fields, opened
from study.data.augmentation import AUGMENTATION_ORDER
from study.data.cifar10 import CIFAR10, SPLIT_SEED
from study.data.dataset import DataSet
from study.data.opening import is_cifar10
from study.errors import UserError

DEFAULT_TARGET = 0.85
"""Test accuracy to pass, where the user names no other: the pass mark of the exercise that the limits are of."""
RETRAIN_EPOCHS = {"cpu": 200, "cuda": 300}
"""Of a retrain, where the user asks for no others; the re-ranking tries what so long a training needs."""
Number = Annotated[int, Within(0, 10**18)]


@dataclass(frozen=True)
class StudyConfig:
    """What decides a study's results: its fingerprint.

    Device, jobs, number of trials, timeout and data folder are not part of it.

    Attributes:
        space, space_version: What is searched.
        limits: What every candidate must meet.
        epochs: Of every trial.
        train_images, val_images: Sizes of the stratified subsets that trials use.
        seed: Base of all seeds: a slot's sampler and training are seeded by (seed, slot).
        pruner, sampler: Names that `study.search.plan` knows.
        precision: Of training.
        data: Fingerprint of the data set; how many classes it has the limits say.
        mirrored: Whether its images may be flipped.
        split_seed, augmentation_order: Constants of the program that results depend on.
    """

    space: str
    space_version: int
    epochs: Number
    train_images: Number
    val_images: Number
    seed: Number
    pruner: str
    sampler: str
    precision: str
    limits: Limits = field(default_factory=Limits)
    split_seed: int = SPLIT_SEED
    augmentation_order: str = AUGMENTATION_ORDER
    data: str = CIFAR10.fingerprint
    mirrored: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` inverts it exactly. What came later is left out where it says nothing."""
        later = {"data": CIFAR10.fingerprint, "mirrored": True}
        found = {name: value for name, value in self.__dict__.items() if later.get(name, ...) != value}
        return {**found, "limits": self.limits.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> StudyConfig:
        """Reads what `to_json` wrote.

        Raises:
            DescriptionError: Fields are missing, unknown, or hold what they do not take.
        """
        fields = opened(data, "A configuration")
        return from_fields(cls, {**fields, "limits": Limits.from_json(fields.get("limits"))})

    def settings(self) -> dict[str, Any]:
        """Name and value of every setting, limits among them, for people."""
        return {name: value for name, value in self.to_json().items() if name != "limits"} | self.limits.settings()

    def differences(self, other: StudyConfig) -> list[str]:
        """`name: mine -> other's` for every field that differs, limits field by field."""
        mine, others = self.settings(), other.settings()
        names = [*mine, *(name for name in others if name not in mine)]
        return [
            f"{name}: {mine.get(name)} -> {others.get(name)}" for name in names if mine.get(name) != others.get(name)
        ]


def open_space(name: str) -> SearchSpace:
    """The registered space `name`.

    Raises:
        UserError: There is none.
    """
    try:
        return get_space(name)
    except UnknownSpaceError as error:
        raise UserError(str(error)) from error


def default_target(data: DataSet) -> float | None:
    """Test accuracy to pass, where the user names none: CIFAR-10 has one."""
    return DEFAULT_TARGET if data.fingerprint == CIFAR10.fingerprint else None


def refuse_cifar10(name: str, stored: StudyConfig, data: str | None) -> None:
    """As `refuse_other_data`, before anything is downloaded: where `data`, what was typed, means CIFAR-10."""
    if is_cifar10(data):
        refuse_other_data(name, stored, CIFAR10)


def refuse_other_data(name: str, stored: StudyConfig, data: DataSet) -> None:
    """Refuses to go on with other images than those that the study `name` was made with.

    Raises:
        UserError: `data` is another data set, or was changed.
    """
    if stored.data != data.fingerprint:
        raise UserError(
            f"The study {name!r} was made with other images ({stored.data}) than these ({data.fingerprint}). Name them "
            "by --data, or choose another --study-name."
        )
