"""Augmented batches: albumentations on uint8 all the way, exact for a seed.

They are made in processes of their own beside a GPU, and between the training steps on a CPU.

Every batch is seeded by (training seed, epoch, batch) just before it is augmented, so images differ
within a batch and between epochs, and are the same whatever the number of worker processes.
No torch model code here: this runs in the loader's processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import study  # noqa: F401 - sets albumentations' environment before its import below
from search_spaces.candidate import Augmentation
from study.data import MEAN, Images

_FILL = tuple(round(255 * channel) for channel in MEAN)


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


def compose(augmentation: Augmentation, size: int) -> Any:
    """The albumentations pipeline for uint8 [H, W, 3] images of side `size`.

    Transforms that cannot change an image are left out. `A.Compose(seed=...)` is never used: it
    gives all transforms the same random stream, which correlates flips with crops.
    """
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)  # parallelism is over processes, each on one core
    a = augmentation
    transforms: list[Any] = []
    if a.flip_p > 0:
        transforms.append(A.HorizontalFlip(p=a.flip_p))
    if a.crop_padding > 0:
        transforms.append(A.Pad(a.crop_padding, border_mode=cv2.BORDER_REFLECT_101, p=1.0))
        transforms.append(A.RandomCrop(size, size, p=1.0))
    if a.affine_p > 0 and max(a.shift_frac, a.scale_frac, a.rotate_deg) > 0:
        transforms.append(
            A.Affine(
                translate_percent=(-a.shift_frac, a.shift_frac),
                scale=(1 - a.scale_frac, 1 + a.scale_frac),
                rotate=(-a.rotate_deg, a.rotate_deg),
                border_mode=cv2.BORDER_REFLECT_101,
                p=a.affine_p,
            )
        )
    if a.dropout_p > 0:
        hole = (a.dropout_hole, a.dropout_hole)
        transforms.append(
            A.CoarseDropout(
                num_holes_range=(1, 1), hole_height_range=hole, hole_width_range=hole, fill=_FILL, p=a.dropout_p
            )
        )
    return A.Compose(transforms)


def batch_seed(seed: int, epoch: int, batch: int) -> np.random.SeedSequence:
    """The seed of one batch's augmentations."""
    return np.random.SeedSequence([seed, epoch, batch])


class AugmentedBatches:
    """Turns a `BatchSpec` into (uint8 [N, H, W, 3], int64 [N]) arrays; picklable, a map-style data set."""

    def __init__(self, images: Images, augmentation: Augmentation, seed: int) -> None:
        self.images = images
        self.augmentation = augmentation
        self.seed = seed
        self._compose: Any = None

    def __getitem__(self, spec: BatchSpec) -> tuple[np.ndarray, np.ndarray]:
        if self._compose is None:
            self._compose = compose(self.augmentation, self.images.pixels.shape[1])
        sequence = batch_seed(self.seed, spec.epoch, spec.batch)
        state = np.random.default_rng(sequence)
        self._compose.set_random_state(state, random.Random(int(sequence.generate_state(1, np.uint64)[0])))
        source = self.images.pixels
        batch = np.empty((len(spec.indices), *source.shape[1:]), dtype=np.uint8)
        for row, index in enumerate(spec.indices):
            batch[row] = self._compose(image=source[index])["image"]
        return batch, self.images.labels[spec.indices]


class EpochOrder(Sequence[BatchSpec]):
    """The batches of one epoch in a seeded random order of images; the incomplete last one is dropped."""

    def __init__(self, n_images: int, batch_size: int, seed: int, epoch: int, first_batch: int = 0) -> None:
        size = min(batch_size, n_images)
        order = np.random.default_rng([seed, epoch]).permutation(n_images)
        n_batches = n_images // size
        rows = order[: n_batches * size].reshape(n_batches, size)
        self._specs = [BatchSpec(epoch, batch, rows[batch]) for batch in range(first_batch, n_batches)]

    def __len__(self) -> int:
        return len(self._specs)

    def __getitem__(self, index: Any) -> Any:
        return self._specs[index]

    def __iter__(self) -> Iterator[BatchSpec]:
        return iter(self._specs)
