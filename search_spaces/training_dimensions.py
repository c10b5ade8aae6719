"""The dimensions that spaces share: how a candidate is augmented and optimised.

|- augmentation             flip, crop_padding, affine_p, shift_frac, scale_frac, rotate_deg,
|                           dropout_p, dropout_hole
`- optimisation             optimizer (sgd | adamw | muon), lr, weight_decay, adamw_lr, adamw_weight_decay,
                            muon_lr, muon_weight_decay, batch_size, label_smoothing
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from search_spaces.architecture import Architecture, ArchitectureError
from search_spaces.candidate import Augmentation, Candidate, Optimisation
from search_spaces.constraints import dilation_reach
from search_spaces.space import Choice, Dimension, Integer, Params, Real, column, same_named

_TRAINING: dict[str, tuple[Dimension, Any]] = {
    "flip": (Choice((False, True)), True),
    "crop_padding": (Integer(0, 4), 3),
    "affine_p": (Real(0.0, 0.6), 0.1),
    "shift_frac": (Real(0.0, 0.125), 0.1),
    "scale_frac": (Real(0.0, 0.2), 0.1),
    "rotate_deg": (Real(0.0, 15.0), 10.0),
    "dropout_p": (Real(0.0, 0.6), 0.2),
    "dropout_hole": (Integer(4, 12), 8),
    "optimizer": (Choice(("sgd", "adamw", "muon")), "muon"),
    "lr": (Real(0.03, 0.6, log=True), 0.2),
    "weight_decay": (Real(1e-4, 3e-3, log=True), 5e-4),
    "adamw_lr": (Real(1e-3, 2e-2, log=True), 4e-3),
    "adamw_weight_decay": (Real(1e-2, 0.3, log=True), 0.05),
    "muon_lr": (Real(5e-3, 4e-2, log=True), 0.015),
    "muon_weight_decay": (Real(1e-2, 0.3, log=True), 0.05),
    "batch_size": (Choice((64, 128, 256)), 128),
    "label_smoothing": (Real(0.0, 0.15), 0.0),
}
TRAINING_DIMENSIONS: dict[str, Dimension] = column(_TRAINING, 0)
DEFAULT_TRAINING: dict[str, Any] = column(_TRAINING, 1)
"""Light augmentation, for short runs."""

LONG_AUGMENTATION_DIMENSIONS: dict[str, Dimension] = {
    "colour_p": Real(0.0, 0.5),
    "colour_strength": Real(0.0, 0.4),
    "sharpen_p": Real(0.0, 0.3),
    "mixup": Real(0.0, 0.4),
}
LONG_DIMENSIONS: dict[str, Dimension] = {**LONG_AUGMENTATION_DIMENSIONS, "warmup_frac": Real(0.05, 0.3)}
"""Further dimensions, for spaces whose trials are long enough to want them."""

OF_OPTIMIZER = {"sgd": "", "adamw": "adamw_", "muon": "muon_"}
"""Every optimizer has a rate and a decay of its own: one name, one fixed distribution."""

LONG_AUGMENTATION = Augmentation(
    crop_padding=4,
    affine_p=0.25,
    shift_frac=0.08,
    scale_frac=0.1,
    rotate_deg=8.0,
    dropout_p=0.4,
    colour_p=0.2,
    colour_strength=0.2,
    mixup=0.2,
)
"""What a training of `LONG_PASSES` needs at least: its network would otherwise learn the images by heart."""

LONG_LABEL_SMOOTHING, LONG_DECAY = 0.1, 1.5
"""Regularisation that a long training may gain from: the usual label smoothing (Szegedy et al. 2016), and half as much
weight decay again, an eighth of the range that spaces search. Enough to be told apart, too little to spoil anything."""

SMALL_IMAGES = 0.7
"""Of `Optimisation.small_images`, where a network keeps scale: half as many epochs again in the same time."""

SHORT_PASSES, LONG_PASSES = 4, 100
"""Passes over 50,000 images: up to the first nothing is raised, from the second on everything is."""


def lengthened(augmentation: Augmentation, n_images: int) -> Augmentation:
    """`augmentation` for a training that sees `n_images` images in all, counting repetitions.

    Light augmentation wins short trials and over-fits long trainings. So strengths are raised, where they are
    lower, to a share of `LONG_AUGMENTATION` that grows with the logarithm of the length.
    """
    passes = n_images / 50_000
    share = math.log(max(passes, SHORT_PASSES) / SHORT_PASSES) / math.log(LONG_PASSES / SHORT_PASSES)
    share = min(1.0, share)
    strengths = {name: most for name, most in vars(LONG_AUGMENTATION).items() if name not in ("flip_p", "dropout_hole")}
    floors = {name: share * most for name, most in strengths.items()}
    floors["crop_padding"] = round(floors["crop_padding"])
    raised = {name: max(getattr(augmentation, name), floor) for name, floor in floors.items()}
    return dataclasses.replace(augmentation, **raised)


def regularised(optimisation: Optimisation) -> Optimisation:
    """`optimisation` with more label smoothing, where it has less than `LONG_LABEL_SMOOTHING`, and more weight decay.

    Unlike `lengthened` no rule for every long training, but a setting to be tried: some candidates gain, others do not.
    """
    smoothing = max(optimisation.label_smoothing, LONG_LABEL_SMOOTHING)
    decay = LONG_DECAY * optimisation.weight_decay
    return dataclasses.replace(optimisation, label_smoothing=smoothing, weight_decay=decay)


def keeps_scale(architecture: Architecture) -> bool:
    """Whether a network takes smaller images for what they are.

    Every map must shrink as the image does, and a dilated kernel still reach into it. One that an unpadded dilated
    convolution halves is halved by more on a smaller image.
    """
    for _, side in Optimisation(small_images=SMALL_IMAGES).phases(architecture.image_size):
        small, share = dataclasses.replace(architecture, image_size=side), side / architecture.image_size
        try:
            maps = [op.out_shape[1] for op in small.operations]
        except ArchitectureError:  # one vanishes
            return False
        as_much = all(
            found + 1 > share * op.out_shape[1] for found, op in zip(maps, architecture.operations, strict=True)
        )
        if not as_much or not dilation_reach(small).feasible:
            return False
    return True


def with_small_images(candidate: Candidate, share: float = SMALL_IMAGES) -> Candidate:
    """`candidate`, trained on smaller images in that share of its epochs if its network keeps scale, else in none."""
    small_images = share if keeps_scale(candidate.architecture) else 0.0
    return dataclasses.replace(
        candidate, optimisation=dataclasses.replace(candidate.optimisation, small_images=small_images)
    )


def training_params(augmentation: Augmentation, optimisation: Optimisation) -> dict[str, Any]:
    """The parameters that decode to these two, as far as they are dimensions."""
    of_optimizer = OF_OPTIMIZER[optimisation.optimizer]
    return {
        "flip": augmentation.flip_p > 0,
        **{name: getattr(augmentation, name) for name in TRAINING_DIMENSIONS if hasattr(augmentation, name)},
        **{name: DEFAULT_TRAINING[name] for name in TRAINING_DIMENSIONS if name.endswith(("lr", "weight_decay"))},
        "optimizer": optimisation.optimizer,
        of_optimizer + "lr": optimisation.lr,
        of_optimizer + "weight_decay": optimisation.weight_decay,
        "batch_size": optimisation.batch_size,
        "label_smoothing": optimisation.label_smoothing,
    }


def decode_augmentation(params: Params) -> Augmentation:
    return Augmentation(flip_p=0.5 if params["flip"] else 0.0, **same_named(Augmentation, params))


def decode_optimisation(params: Params) -> Optimisation:
    of_optimizer = OF_OPTIMIZER[params["optimizer"]]
    own = {name: params[of_optimizer + name] for name in ("lr", "weight_decay")}
    return Optimisation(**{**same_named(Optimisation, params), **own})
