"""The hard limits, each a named constraint with a reason when it fails.

A constraint's value is feasible at <= 0, as Optuna's `Trial.set_constraint` expects. Limits are
strict: `max_params=N` means params < N, so the value is params - N + 1; `min_receptive_field=N`
means field > N, so the value is N + 1 - field.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from search_spaces.architecture import Architecture
from search_spaces.cost import CostModel
from search_spaces.fields import Amount, Within, check_fields

Bound = Annotated[int, Within(0, 10**18)]


@dataclass(frozen=True)
class Limits:
    """What every candidate must meet before it may cost any compute.

    Attributes:
        max_params: Parameters stay strictly below it.
        min_receptive_field: The receptive field, pooling not counted, stays strictly above it.
        max_macs: Multiply-accumulates per image stay strictly below it; None for no limit.
        max_epoch_s: Predicted seconds of one training epoch stay strictly below it; None for no limit.
    """

    max_params: Bound = 200_000
    min_receptive_field: Bound = 44
    max_macs: Bound | None = None
    max_epoch_s: Amount | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def to_json(self) -> dict[str, float | None]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Clock:
    """Turns an architecture into predicted seconds an epoch, for `max_epoch_s`."""

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


def check(architecture: Architecture, limits: Limits, clock: Clock | None = None) -> tuple[Constraint, ...]:
    """Holds every limit against the analytic figures of `architecture`.

    `max_epoch_s` needs a `clock`; without one it is not checked (and no study sets it without one).
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
        _dilation_reach(architecture),
        _held("pooling", n_pools, f"{n_pools} poolings before the global average"),
    ]
    if limits.max_macs is not None:
        macs = architecture.macs
        reason = f"{macs:,} multiply-accumulates, not below {limits.max_macs:,}"
        found.append(_held("macs", macs - limits.max_macs + 1, reason))
    if limits.max_epoch_s is not None and clock is not None:
        seconds = clock.epoch_s(architecture)
        reason = f"predicted {seconds:.1f} s an epoch, not below {limits.max_epoch_s:g} s"
        # Seconds are not whole numbers: a strict limit is met when the difference is negative.
        found.append(_held("epoch_s", (seconds - limits.max_epoch_s) or 1e-9, reason))
    return tuple(found)


def certify(architecture: Architecture, limits: Limits, clock: Clock | None = None) -> tuple[Constraint, ...]:
    """`check`, but a broken limit is an error.

    Raises:
        InfeasibleError: At least one limit is broken.
    """
    found = check(architecture, limits, clock)
    broken = tuple(constraint for constraint in found if not constraint.feasible)
    if broken:
        raise InfeasibleError(broken)
    return found


def limit_rows(
    limits: Limits, architecture: Architecture | None = None, clock: Clock | None = None
) -> tuple[LimitRow, ...]:
    """Every limit in force, in the words that notes, reports and descriptions use.

    Args:
        limits: Those of a study.
        architecture: Held against them, if given.
        clock: What `check` takes: without one, `max_epoch_s` is not checked.
    """
    words = {
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
        words["epoch_s"] = ("Predicted time of an epoch", f"< {limits.max_epoch_s:g} s")
    found = {}
    if architecture is not None:
        found = {held.name: _standing(held, architecture, clock) for held in check(architecture, limits, clock)}
    rows = []
    for name, (label, required) in words.items():
        value, distance, met = found.get(name, ("", "", None))
        rows.append(LimitRow(name, label, required, value, distance, met))
    return tuple(rows)


def _standing(constraint: Constraint, architecture: Architecture, clock: Clock | None) -> tuple[str, str, bool | None]:
    """(figure, what it may still lose, whether it is met) of one limit."""
    counts = {
        "parameters": (architecture.params, "left"),
        "receptive_field": (architecture.receptive_field, "pixels to spare"),
        "dilated_convolution": (architecture.n_dilated, "to spare"),
        "depthwise_separable_convolution": (architecture.n_separable, "to spare"),
        "macs": (architecture.macs, "left"),
    }
    name, left, met = constraint.name, -constraint.value, constraint.feasible
    if name in counts:
        figure, words = counts[name]
        return f"{figure:,}", f"{left:,} {words}", met
    if name == "epoch_s" and clock is not None:
        return f"{clock.epoch_s(architecture):.1f} s", f"{left:.1f} s left", met
    return constraint.reason or {"dilation_reach": "inside"}.get(name, "no other"), "", met


def _held(name: str, value: float, reason: str) -> Constraint:
    return Constraint(name, value, reason if value > 0 else "")


def _dilation_reach(architecture: Architecture) -> Constraint:
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
