"""The sections in words and tables: what a study found, under which limits and conditions."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import SPACES
from study.command_line.wording import MISSING, counted, duration, millions, rounded, shown_value, whole
from study.errors import shortened
from study.reporting.facts import Facts, Record, counted_once
from study.reporting.page import Block, Table, Text, Tiles
from study.storage.outcome import Outcome

N_BEST = 10
BOUND_FRAC = 0.01
"""A real parameter within this share of its range from an end counts as being at the bound."""
NONE_COMPLETE = Text("No trial is complete yet.", "note")


def _attributes(facts: Facts) -> dict[str, Callable[[Record], str]]:
    """What tables of trials show of each."""
    return {
        "Trial": lambda r: whole(r.number),
        "Slot": lambda r: whole(r.slot),
        "Validation accuracy": lambda r: r.reached,
        "Parameters": lambda r: whole(r.params),
        "Receptive field": lambda r: whole(r.receptive_field),
        "With pool": lambda r: whole(r.receptive_field_with_pool),
        "MACs": lambda r: millions(r.macs),
        **{limit.name: partial(_own_figure, limit.name) for limit in facts.config.limits.own},
        "Dilated reductions": lambda r: whole(r.n_dilated_reductions),
        "Time": lambda r: duration(r.wall_s),
        "Candidate": lambda r: r.candidate_id or MISSING,
    }


def _own_figure(name: str, record: Record) -> str:
    return rounded(record.measured.get(name))


def key_figure_blocks(facts: Facts) -> Sequence[Block]:
    finished = facts.having(Outcome.COMPLETE, Outcome.PRUNED)
    spent = sum(len(r.curve) for r in finished)
    possible = facts.config.epochs * len(finished)
    share = f" ({spent / possible:.0%})" if possible else ""
    counts = Counter(r.outcome for r in facts.records)
    tiles = [(whole(counts[o]), str(o)) for o in Outcome if counts[o] or o not in (Outcome.RUNNING, Outcome.WAITING)]
    once = counted_once(facts.records)
    tiles.append((duration(sum(r.wall_s or 0.0 for r in once)), "time of all trials"))
    tiles.append((f"{spent:,} of {possible:,}", f"epochs spent of possible{share}"))
    blocks: list[Block] = [Tiles(tiles)]
    if facts.n_foreign:
        blocks.append(Text(f"Not counted: {counted(facts.n_foreign, 'trial')} that this program did not make.", "note"))
    lost = sum(len(r.curve) for r in once if r.outcome in (Outcome.FAILED, Outcome.INTERRUPTED))
    if lost:
        blocks.append(Text(f"Failed and interrupted trials spent {counted(lost, 'more epoch')}.", "note"))
    reasons = Counter((r.reason or "no reason stored").strip() for r in facts.having(Outcome.FAILED))
    if reasons:
        rows = [(shortened(reason.partition("\n")[0], 120), whole(n)) for reason, n in _most_common(reasons)[:5]]
        blocks.append(Table(("Why trials failed", "Trials"), rows, numeric={1}))
    return blocks


def limit_blocks(facts: Facts) -> Sequence[Block]:
    best = facts.retrained or facts.best
    found = facts.limits(best)
    if best is None:
        return (Table(("Limit", "Required"), [(row.label, row.required) for row in found]),)
    met = {True: "yes", False: "no", None: "not checked"}
    rows = [(r.label, r.required, r.value or MISSING, r.distance or MISSING, met[r.met]) for r in found]
    marked = {i for i, row in enumerate(found) if row.met is False}
    whose = "Retrained" if facts.retrained else "Best"
    columns = ("Limit", "Required", f"{whose} (trial {best.number})", "Distance", "Met")
    table = Table(columns, rows, numeric={2}, marked=marked)
    if facts.architecture(best) is None:
        return (table,)
    own = "; limits of your own by the figures that were stored with it" if facts.config.limits.own else ""
    return table, Text(f"Checked again for this report, from the stored candidate{own}.", "note")


def best_trial_blocks(facts: Facts) -> Sequence[Block]:
    best, top, n = facts.best, facts.ranked[:N_BEST], facts.config.val_images
    shown = top + [r for r in facts.having(Outcome.COMPLETE, Outcome.PRUNED) if r.anchor and r not in top]
    if not shown:
        return (NONE_COMPLETE,)
    ranks = {record.number: i + 1 for i, record in enumerate(facts.ranked)}
    attributes = _attributes(facts)
    rows = [(whole(ranks.get(r.number)), *(show(r) for show in attributes.values()), r.anchor or "") for r in shown]
    marked = {i for i, r in enumerate(shown) if r.anchor}
    table = Table(("Rank", *attributes, "Anchor"), rows, numeric=range(len(attributes)), marked=marked)
    if best is None or best.accuracy is None or n < 1:
        return (table,)
    error = math.sqrt(max(0.0, best.accuracy * (1 - best.accuracy)) / n)  # binomial
    return table, Text(
        f"{n:,} validation images: one standard error of an accuracy is {100 * error:.1f} points, so trials within "
        f"{2 * math.sqrt(2) * 100 * error:.1f} points of each other are hardly told apart.",
        "note",
    )


def side_by_side_blocks(facts: Facts) -> Sequence[Block]:
    best = facts.best
    if best is None:
        return (NONE_COMPLETE,)

    def behind(record: Record) -> float:
        return 100 * ((best.accuracy or 0.0) - (record.accuracy or 0.0))

    columns = [("Best", best)]
    dilated, strided = (
        next((r for r in facts.ranked if r.reduces_by_dilation == wanted), None) for wanted in (True, False)
    )
    if dilated is None:
        text = Text("No complete trial reduces by a dilated unpadded convolution.", "note")
    elif dilated is best:
        text = Text("The best trial itself reduces by dilated unpadded convolutions.", "good")
        columns += [("Best with strides only", strided)] if strided else []
    else:
        text = Text(
            f"The best trial that reduces by a dilated unpadded convolution is trial {dilated.number}, "
            f"{behind(dilated):.1f} points behind the best."
        )
        columns.append(("Best reducing by dilation", dilated))
    for name in ("reference", "default"):
        anchors = [r for r in facts.records if r.anchor == name and r.accuracy is not None]
        if anchors:
            columns.append((name.capitalize(), min(anchors, key=lambda r: (r.outcome != Outcome.COMPLETE, r.number))))
    attributes = _attributes(facts) | {
        "Difference to the best": lambda r: f"{-behind(r):+.2f} points" if behind(r) else MISSING,
        "Epochs": lambda r: whole(len(r.curve)),
    }
    rows = [(label, *(show(record) for _, record in columns)) for label, show in attributes.items()]
    headings = ("", *(name for name, _ in columns))
    return text, Table(headings, rows, numeric=range(1, len(headings)))


def best_parameter_blocks(facts: Facts) -> Sequence[Block]:
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
    marked = [i for i, row in enumerate(rows) if row[-1]]
    text = "No parameter of the best trial is at a bound of the space."
    if marked:
        at_bounds = ", ".join(rows[i][0] for i in marked)
        text = f"At a bound of the space: {at_bounds}. A better value may lie beyond it, if it can be widened."
    table = Table(
        ("Parameter", "Best", "Range", "At a bound"), rows, numeric={1}, marked=marked, folded="All parameters"
    )
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


def repair_blocks(facts: Facts) -> Sequence[Block]:
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
    rows = [(kind, whole(n), f"{n / len(decoded):.0%}") for kind, n in _most_common(kinds)]
    return text, Table(("What was changed", "Trials", "Share"), rows, numeric={1, 2})


def _repair_kind(repair: str) -> str:
    """A repair without its values: `dilations (1, 1, 1) -> (1, 1, 3)` is `dilations`."""
    return re.split(r"\s*\(", repair)[0] or repair


def condition_blocks(facts: Facts) -> Sequence[Block]:
    stored = facts.study.user_attrs
    settings = {name: "no limit" if value is None else value for name, value in facts.config.settings().items()}
    if facts.target is not None:
        settings["target_accuracy"] = facts.target
    blocks: list[Block] = [
        Text(
            "Trials are ranked on the averaged weights' validation accuracy of the last epoch. "
            "No trial reads a test image."
        )
    ]
    machine = {name.capitalize(): stored.get(name) for name in ("hardware", "versions")}
    for label, values in {"Configuration": settings, **machine}.items():
        if isinstance(values, dict) and values:
            rows = [(str(name), shown_value(value)) for name, value in values.items()]
            blocks.append(Table((label, ""), rows, folded=label))
    if stored.get("created"):
        blocks.append(Text(f"Study created {stored['created']}.", "note"))
    return blocks


def _most_common(counts: Counter[str]) -> list[tuple[str, int]]:
    """The largest first, in alphabetical order where they are equal."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
