"""The hard limits, each a named constraint with a reason when it fails.

A constraint's value is feasible at <= 0, as Optuna's `Trial.set_constraint` expects. Limits are
strict: `max_params=N` means params < N, so the value is params - N + 1; `min_receptive_field=N`
means field > N, so the value is N + 1 - field.

Limits of the user's own (`OwnLimit`) hold what somebody measured of an architecture: `check` is given the figures, and
runs nobody's code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from search_spaces.architecture import Architecture
from search_spaces.cost import CostModel
from search_spaces.fields import Amount, Count, DescriptionError, Within, check_fields, from_fields, opened

Bound = Annotated[int, Within(0, 10**18)]
Figure = Annotated[float, Within(-1e300, 1e300)]

LATENCY, SIZE = "latency_ms", "size_kb"
MEASURES = {
    LATENCY: "Milliseconds for one image on the CPU",
    SIZE: "Kilobytes of the weights in float32",
}
"""What can be limited without a function of the user's."""
BYTES_PER_PARAM, BYTES_PER_KB = 4, 1_000
N_CLASSES = 10
"""Of CIFAR-10."""
_LATER = ("own", "n_classes")
_NAMES = (
    "parameters",
    "receptive_field",
    "dilated_convolution",
    "depthwise_separable_convolution",
    "dilation_reach",
    "pooling",
    "macs",
    "epoch_s",
    "classes",
)
"""Of all constraints but the user's own."""


@dataclass(frozen=True)
class OwnLimit:
    """A further figure of an architecture that stays strictly below a bound.

    Attributes:
        name: Of `MEASURES`, or what the user's function calls it.
        bound: The figure stays strictly below it.
        source: File and function that measure it, and the beginning of the file's SHA-256; empty for `MEASURES`.
    """

    name: str
    bound: Figure
    source: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def function(self) -> str:
        """`file.py:function`, as far as it is stored."""
        return self.source.partition(" ")[0]

    def __str__(self) -> str:
        return f"< {self.bound:,g}" + f" ({self.source})" * bool(self.source)


@dataclass(frozen=True)
class Limits:
    """What every candidate must meet before it may cost any compute.

    Attributes:
        max_params: Parameters stay strictly below it.
        min_receptive_field: The receptive field, pooling not counted, stays strictly above it.
        max_macs: Multiply-accumulates per image stay strictly below it; None for no limit.
        max_epoch_s: Predicted seconds of one training epoch stay strictly below it; None for no limit.
        own: Further ones.
        n_classes: Of the data set: outputs that every network has.
    """

    max_params: Bound = 200_000
    min_receptive_field: Bound = 44
    max_macs: Bound | None = None
    max_epoch_s: Amount | None = None
    own: tuple[OwnLimit, ...] = ()
    n_classes: Count = N_CLASSES

    def __post_init__(self) -> None:
        check_fields(self)
        names = [limit.name for limit in self.own]
        if clash := {name for name in names if names.count(name) > 1 or name in (*_NAMES, *self.__dict__)}:
            raise DescriptionError(f"A limit needs a name of its own: {min(clash)!r}.")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` inverts it exactly. What came later is left out where it says nothing."""
        found: dict[str, Any] = {name: value for name, value in self.__dict__.items() if name not in _LATER}
        if self.own:
            found["own"] = [dataclasses.asdict(limit) for limit in self.own]
        return found if self.n_classes == N_CLASSES else {**found, "n_classes": self.n_classes}

    @classmethod
    def from_json(cls, data: Any) -> Limits:
        """Reads what `to_json` wrote.

        Raises:
            DescriptionError: Fields are missing, unknown, or hold what they do not take.
        """
        fields = opened(data, "Limits")
        own = fields.get("own", [])
        if not isinstance(own, list):
            raise DescriptionError("own must be a list.")
        return from_fields(cls, {**fields, "own": tuple(from_fields(OwnLimit, each) for each in own)})

    def settings(self) -> dict[str, Any]:
        """Name and value of every limit, for people; None where there is none."""
        own = {limit.name: str(limit) for limit in self.own}
        return {name: value for name, value in self.to_json().items() if name != "own"} | own

    @property
    def to_decode(self) -> Limits:
        """What spaces repair and fit networks for: figures alone. That of `SIZE` is one of the parameters."""
        sizes = [limit.bound for limit in self.own if limit.name == SIZE]
        affordable = [max(0, math.ceil(size * BYTES_PER_KB / BYTES_PER_PARAM)) for size in sizes]
        return dataclasses.replace(self, max_params=min([self.max_params, *affordable]), own=())

    def adapted(self, architecture: Architecture) -> Architecture:
        """`architecture` with an output for each class."""
        if architecture.n_classes == self.n_classes:
            return architecture
        return dataclasses.replace(architecture, n_classes=self.n_classes)


@dataclass(frozen=True)
class Clock:
    """Turns an architecture into predicted seconds an epoch, for `max_epoch_s`: in batches of 128 whatever a candidate
    trains with, since whether limits can be met must not depend on what is sampled."""

    cost: CostModel
    n_train: int
    n_val: int

    def epoch_s(self, architecture: Architecture) -> float:
        return self.cost.epoch_seconds(architecture, self.n_train, self.n_val)


@dataclass(frozen=True)
class Constraint:
    """One limit held against one architecture.

    Attributes:
        name: Stable name, used in Optuna's storage.
        value: Feasible at <= 0.
        reason: What is wrong and by how much; empty if feasible.
    """

    name: str
    value: float
    reason: str = ""

    @property
    def feasible(self) -> bool:
        return self.value <= 0


@dataclass(frozen=True)
class LimitRow:
    """One limit in words, and how an architecture stands to it.

    Attributes:
        name: That of its `Constraint`.
        label, required: What is limited, and to what.
        value, distance: The architecture's figure and what it may still lose; empty without one.
        met: None where it was not checked.
    """

    name: str
    label: str
    required: str
    value: str = ""
    distance: str = ""
    met: bool | None = None


class InfeasibleError(ValueError):
    """A candidate breaks at least one limit.

    Attributes:
        broken: The constraints that fail, each with its reason.
    """

    def __init__(self, broken: tuple[Constraint, ...]) -> None:
        super().__init__("; ".join(constraint.reason for constraint in broken))
        self.broken = broken


Measured = Mapping[str, float]
"""What was measured of an architecture, by the name of the limit."""


def check(
    architecture: Architecture, limits: Limits, clock: Clock | None = None, measured: Measured | None = None
) -> tuple[Constraint, ...]:
    """Holds every limit against the figures of `architecture`.

    `max_epoch_s` needs a `clock`; without one it is not checked (and no study sets it without one). So does an own
    limit need what was `measured`, but for the one on the size.
    """
    params, field, n_pools = architecture.params, architecture.receptive_field, architecture.n_local_pools
    found = [
        _held("parameters", params - limits.max_params + 1, f"{params:,} parameters, not below {limits.max_params:,}"),
        _held(
            "receptive_field",
            limits.min_receptive_field + 1 - field,
            f"receptive field {field}, not above {limits.min_receptive_field}",
        ),
        _held("dilated_convolution", 1 - architecture.n_dilated, "no dilated convolution"),
        _held("depthwise_separable_convolution", 1 - architecture.n_separable, "no depthwise separable convolution"),
        dilation_reach(architecture),
        _held("pooling", n_pools, f"{n_pools} pooling{'s' * (n_pools > 1)} before the global average"),
    ]
    if limits.max_macs is not None:
        macs = architecture.macs
        reason = f"{macs:,} multiply-accumulates, not below {limits.max_macs:,}"
        found.append(_held("macs", macs - limits.max_macs + 1, reason))
    if limits.max_epoch_s is not None and clock is not None:
        seconds = clock.epoch_s(architecture)
        reason = f"predicted {seconds:.3g} s an epoch, not below {limits.max_epoch_s:g} s"
        # Seconds are not whole numbers: a strict limit is met when the difference is negative.
        found.append(_held("epoch_s", (seconds - limits.max_epoch_s) or 1e-9, reason))
    if architecture.n_classes != limits.n_classes:
        found.append(_held("classes", 1, f"{architecture.n_classes} outputs, not {limits.n_classes}"))
    figures = {SIZE: size_kb(architecture.params), **(measured or {})}
    for limit in limits.own:
        if limit.name in figures:
            figure = figures[limit.name]
            reason = f"{limit.name} {figure:,.4g}, not below {limit.bound:,g}"
            found.append(_held(limit.name, (figure - limit.bound) or 1e-9, reason))
    return tuple(found)


def size_kb(params: int) -> float:
    """Kilobytes (1,000 bytes) of so many parameters in float32."""
    return params * BYTES_PER_PARAM / BYTES_PER_KB


def certify(
    architecture: Architecture, limits: Limits, clock: Clock | None = None, measured: Measured | None = None
) -> tuple[Constraint, ...]:
    """`check`, but a broken limit is an error.

    Raises:
        InfeasibleError: At least one limit is broken.
    """
    found = check(architecture, limits, clock, measured)
    broken = tuple(constraint for constraint in found if not constraint.feasible)
    if broken:
        raise InfeasibleError(broken)
    return found


def limit_rows(
    limits: Limits,
    architecture: Architecture | None = None,
    clock: Clock | None = None,
    measured: Measured | None = None,
) -> tuple[LimitRow, ...]:
    """Every limit in force, in the words that notes, reports and descriptions use.

    Args:
        limits: Those of a study.
        architecture: Held against them, if given.
        clock, measured: What `check` takes: without them, `max_epoch_s` and own limits are not checked.
    """
    words: dict[str, tuple[str, str]] = {
        "parameters": ("Parameters", f"< {limits.max_params:,}"),
        "receptive_field": ("Receptive field, pooling not counted", f"> {limits.min_receptive_field}"),
        "dilated_convolution": ("Dilated convolutions", "at least 1"),
        "depthwise_separable_convolution": ("Depthwise separable convolutions", "at least 1"),
        "dilation_reach": ("Outer taps of padded dilated convolutions", "inside their map"),
        "pooling": ("Pooling", "none but the global average"),
    }
    if limits.max_macs is not None:
        words["macs"] = ("Multiply-accumulates", f"< {limits.max_macs:,}")
    if limits.max_epoch_s is not None:
        words["epoch_s"] = ("Predicted time of an epoch in batches of 128", f"< {limits.max_epoch_s:g} s")
    words |= {limit.name: (MEASURES.get(limit.name, limit.name), f"< {limit.bound:,g}") for limit in limits.own}
    found = {}
    if architecture is not None:
        bounds = {limit.name: limit.bound for limit in limits.own}
        held = check(architecture, limits, clock, measured)
        found = {each.name: _standing(each, architecture, clock, bounds.get(each.name)) for each in held}
    rows = []
    for name, (label, required) in words.items():
        value, distance, met = found.get(name, ("", "", None))
        rows.append(LimitRow(name, label, required, value, distance, met))
    return tuple(rows)


def _standing(
    constraint: Constraint, architecture: Architecture, clock: Clock | None, bound: float | None
) -> tuple[str, str, bool | None]:
    """(figure, what it may still lose, whether it is met) of one limit; an own one has a `bound`."""
    counts = {
        "parameters": (architecture.params, "left"),
        "receptive_field": (architecture.receptive_field, f"pixel{'s' * (-constraint.value != 1)} to spare"),
        "dilated_convolution": (architecture.n_dilated, "to spare"),
        "depthwise_separable_convolution": (architecture.n_separable, "to spare"),
        "macs": (architecture.macs, "left"),
    }
    name, left, met = constraint.name, -constraint.value, constraint.feasible
    if name in counts:
        figure, words = counts[name]
        return f"{figure:,}", f"{left:,} {words}", met
    if name == "epoch_s" and clock is not None:
        return f"{clock.epoch_s(architecture):.3g} s", f"{left:.3g} s left", met
    if bound is not None:
        return f"{bound - left:,.4g}", f"{left:,.4g} left", met
    return constraint.reason or {"dilation_reach": "inside"}.get(name, "no other"), "", met


def _held(name: str, value: float, reason: str) -> Constraint:
    return Constraint(name, value, reason if value > 0 else "")


def dilation_reach(architecture: Architecture) -> Constraint:
    """In a padded dilated convolution the outer taps must be able to land inside the map."""
    worst, reason = 0, ""
    for op in architecture.operations:
        if op.name != "Conv2d" or not op.padded or op.kernel == 1 or op.dilation == 1:
            continue
        reach, side = op.dilation * (op.kernel - 1) // 2, op.in_shape[1]
        if reach - side + 1 > worst:
            worst = reach - side + 1
            reason = f"dilation {op.dilation} reaches {reach} pixels out of a map of {side}"
    return Constraint("dilation_reach", worst, reason)
