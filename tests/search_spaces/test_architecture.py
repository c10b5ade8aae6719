"""Descriptions: formulas on known cases, JSON, and what is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from search_spaces.architecture import Architecture, ArchitectureError, Conv, Residual, identifier
from search_spaces.candidate import Augmentation, Candidate, Optimisation


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
    with pytest.raises(ArchitectureError):
        Conv(**{"out_channels": 4, **fields})


EVERYTHING = Candidate(
    Architecture(
        (
            Conv(8, 5, 2, 3, padded=True, separable=True, bias=True, norm=False, activation=False),
            Residual((Conv(8), Conv(8, dilation=2, activation=False))),
        ),
        in_channels=1,
        image_size=28,
        n_classes=7,
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
    with pytest.raises(ArchitectureError):
        Candidate.from_json(data)


def test_missing_fields_and_unknown_layers_are_refused() -> None:
    data = EVERYTHING.architecture.to_json()
    for broken in (
        {**data, "layers": [{"kind": "attention"}]},
        {**data, "layers": [{"out_channels": 4}]},
        {name: value for name, value in data.items() if name != "layers"},
    ):
        with pytest.raises(ArchitectureError):
            Architecture.from_json(broken)
