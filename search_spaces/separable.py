"""The `separable` space: residual networks of depthwise separable blocks.

    separable
    |- architecture
    |   |- stem                 3x3 convolution, 3 -> w1; strided for 2 stages with 2 reductions
    |   |- n_stages             2 or 3, each wider than the one before: width_ratio_2, width_ratio_3
    |   |- n_reductions         1 or 2, to 16x16 or 8x8, between the stages (a stage transition without
    |   |                       one is a pointwise convolution)
    |   |- reduction            depthwise (separable, strided) | patch (2x2, stride 2)
    |   |- stages               depth_1, depth_2, depth_3 residual blocks
    |   |   `- block            [pointwise expansion ->] depthwise -> pointwise, + identity
    |   |       |- kernel       kernel_1, kernel_2, kernel_3 of the depthwise convolutions: 3, 5 or 7
    |   |       |- dilation     dilation_1, dilation_2, dilation_3 on every second block of the stage
    |   |       `- expansion    of the widths inside; at 1 there is no expanding convolution, and the
    |   |                       activation comes after the addition
    |   |- repeats              blocks that run twice with the same weights: none | last stage | all
    |   |- norm                 batch | layer (over channels)
    |   |- activation           relu | gelu | silu
    |   `- budget_frac          share of the parameter limit; w1 is solved to spend it
    |- augmentation             flip, crop_padding, affine_p, shift_frac, scale_frac, rotate_deg,
    |                           dropout_p, dropout_hole
    `- optimisation             optimizer (sgd | adamw | muon), lr, weight_decay, adamw_lr, adamw_weight_decay,
                                muon_lr, muon_weight_decay, batch_size, label_smoothing

Derived, never sampled: the widths (the largest w1 whose network stays within the sampled share of the
limit, and within every other upper limit), dilations lowered where an outer tap would land outside
the map, and raised where the receptive field or the need for a dilated convolution asks for more.
With 2 stages nothing of a third one has any effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.architecture import Architecture, Conv, Layer, Residual
from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, Limits, certify
from search_spaces.fitting import first_that_sees_enough, fit, round_width
from search_spaces.space import Choice, Decoded, Dimension, Integer, Params, Real, SearchSpace
from search_spaces.training_dimensions import (
    DEFAULT_TRAINING,
    TRAINING_DIMENSIONS,
    decode_augmentation,
    decode_optimisation,
)

DEPTHWISE, PATCH = "depthwise", "patch"
REPEATS = ("none", "last", "all")
N_RUNS = 2
"""Runs of a repeated block."""
_TREE = (__doc__ or "").split("\n\n")[1]


@dataclass(frozen=True)
class _Plan:
    """The structure before its widths are known; what repair works on.

    Attributes:
        depths, kernels, dilations: One entry per stage; as many as there are stages.
        ratios: Widths of the second and later stages relative to the one before.
        dilate_all: Dilate every block of a stage rather than every second one (repair only).
    """

    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    dilations: tuple[int, ...]
    ratios: tuple[float, ...]
    n_reductions: int
    reduction: str
    expansion: float
    repeats: str
    norm: str
    activation: str
    dilate_all: bool = False

    @property
    def n_stages(self) -> int:
        return len(self.depths)

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of every stage's map."""
        if self.n_stages == 2:
            return (32, 16) if self.n_reductions == 1 else (16, 8)
        return (32, 16, 16) if self.n_reductions == 1 else (32, 16, 8)

    def build(self, base_width: float) -> Architecture:
        """The architecture whose first stage is about `base_width` wide."""
        exact = base_width
        widths = [round_width(exact)]
        for ratio in self.ratios:
            exact *= ratio
            widths.append(round_width(exact))
        layers: list[Layer] = [self._unit(widths[0], kernel=3, stride=32 // self.sides[0])]
        for stage, width in enumerate(widths):
            if stage > 0:
                layers.append(self._transition(stage, width))
            layers += [self._block(stage, index, width) for index in range(self.depths[stage])]
        return Architecture(tuple(layers))

    def _transition(self, stage: int, width: int) -> Conv:
        if self.sides[stage] == self.sides[stage - 1]:
            return self._unit(width, kernel=1)
        if self.reduction == PATCH:
            return self._unit(width, kernel=2, stride=2)
        return self._unit(width, kernel=self.kernels[stage], stride=2, separable=True)

    def _block(self, stage: int, index: int, width: int) -> Residual:
        dilated = self.dilate_all or index % 2 == 1 or self.depths[stage] == 1
        inside = round_width(width * self.expansion)
        expands = inside > width
        body = [self._unit(inside, kernel=1)] if expands else []
        body.append(
            self._unit(
                inside,
                kernel=self.kernels[stage],
                dilation=self.dilations[stage] if dilated else 1,
                groups=inside,
            )
        )
        body.append(self._unit(width, kernel=1, activation=False))
        repeated = self.repeats == "all" or (self.repeats == "last" and stage == self.n_stages - 1)
        return Residual(
            tuple(body),
            activation=not expands,
            activation_type="relu" if expands else self.activation,
            times=N_RUNS if repeated else 1,
        )

    def _unit(self, width: int, **fields: Any) -> Conv:
        return Conv(width, norm_type=self.norm, activation_type=self.activation, **fields)

    def max_dilation(self, stage: int) -> int:
        """Largest dilation whose outer taps land inside the stage's map."""
        return (self.sides[stage] - 1) // ((self.kernels[stage] - 1) // 2)


class SeparableSpace(SearchSpace):
    """See the module's tree."""

    name = "separable"
    version = 3
    tree = _TREE

    MAX_DEPTHS = (4, 6, 6)

    @property
    def dimensions(self) -> Mapping[str, Dimension]:
        return _DIMENSIONS

    def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        architecture, repairs = fit(_plan(params), limits, params["budget_frac"], clock, _repair, _simplifications)
        certify(architecture, limits, clock)
        return Decoded(Candidate(architecture, decode_augmentation(params), decode_optimisation(params)), repairs)

    def anchors(self, limits: Limits) -> Mapping[str, Params]:
        return {"default": dict(_DEFAULT_PARAMS)}


_DIMENSIONS: dict[str, Dimension] = {
    "budget_frac": Real(0.4, 1.0),
    "n_stages": Choice((2, 3)),
    "n_reductions": Choice((1, 2)),
    "reduction": Choice((DEPTHWISE, PATCH)),
    "depth_1": Integer(1, SeparableSpace.MAX_DEPTHS[0]),
    "depth_2": Integer(1, SeparableSpace.MAX_DEPTHS[1]),
    "depth_3": Integer(1, SeparableSpace.MAX_DEPTHS[2]),
    "width_ratio_2": Real(1.0, 2.5, step=0.25),
    "width_ratio_3": Real(1.0, 2.5, step=0.25),
    "kernel_1": Choice((3, 5, 7)),
    "kernel_2": Choice((3, 5, 7)),
    "kernel_3": Choice((3, 5, 7)),
    "dilation_1": Integer(1, 3),
    "dilation_2": Integer(1, 3),
    "dilation_3": Integer(1, 3),
    "expansion": Choice((1.0, 1.5, 2.0, 3.0)),
    "repeats": Choice(REPEATS),
    "norm": Choice(("batch", "layer")),
    "activation": Choice(("relu", "gelu", "silu")),
    **TRAINING_DIMENSIONS,
}

_DEFAULT_PARAMS: dict[str, Any] = {
    "budget_frac": 1.0,
    "n_stages": 3,
    "n_reductions": 2,
    "reduction": DEPTHWISE,
    "depth_1": 2,
    "depth_2": 4,
    "depth_3": 4,
    "width_ratio_2": 1.5,
    "width_ratio_3": 1.5,
    "kernel_1": 5,
    "kernel_2": 5,
    "kernel_3": 5,
    "dilation_1": 1,
    "dilation_2": 2,
    "dilation_3": 1,
    "expansion": 1.0,
    "repeats": "none",
    "norm": "batch",
    "activation": "relu",
    **DEFAULT_TRAINING,
}


def _plan(params: Params) -> _Plan:
    stages = range(1, params["n_stages"] + 1)
    return _Plan(
        depths=tuple(params[f"depth_{stage}"] for stage in stages),
        kernels=tuple(params[f"kernel_{stage}"] for stage in stages),
        dilations=tuple(params[f"dilation_{stage}"] for stage in stages),
        ratios=tuple(params[f"width_ratio_{stage}"] for stage in stages[1:]),
        n_reductions=params["n_reductions"],
        reduction=params["reduction"],
        expansion=params["expansion"],
        repeats=params["repeats"],
        norm=params["norm"],
        activation=params["activation"],
    )


def _repair(plan: _Plan, limits: Limits) -> tuple[_Plan, list[str]]:
    """Meets every limit that does not depend on widths, with the smallest change that does."""
    repairs = []
    inside = tuple(min(dilation, plan.max_dilation(stage)) for stage, dilation in enumerate(plan.dilations))
    if inside != plan.dilations:
        repairs.append(f"dilations inside the map {plan.dilations} -> {inside}")
        plan = dataclasses.replace(plan, dilations=inside)
    before = plan
    plan = first_that_sees_enough(_lifts(plan), limits)
    if (plan.n_stages, plan.n_reductions, plan.repeats) != (before.n_stages, before.n_reductions, before.repeats):
        repairs.append(f"{plan.n_stages} stages, {plan.n_reductions} reduction, repeats {plan.repeats}")
    if plan.depths != before.depths:
        repairs.append(f"depths {before.depths} -> {plan.depths}")
    if (plan.dilations, plan.dilate_all) != (before.dilations, before.dilate_all):
        every = ", on every block" if plan.dilate_all else ""
        repairs.append(f"dilations {before.dilations} -> {plan.dilations}{every}")
    return plan, repairs


def _lifts(plan: _Plan) -> Iterator[_Plan]:
    """The plan itself, then ever larger receptive fields: dilations first, structure last.

    The last stage goes first: its dilations widen the field most and cost nothing.
    """
    yield plan
    for dilate_all in (False, True):
        *lifted, plan = _wider_dilations(dataclasses.replace(plan, dilate_all=dilate_all))
        yield from (*lifted, plan)
    for stage in reversed(range(plan.n_stages)):
        for depth in range(plan.depths[stage] + 1, SeparableSpace.MAX_DEPTHS[stage] + 1):
            plan = dataclasses.replace(plan, depths=_with(plan.depths, stage, depth))
            yield plan
    plan = dataclasses.replace(plan, repeats="all")
    yield plan
    # The largest field of the space, whatever was sampled.
    plan = dataclasses.replace(
        plan,
        depths=SeparableSpace.MAX_DEPTHS,
        kernels=(3, 3, 3),
        dilations=(1, 1, 1),
        ratios=(1.0, 1.0),
        n_reductions=1,
    )
    yield from _wider_dilations(plan)


def _wider_dilations(plan: _Plan) -> Iterator[_Plan]:
    """The plan with ever larger dilations, up to the largest in every stage."""
    for stage in reversed(range(plan.n_stages)):
        for dilation in range(plan.dilations[stage] + 1, plan.max_dilation(stage) + 1):
            plan = dataclasses.replace(plan, dilations=_with(plan.dilations, stage, dilation))
            yield plan
    yield plan


def _simplifications(plan: _Plan) -> Iterator[tuple[_Plan, str]]:
    """Ever cheaper plans, for upper limits that even the narrowest network of `plan` breaks."""
    plan = dataclasses.replace(plan, ratios=tuple(min(ratio, 1.0) for ratio in plan.ratios))
    yield plan, "width ratios lowered to 1"
    plan = dataclasses.replace(plan, expansion=1.0)
    yield plan, "no expansion"
    plan = dataclasses.replace(plan, repeats="none")
    yield plan, "no repeats"
    plan = dataclasses.replace(plan, reduction=DEPTHWISE, kernels=(3,) * plan.n_stages)
    yield plan, "3x3 kernels"
    for stage in range(plan.n_stages):
        while plan.depths[stage] > 1:
            plan = dataclasses.replace(plan, depths=_with(plan.depths, stage, plan.depths[stage] - 1))
            yield plan, f"depth {stage + 1} lowered to {plan.depths[stage]}"
    # The last one is the same whatever was sampled, and the cheapest: whether limits can be met must not depend on it.
    yield (
        _Plan(
            depths=(1, 1),
            kernels=(3, 3),
            dilations=(1, 1),
            ratios=(1.0,),
            n_reductions=2,
            reduction=DEPTHWISE,
            expansion=1.0,
            repeats="none",
            norm="batch",
            activation="relu",
        ),
        "the smallest network",
    )


def _with(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return *values[:index], value, *values[index + 1 :]
