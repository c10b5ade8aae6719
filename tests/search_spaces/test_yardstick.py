"""The published network that ours are measured against, and what of it a study may use."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from search_spaces import get_space
from search_spaces.constraints import Limits, certify, check
from search_spaces.yardstick import (
    YARDSTICK,
    YARDSTICK_ARCHITECTURE,
    YARDSTICK_WITHOUT_POOLING,
)
from study.data.cifar10 import Images
from study.model.certificate import count_params, measure_receptive_field
from study.model.network import build
from study.training.loop import train
from study.training.records import TrainingConfig


def test_figures_are_the_published_ones() -> None:
    assert YARDSTICK_ARCHITECTURE.params == 97_530
    assert YARDSTICK_ARCHITECTURE.receptive_field == 186
    assert YARDSTICK_ARCHITECTURE.macs == pytest.approx(44e6, rel=0.01)
    convs = [op for op in YARDSTICK_ARCHITECTURE.operations if op.name == "Conv2d"]
    assert [op.out_shape for op in convs if op.detail.startswith(("3x3", "4x4")) and not op.is_depthwise] == [
        (48, 32, 32),
        (80, 16, 16),
    ]
    assert sum(op.params for op in convs if op.layer == 1) == 120 + 600 + 600 + 4_704 + 2_352


def test_the_built_module_agrees() -> None:
    network = build(YARDSTICK_ARCHITECTURE)
    assert count_params(network) == 97_530
    assert measure_receptive_field(network, YARDSTICK_ARCHITECTURE) == 186


def test_its_averages_are_poolings_and_the_network_without_them_is_feasible() -> None:
    broken = [c for c in check(YARDSTICK_ARCHITECTURE, Limits()) if not c.feasible]
    assert [(c.name, c.value, c.reason) for c in broken] == [("pooling", 6, "6 poolings before the global average")]
    certify(YARDSTICK_WITHOUT_POOLING, Limits())
    assert YARDSTICK_WITHOUT_POOLING.params == 97_530
    assert YARDSTICK_WITHOUT_POOLING.receptive_field == 168


@pytest.mark.parametrize("max_params", [97_531, 100_000, 200_000, 240_000])
def test_the_anchor_decodes_to_the_network_without_poolings(max_params: int) -> None:
    space, limits = get_space("multiscale"), Limits(max_params=max_params)
    decoded = space.decode(space.anchors(limits)["yardstick"], limits)
    assert decoded.candidate == dataclasses.replace(YARDSTICK, architecture=YARDSTICK_WITHOUT_POOLING)
    assert decoded.repairs == ()


@pytest.mark.parametrize("limits", [Limits(max_params=97_530), Limits(min_receptive_field=168)], ids=str)
def test_there_is_no_anchor_where_the_network_breaks_a_limit(limits: Limits) -> None:
    assert "yardstick" not in get_space("multiscale").anchors(limits)


def test_it_learns_by_our_recipe() -> None:
    """Two classes, dark and bright, in bfloat16 and channels_last memory as in a study."""
    rng = np.random.default_rng(0)
    labels = np.arange(16, dtype=np.int64) % 2
    pixels = rng.integers(0, 100, (16, 32, 32, 3)) + 150 * labels[:, None, None, None]
    optimisation = dataclasses.replace(YARDSTICK.optimisation, batch_size=16)
    candidate = dataclasses.replace(YARDSTICK, optimisation=optimisation)
    config = TrainingConfig(epochs=5, seed=0, precision="bfloat16", n_loaders=0)
    records = train(candidate, Images(pixels.astype(np.uint8), labels), config).records
    assert all(math.isfinite(record.train_loss) for record in records)
    assert records[-1].train_loss < 0.7 * records[0].train_loss
