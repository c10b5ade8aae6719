"""The `multiscale` space: residual blocks that look at several scales at once, and one reduction.

    multiscale
    |- architecture
    |   |- stem                 3x3 convolution, 3 -> w1, on 32x32, and a norm
    |   |- stage 1, 32x32       depth_1 blocks, w1 wide
    |   |- reduction -> 16x16   depthwise (3x3, strided, then pointwise) | patch (2x2, stride 2) |
    |   |                       grouped (4x4, stride 2, at most 16 groups), and a norm
    |   |- stage 2, 16x16       depth_2 blocks, w2 = width_ratio * w1
    |   |- block                branches -> norm -> gated pointwise pair, + identity
    |   |   |- branches         depthwise, side by side: the identity (identity: with or without it), small_kernel,
    |   |   |                   large_kernel, and dilated_kernel with dilation_1 in stage 1, dilation_2 in stage 2
    |   |   |- join             concat (every branch has its share of the channels) | sum (each has all)
    |   |   |- expansion        width of each half of the gated pair, relative to the block's
    |   |   |- activation       of the gate: relu | gelu | silu | tanhexp
    |   |   `- residual_scale   learned, per channel: none | body (starts small) | identity (starts at 1)
    |   |- norm                 batch | layer (over channels)
    |   `- budget_frac          share of the parameter limit; w1 is solved to spend it
    |- augmentation             flip, crop_padding, affine_p, shift_frac, scale_frac, rotate_deg,
    |                           dropout_p, dropout_hole
    `- optimisation             optimizer (sgd | adamw | muon), lr, weight_decay, adamw_lr, adamw_weight_decay,
                                muon_lr, muon_weight_decay, batch_size, label_smoothing

Derived, never sampled: the widths (the largest w1 whose network stays within the sampled share of the
limit, and within every other upper limit), and dilations raised where the receptive field asks for more.
The largest sampled one keeps the outer taps of a 7x7 kernel inside the 16x16 map. The published network
of `search_spaces.yardstick`, without its averages, is a point of the space.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.architecture import Architecture, Branch, Branches, Conv, Gated, Layer, Residual
from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, Limits, certify, check
from search_spaces.fitting import first_that_sees_enough, fit, round_width
from search_spaces.space import Choice, Decoded, Dimension, Integer, Params, Real, SearchSpace
from search_spaces.training_dimensions import (
    DEFAULT_TRAINING,
    TRAINING_DIMENSIONS,
    decode_augmentation,
    decode_optimisation,
    training_params,
)
from search_spaces.yardstick import N_BLOCKS, WIDTHS, YARDSTICK, YARDSTICK_WITHOUT_POOLING

DEPTHWISE, PATCH, GROUPED = "depthwise", "patch", "grouped"
MAX_GROUPS = 16
HIDDEN_STEP = 4
"""The halves of a gated pair are one convolution's output, whose channels are multiples of 8 then."""
STAGE_SIDES = (32, 16)
_TREE = (__doc__ or "").split("\n\n")[1]


@dataclass(frozen=True)
class _Plan:
    """The structure before its widths are known; what repair works on.

    Attributes:
        depths, dilations: One entry per stage.
    """

    depths: tuple[int, int]
    dilations: tuple[int, int]
    ratio: float
    reduction: str
    identity: bool
    small_kernel: int
    large_kernel: int
    dilated_kernel: int
    join: str
    expansion: float
    activation: str
    residual_scale: str
    norm: str

    def build(self, base_width: float) -> Architecture:
        """The architecture whose first stage is about `base_width` wide."""
        first, second = round_width(base_width), round_width(base_width * self.ratio)
        layers: list[Layer] = [self._conv(first)]
        layers += [self._block(0, first)] * self.depths[0]
        layers.append(self._reduction(first, second))
        layers += [self._block(1, second)] * self.depths[1]
        return Architecture(tuple(layers), classifier_bias=True)

    def _reduction(self, before: int, width: int) -> Conv:
        if self.reduction == DEPTHWISE:
            return self._conv(width, stride=2, separable=True)
        if self.reduction == PATCH:
            return self._conv(width, kernel=2, stride=2)
        return self._conv(width, kernel=4, stride=2, groups=math.gcd(before, width, MAX_GROUPS))

    def _conv(self, width: int, **fields: Any) -> Conv:
        return Conv(width, bias=True, activation=False, norm_type=self.norm, **fields)

    def _block(self, stage: int, width: int) -> Residual:
        branches = (
            *((Branch(1),) if self.identity else ()),
            Branch(self.small_kernel),
            Branch(self.large_kernel),
            Branch(self.dilated_kernel, self.dilations[stage]),
        )
        hidden = round_width(width * self.expansion, HIDDEN_STEP)
        body = (
            Branches(branches, self.join, norm_type=self.norm),
            Gated(width, hidden, activation_type=self.activation),
        )
        scaled = None if self.residual_scale == "none" else self.residual_scale
        return Residual(body, activation=False, scaled=scaled)

    def max_dilation(self, stage: int) -> int:
        """Largest dilation whose outer taps land inside the stage's map."""
        return (STAGE_SIDES[stage] - 1) // ((self.dilated_kernel - 1) // 2)


class MultiscaleSpace(SearchSpace):
    """See the module's tree."""

    name = "multiscale"
    version = 3
    tree = _TREE

    MAX_DEPTHS = (5, 6)

    @property
    def dimensions(self) -> Mapping[str, Dimension]:
        return MULTISCALE_DIMENSIONS

    def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        architecture, repairs = fit(_plan(params), limits, params["budget_frac"], clock, _repair, _simplifications)
        certify(architecture, limits, clock)
        return Decoded(Candidate(architecture, decode_augmentation(params), decode_optimisation(params)), repairs)

    def anchors(self, limits: Limits) -> Mapping[str, Params]:
        anchors: dict[str, Params] = {"default": dict(_DEFAULT_PARAMS)}
        frac = math.ceil(YARDSTICK_WITHOUT_POOLING.params / max(1, limits.max_params - 1) * 1e4) / 1e4
        others = dataclasses.replace(limits, max_epoch_s=None)  # needs a clock; decode checks it
        fits = all(constraint.feasible for constraint in check(YARDSTICK_WITHOUT_POOLING, others))
        if fits and MULTISCALE_DIMENSIONS["budget_frac"].contains(frac):
            anchors["yardstick"] = {**_YARDSTICK_PARAMS, "budget_frac": frac}
        return anchors


MULTISCALE_DIMENSIONS: dict[str, Dimension] = {
    "budget_frac": Real(0.4, 1.0),
    "depth_1": Integer(1, MultiscaleSpace.MAX_DEPTHS[0]),
    "depth_2": Integer(1, MultiscaleSpace.MAX_DEPTHS[1]),
    "width_ratio": Real(1.0, 2.5),
    "reduction": Choice((DEPTHWISE, PATCH, GROUPED)),
    "identity": Choice((False, True)),
    "small_kernel": Choice((3, 5)),
    "large_kernel": Choice((5, 7)),
    "dilated_kernel": Choice((3, 5, 7)),
    "dilation_1": Integer(2, 5),
    "dilation_2": Integer(2, 5),
    "join": Choice(("concat", "sum")),
    "expansion": Real(0.75, 2.0),
    "activation": Choice(("relu", "gelu", "silu", "tanhexp")),
    "residual_scale": Choice(("none", "body", "identity")),
    "norm": Choice(("batch", "layer")),
    **TRAINING_DIMENSIONS,
}

_YARDSTICK_PARAMS: dict[str, Any] = {
    "depth_1": N_BLOCKS,
    "depth_2": N_BLOCKS,
    "width_ratio": WIDTHS[1] / WIDTHS[0],
    "reduction": GROUPED,
    "identity": True,
    "small_kernel": 3,
    "large_kernel": 7,
    "dilated_kernel": 7,
    "dilation_1": 3,
    "dilation_2": 3,
    "join": "concat",
    "expansion": 1.0,
    "activation": "tanhexp",
    "residual_scale": "identity",
    "norm": "layer",
    **training_params(YARDSTICK.augmentation, YARDSTICK.optimisation),
}

_DEFAULT_PARAMS: dict[str, Any] = {
    **_YARDSTICK_PARAMS,
    "budget_frac": 1.0,
    "depth_2": 4,
    "dilation_2": 2,
    "activation": "silu",
    **DEFAULT_TRAINING,
}


def _plan(params: Params) -> _Plan:
    return _Plan(
        depths=(params["depth_1"], params["depth_2"]),
        dilations=(params["dilation_1"], params["dilation_2"]),
        ratio=params["width_ratio"],
        reduction=params["reduction"],
        identity=params["identity"],
        small_kernel=params["small_kernel"],
        large_kernel=params["large_kernel"],
        dilated_kernel=params["dilated_kernel"],
        join=params["join"],
        expansion=params["expansion"],
        activation=params["activation"],
        residual_scale=params["residual_scale"],
        norm=params["norm"],
    )


def _repair(plan: _Plan, limits: Limits) -> tuple[_Plan, list[str]]:
    """Meets every limit that does not depend on widths, with the smallest change that does."""
    repairs = []
    before = plan
    plan = first_that_sees_enough(_lifts(plan), limits)
    if plan.dilated_kernel != before.dilated_kernel:
        repairs.append(f"dilated kernel ({before.dilated_kernel}) -> ({plan.dilated_kernel})")
    if plan.depths != before.depths:
        repairs.append(f"depths {before.depths} -> {plan.depths}")
    if plan.dilations != before.dilations:
        repairs.append(f"dilations {before.dilations} -> {plan.dilations}")
    return plan, repairs


def _lifts(plan: _Plan) -> Iterator[_Plan]:
    """The plan itself, then ever larger receptive fields: dilations first, depths last.

    The second stage goes first: its dilations widen the field most. All of them cost no parameters.
    """
    yield plan
    *lifted, plan = _wider_dilations(plan)
    yield from (*lifted, plan)
    for stage in (1, 0):
        for depth in range(plan.depths[stage] + 1, MultiscaleSpace.MAX_DEPTHS[stage] + 1):
            plan = dataclasses.replace(plan, depths=_with(plan.depths, stage, depth))
            yield plan
    # The largest field of the space, whatever was sampled: small kernels reach to the border exactly.
    plan = dataclasses.replace(plan, reduction=GROUPED, dilated_kernel=3, dilations=(2, 2))
    yield from _wider_dilations(plan)


def _wider_dilations(plan: _Plan) -> Iterator[_Plan]:
    """The plan with ever larger dilations, up to the largest in both stages."""
    for stage in (1, 0):
        for dilation in range(plan.dilations[stage] + 1, plan.max_dilation(stage) + 1):
            plan = dataclasses.replace(plan, dilations=_with(plan.dilations, stage, dilation))
            yield plan
    yield plan


def _simplifications(plan: _Plan) -> Iterator[tuple[_Plan, str]]:
    """Ever cheaper plans, for upper limits that even the narrowest network of `plan` breaks."""
    plan = dataclasses.replace(plan, ratio=1.0)
    yield plan, "width ratio lowered to 1"
    plan = dataclasses.replace(plan, expansion=min(plan.expansion, 1.0))
    yield plan, "expansion lowered to 1"
    plan = dataclasses.replace(plan, join="concat", identity=True)
    yield plan, "branches share the channels"
    plan = dataclasses.replace(plan, small_kernel=3, large_kernel=5, dilated_kernel=3)
    yield plan, "smallest kernels"
    for stage in (0, 1):
        while plan.depths[stage] > 1:
            plan = dataclasses.replace(plan, depths=_with(plan.depths, stage, plan.depths[stage] - 1))
            yield plan, f"depth {stage + 1} lowered to {plan.depths[stage]}"
    # The last one is the same whatever was sampled, and the cheapest: whether limits can be met must not depend on it.
    yield (
        _Plan(
            depths=(1, 1),
            dilations=(2, 2),
            ratio=1.0,
            reduction=DEPTHWISE,
            identity=True,
            small_kernel=3,
            large_kernel=5,
            dilated_kernel=3,
            join="concat",
            expansion=0.75,
            activation="relu",
            residual_scale="none",
            norm="batch",
        ),
        "the smallest network",
    )


def _with(values: tuple[int, int], index: int, value: int) -> tuple[int, int]:
    return (value, values[1]) if index == 0 else (values[0], value)
