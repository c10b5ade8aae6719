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

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from search_spaces import fitting
from search_spaces.architecture import Architecture, Branch, Branches, Conv, Gated, Layer, Residual
from search_spaces.constraints import Clock, Limits
from search_spaces.space import Choice, Decoded, Dimension, Integer, Params, Real, SearchSpace, column, same_named
from search_spaces.training_dimensions import DEFAULT_TRAINING, TRAINING_DIMENSIONS, training_params
from search_spaces.yardstick import N_BLOCKS, WIDTHS, YARDSTICK, YARDSTICK_WITHOUT_POOLING

DEPTHWISE, PATCH, GROUPED = "depthwise", "patch", "grouped"
MAX_GROUPS = 16
HIDDEN_STEP = 4
"""The halves of a gated pair are one convolution's output, whose channels are multiples of 8 then."""
STAGE_SIDES = (32, 16)
MAX_DEPTHS = (5, 6)
_TREE = (__doc__ or "").split("\n\n")[1]

_STRUCTURE: dict[str, tuple[Dimension, Any, Any]] = {  # and its values in the yardstick and in the default
    "depth_1": (Integer(1, MAX_DEPTHS[0]), N_BLOCKS, N_BLOCKS),
    "depth_2": (Integer(1, MAX_DEPTHS[1]), N_BLOCKS, 4),
    "width_ratio": (Real(1.0, 2.5), WIDTHS[1] / WIDTHS[0], WIDTHS[1] / WIDTHS[0]),
    "reduction": (Choice((DEPTHWISE, PATCH, GROUPED)), GROUPED, GROUPED),
    "identity": (Choice((False, True)), True, True),
    "small_kernel": (Choice((3, 5)), 3, 3),
    "large_kernel": (Choice((5, 7)), 7, 7),
    "dilated_kernel": (Choice((3, 5, 7)), 7, 7),
    "dilation_1": (Integer(2, 5), 3, 3),
    "dilation_2": (Integer(2, 5), 3, 2),
    "join": (Choice(("concat", "sum")), "concat", "concat"),
    "expansion": (Real(0.75, 2.0), 1.0, 1.0),
    "activation": (Choice(("relu", "gelu", "silu", "tanhexp")), "tanhexp", "silu"),
    "residual_scale": (Choice(("none", "body", "identity")), "identity", "identity"),
    "norm": (Choice(("batch", "layer")), "layer", "layer"),
}
MULTISCALE_DIMENSIONS = {"budget_frac": fitting.BUDGET_FRAC, **column(_STRUCTURE, 0), **TRAINING_DIMENSIONS}
_YARDSTICK_PARAMS = {**column(_STRUCTURE, 1), **training_params(YARDSTICK.augmentation, YARDSTICK.optimisation)}
_DEFAULT_PARAMS = {"budget_frac": 1.0, **column(_STRUCTURE, 2), **DEFAULT_TRAINING}


class MultiscaleSpace(SearchSpace):
    """See the module's tree."""

    name = "multiscale"
    version = 3
    tree = _TREE
    dimensions = MULTISCALE_DIMENSIONS

    def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        return fitting.decode_plan(_plan(params), params, limits, clock, _repair, _simplifications)

    def anchors(self, limits: Limits) -> Mapping[str, Params]:
        share = fitting.share_of_budget(YARDSTICK_WITHOUT_POOLING, limits)
        yardstick = {} if share is None else {"yardstick": {**_YARDSTICK_PARAMS, "budget_frac": share}}
        return {"default": dict(_DEFAULT_PARAMS), **yardstick}


@dataclass(frozen=True, kw_only=True)
class _Plan(fitting.StagedPlan):
    """The structure before its widths are known. Every block is dilated: `dilate_all` has no effect."""

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
        first, second = fitting.round_width(base_width), fitting.round_width(base_width * self.ratio)
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
        hidden = fitting.round_width(width * self.expansion, HIDDEN_STEP)
        body = (
            Branches(branches, self.join, norm_type=self.norm),
            Gated(width, hidden, activation_type=self.activation),
        )
        scaled = None if self.residual_scale == "none" else self.residual_scale
        return Residual(body, activation=False, scaled=scaled)

    def max_dilation(self, stage: int) -> int:
        return (STAGE_SIDES[stage] - 1) // (self.dilated_kernel // 2)


_SMALLEST = _Plan(
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
)


def _plan(params: Params) -> _Plan:
    return _Plan(
        depths=fitting.of_stages(params, "depth", (1, 2)),
        dilations=fitting.of_stages(params, "dilation", (1, 2)),
        ratio=params["width_ratio"],
        **same_named(_Plan, params),
    )


def _repair(plan: _Plan, limits: Limits) -> tuple[_Plan, list[str]]:
    """Meets every limit that does not depend on widths, with the smallest change that does."""
    repairs = []
    lifted = fitting.first_that_sees_enough(_lifts(plan), limits)
    if lifted.dilated_kernel != plan.dilated_kernel:
        repairs.append(f"dilated kernel ({plan.dilated_kernel}) -> ({lifted.dilated_kernel})")
    return lifted, repairs + fitting.repair_sentences(plan, lifted, "block")


def _lifts(plan: _Plan) -> Iterator[_Plan]:
    """The plan itself, then ever larger receptive fields: dilations first, depths last."""
    yield plan
    plan = yield from fitting.wider_dilations(plan)
    plan = yield from fitting.deeper(plan, MAX_DEPTHS)
    # The largest field of the space, whatever was sampled: small kernels reach to the border exactly.
    yield from fitting.wider_dilations(replace(plan, reduction=GROUPED, dilated_kernel=3, dilations=(2, 2)))


def _simplifications(plan: _Plan) -> Iterator[tuple[_Plan, str]]:
    """Ever cheaper plans, for upper limits that even the narrowest network of `plan` breaks."""
    steps: dict[str, dict[str, Any]] = {
        "width ratio lowered to 1": {"ratio": 1.0},
        "expansion lowered to 1": {"expansion": min(plan.expansion, 1.0)},
        "branches share the channels": {"join": "concat", "identity": True},
        "smallest kernels": {"small_kernel": 3, "large_kernel": 5, "dilated_kernel": 3},
    }
    plan = yield from fitting.simpler(plan, steps)
    yield from fitting.shallower(plan)
    # The last one is the same whatever was sampled, and the cheapest: whether limits can be met must not depend on it.
    yield _SMALLEST, "the smallest network"
