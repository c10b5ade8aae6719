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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from search_spaces import fitting
from search_spaces.architecture import Architecture, Conv, Layer, Residual
from search_spaces.constraints import Clock, Limits
from search_spaces.reference import REFERENCE, REFERENCE_ARCHITECTURE
from search_spaces.space import Choice, Decoded, Dimension, Integer, Params, Real, SearchSpace, column, same_named
from search_spaces.training_dimensions import DEFAULT_TRAINING, TRAINING_DIMENSIONS, training_params

STRIDED, DILATED = "strided", "dilated"
STAGE_SIDES = (32, 16, 8)
MAX_DEPTHS = (4, 5, 5)
_TREE = (__doc__ or "").split("\n\n")[1]

_STRUCTURE: dict[str, tuple[Dimension, Any, Any]] = {  # and its values in the reference network and in the default
    "reduction": (Choice((STRIDED, DILATED)), DILATED, STRIDED),
    "dilated_at": (Choice(("both", "first", "second")), "both", "both"),
    "residual": (Choice((False, True)), False, True),
    "depth_1": (Integer(1, MAX_DEPTHS[0]), 2, 3),
    "depth_2": (Integer(1, MAX_DEPTHS[1]), 3, 4),
    "depth_3": (Integer(1, MAX_DEPTHS[2]), 3, 4),
    "width_ratio_2": (Real(1.0, 3.0, step=0.25), 2.0, 2.0),
    "width_ratio_3": (Real(1.0, 3.0, step=0.25), 2.0, 2.0),
    "widen_1": (Choice(("reduction", "after")), "after", "reduction"),
    "widen_2": (Choice(("reduction", "after")), "reduction", "reduction"),
    "dilation_1": (Integer(1, 3), 1, 1),
    "dilation_2": (Integer(1, 3), 1, 1),
    "dilation_3": (Integer(1, 3), 1, 2),
    "separable_1": (Choice(("none", "last")), "none", "none"),
    "separable_2": (Choice(("none", "last", "all")), "last", "none"),
    "separable_3": (Choice(("none", "last", "all")), "none", "last"),
    "separable_kernel": (Choice((3, 5)), 3, 3),
    "head_convs": (Integer(0, 2), 2, 0),
}
_DIMENSIONS = {"budget_frac": fitting.BUDGET_FRAC, **column(_STRUCTURE, 0), **TRAINING_DIMENSIONS}
_REFERENCE_PARAMS = {**column(_STRUCTURE, 1), **training_params(REFERENCE.augmentation, REFERENCE.optimisation)}
# Small batches won short trials and longer ones (results/README.md), for 8% less speed.
_DEFAULT_PARAMS = {"budget_frac": 1.0, **column(_STRUCTURE, 2), **DEFAULT_TRAINING, "batch_size": 64}


class DilatedSpace(SearchSpace):
    """See the module's tree."""

    name = "dilated"
    version = 3
    cpu_epoch_factor = 2.0
    tree = _TREE
    dimensions = _DIMENSIONS

    def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        return fitting.decode_plan(_plan(params), params, limits, clock, _repair, _simplifications)

    def anchors(self, limits: Limits) -> Mapping[str, Params]:
        share = fitting.share_of_budget(REFERENCE_ARCHITECTURE, limits)
        reference = {} if share is None else {"reference": {**_REFERENCE_PARAMS, "budget_frac": share}}
        return {**reference, "default": dict(_DEFAULT_PARAMS)}


@dataclass(frozen=True, kw_only=True)
class _Plan(fitting.StagedPlan):
    """The structure before its widths are known.

    Attributes:
        separable: One entry per stage.
        reductions, widen, ratios: One entry per reduction, and so per stage but the first.
    """

    separable: tuple[str, ...]
    separable_kernel: int
    reductions: tuple[str, ...]
    widen: tuple[str, ...]
    ratios: tuple[float, ...]
    head_convs: int
    residual: bool

    def build(self, base_width: float) -> Architecture:
        second = base_width * self.ratios[0]
        widths = [fitting.round_width(width) for width in (base_width, second, second * self.ratios[1])]
        layers: list[Layer] = [Conv(widths[0]), *self._stage(0, widths[0], widths[0])]
        for stage in (1, 2):
            width = widths[stage] if self.widen[stage - 1] == "reduction" else widths[stage - 1]
            layers += [self._reduction(stage - 1, width), *self._stage(stage, width, widths[stage])]
        layers += [Conv(fitting.round_width(widths[2] / 2 ** (i + 1)), padded=False) for i in range(self.head_convs)]
        return Architecture(tuple(layers))

    def _reduction(self, index: int, width: int) -> Conv:
        if self.reductions[index] == STRIDED:
            return Conv(width, stride=2)
        # Unpadded, a 3x3 kernel takes 2 * dilation pixels off the side: a quarter of it halves the map.
        return Conv(width, dilation=STAGE_SIDES[index] // 4, padded=False)

    def _stage(self, stage: int, in_channels: int, out_channels: int) -> list[Layer]:
        n_separable = {"none": 0, "last": 1, "all": self.depths[stage]}[self.separable[stage]]
        units = []
        for index in range(self.depths[stage]):
            separable = index >= self.depths[stage] - n_separable
            kernel = self.separable_kernel if separable else 3
            dilation = self.dilation(stage, index)
            units.append(Conv(out_channels, kernel, dilation=dilation, separable=separable, bias=separable))
        if not self.residual:
            return list(units)
        layers: list[Layer] = []
        if in_channels != out_channels:  # an identity cannot go around a unit that widens
            layers.append(units.pop(0))
        for start in range(0, len(units), 2):
            *first, last = units[start : start + 2]
            layers.append(Residual((*first, replace(last, activation=False))))  # ReLU comes after the addition
        return layers

    def max_dilation(self, stage: int) -> int:
        kernel = self.separable_kernel if self.separable[stage] != "none" else 3
        return (STAGE_SIDES[stage] - 1) // (kernel // 2)


def _plan(params: Params) -> _Plan:
    at = params["dilated_at"] if params["reduction"] == DILATED else "none"
    return _Plan(
        depths=fitting.of_stages(params, "depth", (1, 2, 3)),
        dilations=fitting.of_stages(params, "dilation", (1, 2, 3)),
        separable=fitting.of_stages(params, "separable", (1, 2, 3)),
        reductions=tuple(DILATED if at in ("both", place) else STRIDED for place in ("first", "second")),
        widen=fitting.of_stages(params, "widen", (1, 2)),
        ratios=fitting.of_stages(params, "width_ratio", (2, 3)),
        **same_named(_Plan, params),
    )


def _repair(plan: _Plan, limits: Limits) -> tuple[_Plan, list[str]]:
    """Meets every limit that does not depend on widths, with the smallest change that does."""
    repairs = []
    if all(choice == "none" for choice in plan.separable):
        plan = replace(plan, separable=("none", "last", "none"))
        repairs.append("last unit of stage 2 made separable")
    lifted = fitting.first_that_sees_enough(_lifts(plan), limits)
    return lifted, repairs + fitting.repair_sentences(plan, lifted, "unit")


def _lifts(plan: _Plan) -> Iterator[_Plan]:
    """The plan itself, then ever larger receptive fields: dilations first, depths last."""
    yield plan
    plan = yield from fitting.wider_dilations(plan)
    plan = yield from fitting.wider_dilations(replace(plan, dilate_all=True))
    yield from fitting.deeper(plan, MAX_DEPTHS)


def _simplifications(plan: _Plan) -> Iterator[tuple[_Plan, str]]:
    """Ever cheaper plans, for upper limits that even the narrowest network of `plan` breaks."""
    head = {"head dropped": {"head_convs": 0}} if plan.head_convs else {}
    steps: dict[str, dict[str, Any]] = {
        "width ratios lowered to 1": {"ratios": (1.0, 1.0)},
        **head,
        "strided reductions": {"reductions": (STRIDED, STRIDED)},
        "one small separable unit": {"separable": ("none", "none", "last"), "separable_kernel": 3},
    }
    plan = yield from fitting.simpler(plan, steps)
    plan = yield from fitting.shallower(plan)
    # The last two are the same whatever was sampled: whether limits can be met at all must not depend on it.
    last_steps: dict[str, dict[str, Any]] = {
        "no residual blocks, smallest dilations": {"residual": False, "dilations": (1, 1, 1), "dilate_all": False},
        "one small separable unit in every stage": {"separable": ("last", "last", "last")},
    }
    yield from fitting.simpler(plan, last_steps)
