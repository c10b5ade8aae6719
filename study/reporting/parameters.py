"""The sections about sampled parameters: those of the best trial, and what repair changed."""

from __future__ import annotations

import math
import re
from collections import Counter

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import SPACES
from study.command_line.wording import MISSING, counted, shown_value, whole
from study.reporting.facts import Facts
from study.reporting.page import Block, Table, Text
from study.reporting.sections import NONE_COMPLETE, most_common

BOUND_FRAC = 0.01
"""A real parameter within this share of its range from an end counts as being at the bound."""


def best_parameter_blocks(facts: Facts) -> tuple[Block, ...]:
    best = facts.best
    if best is None:
        return (NONE_COMPLETE,)
    space = SPACES.get(facts.config.space)
    order = list(space().dimensions) if space else []  # of a space that is no longer known the alphabet's
    names = [name for name in order if name in best.sampled] + sorted(set(best.sampled) - set(order))
    rows = []
    for name in names:
        value, distribution = best.sampled[name], best.distributions[name]
        bound = ""
        if isinstance(distribution, (IntDistribution, FloatDistribution)):
            bound = at_bound(value, distribution.low, distribution.high, distribution.log)
        rows.append((name, shown_value(value), _range(distribution), bound))
    marked = frozenset(i for i, row in enumerate(rows) if row[-1])
    text = "No parameter of the best trial is at a bound of the space."
    if marked:
        at_bounds = ", ".join(rows[i][0] for i in sorted(marked))
        text = f"At a bound of the space: {at_bounds}. A better value may lie beyond it, if it can be widened."
    table = Table(("Parameter", "Best", "Range", "At a bound"), tuple(rows), numeric=frozenset({1}), marked=marked)
    if not best.repairs:
        return Text(text), table
    return Text(text), table, Text(f"As sampled; repair then changed: {'; '.join(best.repairs)}.", "note")


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


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return " or ".join(shown_value(choice) for choice in distribution.choices)
    if isinstance(distribution, (IntDistribution, FloatDistribution)):
        return f"{distribution.low:g} to {distribution.high:g}" + (", log" if distribution.log else "")
    return MISSING


def repair_blocks(facts: Facts) -> tuple[Block, ...]:
    decoded = [r for r in facts.records if r.repairs is not None]
    if not decoded:
        return (Text("No trial was decoded yet.", "note"),)
    changed = [r.repairs for r in decoded if r.repairs]
    text = Text(
        f"Repair changed what was sampled in {len(changed):,} of {counted(len(decoded), 'trial')} "
        f"({len(changed) / len(decoded):.0%}), so that the network meets the limits."
    )
    kinds = Counter(kind for repairs in changed for kind in {_repair_kind(repair) for repair in repairs})
    if not kinds:
        return (text,)
    rows = tuple((kind, whole(n), f"{n / len(decoded):.0%}") for kind, n in most_common(kinds))
    return text, Table(("What was changed", "Trials", "Share"), rows, numeric=frozenset({1, 2}))


def _repair_kind(repair: str) -> str:
    """A repair without its values: `dilations (1, 1, 1) -> (1, 1, 3)` is `dilations`."""
    return re.split(r"\s*\(", repair)[0] or repair
