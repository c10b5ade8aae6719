"""Every limit has a case that just meets it and one that just breaks it."""

from __future__ import annotations

import dataclasses

import pytest

from search_spaces.architecture import Architecture, Conv, Residual
from search_spaces.candidate import Candidate, Optimisation
from search_spaces.constraints import (
    Clock,
    Constraint,
    InfeasibleError,
    Limits,
    OwnLimit,
    certify,
    check,
    limit_rows,
)
from search_spaces.cost import CostModel, Work
from search_spaces.fields import DescriptionError
from search_spaces.reference import REFERENCE_ARCHITECTURE


def _constraint(name: str, architecture: Architecture, limits: Limits, clock: Clock | None = None) -> Constraint:
    return next(c for c in check(architecture, limits, clock) if c.name == name)


def _pointwise(first: int, second: int) -> Architecture:
    """(first + 1) * (second + 1) - 1 parameters."""
    layers = tuple(Conv(out, kernel=1, norm=False, activation=False) for out in (first, second))
    return Architecture(layers, in_channels=1, n_classes=1)


@pytest.mark.parametrize(
    ("architecture", "params", "value"),
    [(_pointwise(399, 499), 199_999, 0), (_pointwise(488, 408), 200_000, 1)],
)
def test_parameters_stay_strictly_below(architecture: Architecture, params: int, value: int) -> None:
    found = _constraint("parameters", architecture, Limits(max_params=200_000))
    assert architecture.params == params
    assert found.value == value
    assert found.feasible == (params < 200_000)
    assert ("200,000 parameters, not below 200,000" in found.reason) == (not found.feasible)


class _Sees44(Architecture):
    receptive_field = 44  # no odd kernels give an even field


@pytest.mark.parametrize(
    ("architecture", "field", "value"),
    [
        (Architecture((Conv(1),) * 22), 45, 0),
        (_Sees44((Conv(1),)), 44, 1),
        (Architecture((Conv(1),) * 21), 43, 2),
    ],
)
def test_receptive_field_stays_strictly_above(architecture: Architecture, field: int, value: int) -> None:
    found = _constraint("receptive_field", architecture, Limits(min_receptive_field=44))
    assert architecture.receptive_field == field
    assert found.value == value
    assert found.feasible == (field > 44)
    assert (f"receptive field {field}, not above 44" in found.reason) == (not found.feasible)


@pytest.mark.parametrize(
    ("conv", "feasible"),
    [
        (Conv(4, dilation=2), True),
        (Conv(4, dilation=2, padded=False), True),
        (Conv(4, dilation=2, separable=True), True),
        (Conv(4, kernel=1, dilation=2), False),  # dilates nothing
        (Conv(4), False),
    ],
)
def test_a_dilated_convolution_is_needed(conv: Conv, feasible: bool) -> None:
    for layer in (conv, Residual((conv,))) if conv.padded else (conv,):
        found = _constraint("dilated_convolution", Architecture((Conv(4), layer)), Limits())
        assert found.feasible == feasible
        assert bool(found.reason) != feasible


@pytest.mark.parametrize(
    ("conv", "feasible"),
    [(Conv(4, separable=True), True), (Conv(4, kernel=1, separable=True), False), (Conv(4), False)],
)
def test_a_separable_convolution_is_needed(conv: Conv, feasible: bool) -> None:
    found = _constraint("depthwise_separable_convolution", Architecture((conv,)), Limits())
    assert found.feasible == feasible
    assert bool(found.reason) != feasible


@pytest.mark.parametrize(
    ("conv", "value"),
    [
        (Conv(4, dilation=31), 0),
        (Conv(4, dilation=32), 1),
        (Conv(4, kernel=5, dilation=15), 0),
        (Conv(4, kernel=5, dilation=16), 1),
        (Conv(4, kernel=5, dilation=16, separable=True), 1),
        (Conv(4, kernel=1, dilation=99), 0),
        (Conv(4, dilation=15, padded=False), 0),  # unpadded: the map's size takes care of it
    ],
)
def test_dilated_taps_land_inside_the_map(conv: Conv, value: int) -> None:
    found = _constraint("dilation_reach", Architecture((conv,)), Limits())
    assert found.value == value
    assert bool(found.reason) == (value > 0)


def test_dilation_reach_looks_at_the_map_before_the_convolution() -> None:
    later = Architecture((Conv(4, stride=2), Conv(4, dilation=16)))
    found = _constraint("dilation_reach", later, Limits())
    assert found.value == 1
    assert found.reason == "dilation 16 reaches 16 pixels out of a map of 16"


def test_multiply_accumulates_stay_strictly_below() -> None:
    macs = REFERENCE_ARCHITECTURE.macs
    assert _constraint("macs", REFERENCE_ARCHITECTURE, Limits(max_macs=macs + 1)).value == 0
    broken = _constraint("macs", REFERENCE_ARCHITECTURE, Limits(max_macs=macs))
    assert broken.value == 1
    assert f"{macs:,} multiply-accumulates" in broken.reason
    assert "macs" not in {c.name for c in check(REFERENCE_ARCHITECTURE, Limits())}


def _clock(**prices: float) -> Clock:
    free = {field.name: 0.0 for field in dataclasses.fields(CostModel) if field.name != "device"}
    return Clock(CostModel(**{**free, **prices}, device="made"), n_train=128, n_val=0)


def test_epoch_seconds_stay_strictly_below() -> None:
    clock = _clock(image_s=0.25)  # 128 images: 32 s, exactly
    assert clock.epoch_s(REFERENCE_ARCHITECTURE) == 32.0
    assert _constraint("epoch_s", REFERENCE_ARCHITECTURE, Limits(max_epoch_s=32.001), clock).feasible
    for limit in (32.0, 31.999):
        broken = _constraint("epoch_s", REFERENCE_ARCHITECTURE, Limits(max_epoch_s=limit), clock)
        assert not broken.feasible
        assert broken.reason == f"predicted 32 s an epoch, not below {limit:g} s"
    assert "epoch_s" not in {c.name for c in check(REFERENCE_ARCHITECTURE, Limits(max_epoch_s=1.0))}


def test_cost_prices_each_class_of_operation() -> None:
    unit = Architecture((Conv(8, separable=True),), in_channels=4, image_size=6)
    work = Work.of(unit)
    assert work.depthwise_macs == 4 * 9 * 36
    assert work.depthwise_other_macs == 0
    assert work.dense_macs == 4 * 8 * 36 + 8 * 10
    assert work.activations == 2 * 8 * 36 + 8  # norm, ReLU, pool
    assert work.n_operations == 6
    assert _clock(dense_mac_s=1).epoch_s(unit) == 128 * work.dense_macs
    assert _clock(depthwise_mac_s=1).epoch_s(unit) == 128 * work.depthwise_macs
    assert _clock(activation_s=1).epoch_s(unit) == 128 * work.activations
    assert _clock(operation_s=1).epoch_s(unit) == work.n_operations  # once per batch of 128


@pytest.mark.parametrize("conv", [Conv(8, kernel=5, separable=True), Conv(8, dilation=2, separable=True)])
def test_larger_or_dilated_depthwise_convolutions_have_their_own_price(conv: Conv) -> None:
    architecture = Architecture((conv,), in_channels=4, image_size=6)
    work = Work.of(architecture)
    assert work.depthwise_macs == 0
    assert work.depthwise_other_macs == 4 * conv.kernel**2 * 36
    assert _clock(depthwise_other_mac_s=1).epoch_s(architecture) == 128 * work.depthwise_other_macs


def test_validation_is_cheaper_and_not_augmented() -> None:
    cost = dataclasses.replace(
        _clock(dense_mac_s=1e-9, depthwise_mac_s=1e-9, depthwise_other_mac_s=1e-9).cost, image_s=1.0
    )
    train_only = cost.epoch_seconds(REFERENCE_ARCHITECTURE, 1)
    both = cost.epoch_seconds(REFERENCE_ARCHITECTURE, 1, 1)
    assert both - train_only == pytest.approx(0.3 * REFERENCE_ARCHITECTURE.macs * 1e-9)
    assert CostModel.from_json(cost.to_json()) == cost


def test_certify_raises_every_broken_limit() -> None:
    assert all(c.feasible for c in certify(REFERENCE_ARCHITECTURE, Limits()))
    with pytest.raises(InfeasibleError) as caught:
        certify(Architecture((Conv(16),)), Limits(max_params=100))
    assert [c.name for c in caught.value.broken] == [
        "parameters",
        "receptive_field",
        "dilated_convolution",
        "depthwise_separable_convolution",
    ]
    assert "receptive field 3, not above 44" in str(caught.value)


def test_limit_rows_say_every_limit_in_force_and_how_far_it_is() -> None:
    assert [(row.label, row.required) for row in limit_rows(Limits())] == [
        ("Parameters", "< 200,000"),
        ("Receptive field, pooling not counted", "> 44"),
        ("Dilated convolutions", "at least 1"),
        ("Depthwise separable convolutions", "at least 1"),
        ("Outer taps of padded dilated convolutions", "inside their map"),
        ("Pooling", "none but the global average"),
    ]
    limits = Limits(max_params=175_000, max_macs=90_000_000, max_epoch_s=40.0)
    rows = {row.name: row for row in limit_rows(limits, REFERENCE_ARCHITECTURE, _clock(image_s=0.25))}
    assert list(rows) == [c.name for c in check(REFERENCE_ARCHITECTURE, limits, _clock())]
    assert (rows["parameters"].value, rows["parameters"].distance) == ("175,696", "-697 left")
    assert rows["parameters"].met is False
    assert (rows["receptive_field"].value, rows["receptive_field"].distance) == ("47", "2 pixels to spare")
    assert rows["macs"].met is True
    assert (rows["epoch_s"].value, rows["epoch_s"].distance) == ("32 s", "8 s left")
    assert limit_rows(limits, REFERENCE_ARCHITECTURE)[-1].met is None  # nobody could predict it


def test_own_limits_are_strict_and_need_what_was_measured() -> None:
    limits = Limits(own=(OwnLimit("energy_mj", 5.0, "mine.py:energy 0123456789ab"), OwnLimit("size_kb", 702.784)))
    size = REFERENCE_ARCHITECTURE.params * 4 / 1_000
    assert size == 702.784
    names = [c.name for c in check(REFERENCE_ARCHITECTURE, limits)]
    assert "energy_mj" not in names  # nobody measured it
    assert not _constraint("size_kb", REFERENCE_ARCHITECTURE, limits).feasible  # equal is not below
    for value, feasible in ((4.999, True), (5.0, False), (7.0, False)):
        found = check(REFERENCE_ARCHITECTURE, limits, measured={"energy_mj": value})
        assert next(c for c in found if c.name == "energy_mj").feasible == feasible
    with pytest.raises(InfeasibleError, match="energy_mj 7, not below 5"):
        certify(REFERENCE_ARCHITECTURE, limits, measured={"energy_mj": 7.0})
    row = limit_rows(limits, REFERENCE_ARCHITECTURE, measured={"energy_mj": 3.5})[-2]
    assert (row.label, row.required, row.value, row.distance, row.met) == ("energy_mj", "< 5", "3.5", "1.5 left", True)
    assert limit_rows(limits, REFERENCE_ARCHITECTURE)[-2].met is None


def test_a_limit_on_the_size_is_one_on_the_parameters_for_spaces() -> None:
    limits = Limits(own=(OwnLimit("size_kb", 100.0), OwnLimit("latency_ms", 1.0))).to_decode
    assert (limits.max_params, limits.own) == (25_000, ())
    assert Limits(max_params=300, own=(OwnLimit("size_kb", 100.0),)).to_decode.max_params == 300


def test_limits_survive_json_and_say_nothing_of_what_they_are_without() -> None:
    assert set(Limits().to_json()) == {"max_params", "min_receptive_field", "max_macs", "max_epoch_s"}
    for limits in (Limits(), Limits(own=(OwnLimit("a", 1.0, "f.py:g 12"), OwnLimit("size_kb", 9.0)), n_classes=3)):
        assert Limits.from_json(limits.to_json()) == limits
    for wrong in ({"own": 3}, {"own": [3]}, {"own": [{"name": "a"}]}, {"n_classes": 0}):
        with pytest.raises(DescriptionError):
            Limits.from_json(wrong)
    for names in (("a", "a"), ("parameters",), ("max_macs",)):
        with pytest.raises(DescriptionError, match="a name of its own"):
            Limits(own=tuple(OwnLimit(name, 1.0) for name in names))


def test_a_network_has_an_output_for_each_class() -> None:
    limits = Limits(n_classes=100)
    with pytest.raises(InfeasibleError, match="10 outputs, not 100"):
        certify(REFERENCE_ARCHITECTURE, limits)
    assert limits.adapted(REFERENCE_ARCHITECTURE).params == REFERENCE_ARCHITECTURE.params + 90 * 16
    assert Limits().adapted(REFERENCE_ARCHITECTURE) is REFERENCE_ARCHITECTURE


def test_an_epoch_costs_less_while_images_are_small() -> None:
    cost = CostModel(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, "cpu")  # a second for each multiply-accumulate
    whole = Candidate(Architecture((Conv(8), Conv(8))))
    small = dataclasses.replace(whole, optimisation=Optimisation(small_images=0.7))
    share = 0.4 * (20 / 32) ** 2 + 0.3 * (26 / 32) ** 2 + 0.3
    n_val = 7
    validating = cost.epoch_seconds(whole.architecture, 0, n_val)
    expected = share * (cost.candidate_seconds(whole, 5, n_val) - validating) + validating
    assert cost.candidate_seconds(small, 5, n_val) == pytest.approx(expected, rel=1e-3)
