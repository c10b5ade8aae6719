"""Augmented images: albumentations on uint8 all the way, exact for a seed.

Affine transform, colour and dropout are albumentations', freshly for every image and epoch. Crops and flips only
move pixels: they are drawn here and carried out for the whole batch at once where the training runs
(`study.data.batches.place`), at a tenth of the price.

Every batch is seeded by (training seed, epoch, batch) just before it is augmented, so images differ
within a batch and between epochs, and are the same whatever the number of processes that augment.
No torch here: this runs in those processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import study  # noqa: F401 - sets albumentations' environment before its import below
from search_spaces.candidate import Augmentation
from study.data.cifar10 import MEAN, Images

AUGMENTATION_ORDER = "affine,dropout,crop,flip"
"""Of what `compose` and `study.data.batches.place` do; another order is another study. Studies and checkpoints have it
in their names, so it stays as it was called first: colour and sharpening follow affine, mixup comes last."""


@dataclass(frozen=True)
class BatchSpec:
    """Which images make up a batch; all a worker process needs to make it.

    Attributes:
        epoch, batch: Position in the training, from zero.
        indices: int64 [N], rows of the training images.
    """

    epoch: int
    batch: int
    indices: np.ndarray


def needs_albumentations(a: Augmentation) -> bool:
    """Whether anything is left to do beside crops and flips."""
    return _has_affine(a) or _has_colour(a) or a.sharpen_p > 0 or a.dropout_p > 0


def _has_affine(a: Augmentation) -> bool:
    return a.affine_p > 0 and max(a.shift_frac, a.scale_frac, a.rotate_deg) > 0


def _has_colour(a: Augmentation) -> bool:
    return a.colour_p > 0 and a.colour_strength > 0


def compose(augmentation: Augmentation, mean: Sequence[float] = MEAN) -> Any:
    """The albumentations pipeline for uint8 [H, W, 3] images; holes are filled with the data set's `mean`.

    Transforms that cannot change an image are left out. `A.Compose(seed=...)` is never used: it
    gives all transforms the same random stream, which correlates them.
    """
    import albumentations as A  # a second or more, which only who augments is to wait for
    import cv2

    cv2.setNumThreads(0)  # parallelism is over processes, each on one core
    a = augmentation
    transforms: list[Any] = []
    if _has_affine(a):
        transforms.append(
            A.Affine(
                translate_percent=(-a.shift_frac, a.shift_frac),
                scale=(1 - a.scale_frac, 1 + a.scale_frac),
                rotate=(-a.rotate_deg, a.rotate_deg),
                border_mode=cv2.BORDER_REFLECT_101,
                p=a.affine_p,
            )
        )
    if _has_colour(a):
        around = (1 - a.colour_strength, 1 + a.colour_strength)
        turn = a.colour_strength / 4
        transforms.append(
            A.ColorJitter(brightness=around, contrast=around, saturation=around, hue=(-turn, turn), p=a.colour_p)
        )
    if a.sharpen_p > 0:
        transforms.append(A.Sharpen(p=a.sharpen_p))
    if a.dropout_p > 0:
        hole, fill = (a.dropout_hole, a.dropout_hole), tuple(round(255 * channel) for channel in mean)
        transforms.append(
            A.CoarseDropout(
                num_holes_range=(1, 1), hole_height_range=hole, hole_width_range=hole, fill=fill, p=a.dropout_p
            )
        )
    return A.Compose(transforms)


def batch_seed(seed: int, epoch: int, batch: int) -> np.random.SeedSequence:
    """The seed of one batch's augmentations. That of an epoch's first one is the seed of its order, too: zeros at the
    end of a seed change nothing, and nothing depends on the two being independent."""
    return np.random.SeedSequence([seed, epoch, batch])


def draw_moves(augmentation: Augmentation, n: int, rng: np.random.Generator) -> np.ndarray:
    """How crops and flips move the pixels of `n` images: int64 [n, 3], (down, right, flipped).

    A crop out of the image padded by `crop_padding` pixels is a shift by at most as many.
    """
    padding = augmentation.crop_padding
    shifts = rng.integers(-padding, padding + 1, (n, 2))
    flipped = rng.random((n, 1)) < augmentation.flip_p
    return np.concatenate([shifts, flipped], axis=1)


def mixing_weight(augmentation: Augmentation, seed: int, step: int, n_steps: int) -> float:
    """What an image counts for in its mixture at `step` of `n_steps`, in [0.5, 1]; its partner counts for the rest.

    The partner of an image is the one at the same place from the batch's other end: batches are in random order.
    """
    strength = augmentation.mixup * step / n_steps
    if strength <= 0:
        return 1.0
    weight = np.random.default_rng(np.random.SeedSequence([seed, step], spawn_key=(1,))).beta(strength, strength)
    return float(max(weight, 1 - weight))


class AugmentedBatches:
    """Turns a `BatchSpec` into arrays: uint8 [N, H, W, 3] images, int64 [N] labels, int64 [N, 3] moves."""

    def __init__(self, images: Images, augmentation: Augmentation, seed: int) -> None:
        self.images = images
        self.augmentation = augmentation
        self.seed = seed
        self._compose: Any = None

    def __getitem__(self, spec: BatchSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.pixels(spec), self.labels(spec), self.moves(spec)

    def pixels(self, spec: BatchSpec) -> np.ndarray:
        """The batch's images, not yet moved."""
        pixels = np.empty((len(spec.indices), *self.images.pixels.shape[1:]), dtype=np.uint8)
        self.augment(spec, pixels)
        return pixels

    def labels(self, spec: BatchSpec) -> np.ndarray:
        return np.asarray(self.images.labels[spec.indices])

    def moves(self, spec: BatchSpec) -> np.ndarray:
        # A child of the batch's seed: independent of what albumentations draws.
        (child,) = batch_seed(self.seed, spec.epoch, spec.batch).spawn(1)
        return draw_moves(self.augmentation, len(spec.indices), np.random.default_rng(child))

    def augment(self, spec: BatchSpec, out: np.ndarray) -> None:
        """Writes the batch's images, not yet moved, into `out`, uint8 [N, H, W, 3]."""
        source = self.images.pixels
        if not needs_albumentations(self.augmentation):
            np.take(source, spec.indices, axis=0, out=out)
            return
        if self._compose is None:
            self._compose = compose(self.augmentation, self.images.of.mean)
        sequence = batch_seed(self.seed, spec.epoch, spec.batch)
        state = np.random.default_rng(sequence)
        self._compose.set_random_state(state, random.Random(int(sequence.generate_state(1, np.uint64)[0])))
        for row, index in enumerate(spec.indices):
            out[row] = self._compose(image=source[index])["image"]


class EpochOrder(list[BatchSpec]):
    """The batches of one epoch in a seeded random order of images; the incomplete last one is dropped."""

    def __init__(self, n_images: int, batch_size: int, seed: int, epoch: int, first_batch: int = 0) -> None:
        size = min(batch_size, n_images)
        order = np.random.default_rng([seed, epoch]).permutation(n_images)
        batches = range(first_batch, n_images // size)
        super().__init__(BatchSpec(epoch, batch, order[batch * size : (batch + 1) * size]) for batch in batches)


def training_order(
    n_images: int, batch_size: int, seed: int, epochs: int, first_epoch: int = 0, first_batch: int = 0
) -> Iterator[BatchSpec]:
    """The batches of a whole training, from (`first_epoch`, `first_batch`) on."""
    for epoch in range(first_epoch, epochs):
        yield from EpochOrder(n_images, batch_size, seed, epoch, first_batch if epoch == first_epoch else 0)
