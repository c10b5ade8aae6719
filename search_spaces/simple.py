"""A space of one's own in a few lines: a structure of named dimensions, what makes it see more, what makes it cheaper.

Repair and fitting follow from these; a space that needs more of its own is made of `search_spaces.fitting`, as ours.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from search_spaces import fitting
from search_spaces.architecture import Architecture
from search_spaces.constraints import Clock, Limits
from search_spaces.space import Choice, Decoded, Dimension, Integer, Params, SearchSpace
from search_spaces.training_dimensions import DEFAULT_TRAINING, TRAINING_DIMENSIONS


class SimpleSpace(SearchSpace):
    """A space whose structure is repaired one dimension at a time.

    Attributes:
        structure: Dimension and default of every name that `build` takes.
        wider: Names of whole numbers and choices, in the order in which they are raised where the receptive field is
            too small; a choice lists its smallest value first. With all of them raised the field must be large enough.
        smallest: Values of the cheapest network, in the order in which they are taken where a limit is too tight; they
            may lie outside of the dimensions. Whatever else decides what a network costs must be in it.
    """

    structure: ClassVar[Mapping[str, tuple[Dimension, Any]]]
    wider: ClassVar[tuple[str, ...]]
    smallest: ClassVar[Mapping[str, Any]]

    def __init_subclass__(cls) -> None:
        structure = {name: dimension for name, (dimension, _) in cls.structure.items()}
        cls.dimensions = {"budget_frac": fitting.BUDGET_FRAC, **structure, **TRAINING_DIMENSIONS}
        if "tree" not in cls.__dict__:
            cls.tree = f"{cls.name}: {', '.join(cls.dimensions)}"

    @abc.abstractmethod
    def build(self, width: float, **structure: Any) -> Architecture:
        """The network about `width` wide, with a value for every name of `structure`; more width is never cheaper."""

    def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        plan = _Plan(self, {name: params[name] for name in self.structure})
        return fitting.decode_plan(plan, params, limits, clock, _repair, _simplifications)

    def anchors(self, limits: Limits) -> Mapping[str, Params]:
        structure = {name: default for name, (_, default) in self.structure.items()}
        return {"default": {"budget_frac": 1.0, **structure, **DEFAULT_TRAINING}}


@dataclass(frozen=True)
class _Plan:
    """A structure of a space, before its widths are known."""

    space: SimpleSpace
    structure: Mapping[str, Any]

    def build(self, base_width: float) -> Architecture:
        return self.space.build(base_width, **self.structure)

    def having(self, name: str, value: Any) -> _Plan:
        return _Plan(self.space, {**self.structure, name: value})


def _repair(plan: _Plan, limits: Limits) -> tuple[_Plan, list[str]]:
    lifted = fitting.first_that_sees_enough(_lifts(plan), limits)
    changed = [(name, value, lifted.structure[name]) for name, value in plan.structure.items()]
    return lifted, [f"{name} {before} -> {after}" for name, before, after in changed if before != after]


def _lifts(plan: _Plan) -> Iterator[_Plan]:
    """The plan itself, then ever larger receptive fields."""
    yield plan
    for name in plan.space.wider:
        dimension, value = plan.space.structure[name][0], plan.structure[name]
        larger: Any = ()
        if isinstance(dimension, Integer):
            larger = range(value + 1, dimension.high + 1)
        elif isinstance(dimension, Choice) and value in dimension.values:
            larger = dimension.values[dimension.values.index(value) + 1 :]
        for each in larger:
            plan = plan.having(name, each)
            yield plan


def _simplifications(plan: _Plan) -> Iterator[tuple[_Plan, str]]:
    """Ever cheaper plans: whole numbers are lowered one by one."""
    for name, smallest in plan.space.smallest.items():
        value = plan.structure[name]
        whole = isinstance(plan.space.structure[name][0], Integer)
        for each in range(value - 1, smallest, -1) if whole else ():
            plan = plan.having(name, each)
            yield plan, f"{name} lowered to {each}"
        plan = plan.having(name, smallest)
        yield plan, f"{name} set to {smallest}"
