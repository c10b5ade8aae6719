"""How candidates are trained: parameters and what they decode to, and augmentation by length."""

from __future__ import annotations

import dataclasses
import random

import pytest

from search_spaces import get_space
from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Augmentation, Candidate, Optimisation
from search_spaces.constraints import Limits
from search_spaces.reference import REFERENCE
from search_spaces.space import Real
from search_spaces.training_dimensions import (
    DEFAULT_TRAINING,
    LONG_AUGMENTATION,
    SMALL_IMAGES,
    TRAINING_DIMENSIONS,
    decode_augmentation,
    decode_optimisation,
    lengthened,
    regularised,
    training_params,
    with_small_images,
)

NONE = Augmentation(flip_p=0.5, crop_padding=0)


def test_parameters_decode_to_what_they_came_from() -> None:
    rng = random.Random(0)
    for _ in range(50):
        params = {name: dimension.sample(rng) for name, dimension in TRAINING_DIMENSIONS.items()}
        augmentation, optimisation = decode_augmentation(params), decode_optimisation(params)
        back = training_params(augmentation, optimisation)
        assert set(back) == set(TRAINING_DIMENSIONS)
        assert all(TRAINING_DIMENSIONS[name].contains(value) for name, value in back.items())
        assert (decode_augmentation(back), decode_optimisation(back)) == (augmentation, optimisation)


def test_every_optimizer_has_its_own_rate_and_decay() -> None:
    found = {}
    for name in ("sgd", "adamw", "muon"):
        found[name] = decode_optimisation({**DEFAULT_TRAINING, "optimizer": name})
        assert found[name].optimizer == name
    assert found["sgd"].lr == DEFAULT_TRAINING["lr"]
    assert found["adamw"].lr == DEFAULT_TRAINING["adamw_lr"]
    assert found["muon"].weight_decay == DEFAULT_TRAINING["muon_weight_decay"]


def test_short_trainings_keep_what_was_found() -> None:
    assert lengthened(NONE, 4 * 50_000) == NONE


def test_long_trainings_have_all_of_it_and_never_less_than_before() -> None:
    raised = lengthened(NONE, 100 * 50_000)
    for name, most in vars(LONG_AUGMENTATION).items():
        assert getattr(raised, name) == pytest.approx(most)
    assert raised.mixup > 0 < raised.colour_p
    assert lengthened(NONE, 400 * 50_000) == raised
    strong = Augmentation(0.5, 4, 0.6, 0.1, 0.2, 15, 0.6, colour_p=0.5, colour_strength=0.4, sharpen_p=0.1, mixup=0.4)
    assert lengthened(strong, 100 * 50_000) == strong


def test_strengths_grow_with_the_length() -> None:
    found = [lengthened(NONE, passes * 50_000).dropout_p for passes in (4, 10, 30, 60, 100)]
    assert found == sorted(found)
    assert len(set(found)) == 5
    # Half way on the logarithm from 4 to 100 passes.
    assert lengthened(NONE, 20 * 50_000).dropout_p == pytest.approx(LONG_AUGMENTATION.dropout_p / 2)


def test_regularisation_only_grows() -> None:
    for smoothing, after in ((0.0, 0.1), (0.15, 0.15)):
        before = Optimisation(label_smoothing=smoothing, weight_decay=0.02, optimizer="muon")
        more = regularised(before)
        assert (more.label_smoothing, more.weight_decay) == (after, pytest.approx(0.03))
        assert dataclasses.replace(more, label_smoothing=smoothing, weight_decay=0.02) == before


def test_published_optimisations_are_plain_sgd() -> None:
    assert Optimisation().optimizer == "sgd"


def test_numbers_between_the_steps_of_a_grid_are_not_of_it() -> None:
    grid, uneven = Real(0.5, 2.5, step=0.25), Real(0.0, 1.0, step=0.6)
    assert all(grid.contains(value) for value in (0.5, 0.75, 2.5, 1))
    assert not any(grid.contains(value) for value in (1.1, 0.25, 2.75, "1", float("nan")))
    assert {uneven.sample(random.Random(seed)) for seed in range(20)} == {0.0, 0.6}
    assert Real(0.1, 0.7, step=0.1).contains(0.1 + 0.1 + 0.1)


def test_images_grow_to_their_own_size() -> None:
    assert Optimisation().phases(32) == ((1.0, 32),)
    assert Optimisation(small_images=0.7).phases(32) == (
        (pytest.approx(0.4), 20),
        (pytest.approx(0.7), 26),
        (1.0, 32),
    )


@pytest.mark.parametrize("name", ["dilated", "separable", "multiscale", "best"])
def test_defaults_learn_from_smaller_images(name: str) -> None:
    space = get_space(name)
    default = space.decode(space.anchors(Limits())["default"], Limits()).candidate
    changed = with_small_images(default)
    assert changed.optimisation == dataclasses.replace(default.optimisation, small_images=SMALL_IMAGES)
    assert dataclasses.replace(changed, optimisation=default.optimisation) == default


@pytest.mark.parametrize(
    "layers",
    [
        REFERENCE.architecture.layers,
        (Conv(8, dilation=4, padded=False),),  # 32 -> 24, but 20 -> 12
        (Conv(8, stride=4), Conv(8, dilation=2, padded=False)),  # the last map vanishes
        (Conv(8), Conv(8, dilation=25)),  # whose taps all lie beside an image of 20x20
    ],
    ids=["reference", "unpadded", "vanishing", "out of reach"],
)
def test_a_network_that_would_see_another_scale_keeps_whole_images(layers: tuple[Conv, ...]) -> None:
    candidate = Candidate(Architecture(layers))
    assert with_small_images(candidate) == candidate
    small = dataclasses.replace(candidate, optimisation=Optimisation(small_images=SMALL_IMAGES))
    assert with_small_images(small) == candidate


def test_one_pixel_is_no_other_scale() -> None:
    rounded = Candidate(Architecture((Conv(8, stride=2), Conv(8, padded=False), Conv(8, stride=2))))
    assert with_small_images(rounded) != rounded
