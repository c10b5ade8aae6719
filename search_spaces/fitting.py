"""How a sampled structure becomes a network that meets every limit; what all spaces share.

plan        the sampled structure, before its widths are known
repair      meets the limits that do not depend on widths, with the smallest change that does:
            the first of ever larger receptive fields that is large enough
fit         the widest network of the plan within the sampled share of the parameter limit and within
            every other upper limit; ever simpler plans where even the narrowest one breaks a limit
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from search_spaces.architecture import Architecture
from search_spaces.constraints import Clock, Limits, check

WIDTH_STEP = 8
"""Widths are multiples of it: vector units and tensor cores work on channels in groups."""
MIN_WIDTH = 8
MAX_BASE_WIDTH = 128


class Plan(Protocol):
    """A structure before its widths are known."""

    def build(self, base_width: float) -> Architecture:
        """The architecture whose first stage is about `base_width` wide."""


AnyPlan = TypeVar("AnyPlan", bound=Plan)


def round_width(width: float, step: int = WIDTH_STEP) -> int:
    """The nearest multiple of `step` (halves up), at least MIN_WIDTH."""
    return max(MIN_WIDTH, math.floor(width / step + 0.5) * step)


def fit(
    plan: AnyPlan,
    limits: Limits,
    budget_frac: float,
    clock: Clock | None,
    repair: Callable[[AnyPlan, Limits], tuple[AnyPlan, list[str]]],
    simplifications: Callable[[AnyPlan], Iterable[tuple[AnyPlan, str]]],
) -> tuple[Architecture, tuple[str, ...]]:
    """The widest network of `plan`, and one sentence per change that it took.

    Args:
        plan: What was sampled.
        limits: What the network has to meet; it is not certified here.
        budget_frac: Share of the parameter limit that it may spend.
        clock: Predicts seconds, for a limit on them.
        repair: Meets the limits that do not depend on widths; returns the plan and what was changed.
        simplifications: Ever cheaper plans and what was changed, for upper limits that even the narrowest
            network of `plan` breaks. The last ones are the same whatever was sampled, and the cheapest of
            the space: whether limits can be met at all must not depend on the sample.
    """
    plan, repairs = repair(plan, limits)
    within = dataclasses.replace(limits, max_params=math.floor(budget_frac * (limits.max_params - 1)) + 1)
    architecture = solve_width(plan, within, clock)
    if architecture is None:
        for simpler, sentence in simplifications(plan):
            repairs.append(sentence)
            plan, more = repair(simpler, limits)
            repairs += [change for change in more if change not in repairs]
            architecture = solve_width(plan, within, clock) or solve_width(plan, limits, clock)
            if architecture is not None:
                break
    return architecture or plan.build(MIN_WIDTH), tuple(repairs)


def solve_width(plan: Plan, limits: Limits, clock: Clock | None) -> Architecture | None:
    """The widest network of `plan` within every limit; None if the narrowest breaks one."""

    def fits(eighths: int) -> Architecture | None:
        architecture = plan.build(eighths / 8)
        found = check(architecture, limits, clock)
        return architecture if all(constraint.feasible for constraint in found) else None

    low, high = MIN_WIDTH * 8, MAX_BASE_WIDTH * 8
    best = fits(low)
    if best is None:
        return None
    while high - low > 1:  # params, macs and seconds never fall as the base width grows
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
