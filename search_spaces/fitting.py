"""How a sampled structure becomes a network that meets every limit; what all spaces share.

plan        the sampled structure, before its widths are known
repair      meets the limits that do not depend on widths, with the smallest change that does:
            the first of ever larger receptive fields that is large enough
fit         the widest network of the plan within the sampled share of the parameter limit and within
            every other upper limit; ever simpler plans where even the narrowest one breaks a limit

The steps at the end of this file are for plans of several stages. Each generates ever other plans and returns the
last one, where the next step of a space begins.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from search_spaces.architecture import Architecture
from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, Limits, certify, check
from search_spaces.space import Decoded, Params, Real
from search_spaces.training_dimensions import decode_augmentation, decode_optimisation

WIDTH_STEP = 8
"""Widths are multiples of it: vector units and tensor cores work on channels in groups."""
MIN_WIDTH = 8
MAX_BASE_WIDTH = 128
BUDGET_FRAC = Real(0.4, 1.0)
"""Share of the parameter limit that a network may spend; a dimension of every space."""


class Plan(Protocol):
    """A structure before its widths are known."""

    def build(self, base_width: float) -> Architecture:
        """The architecture whose first stage is about `base_width` wide."""


@dataclass(frozen=True, kw_only=True)
class StagedPlan(Plan):
    """A plan of stages, each of one width and on maps of one size.

    Attributes:
        depths, dilations: One entry per stage.
        dilate_all: Dilate every unit of a stage rather than every second one (repair only).
    """

    depths: tuple[int, ...]
    dilations: tuple[int, ...]
    dilate_all: bool = False

    @abc.abstractmethod
    def max_dilation(self, stage: int) -> int:
        """Largest dilation whose outer taps land inside the stage's map."""

    def dilation(self, stage: int, index: int) -> int:
        """Of one unit: of every second one, of a stage's only one, or of all."""
        dilated = self.dilate_all or index % 2 == 1 or self.depths[stage] == 1
        return self.dilations[stage] if dilated else 1


AnyPlan = TypeVar("AnyPlan", bound=Plan)
AnyStages = TypeVar("AnyStages", bound=StagedPlan)

Repair = Callable[[AnyPlan, Limits], tuple[AnyPlan, list[str]]]
"""Meets the limits that do not depend on widths; returns the plan and what was changed."""
Simplifications = Callable[[AnyPlan], Iterable[tuple[AnyPlan, str]]]
"""Ever cheaper plans and what was changed, for upper limits that even the narrowest network of a plan breaks.

The last ones are the same whatever was sampled, and the cheapest of the space: whether limits can be met at all must
not depend on the sample.
"""


def round_width(width: float, step: int = WIDTH_STEP) -> int:
    """The nearest multiple of `step` (halves up), at least MIN_WIDTH."""
    return max(MIN_WIDTH, math.floor(width / step + 0.5) * step)


def of_stages(params: Params, name: str, stages: Iterable[int]) -> tuple[Any, ...]:
    """What was sampled for each of `stages`, which count from 1."""
    return tuple(params[f"{name}_{stage}"] for stage in stages)


def decode_plan(
    plan: AnyPlan,
    params: Params,
    limits: Limits,
    clock: Clock | None,
    repair: Repair[AnyPlan],
    simplifications: Simplifications[AnyPlan],
) -> Decoded:
    """The candidate of the plan that was read from `params`, as `fit` makes it.

    Raises:
        InfeasibleError: Not even the smallest network of the space meets the limits.
    """
    architecture, repairs = fit(plan, limits, params["budget_frac"], clock, repair, simplifications)
    certify(architecture, limits, clock)
    return Decoded(Candidate(architecture, decode_augmentation(params), decode_optimisation(params)), repairs)


def share_of_budget(architecture: Architecture, limits: Limits) -> float | None:
    """The `budget_frac` that is just enough for a known network; None where it cannot be sampled, or breaks a limit.

    A limit on seconds needs a clock: decoding holds the network against that one.
    """
    architecture = limits.adapted(architecture)
    share = math.ceil(architecture.params / max(1, limits.max_params - 1) * 1e4) / 1e4
    feasible = all(constraint.feasible for constraint in check(architecture, limits))
    return share if feasible and BUDGET_FRAC.contains(share) else None


def fit(
    plan: AnyPlan,
    limits: Limits,
    budget_frac: float,
    clock: Clock | None,
    repair: Repair[AnyPlan],
    simplifications: Simplifications[AnyPlan],
) -> tuple[Architecture, tuple[str, ...]]:
    """The widest network of `plan`, and one sentence per change that it took.

    Args:
        plan: What was sampled.
        limits: What the network has to meet; it is not certified here.
        budget_frac: Share of the parameter limit that it may spend.
        clock: Predicts seconds, for a limit on them.
        repair, simplifications: Of the space.
    """
    plan, repairs = repair(plan, limits)
    within = replace(limits, max_params=math.floor(budget_frac * (limits.max_params - 1)) + 1)
    architecture = solve_width(plan, within, clock)
    if architecture is None:
        for simplified, sentence in simplifications(plan):
            repairs.append(sentence)
            plan, more = repair(simplified, limits)
            repairs += [change for change in more if change not in repairs]
            architecture = solve_width(plan, within, clock) or solve_width(plan, limits, clock)
            if architecture is not None:
                break
    return architecture or limits.adapted(plan.build(MIN_WIDTH)), tuple(repairs)


def solve_width(plan: Plan, limits: Limits, clock: Clock | None) -> Architecture | None:
    """The widest network of `plan` within every limit; None if the narrowest breaks one."""

    def fits(eighths: int) -> Architecture | None:
        architecture = limits.adapted(plan.build(eighths / 8))
        found = check(architecture, limits, clock)
        return architecture if all(constraint.feasible for constraint in found) else None

    low, high = MIN_WIDTH * 8, MAX_BASE_WIDTH * 8
    best = fits(low)
    if best is None:
        return None
    while high - low > 1:  # all grow with the base width, but where a reduction gets more groups
        middle = (low + high) // 2
        found = fits(middle)
        if found is None:
            high = middle
        else:
            low, best = middle, found
    return best


def first_that_sees_enough(plans: Iterable[AnyPlan], limits: Limits) -> AnyPlan:
    """The first plan with a dilated convolution and a large enough receptive field.

    The last plan has the largest field: if that is too small, it is what is returned.
    """

    def sees_enough(plan: AnyPlan) -> bool:
        found = {constraint.name: constraint.feasible for constraint in check(plan.build(MIN_WIDTH), limits)}
        return found["receptive_field"] and found["dilated_convolution"]

    first, *others = plans
    if not others or sees_enough(first):
        return first
    if not sees_enough(others[-1]):
        return others[-1]
    return next(plan for plan in others if sees_enough(plan))


def repair_sentences(before: StagedPlan, after: StagedPlan, unit: str) -> list[str]:
    """What a repair changed in depths and dilations; `unit` is what the stages consist of."""
    sentences = []
    if after.depths != before.depths:
        sentences.append(f"depths {before.depths} -> {after.depths}")
    if (after.dilations, after.dilate_all) != (before.dilations, before.dilate_all):
        every = f", on every {unit}" if after.dilate_all else ""
        sentences.append(f"dilations {before.dilations} -> {after.dilations}{every}")
    return sentences


def wider_dilations(plan: AnyStages) -> Generator[AnyStages, None, AnyStages]:
    """The plan with ever larger dilations, up to the largest in every stage.

    The last stage goes first: its dilations widen the field most. All of them cost nothing.
    """
    for stage in reversed(range(len(plan.depths))):
        plan = yield from _in_turn(
            plan, "dilations", stage, range(plan.dilations[stage] + 1, plan.max_dilation(stage) + 1)
        )
    yield plan
    return plan


def deeper(plan: AnyStages, max_depths: tuple[int, ...]) -> Generator[AnyStages, None, AnyStages]:
    """The plan with ever more units, up to `max_depths`, in the last stage first."""
    for stage in reversed(range(len(plan.depths))):
        plan = yield from _in_turn(plan, "depths", stage, range(plan.depths[stage] + 1, max_depths[stage] + 1))
    return plan


def shallower(plan: AnyStages) -> Generator[tuple[AnyStages, str], None, AnyStages]:
    """The plan with ever fewer units, down to one in every stage, in the first stage first; and what was changed."""
    for stage in range(len(plan.depths)):
        for lower in _in_turn(plan, "depths", stage, range(plan.depths[stage] - 1, 0, -1)):
            plan = lower
            yield plan, f"depth {stage + 1} lowered to {plan.depths[stage]}"
    return plan


def simpler(
    plan: AnyStages, steps: Mapping[str, Mapping[str, Any]]
) -> Generator[tuple[AnyStages, str], None, AnyStages]:
    """The plan with the fields of one step after another; the step's name says what was changed."""
    for sentence, changes in steps.items():
        plan = replace(plan, **changes)
        yield plan, sentence
    return plan


def _in_turn(plan: AnyStages, name: str, stage: int, values: range) -> Generator[AnyStages, None, AnyStages]:
    """The plan with each of `values` as the entry of `stage` in the field called `name`."""
    for value in values:
        entries = getattr(plan, name)
        changes: dict[str, Any] = {name: (*entries[:stage], value, *entries[stage + 1 :])}
        plan = replace(plan, **changes)
        yield plan
    return plan
