"""The `dilated` space: plain or residual three-stage networks that reduce by convolution.

    dilated
    |- architecture
    |   |- stem                 3x3 convolution, 3 -> w1, on 32x32
    |   |- stage 1, 32x32       depth_1 units, w1 wide, dilation_1 on every second unit, separable_1
    |   |- reduction 1 -> 16x16 strided, or dilated unpadded (dilation 8)     widen_1: here or after
    |   |- stage 2, 16x16       depth_2 units, w2 = width_ratio_2 * w1, dilation_2, separable_2
    |   |- reduction 2 -> 8x8   strided, or dilated unpadded (dilation 4)     widen_2: here or after
    |   |- stage 3, 8x8         depth_3 units, w3 = width_ratio_3 * w2, dilation_3, separable_3
    |   |- head                 head_convs unpadded 3x3 units, each half as wide
    |   |- residual             identities around pairs of units that keep their shape
    |   |- reduction            strided everywhere, or dilated at dilated_at (first | second | both)
    |   |- separable_kernel     of the depthwise separable units
    |   `- budget_frac          share of the parameter limit; w1 is solved to spend it
    |- augmentation             flip, crop_padding, affine_p, shift_frac, scale_frac, rotate_deg,
    |                           dropout_p, dropout_hole
    `- optimisation             optimizer (sgd | adamw | muon), lr, weight_decay, adamw_lr, adamw_weight_decay,
                                muon_lr, muon_weight_decay, batch_size, label_smoothing

Derived, never sampled: the widths (the largest w1 whose network stays within the sampled share of
the limit, and within every other upper limit), and the dilations where the receptive field or the
need for a dilated convolution asks for more than was sampled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.architecture import Architecture, Conv, Layer, Residual
from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, Limits, certify, check
from search_spaces.fitting import first_that_sees_enough, fit, round_width
from search_spaces.reference import REFERENCE, REFERENCE_ARCHITECTURE
from search_spaces.space import Choice, Decoded, Dimension, Integer, Params, Real, SearchSpace
from search_spaces.training_dimensions import (
    DEFAULT_TRAINING,
    TRAINING_DIMENSIONS,
    decode_augmentation,
    decode_optimisation,
    training_params,
)

STRIDED, DILATED = "strided", "dilated"
STAGE_SIDES = (32, 16, 8)
_TREE = (__doc__ or "").split("\n\n")[1]


@dataclass(frozen=True)
class _Plan:
    """The structure before its widths are known; what repair works on.

    Attributes:
        depths, dilations, separable: One entry per stage.
        dilate_all: Dilate every unit of a stage rather than every second one (repair only).
    """

    depths: tuple[int, int, int]
    dilations: tuple[int, int, int]
    separable: tuple[str, str, str]
    separable_kernel: int
    reductions: tuple[str, str]
    widen: tuple[str, str]
    ratios: tuple[float, float]
    head_convs: int
    residual: bool
    dilate_all: bool = False

    def build(self, base_width: float) -> Architecture:
        """The architecture whose first stage is about `base_width` wide."""
        first = round_width(base_width)
        second = round_width(base_width * self.ratios[0])
        third = round_width(base_width * self.ratios[0] * self.ratios[1])
        layers: list[Layer] = [Conv(first)]
        layers += self._stage(0, first, first)
        width = second if self.widen[0] == "reduction" else first
        layers.append(self._reduction(0, width))
        layers += self._stage(1, width, second)
        width = third if self.widen[1] == "reduction" else second
        layers.append(self._reduction(1, width))
        layers += self._stage(2, width, third)
        layers += [Conv(round_width(third / 2 ** (i + 1)), padded=False) for i in range(self.head_convs)]
        return Architecture(tuple(layers))

    def _reduction(self, index: int, width: int) -> Conv:
        if self.reductions[index] == STRIDED:
            return Conv(width, stride=2)
        # Unpadded, a 3x3 kernel takes 2 * dilation pixels off the side: a quarter of it halves the map.
        return Conv(width, dilation=STAGE_SIDES[index] // 4, padded=False)

    def _stage(self, stage: int, in_channels: int, out_channels: int) -> list[Layer]:
        depth = self.depths[stage]
        units = []
        for index in range(depth):
            dilated = self.dilate_all or index % 2 == 1 or depth == 1
            separable = self.separable[stage] == "all" or (self.separable[stage] == "last" and index == depth - 1)
            units.append(
                Conv(
                    out_channels,
                    kernel=self.separable_kernel if separable else 3,
                    dilation=self.dilations[stage] if dilated else 1,
                    separable=separable,
                    bias=separable,
                )
            )
        if not self.residual:
            return list(units)
        layers: list[Layer] = []
        if in_channels != out_channels:  # an identity cannot go around a unit that widens
            layers.append(units.pop(0))
        for start in range(0, len(units), 2):
            pair = units[start : start + 2]
            pair[-1] = dataclasses.replace(pair[-1], activation=False)  # ReLU comes after the addition
            layers.append(Residual(tuple(pair)))
        return layers

    def max_dilation(self, stage: int) -> int:
        """Largest dilation whose outer taps land inside the stage's map."""
        kernel = self.separable_kernel if self.separable[stage] != "none" else 3
        return (STAGE_SIDES[stage] - 1) // ((kernel - 1) // 2)


class DilatedSpace(SearchSpace):
    """See the module's tree."""

    name = "dilated"
    version = 3
    cpu_epoch_factor = 2.0
    tree = _TREE

    MAX_DEPTHS = (4, 5, 5)

    @property
    def dimensions(self) -> Mapping[str, Dimension]:
        return _DIMENSIONS

    def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        architecture, repairs = fit(_plan(params), limits, params["budget_frac"], clock, _repair, _simplifications)
        certify(architecture, limits, clock)
        return Decoded(Candidate(architecture, decode_augmentation(params), decode_optimisation(params)), repairs)

    def anchors(self, limits: Limits) -> Mapping[str, Params]:
        anchors = {}
        frac = math.ceil(REFERENCE_ARCHITECTURE.params / max(1, limits.max_params - 1) * 1e4) / 1e4
        dimension = _DIMENSIONS["budget_frac"]
        others = dataclasses.replace(limits, max_epoch_s=None)  # needs a clock; decode checks it
        if dimension.contains(frac) and all(c.feasible for c in check(REFERENCE_ARCHITECTURE, others)):
            anchors["reference"] = {**_REFERENCE_PARAMS, "budget_frac": frac}
        anchors["default"] = dict(_DEFAULT_PARAMS)
        return anchors


_DIMENSIONS: dict[str, Dimension] = {
    "budget_frac": Real(0.4, 1.0),
    "reduction": Choice((STRIDED, DILATED)),
    "dilated_at": Choice(("both", "first", "second")),
    "residual": Choice((False, True)),
    "depth_1": Integer(1, DilatedSpace.MAX_DEPTHS[0]),
    "depth_2": Integer(1, DilatedSpace.MAX_DEPTHS[1]),
    "depth_3": Integer(1, DilatedSpace.MAX_DEPTHS[2]),
    "width_ratio_2": Real(1.0, 3.0, step=0.25),
    "width_ratio_3": Real(1.0, 3.0, step=0.25),
    "widen_1": Choice(("reduction", "after")),
    "widen_2": Choice(("reduction", "after")),
    "dilation_1": Integer(1, 3),
    "dilation_2": Integer(1, 3),
    "dilation_3": Integer(1, 3),
    "separable_1": Choice(("none", "last")),
    "separable_2": Choice(("none", "last", "all")),
    "separable_3": Choice(("none", "last", "all")),
    "separable_kernel": Choice((3, 5)),
    "head_convs": Integer(0, 2),
    **TRAINING_DIMENSIONS,
}

_REFERENCE_PARAMS: dict[str, Any] = {
    "reduction": DILATED,
    "dilated_at": "both",
    "residual": False,
    "depth_1": 2,
    "depth_2": 3,
    "depth_3": 3,
    "width_ratio_2": 2.0,
    "width_ratio_3": 2.0,
    "widen_1": "after",
    "widen_2": "reduction",
    "dilation_1": 1,
    "dilation_2": 1,
    "dilation_3": 1,
    "separable_1": "none",
    "separable_2": "last",
    "separable_3": "none",
    "separable_kernel": 3,
    "head_convs": 2,
    **training_params(REFERENCE.augmentation, REFERENCE.optimisation),
}

_DEFAULT_PARAMS: dict[str, Any] = {
    **_REFERENCE_PARAMS,
    "budget_frac": 1.0,
    "reduction": STRIDED,
    "residual": True,
    "depth_1": 3,
    "depth_2": 4,
    "depth_3": 4,
    "widen_1": "reduction",
    "dilation_3": 2,
    "separable_2": "none",
    "separable_3": "last",
    "head_convs": 0,
    **DEFAULT_TRAINING,
}


def _plan(params: Params) -> _Plan:
    reductions = [STRIDED, STRIDED]
    if params["reduction"] == DILATED:
        at = params["dilated_at"]
        reductions = [DILATED if at in ("both", "first") else STRIDED, DILATED if at in ("both", "second") else STRIDED]
    return _Plan(
        depths=(params["depth_1"], params["depth_2"], params["depth_3"]),
        dilations=(params["dilation_1"], params["dilation_2"], params["dilation_3"]),
        separable=(params["separable_1"], params["separable_2"], params["separable_3"]),
        separable_kernel=params["separable_kernel"],
        reductions=(reductions[0], reductions[1]),
        widen=(params["widen_1"], params["widen_2"]),
        ratios=(params["width_ratio_2"], params["width_ratio_3"]),
        head_convs=params["head_convs"],
        residual=params["residual"],
    )


def _repair(plan: _Plan, limits: Limits) -> tuple[_Plan, list[str]]:
    """Meets every limit that does not depend on widths, with the smallest change that does."""
    repairs = []
    if all(choice == "none" for choice in plan.separable):
        plan = dataclasses.replace(plan, separable=("none", "last", "none"))
        repairs.append("last unit of stage 2 made separable")
    before = plan
    plan = first_that_sees_enough(_dilation_lifts(plan), limits)
    if plan.depths != before.depths:
        repairs.append(f"depths {before.depths} -> {plan.depths}")
    if (plan.dilations, plan.dilate_all) != (before.dilations, before.dilate_all):
        every = ", on every unit" if plan.dilate_all else ""
        repairs.append(f"dilations {before.dilations} -> {plan.dilations}{every}")
    return plan, repairs


def _dilation_lifts(plan: _Plan) -> Iterator[_Plan]:
    """The plan itself, then ever larger receptive fields: dilations first, depths last.

    The last stage goes first: its dilations widen the field most and cost nothing.
    """
    yield plan
    for dilate_all in (False, True):
        plan = dataclasses.replace(plan, dilate_all=dilate_all)
        for stage in (2, 1, 0):
            for dilation in range(plan.dilations[stage] + 1, plan.max_dilation(stage) + 1):
                plan = dataclasses.replace(plan, dilations=_with(plan.dilations, stage, dilation))
                yield plan
        yield plan
    for stage in (2, 1, 0):
        for depth in range(plan.depths[stage] + 1, DilatedSpace.MAX_DEPTHS[stage] + 1):
            plan = dataclasses.replace(plan, depths=_with(plan.depths, stage, depth))
            yield plan


def _simplifications(plan: _Plan) -> Iterator[tuple[_Plan, str]]:
    """Ever cheaper plans, for upper limits that even the narrowest network of `plan` breaks."""
    plan = dataclasses.replace(plan, ratios=(min(plan.ratios[0], 1.0), min(plan.ratios[1], 1.0)))
    yield plan, "width ratios lowered to 1"
    if plan.head_convs:
        plan = dataclasses.replace(plan, head_convs=0)
        yield plan, "head dropped"
    plan = dataclasses.replace(plan, reductions=(STRIDED, STRIDED))
    yield plan, "strided reductions"
    plan = dataclasses.replace(plan, separable=("none", "none", "last"), separable_kernel=3)
    yield plan, "one small separable unit"
    for stage in (0, 1, 2):
        while plan.depths[stage] > 1:
            plan = dataclasses.replace(plan, depths=_with(plan.depths, stage, plan.depths[stage] - 1))
            yield plan, f"depth {stage + 1} lowered to {plan.depths[stage]}"
    # The last two are the same whatever was sampled: whether limits can be met at all must not depend on it.
    plan = dataclasses.replace(plan, residual=False, dilations=(1, 1, 1), dilate_all=False)
    yield plan, "no residual blocks, smallest dilations"
    plan = dataclasses.replace(plan, separable=("last", "last", "last"))
    yield plan, "one small separable unit in every stage"


def _with(values: tuple[int, int, int], index: int, value: int) -> tuple[int, int, int]:
    changed = list(values)
    changed[index] = value
    return changed[0], changed[1], changed[2]
