"""The hard limits, each a named constraint with a reason when it fails.

A constraint's value is feasible at <= 0, as Optuna's `Trial.set_constraint` expects. Limits are
strict: `max_params=N` means params < N, so the value is params - N + 1; `min_receptive_field=N`
means field > N, so the value is N + 1 - field.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from search_spaces.architecture import Architecture
from search_spaces.cost import CostModel


@dataclass(frozen=True)
class Limits:
    """What every candidate must meet before it may cost any compute.

    Attributes:
        max_params: Parameters stay strictly below it.
        min_receptive_field: The receptive field, pooling not counted, stays strictly above it.
        max_macs: Multiply-accumulates per image stay strictly below it; None for no limit.
        max_epoch_s: Predicted seconds of one training epoch stay strictly below it; None for no limit.
    """

    max_params: int = 200_000
    min_receptive_field: int = 44
    max_macs: int | None = None
    max_epoch_s: float | None = None

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
    found = [
        _below("parameters", architecture.params, limits.max_params, "parameters"),
        _above("receptive_field", architecture.receptive_field, limits.min_receptive_field),
        _at_least_one("dilated_convolution", architecture.n_dilated),
        _at_least_one("depthwise_separable_convolution", architecture.n_separable),
        _dilation_reach(architecture),
        _no_pooling(architecture),
    ]
    if limits.max_macs is not None:
        found.append(_below("macs", architecture.macs, limits.max_macs, "multiply-accumulates"))
    if limits.max_epoch_s is not None and clock is not None:
        seconds = clock.epoch_s(architecture)
        # Seconds are not whole numbers: a strict limit is met when the difference is negative.
        value = seconds - limits.max_epoch_s
        value = value if value != 0 else 1e-9
        reason = f"predicted {seconds:.1f} s an epoch, not below {limits.max_epoch_s:g} s"
        found.append(Constraint("epoch_s", value, reason if value > 0 else ""))
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
    found = {c.name: c for c in check(architecture, limits, clock)} if architecture else {}
    rows = []
    for name, (label, required) in words.items():
        if architecture is None or name not in found:
            rows.append(LimitRow(name, label, required))
            continue
        value, distance = _standing(found[name], architecture, clock)
        rows.append(LimitRow(name, label, required, value, distance, found[name].feasible))
    return tuple(rows)


def _standing(constraint: Constraint, architecture: Architecture, clock: Clock | None) -> tuple[str, str]:
    """(figure, what it may still lose) of one limit."""
    left = -constraint.value
    match constraint.name:
        case "parameters":
            return f"{architecture.params:,}", f"{left:,} left"
        case "receptive_field":
            return f"{architecture.receptive_field:,}", f"{left:,} pixels to spare"
        case "dilated_convolution":
            return f"{architecture.n_dilated:,}", f"{left:,} to spare"
        case "depthwise_separable_convolution":
            return f"{architecture.n_separable:,}", f"{left:,} to spare"
        case "macs":
            return f"{architecture.macs:,}", f"{left:,} left"
        case "epoch_s" if clock is not None:
            return f"{clock.epoch_s(architecture):.1f} s", f"{left:.1f} s left"
        case "dilation_reach":
            return constraint.reason or "inside", ""
    return constraint.reason or "no other", ""


def _below(name: str, value: int, limit: int, noun: str) -> Constraint:
    excess = value - limit + 1
    return Constraint(name, excess, f"{value:,} {noun}, not below {limit:,}" if excess > 0 else "")


def _above(name: str, value: int, limit: int) -> Constraint:
    lack = limit + 1 - value
    return Constraint(name, lack, f"receptive field {value}, not above {limit}" if lack > 0 else "")


def _at_least_one(name: str, count: int) -> Constraint:
    noun = name.replace("_", " ")
    return Constraint(name, 1 - count, f"no {noun}" if count < 1 else "")


def _no_pooling(architecture: Architecture) -> Constraint:
    count = architecture.n_local_pools
    return Constraint("pooling", count, f"{count} poolings before the global average" if count else "")


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
