"""The published network, line by line."""

from __future__ import annotations

import pytest

from search_spaces import get_space
from search_spaces.architecture import Operation
from search_spaces.constraints import Limits, certify
from search_spaces.reference import REFERENCE, REFERENCE_ARCHITECTURE
from study.model.certificate import count_params, measure_receptive_field
from study.model.network import build

TABLE = [  # kind, output shape, parameters (without the norm's)
    ("3x3", (16, 32, 32), 432),
    ("3x3", (16, 32, 32), 2_304),
    ("3x3", (16, 32, 32), 2_304),
    ("3x3, dilation 8, unpadded", (16, 16, 16), 2_304),
    ("3x3", (32, 16, 16), 4_608),
    ("3x3", (32, 16, 16), 9_216),
    ("3x3, depthwise", (32, 16, 16), 320),
    ("1x1, pointwise", (32, 16, 16), 1_056),
    ("3x3, dilation 4, unpadded", (64, 8, 8), 18_432),
    ("3x3", (64, 8, 8), 36_864),
    ("3x3", (64, 8, 8), 36_864),
    ("3x3", (64, 8, 8), 36_864),
    ("3x3, unpadded", (32, 6, 6), 18_432),
    ("3x3, unpadded", (16, 4, 4), 4_608),
    ("1x1, classifier", (10, 1, 1), 160),
]


def test_convolutions_are_the_published_ones() -> None:
    convs = [op for op in REFERENCE_ARCHITECTURE.operations if op.name == "Conv2d"]
    assert [(op.detail, op.out_shape, op.params) for op in convs] == TABLE


def test_everything_but_depthwise_and_classifier_is_normalised_and_activated() -> None:
    operations = REFERENCE_ARCHITECTURE.operations
    followers: dict[str, list[str]] = {}
    for op, *after in (operations[i : i + 3] for i in range(len(operations))):
        if op.name == "Conv2d":
            followers.setdefault(_kind(op), []).append(",".join(o.name for o in after))
    assert set(followers["plain"]) == {"BatchNorm2d,ReLU"}
    assert followers["depthwise"] == ["Conv2d,BatchNorm2d"]
    assert followers["classifier"] == [""]
    assert operations[-2].name == "AvgPool2d"
    assert operations[-2].detail == "global, 4x4"


def _kind(op: Operation) -> str:
    return op.detail.rpartition(", ")[2] if op.detail.endswith(("depthwise", "classifier")) else "plain"


def test_totals() -> None:
    assert REFERENCE_ARCHITECTURE.params == 175_696
    assert REFERENCE_ARCHITECTURE.receptive_field == 47
    assert REFERENCE_ARCHITECTURE.receptive_field_with_pool == 50
    assert REFERENCE_ARCHITECTURE.n_dilated_reductions == 2
    certify(REFERENCE_ARCHITECTURE, Limits())


def test_the_built_module_agrees() -> None:
    network = build(REFERENCE_ARCHITECTURE)
    assert count_params(network) == 175_696
    assert measure_receptive_field(network, REFERENCE_ARCHITECTURE) == 47


@pytest.mark.parametrize("max_params", [175_697, 180_000, 200_000, 300_000, 400_000])
def test_the_anchor_decodes_to_the_reference(max_params: int) -> None:
    space, limits = get_space("dilated"), Limits(max_params=max_params)
    decoded = space.decode(space.anchors(limits)["reference"], limits)
    assert decoded.candidate == REFERENCE
    assert decoded.candidate.architecture.architecture_id == REFERENCE_ARCHITECTURE.architecture_id
    assert decoded.repairs == ()


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_params=175_696),
        Limits(max_params=100_000),
        Limits(min_receptive_field=47),
        Limits(max_macs=REFERENCE_ARCHITECTURE.macs),
        Limits(max_params=1),
    ],
    ids=str,
)
def test_there_is_no_reference_anchor_where_the_reference_breaks_a_limit(limits: Limits) -> None:
    assert "reference" not in get_space("dilated").anchors(limits)
