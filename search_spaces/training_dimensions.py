"""The dimensions that every space shares: how a candidate is augmented and optimised.

|- augmentation             flip, crop_padding, affine_p, shift_frac, scale_frac, rotate_deg,
|                           dropout_p, dropout_hole
`- optimisation             lr (per 128 images), batch_size, weight_decay, label_smoothing
"""

from __future__ import annotations

from typing import Any

from search_spaces.candidate import Augmentation, Optimisation
from search_spaces.space import Choice, Dimension, Integer, Params, Real

TRAINING_DIMENSIONS: dict[str, Dimension] = {
    "flip": Choice((False, True)),
    "crop_padding": Integer(0, 4),
    "affine_p": Real(0.0, 0.6),
    "shift_frac": Real(0.0, 0.125),
    "scale_frac": Real(0.0, 0.2),
    "rotate_deg": Real(0.0, 15.0),
    "dropout_p": Real(0.0, 0.6),
    "dropout_hole": Integer(4, 12),
    "lr": Real(0.03, 0.6, log=True),
    "batch_size": Choice((64, 128, 256)),
    "weight_decay": Real(1e-4, 3e-3, log=True),
    "label_smoothing": Real(0.0, 0.15),
}

DEFAULT_TRAINING: dict[str, Any] = {
    "flip": True,
    "crop_padding": 3,
    "affine_p": 0.1,
    "shift_frac": 0.1,
    "scale_frac": 0.1,
    "rotate_deg": 10.0,
    "dropout_p": 0.2,
    "dropout_hole": 8,
    "lr": 0.2,
    "batch_size": 128,
    "weight_decay": 5e-4,
    "label_smoothing": 0.0,
}
"""Light augmentation, for short runs."""


def training_params(augmentation: Augmentation, optimisation: Optimisation) -> dict[str, Any]:
    """The parameters that decode to these two, as far as they are dimensions."""
    return {
        "flip": augmentation.flip_p > 0,
        "crop_padding": augmentation.crop_padding,
        "affine_p": augmentation.affine_p,
        "shift_frac": augmentation.shift_frac,
        "scale_frac": augmentation.scale_frac,
        "rotate_deg": augmentation.rotate_deg,
        "dropout_p": augmentation.dropout_p,
        "dropout_hole": augmentation.dropout_hole,
        "lr": optimisation.lr,
        "batch_size": optimisation.batch_size,
        "weight_decay": optimisation.weight_decay,
        "label_smoothing": optimisation.label_smoothing,
    }


def decode_augmentation(params: Params) -> Augmentation:
    return Augmentation(
        flip_p=0.5 if params["flip"] else 0.0,
        crop_padding=params["crop_padding"],
        affine_p=params["affine_p"],
        shift_frac=params["shift_frac"],
        scale_frac=params["scale_frac"],
        rotate_deg=params["rotate_deg"],
        dropout_p=params["dropout_p"],
        dropout_hole=params["dropout_hole"],
    )


def decode_optimisation(params: Params) -> Optimisation:
    return Optimisation(
        lr=params["lr"],
        batch_size=params["batch_size"],
        weight_decay=params["weight_decay"],
        label_smoothing=params["label_smoothing"],
    )
