"""What a search space is: fixed dimensions, and a decoder that only makes feasible candidates."""

from __future__ import annotations

import abc
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, Limits

Params = Mapping[str, Any]
"""One value per dimension, as sampled."""


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]

    def sample(self, rng: random.Random) -> Any:
        return rng.choice(self.values)

    def contains(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return " | ".join(str(value) for value in self.values)


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high]."""

    low: int
    high: int

    def sample(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    def contains(self, value: Any) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low} .. {self.high}"


@dataclass(frozen=True)
class Real:
    """A number in [low, high], uniform in itself or in its logarithm, on a grid if `step` is given."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def sample(self, rng: random.Random) -> float:
        if self.log:
            return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        if self.step is not None:
            return self.low + self.step * rng.randint(0, int((self.high - self.low) / self.step + 1e-9))
        return rng.uniform(self.low, self.high)

    def contains(self, value: Any) -> bool:
        if not (isinstance(value, (int, float)) and self.low <= value <= self.high):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-8  # as Optuna's FloatDistribution, which refuses what lies between

    def __str__(self) -> str:
        suffix = ", log" if self.log else f", step {self.step:g}" if self.step else ""
        return f"{self.low:g} .. {self.high:g}{suffix}"


Dimension = Choice | Integer | Real


def column(table: Mapping[str, tuple[Any, ...]], index: int) -> dict[str, Any]:
    """One column of a table of parameters: the first is their dimensions, the others are points of the space."""
    return {name: row[index] for name, row in table.items()}


def same_named(of: type[Any], params: Params) -> dict[str, Any]:
    """The fields of the dataclass `of` that are parameters as they stand."""
    return {field.name: params[field.name] for field in fields(of) if field.name in params}


@dataclass(frozen=True)
class Decoded:
    """A feasible candidate, and what had to be changed to make it so.

    Attributes:
        candidate: The candidate; its architecture meets every limit.
        repairs: One short sentence per change to what was sampled; empty for most samples.
    """

    candidate: Candidate
    repairs: tuple[str, ...] = ()


class Domain(Protocol):
    """What samplers see of a space."""

    @property
    def dimensions(self) -> Mapping[str, Dimension]:
        """Every parameter and its fixed distribution, in the order in which they are sampled."""

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """One uniform draw from every dimension."""


class SearchSpace(abc.ABC):
    """What may be searched. Another space is another file with one of these.

    A parameter has one name and one fixed distribution; whatever depends on another parameter
    (widths that meet the budget, dilations that meet the receptive field) is computed by `decode`.

    Attributes:
        name: What `--space` takes.
        version: Raised when the same parameters decode to something else; part of a study's fingerprint.
        tree: The space drawn as a tree, for people.
        dimensions: Every parameter and its fixed distribution, in the order in which they are sampled.
        cpu_epoch_factor: How many times the reference network's epoch a candidate's may take in a study on a
            CPU, unless the user says otherwise. Depthwise convolutions cost ten times dense ones there, so a
            space made of them would shrink to nothing under a tight limit, and without one be unaffordable.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    tree: ClassVar[str]
    dimensions: ClassVar[Mapping[str, Dimension]]
    cpu_epoch_factor: ClassVar[float] = 12.0

    @abc.abstractmethod
    def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        """Turns sampled parameters into a candidate that meets every limit.

        Raises:
            InfeasibleError: Not even the smallest network of this space meets them.
        """

    @abc.abstractmethod
    def anchors(self, limits: Limits) -> Mapping[str, Params]:
        """Named points that a study tries first: the reference where it is one, the default."""

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """One uniform draw from every dimension."""
        return {name: dimension.sample(rng) for name, dimension in self.dimensions.items()}
