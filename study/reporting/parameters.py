"""The sections about sampled parameters: those of the best trial, and what repair changed."""

from __future__ import annotations

import math
import re
from collections import Counter

import optuna

from search_spaces import SPACES
from search_spaces.space import Integer, Real
from study.command_line.wording import MISSING, whole
from study.reporting.facts import BOUND_FRAC, Facts, n_trials, shown_value
from study.reporting.figures import Record
from study.reporting.page import Block, Table, Text


def best_parameter_blocks(facts: Facts) -> tuple[Block, ...]:
    best = facts.best
    if best is None:
        return (Text("No trial is complete yet.", "note"),)
    rows = []
    for name in _parameter_order(facts, best):
        found = _bounds(facts, best, name)
        value = best.sampled[name]
        if found is None:
            rows.append((name, shown_value(value), _choices(best, name), ""))
            continue
        low, high, log = found
        suffix = ", log" if log else ""
        rows.append((name, shown_value(value), f"{low:g} to {high:g}{suffix}", at_bound(value, low, high, log)))
    marked = frozenset(i for i, row in enumerate(rows) if row[-1])
    blocks: list[Block] = []
    if marked:
        names = ", ".join(rows[i][0] for i in sorted(marked))
        blocks.append(
            Text(f"At a bound of the space: {names}. A better value may lie beyond it, if it can be widened.")
        )
    else:
        blocks.append(Text("No parameter of the best trial is at a bound of the space."))
    blocks.append(
        Table(("Parameter", "Best", "Range", "At a bound"), tuple(rows), numeric=frozenset({1}), marked=marked)
    )
    if best.repairs:
        blocks.append(Text("As sampled; repair then changed: " + "; ".join(best.repairs) + ".", "note"))
    return tuple(blocks)


def _parameter_order(facts: Facts, record: Record) -> list[str]:
    space = SPACES.get(facts.config.space)
    known = list(space().dimensions) if space else []
    return [name for name in known if name in record.sampled] + sorted(set(record.sampled) - set(known))


def _bounds(facts: Facts, record: Record, name: str) -> tuple[float, float, bool] | None:
    """(low, high, log) of a numeric parameter; None for a choice.

    The space knows them; a study of a space that this program does not know (any more) has them stored.
    """
    space = SPACES.get(facts.config.space)
    dimension = space().dimensions.get(name) if space else None
    if isinstance(dimension, (Integer, Real)):
        return dimension.low, dimension.high, getattr(dimension, "log", False)
    distribution = record.distributions.get(name)
    if dimension is None and isinstance(
        distribution, (optuna.distributions.IntDistribution, optuna.distributions.FloatDistribution)
    ):
        return distribution.low, distribution.high, distribution.log
    return None


def at_bound(value: float, low: float, high: float, log: bool = False) -> str:
    """ "lower", "upper" or "" for a value in [low, high]; whole numbers must be at the end itself."""
    if high <= low:
        return ""
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    slack = 0.0 if isinstance(value, int) else BOUND_FRAC * (high - low)
    if value <= low + slack:
        return "lower"
    return "upper" if value >= high - slack else ""


def _choices(record: Record, name: str) -> str:
    distribution = record.distributions.get(name)
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return " or ".join(shown_value(choice) for choice in distribution.choices)
    return MISSING


def repair_blocks(facts: Facts) -> tuple[Block, ...]:
    decoded = [r for r in facts.records if r.repairs is not None]
    if not decoded:
        return (Text("No trial was decoded yet.", "note"),)
    changed = [r for r in decoded if r.repairs]
    blocks: list[Block] = [
        Text(
            f"Repair changed what was sampled in {len(changed):,} of {n_trials(len(decoded))} "
            f"({len(changed) / len(decoded):.0%}), so that the network meets the limits."
        )
    ]
    kinds = Counter(kind for r in changed for kind in {_repair_kind(repair) for repair in r.repairs or ()})
    if kinds:
        ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        rows = tuple((kind, whole(count), f"{count / len(decoded):.0%}") for kind, count in ordered)
        blocks.append(Table(("What was changed", "Trials", "Share"), rows, numeric=frozenset({1, 2})))
    return tuple(blocks)


def _repair_kind(repair: str) -> str:
    """A repair without its values: `dilations (1, 1, 1) -> (1, 1, 3)` is `dilations`."""
    return re.split(r"\s*\(", repair)[0] or repair
