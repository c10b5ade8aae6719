"""Descriptions: formulas on known cases, JSON, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from search_spaces.architecture import (
    Architecture,
    ArchitectureError,
    Branch,
    Branches,
    Conv,
    Gated,
    Layer,
    Residual,
    identifier,
)
from search_spaces.candidate import Augmentation, Candidate, Optimisation
from search_spaces.fields import DescriptionError
from search_spaces.reference import REFERENCE
from study.machine.paths import RESULTS


@pytest.mark.parametrize(
    ("layers", "field", "with_pool", "side"),
    [
        ((Conv(4),), 3, 34, 32),
        ((Conv(4, kernel=5),), 5, 36, 32),
        ((Conv(4, dilation=2),), 5, 36, 32),
        ((Conv(4, kernel=5, dilation=3),), 13, 44, 32),
        ((Conv(4, stride=2),), 3, 33, 16),
        ((Conv(4, stride=2), Conv(4)), 7, 37, 16),
        ((Conv(4, stride=2), Conv(4, stride=2), Conv(4)), 15, 43, 8),
        ((Conv(4, dilation=8, padded=False),), 17, 32, 16),
        ((Conv(4), Residual((Conv(4), Conv(4)))), 7, 38, 32),
        ((Conv(4, separable=True, dilation=2), Conv(4, kernel=1)), 5, 36, 32),
    ],
)
def test_receptive_field_of_known_cases(
    layers: tuple[Conv | Residual, ...], field: int, with_pool: int, side: int
) -> None:
    architecture = Architecture(layers)
    assert architecture.receptive_field == field
    assert architecture.receptive_field_with_pool == with_pool
    assert architecture.operations[-2].in_shape == (4, side, side)


@pytest.mark.parametrize(
    ("conv", "params", "macs"),
    [
        (Conv(8, norm=False), 3 * 8 * 9, 3 * 8 * 9 * 1024),
        (Conv(8), 3 * 8 * 9 + 16, 3 * 8 * 9 * 1024),
        (Conv(8, bias=True), 3 * 8 * 9 + 8 + 16, 3 * 8 * 9 * 1024),
        (Conv(8, stride=2, norm=False), 3 * 8 * 9, 3 * 8 * 9 * 256),
        (Conv(8, separable=True, norm=False), 27 + 24, (27 + 24) * 1024),
        (Conv(8, stride=2, separable=True, norm=False), 27 + 24, (27 + 24) * 256),
        (Conv(8, separable=True, bias=True, kernel=5), 75 + 3 + 24 + 8 + 16, (75 + 24) * 1024),
    ],
)
def test_params_and_macs_of_known_cases(conv: Conv, params: int, macs: int) -> None:
    architecture = Architecture((conv,))
    assert architecture.params == params + 80
    assert architecture.macs == macs + 80


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((Conv(4, dilation=16, padded=False),), "below 1 pixel in layer 0"),
        ((Conv(4), Residual((Conv(8),))), "keeps its shape"),
        ((Conv(4), Residual((Conv(4, stride=2),))), "keeps its shape"),
    ],
)
def test_what_is_not_a_network_is_refused(layers: tuple[Conv | Residual, ...], words: str) -> None:
    with pytest.raises(ArchitectureError, match=words):
        _ = Architecture(layers).operations


@pytest.mark.parametrize("fields", [{"kernel": 2}, {"kernel": 0}, {"stride": 0}, {"dilation": 0}, {"out_channels": 0}])
def test_impossible_units_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DescriptionError):
        Conv(**{"out_channels": 4, **fields})


EVERYTHING = Candidate(
    Architecture(
        (
            Conv(8, 5, 2, 3, padded=True, separable=True, bias=True, norm=False, activation=False),
            Residual((Conv(8), Conv(8, dilation=2, activation=False))),
            Conv(8, 4, 2, groups=8, norm_type="layer", activation_type="gelu"),
            Residual(
                (
                    Branches(
                        (Branch(1), Branch(3), Branch(5, 2, smooth=True)), "sum", False, True, True, "layer", "silu"
                    ),
                    Gated(8, 16, False, True, "layer", "tanhexp"),
                ),
                activation_type="gelu",
                scaled="body",
                times=2,
            ),
            Branches((Branch(1), Branch(3))),
            Gated(8, 4),
            Residual((Conv(8),), activation=False, scaled="identity"),
        ),
        in_channels=1,
        image_size=28,
        n_classes=7,
        classifier_bias=True,
    ),
    Augmentation(0.1, 2, 0.3, 0.04, 0.05, 6.0, 0.7, 8),
    Optimisation(0.11, 64, 0.8, 1e-3, 0.1, 0.3),
)


def test_json_inverts_exactly() -> None:
    assert Candidate.from_json(json.loads(json.dumps(EVERYTHING.to_json()))) == EVERYTHING


def test_ids_are_those_of_the_sorted_compact_json() -> None:
    text = json.dumps(EVERYTHING.to_json(), sort_keys=True, separators=(",", ":"))
    assert EVERYTHING.candidate_id == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert EVERYTHING.architecture.architecture_id == identifier(EVERYTHING.to_json()["architecture"])
    assert identifier({"b": 1, "a": 2}) == identifier({"a": 2, "b": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": {"version": 99}},
        {"architecture": None},
        {"augmentation": {"blur": 1}},
        {"optimisation": {"lr": 0.1, "beta": 1}},
    ],
    ids=str,
)
def test_foreign_json_is_refused(change: dict[str, object]) -> None:
    data = EVERYTHING.to_json()
    for name, value in change.items():
        data[name] = value
    if data["architecture"] is None:
        data.pop("architecture")
    with pytest.raises(DescriptionError):
        Candidate.from_json(data)


def test_missing_fields_and_unknown_layers_are_refused() -> None:
    data = EVERYTHING.architecture.to_json()
    for broken in (
        {**data, "layers": [{"kind": "attention"}]},
        {**data, "layers": [{"out_channels": 4}]},
        {name: value for name, value in data.items() if name != "layers"},
    ):
        with pytest.raises(DescriptionError):
            Architecture.from_json(broken)


GRADED = Branches((Branch(1), Branch(3), Branch(5, dilation=2), Branch(3, smooth=True)), norm=False)
SUMMED = Branches((Branch(1), Branch(3), Branch(5, dilation=2)), join="sum", bias=False, norm_type="layer")


@pytest.mark.parametrize(
    ("layers", "params", "macs", "field"),
    [
        ((Conv(8, kernel=5, groups=8, norm=False),), 200, 200 * 1024, 7),
        ((Conv(16, kernel=4, stride=2, groups=4, bias=True, norm=False),), 512 + 16, 512 * 256, 6),
        ((Conv(16, kernel=2, stride=2, norm=False),), 512, 512 * 256, 4),
        ((GRADED,), 2 * (9 + 1 + 25 + 1 + 9 + 1), 2 * 43 * 1024, 11),
        ((SUMMED,), 8 * 34 + 16, 8 * 34 * 1024, 11),
        ((Gated(12, hidden=20),), 8 * 40 + 40 + 20 * 12 + 12, (8 * 40 + 20 * 12) * 1024, 3),
        ((Residual((Conv(8),), scaled="body"),), 576 + 16 + 8, 576 * 1024, 5),
        ((Residual((Conv(8),), scaled="identity", times=3),), 576 + 3 * 16 + 8, 3 * 576 * 1024, 9),
    ],
    ids=["depthwise", "grouped", "patch", "concat", "sum", "gated", "scaled", "repeated"],
)
def test_figures_of_known_units(layers: tuple[Layer, ...], params: int, macs: int, field: int) -> None:
    stem = Conv(8, norm=False)
    before, after = Architecture((stem,)), Architecture((stem, *layers))
    n_out = after.operations[-2].in_shape[0]
    assert after.params - before.params - 10 * (n_out - 8) == params
    assert after.macs - before.macs - 10 * (n_out - 8) == macs
    assert after.receptive_field == field


@pytest.mark.parametrize("layers", [(GRADED, Conv(8, kernel=1)), (SUMMED, Gated(8, 8)), (Conv(8, separable=True),)])
def test_depthwise_followed_by_pointwise_is_separable(layers: tuple[Layer, ...]) -> None:
    assert Architecture((Conv(8), *layers)).n_separable == 1


@pytest.mark.parametrize(
    "layers",
    [
        (SUMMED,),  # the classifier after the pooling does not count
        (SUMMED, Conv(8)),
        (Residual((Conv(8, groups=8),)), Conv(8, kernel=1)),  # an addition stands between
        (Conv(8, groups=4), Conv(8, kernel=1)),
        (Gated(8, 8),),
    ],
)
def test_depthwise_alone_is_not_separable(layers: tuple[Layer, ...]) -> None:
    assert Architecture((Conv(8), *layers)).n_separable == 0


def test_repeated_blocks_count_once() -> None:
    block = Residual((Conv(8, dilation=2, separable=True, activation=False),), times=3)
    architecture = Architecture((Conv(8), block))
    assert (architecture.n_dilated, architecture.n_separable) == (1, 1)
    assert [op.params for op in architecture.operations if "depthwise" in op.detail] == [72, 0, 0]


@pytest.mark.parametrize("kind", ["best", "reference"])
def test_published_candidates_keep_their_json_and_ids(kind: str) -> None:
    text = (RESULTS / "dilated" / kind / "candidate.json").read_text()
    candidate = Candidate.from_json(json.loads(text))
    assert json.dumps(candidate.to_json(), indent=2) + "\n" == text
    metrics = json.loads((RESULTS / "dilated" / kind / "metrics.json").read_text())
    assert candidate.candidate_id == metrics["candidate_id"]
    trials = json.loads((RESULTS / "dilated" / "study.json").read_text())["trials"]
    number = metrics.get("trial", 0)  # the reference is the study's first
    assert candidate.architecture.architecture_id == trials[number]["architecture_id"]


def test_the_reference_keeps_its_ids() -> None:
    assert (REFERENCE.candidate_id, REFERENCE.architecture.architecture_id) == ("89a80fcd619f", "f7cb885423d3")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Conv(8, kernel=4),
        lambda: Conv(8, kernel=2, stride=2, dilation=2),
        lambda: Conv(8, groups=0),
        lambda: Conv(8, separable=True, groups=8),
        lambda: Conv(8, norm_type="group"),
        lambda: Conv(8, activation_type="swish"),
        lambda: Branch(kernel=2),
        lambda: Branches((Branch(3),)),
        lambda: Branches((Branch(1), Branch(1))),
        lambda: Branches((Branch(1), Branch(3)), join="product"),
        lambda: Gated(8, hidden=0),
        lambda: Residual((Conv(8),), scaled="both"),
        lambda: Residual((Conv(8),), times=0),
        lambda: Architecture((Conv(8), Conv(8, groups=3))).operations,
        lambda: Architecture((Branches((Branch(1), Branch(3), Branch(3), Branch(3))),)).operations,
        lambda: Architecture.from_json(
            {
                **Architecture((Conv(8),)).to_json(),
                "layers": [{"kind": "residual", "body": [{"kind": "residual", "body": []}]}],
            }
        ),
    ],
)
def test_impossible_blocks_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(DescriptionError):
        make()
