"""Augmentations differ where they must, agree where they must, and do what their strengths say."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from search_spaces.candidate import Augmentation
from study.data.augmentation import (
    AugmentedBatches,
    BatchSpec,
    EpochOrder,
    compose,
    mixing_weight,
    needs_albumentations,
)
from study.data.batches import place
from study.data.cifar10 import MEAN, Images

NONE = Augmentation(flip_p=0.0, crop_padding=0)
ALL = Augmentation(0.5, 4, 0.5, 0.1, 0.1, 10.0, 0.5, 8)


def _gradient(n: int) -> Images:
    """`n` equal images: red grows by 8 a column, green by 8 a row. Reads as the position it came from."""
    pixels = np.zeros((n, 32, 32, 3), np.uint8)
    pixels[..., 0] = 8 * np.arange(32)[None, :]
    pixels[..., 1] = 8 * np.arange(32)[:, None]
    return Images(pixels, np.arange(n) % 10)


def _augment(augmentation: Augmentation, n: int, epoch: int = 0, batch: int = 0, seed: int = 3) -> np.ndarray:
    return _images(AugmentedBatches(_gradient(n), augmentation, seed)[BatchSpec(epoch, batch, np.arange(n))])


def _images(batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """A batch's images as a network sees them."""
    pixels, _, moves = map(torch.from_numpy, batch)
    return place(pixels, torch.arange(len(pixels)), moves).numpy()


def _flips_and_shifts(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(flipped, horizontal shift, vertical shift) of every image of `_gradient`, read at the centre."""
    red, green = pixels[:, 16, :, 0].astype(int) // 8, pixels[:, 16, 16, 1].astype(int) // 8
    flipped = red[:, 20] < red[:, 12]
    return flipped, np.where(flipped, 15 - red[:, 16], red[:, 16] - 16), green - 16


def test_nothing_to_do_leaves_images_alone() -> None:
    assert np.array_equal(_augment(NONE, 20), _gradient(20).pixels)
    assert len(compose(NONE).transforms) == 0
    assert not needs_albumentations(NONE)


def test_images_come_back_as_uint8_with_their_labels() -> None:
    images = _gradient(30)
    indices = np.array([7, 3, 29, 3])
    pixels, labels, _ = AugmentedBatches(images, ALL, 1)[BatchSpec(0, 0, indices)]
    assert pixels.dtype == np.uint8
    assert pixels.shape == (4, 32, 32, 3)
    assert labels.dtype == np.int64
    assert labels.tolist() == [7, 3, 9, 3]


def _n_distinct(pixels: np.ndarray) -> int:
    return len({image.tobytes() for image in pixels})


def test_images_of_a_batch_differ() -> None:
    assert _n_distinct(_augment(ALL, 64)) > 55
    assert _n_distinct(_augment(Augmentation(affine_p=1.0, rotate_deg=10.0, crop_padding=0), 64)) > 55


@pytest.mark.parametrize("changed", [{"epoch": 1}, {"batch": 1}, {"seed": 4}])
def test_epochs_batches_and_seeds_differ(changed: dict[str, int]) -> None:
    first, other = _augment(ALL, 64), _augment(ALL, 64, **changed)
    same = [np.array_equal(a, b) for a, b in zip(first, other, strict=True)]
    assert np.mean(same) < 0.1
    assert np.array_equal(first, _augment(ALL, 64))


def test_a_batch_does_not_depend_on_those_before_it() -> None:
    """What makes results the same whatever the number of loaders, and a resumed epoch exact."""
    batches = AugmentedBatches(_gradient(64), ALL, 3)
    for batch in range(3):
        batches[BatchSpec(0, batch, np.arange(64))]
    late = _images(batches[BatchSpec(0, 3, np.arange(64))])
    assert np.array_equal(late, _augment(ALL, 64, batch=3))
    copied = pickle.loads(pickle.dumps(AugmentedBatches(_gradient(64), ALL, 3)))
    assert np.array_equal(late, _images(copied[BatchSpec(0, 3, np.arange(64))]))


def test_flips_are_uncorrelated_with_crops() -> None:
    flipped, right, down = _flips_and_shifts(_augment(Augmentation(flip_p=0.5, crop_padding=4), 2_000))
    assert 0.45 < flipped.mean() < 0.55
    assert set(right) == set(down) == set(range(-4, 5))
    for a, b in ((flipped, right), (flipped, down), (right, down)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.1  # 4 standard errors
    order = np.arange(1_999)
    assert abs(np.corrcoef(flipped[order], flipped[order + 1])[0, 1]) < 0.1


def test_flip_probability_and_direction() -> None:
    flipped = _augment(Augmentation(flip_p=1.0, crop_padding=0), 10)
    assert np.array_equal(flipped, _gradient(10).pixels[:, :, ::-1])
    some = _flips_and_shifts(_augment(Augmentation(flip_p=0.2, crop_padding=0), 1_000))[0]
    assert 0.14 < some.mean() < 0.26


@pytest.mark.parametrize("padding", [1, 4])
def test_crops_shift_by_at_most_the_padding_and_reflect(padding: int) -> None:
    pixels = _augment(Augmentation(flip_p=0.0, crop_padding=padding), 500)
    _, right, down = _flips_and_shifts(pixels)
    for shifts in (right, down):
        assert set(shifts) == set(range(-padding, padding + 1))
    row = np.flatnonzero(right == -padding)[0]
    edge = pixels[row, 16, : padding + 1, 0] // 8
    assert edge.tolist() == list(range(padding, -1, -1))  # the border mirrors, its own column not repeated


def test_dropout_fills_one_hole_with_the_mean() -> None:
    fill = np.round(255 * np.array(MEAN))
    source = Images(np.full((400, 32, 32, 3), 255, np.uint8), np.zeros(400, np.int64))
    augmentation = Augmentation(flip_p=0.0, crop_padding=0, dropout_p=0.5, dropout_hole=6)
    pixels = _images(AugmentedBatches(source, augmentation, 0)[BatchSpec(0, 0, np.arange(400))])
    changed = (pixels != 255).any(-1)
    has_hole = changed.any((1, 2))
    assert 0.4 < has_hole.mean() < 0.6
    for image, hole in zip(pixels[has_hole], changed[has_hole], strict=True):
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert (len(rows), len(columns), hole.sum()) == (6, 6, 36)
        assert (image[hole] == fill).all()
    assert len({tuple(np.argwhere(hole)[0]) for hole in changed[has_hole]}) > 50


def test_affine_probability_and_strengths() -> None:
    still = Augmentation(flip_p=0.0, crop_padding=0, affine_p=1.0, shift_frac=0.0, scale_frac=0.0, rotate_deg=0.0)
    assert np.array_equal(_augment(still, 10), _gradient(10).pixels)
    half = _augment(Augmentation(flip_p=0.0, crop_padding=0, affine_p=0.5, rotate_deg=15.0), 400)
    changed = [not np.array_equal(image, original) for image, original in zip(half, _gradient(400).pixels, strict=True)]
    assert 0.4 < np.mean(changed) < 0.6


@pytest.mark.parametrize("shift_frac", [0.0625, 0.125])
def test_affine_shift_is_a_share_of_the_side(shift_frac: float) -> None:
    pixels = _augment(Augmentation(flip_p=0.0, crop_padding=0, affine_p=1.0, shift_frac=shift_frac), 500)
    _, right, down = _flips_and_shifts(pixels)
    most = shift_frac * 32
    for shifts in (right, down):
        assert most - 1 <= max(abs(shifts.min()), abs(shifts.max())) <= most + 1
        assert shifts.min() < 0 < shifts.max()


def test_affine_rotation_and_scale_stay_within_their_strengths() -> None:
    rotated = _augment(Augmentation(flip_p=0.0, crop_padding=0, affine_p=1.0, rotate_deg=10.0), 500).astype(float)
    slope = (rotated[:, 16, 24, 1] - rotated[:, 16, 8, 1]) / (rotated[:, 16, 24, 0] - rotated[:, 16, 8, 0])
    degrees = np.degrees(np.arctan(slope))
    assert 8 < np.abs(degrees).max() < 11
    assert degrees.min() < 0 < degrees.max()
    scaled = _augment(Augmentation(flip_p=0.0, crop_padding=0, affine_p=1.0, scale_frac=0.2), 500).astype(float)
    factor = 16 * 8 / (scaled[:, 16, 24, 0] - scaled[:, 16, 8, 0])
    assert 0.76 < factor.min() < 0.87
    assert 1.13 < factor.max() < 1.26


def test_every_epoch_has_its_own_order_without_repeats() -> None:
    first, second = EpochOrder(105, 10, seed=1, epoch=0), EpochOrder(105, 10, seed=1, epoch=1)
    rows = np.concatenate([spec.indices for spec in first])
    assert len(first) == 10
    assert len(np.unique(rows)) == 100
    assert not np.array_equal(rows, np.concatenate([spec.indices for spec in second]))
    assert [(spec.epoch, spec.batch) for spec in second] == [(1, batch) for batch in range(10)]
    later = EpochOrder(105, 10, seed=1, epoch=0, first_batch=4)
    assert len(later) == 6
    assert all(np.array_equal(a.indices, b.indices) for a, b in zip(later, list(first)[4:], strict=True))
    assert not np.array_equal(rows, np.concatenate([s.indices for s in EpochOrder(105, 10, seed=2, epoch=0)]))


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    order = EpochOrder(30, 128, seed=0, epoch=0)
    assert len(order) == 1
    assert sorted(order[0].indices) == list(range(30))


def test_colour_and_sharpening_have_their_probability_and_strength() -> None:
    for name in ("colour_p", "sharpen_p"):
        still = dataclasses.replace(NONE, colour_strength=0.3)
        noisy = np.random.default_rng(0).integers(60, 196, (400, 32, 32, 3)).astype(np.uint8)
        images = Images(noisy, np.arange(400) % 10)
        spec = BatchSpec(0, 0, np.arange(400))
        assert np.array_equal(AugmentedBatches(images, still, 3)[spec][0], noisy)
        half = AugmentedBatches(images, dataclasses.replace(still, **{name: 0.5}), 3)[spec][0]
        changed = [not np.array_equal(a, b) for a, b in zip(half, noisy, strict=True)]
        assert 0.4 < np.mean(changed) < 0.6
    grey = Images(np.full((200, 32, 32, 3), 100, np.uint8), np.zeros(200, np.int64))
    always = dataclasses.replace(NONE, colour_p=1.0, colour_strength=0.2)
    found = AugmentedBatches(grey, always, 3)[BatchSpec(0, 0, np.arange(200))][0]
    # Of an even grey only the brightness shows: at most a fifth.
    assert found.min() >= 79
    assert found.max() <= 121
    assert len(np.unique(found)) > 20
    assert not needs_albumentations(dataclasses.replace(NONE, colour_p=1.0))  # of no strength


def test_mixing_begins_at_nothing_and_grows() -> None:
    mixing = dataclasses.replace(NONE, mixup=0.4)
    assert mixing_weight(mixing, 0, 0, 1000) == 1.0
    assert all(mixing_weight(NONE, 0, step, 1000) == 1.0 for step in (0, 500, 999))
    weights = [[mixing_weight(mixing, seed, step, 1000) for seed in range(300)] for step in (50, 500, 999)]
    assert all(0.5 <= weight <= 1.0 for row in weights for weight in row)
    means = [np.mean(row) for row in weights]
    assert means[0] > means[1] > means[2]
    assert mixing_weight(mixing, 3, 500, 1000) == weights[1][3]  # the same after any restart
    assert not needs_albumentations(mixing)
