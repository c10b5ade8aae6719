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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from search_spaces import fitting
from search_spaces.architecture import Architecture, Conv, Layer, Residual
from search_spaces.constraints import Clock, Limits
from search_spaces.space import Choice, Decoded, Dimension, Integer, Params, Real, SearchSpace, column, same_named
from search_spaces.training_dimensions import DEFAULT_TRAINING, TRAINING_DIMENSIONS

DEPTHWISE, PATCH = "depthwise", "patch"
REPEATS = ("none", "last", "all")
N_RUNS = 2
"""Runs of a repeated block."""
MAX_DEPTHS = (4, 6, 6)
STAGE_SIDES = {(2, 1): (32, 16), (2, 2): (16, 8), (3, 1): (32, 16, 16), (3, 2): (32, 16, 8)}
"""Sides of the stages' maps by (n_stages, n_reductions)."""
_TREE = (__doc__ or "").split("\n\n")[1]

_STRUCTURE: dict[str, tuple[Dimension, Any]] = {  # and its values in the default
    "n_stages": (Choice((2, 3)), 3),
    "n_reductions": (Choice((1, 2)), 2),
    "reduction": (Choice((DEPTHWISE, PATCH)), DEPTHWISE),
    "depth_1": (Integer(1, MAX_DEPTHS[0]), 2),
    "depth_2": (Integer(1, MAX_DEPTHS[1]), 4),
    "depth_3": (Integer(1, MAX_DEPTHS[2]), 4),
    "width_ratio_2": (Real(1.0, 2.5, step=0.25), 1.5),
    "width_ratio_3": (Real(1.0, 2.5, step=0.25), 1.5),
    "kernel_1": (Choice((3, 5, 7)), 5),
    "kernel_2": (Choice((3, 5, 7)), 5),
    "kernel_3": (Choice((3, 5, 7)), 5),
    "dilation_1": (Integer(1, 3), 1),
    "dilation_2": (Integer(1, 3), 2),
    "dilation_3": (Integer(1, 3), 1),
    "expansion": (Choice((1.0, 1.5, 2.0, 3.0)), 1.0),
    "repeats": (Choice(REPEATS), "none"),
    "norm": (Choice(("batch", "layer")), "batch"),
    "activation": (Choice(("relu", "gelu", "silu")), "relu"),
}
_DIMENSIONS = {"budget_frac": fitting.BUDGET_FRAC, **column(_STRUCTURE, 0), **TRAINING_DIMENSIONS}
_DEFAULT_PARAMS = {"budget_frac": 1.0, **column(_STRUCTURE, 1), **DEFAULT_TRAINING}


class SeparableSpace(SearchSpace):
    """See the module's tree."""

    name = "separable"
    version = 3
    tree = _TREE
    dimensions = _DIMENSIONS

    def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        return fitting.decode_plan(_plan(params), params, limits, clock, _repair, _simplifications)

    def anchors(self, limits: Limits) -> Mapping[str, Params]:
        return {"default": dict(_DEFAULT_PARAMS)}


@dataclass(frozen=True, kw_only=True)
class _Plan(fitting.StagedPlan):
    """The structure before its widths are known.

    Attributes:
        kernels: One entry per stage.
        ratios: Widths of the second and later stages relative to the one before.
    """

    kernels: tuple[int, ...]
    ratios: tuple[float, ...]
    n_reductions: int
    reduction: str
    expansion: float
    repeats: str
    norm: str
    activation: str

    @property
    def n_stages(self) -> int:
        return len(self.depths)

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of every stage's map."""
        return STAGE_SIDES[self.n_stages, self.n_reductions]

    def build(self, base_width: float) -> Architecture:
        layers: list[Layer] = []
        for stage, ratio in enumerate((1.0, *self.ratios)):
            base_width *= ratio
            width = fitting.round_width(base_width)
            layers.append(self._transition(stage, width))
            layers += [self._block(stage, index, width) for index in range(self.depths[stage])]
        return Architecture(tuple(layers))

    def _transition(self, stage: int, width: int) -> Conv:
        if stage == 0:
            return self._unit(width, kernel=3, stride=32 // self.sides[0])
        if self.sides[stage] == self.sides[stage - 1]:
            return self._unit(width, kernel=1)
        if self.reduction == PATCH:
            return self._unit(width, kernel=2, stride=2)
        return self._unit(width, kernel=self.kernels[stage], stride=2, separable=True)

    def _block(self, stage: int, index: int, width: int) -> Residual:
        inside, kernel, dilation = (
            fitting.round_width(width * self.expansion),
            self.kernels[stage],
            self.dilation(stage, index),
        )
        expands = inside > width
        body = [self._unit(inside, kernel=1)] if expands else []
        body.append(self._unit(inside, kernel=kernel, dilation=dilation, groups=inside))
        body.append(self._unit(width, kernel=1, activation=False))
        repeated = self.repeats == "all" or (self.repeats == "last" and stage == self.n_stages - 1)
        activation_type = "relu" if expands else self.activation
        return Residual(tuple(body), not expands, activation_type, times=N_RUNS if repeated else 1)

    def _unit(self, width: int, **fields: Any) -> Conv:
        return Conv(width, norm_type=self.norm, activation_type=self.activation, **fields)

    def max_dilation(self, stage: int) -> int:
        return (self.sides[stage] - 1) // (self.kernels[stage] // 2)


_SMALLEST = _Plan(
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
)


def _plan(params: Params) -> _Plan:
    stages = range(1, params["n_stages"] + 1)
    return _Plan(
        depths=fitting.of_stages(params, "depth", stages),
        kernels=fitting.of_stages(params, "kernel", stages),
        dilations=fitting.of_stages(params, "dilation", stages),
        ratios=fitting.of_stages(params, "width_ratio", stages[1:]),
        **same_named(_Plan, params),
    )


def _repair(plan: _Plan, limits: Limits) -> tuple[_Plan, list[str]]:
    """Meets every limit that does not depend on widths, with the smallest change that does."""
    repairs = []
    inside = tuple(min(dilation, plan.max_dilation(stage)) for stage, dilation in enumerate(plan.dilations))
    if inside != plan.dilations:
        repairs.append(f"dilations inside the map {plan.dilations} -> {inside}")
        plan = replace(plan, dilations=inside)
    lifted = fitting.first_that_sees_enough(_lifts(plan), limits)
    if (lifted.n_stages, lifted.n_reductions, lifted.repeats) != (plan.n_stages, plan.n_reductions, plan.repeats):
        repairs.append(f"{lifted.n_stages} stages, {lifted.n_reductions} reduction, repeats {lifted.repeats}")
    return lifted, repairs + fitting.repair_sentences(plan, lifted, "block")


def _lifts(plan: _Plan) -> Iterator[_Plan]:
    """The plan itself, then ever larger receptive fields: dilations first, structure last."""
    yield plan
    plan = yield from fitting.wider_dilations(plan)
    plan = yield from fitting.wider_dilations(replace(plan, dilate_all=True))
    plan = yield from fitting.deeper(plan, MAX_DEPTHS)
    plan = replace(plan, repeats="all")
    yield plan
    # The largest field of the space, whatever was sampled.
    plan = replace(plan, depths=MAX_DEPTHS, kernels=(3, 3, 3), dilations=(1, 1, 1), ratios=(1.0, 1.0), n_reductions=1)
    yield from fitting.wider_dilations(plan)


def _simplifications(plan: _Plan) -> Iterator[tuple[_Plan, str]]:
    """Ever cheaper plans, for upper limits that even the narrowest network of `plan` breaks."""
    steps: dict[str, dict[str, Any]] = {
        "width ratios lowered to 1": {"ratios": (1.0,) * len(plan.ratios)},
        "no expansion": {"expansion": 1.0},
        "no repeats": {"repeats": "none"},
        "3x3 kernels": {"reduction": DEPTHWISE, "kernels": (3,) * plan.n_stages},
    }
    plan = yield from fitting.simpler(plan, steps)
    yield from fitting.shallower(plan)
    # The last one is the same whatever was sampled, and the cheapest: whether limits can be met must not depend on it.
    yield _SMALLEST, "the smallest network"
