"""A candidate: everything a trial trains with, frozen, and JSON both ways."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from search_spaces.architecture import Architecture, identifier
from search_spaces.fields import (
    Amount,
    Count,
    DescriptionError,
    Fraction,
    Within,
    check_fields,
    from_fields,
    opened,
    shown,
)

OPTIMIZERS = ("sgd", "adamw", "muon")


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the augmentation: affine transform, colour, dropout, crop, flip and mixup, applied in this order.

    Attributes:
        flip_p: Probability of a horizontal flip, in [0, 1].
        crop_padding: Pixels padded on each side (reflected) before a random crop back to full size.
        affine_p: Probability of the affine transform, in [0, 1].
        shift_frac: Largest shift as a share of the image side.
        scale_frac: Largest relative change of scale.
        rotate_deg: Largest rotation in degrees.
        dropout_p: Probability of a CoarseDropout hole filled with the data mean, in [0, 1].
        dropout_hole: Side of the square hole in pixels.
        colour_p: Probability of a change of brightness, contrast, saturation and hue, in [0, 1].
        colour_strength: Largest relative change of the first three; of the hue a quarter of it, in turns.
        sharpen_p: Probability of sharpening, in [0, 1].
        mixup: Images of a batch are mixed in pairs with weights from Beta(a, a) (Zhang et al. 2018), where a grows
            from 0 to this over the training; 0 mixes none.
    """

    flip_p: Fraction = 0.5
    crop_padding: Annotated[int, Within(0, 31)] = 4
    affine_p: Fraction = 0.0
    shift_frac: Fraction = 0.0
    scale_frac: Fraction = 0.0
    rotate_deg: Annotated[float, Within(0, 360)] = 0.0
    dropout_p: Fraction = 0.0
    dropout_hole: Annotated[int, Within(1, 512)] = 8
    colour_p: Fraction = 0.0
    colour_strength: Fraction = 0.0
    sharpen_p: Fraction = 0.0
    mixup: Annotated[float, Within(0, 100)] = 0.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Optimisation:
    """An optimizer on a one-cycle schedule.

    Attributes:
        lr: Peak learning rate for a batch of 128; `peak_lr` is the one used.
        batch_size: Images per step.
        momentum: Nesterov momentum of SGD; the others have their own.
        weight_decay: On convolution weights; norms and biases have none. An L2 penalty in SGD, decoupled
            (a share of the weight per unit of learning rate) in the others.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        warmup_frac: Share of all steps in which the rate rises linearly to its peak.
        optimizer: "sgd", "adamw", or "muon" (Muon for kernels that mix channels, AdamW for all others).
        small_images: Share of the epochs, from the first on, that see smaller images (`phases`): a network that keeps
            scale learns from them nearly as much, in half of the time (Howard 2018, "progressive resizing").
    """

    lr: Amount = 0.1
    batch_size: Count = 128
    momentum: Fraction = 0.9
    weight_decay: Amount = 5e-4
    label_smoothing: Fraction = 0.0
    warmup_frac: Fraction = 0.2
    optimizer: str = "sgd"
    small_images: Fraction = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.optimizer not in OPTIMIZERS:
            raise DescriptionError(f"optimizer must be one of {', '.join(OPTIMIZERS)}: {shown(self.optimizer)}.")

    def phases(self, side: int) -> tuple[tuple[float, int], ...]:
        """The sides of images while a training goes on, `side` at last, each with the share of the epochs at its end.

        Four sevenths of `small_images` see five eighths of the side, the rest thirteen sixteenths: 20 and 26 of 32.
        """
        if not self.small_images:
            return ((1.0, side),)
        ends = (self.small_images * 4 / 7, self.small_images, 1.0)
        return tuple(zip(ends, (round(side * 5 / 8), round(side * 13 / 16), side), strict=True))

    def side_in(self, epoch: int, epochs: int, side: int) -> int:
        """The side of images of `side` in `epoch`, from zero, of so many. Unless all are small, the last are whole."""
        done = min(epoch + 1, epochs) / epochs - 1e-9
        return next(found for end, found in self.phases(side) if done <= end)

    @property
    def peak_lr(self) -> float:
        """For the batch size: linear scaling for SGD (Goyal et al. 2017), a square root for adaptive updates."""
        ratio = self.batch_size / 128
        return self.lr * (ratio if self.optimizer == "sgd" else math.sqrt(ratio))


@dataclass(frozen=True)
class Candidate:
    """One point of a study: the network and how it is trained."""

    architecture: Architecture
    augmentation: Augmentation = Augmentation()
    optimisation: Optimisation = Optimisation()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def candidate_id(self) -> str:
        return identifier(self.to_json())

    def without_flips(self) -> Candidate:
        """For images that mean something else when they are mirrored."""
        return dataclasses.replace(self, augmentation=dataclasses.replace(self.augmentation, flip_p=0.0))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` inverts it exactly."""
        return {
            "architecture": self.architecture.to_json(),
            "augmentation": _json(self.augmentation),
            "optimisation": _json(self.optimisation),
        }

    @classmethod
    def from_json(cls, data: Any) -> Candidate:
        """Reads what `to_json` wrote.

        Raises:
            DescriptionError: Fields are missing, unknown, or hold what they do not take.
        """
        fields = opened(data, "A candidate")
        read: dict[str, Callable[[Any], Any]] = {
            "architecture": Architecture.from_json,
            "augmentation": partial(from_fields, Augmentation),
            "optimisation": partial(from_fields, Optimisation),
        }
        return from_fields(cls, {name: read[name](fields[name]) for name in read if name in fields})


_LEFT_OUT = {
    "optimizer": "sgd",
    "small_images": 0.0,
    "colour_p": 0.0,
    "colour_strength": 0.0,
    "sharpen_p": 0.0,
    "mixup": 0.0,
}
"""Fields that came later; at these values they are not written, so that ids of older candidates stay."""


def _json(part: Augmentation | Optimisation) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(part).items() if _LEFT_OUT.get(name) != value}
