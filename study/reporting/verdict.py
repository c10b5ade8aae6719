"""The first screen in words and gauges: what was found, what was retrained and why, the re-ranking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from study.bundle.metrics import TAUGHT, accuracy_interval
from study.command_line.wording import MISSING, counted, percent, rounded, whole
from study.reporting.facts import Facts, Reranked, is_number
from study.reporting.page import Block, Gauge, Gauges, Table, Text
from study.storage.reranked import LIGHT, SETTINGS


def verdict_blocks(facts: Facts) -> Sequence[Text]:
    best = facts.best
    if best is None:
        return [Text(f"No trial is complete yet; {counted(len(facts.records), 'trial')} recorded.", "note")]
    size = f", {best.params:,} parameters" if best.params is not None else ""
    field = f", receptive field {best.receptive_field}" if best.receptive_field is not None else ""
    found = f"Best validation accuracy {percent(best.accuracy)}: trial {best.number}{size}{field}."
    whose = "retrained network" if facts.retrained else "best trial"
    rows = facts.limits(facts.retrained or best)
    broken, unchecked = ([row.label.lower() for row in rows if row.met is met] for met in (False, None))
    limits = Text(f"The {whose} meets every limit.", "good")
    if broken:
        limits = Text(f"The {whose} breaks a limit: {', '.join(broken)}.", "bad")
    elif unchecked:
        limits = Text(f"Of the {whose} these limits cannot be checked: {', '.join(unchecked)}.", "bad")
    why = [Text(why_retrained(facts))] if facts.trained and facts.trained.metrics else []
    return [_tested(facts), *why, limits, Text(found)]


def _tested(facts: Facts) -> Text:
    metrics = facts.trained.metrics if facts.trained else None
    target: Any = metrics.get("target_accuracy", facts.target) if metrics else facts.target
    aim = f"the target of {percent(target, 2)}" if is_number(target) else "no target"
    if facts.other_bundle is not None:
        return Text(
            f"{facts.bundle}/ holds a network of another study, {facts.other_bundle!r}: its figures are not shown. "
            "Retrain this one with another --out.",
            "bad",
        )
    if metrics is None:
        if "given" in facts.study.user_attrs:
            return Text("These are candidates of another study, trained longer. Its report shows the retrain.", "note")
        return Text(f"Not retrained yet: no test accuracy to hold against {aim}. study.retrain makes one.", "note")
    mean: Any = metrics.get("test_accuracy_mean")
    std: Any = metrics.get("test_accuracy_std")
    if not is_number(mean):
        return Text(f"{facts.bundle}/metrics.json holds no test accuracy. Retrain it again.", "bad")
    accuracies = metrics.get("test_accuracy")
    n_seeds = len(accuracies) if isinstance(accuracies, list) else 1
    seeds = f"mean of {n_seeds} seeds" if n_seeds > 1 else "one seed"
    spread = f", standard deviation {percent(std, 2)}" if is_number(std) and n_seeds > 1 else ""
    accuracy = f"Retrained test accuracy {percent(mean, 2)} ({seeds}{spread})"
    if not is_number(target):
        return Text(f"{accuracy}: no target was set.")
    met = metrics.get("target_met", mean > target)
    return Text(f"{accuracy}: {aim} is {'met' if met else 'not met'}.", "good" if met else "bad")


def why_retrained(facts: Facts) -> str:
    """Which network was retrained, and why that one."""
    assert facts.trained is not None
    metrics, record, best = facts.trained.metrics, facts.retrained, facts.best
    if record is None:
        return f"Retrained is candidate {metrics.get('candidate_id', MISSING)}, which is of none of these trials."
    name, longer = f"Retrained is trial {record.number}", metrics.get("reranked_epochs")
    setting = f", {metrics['reranked_setting']}" if metrics.get("reranked_setting") else ""
    place = facts.ranked.index(record) + 1 if record in facts.ranked else None
    if longer is not None:
        searched = f"; in the search it was number {place}" if place else ""
        first, when, now = facts.reranking.ranked[0] if facts.reranking else None, "", ""
        if first is not None and not _is_retrained(facts, first):
            when, now = " when it was retrained", f"; the best of them now is trial {first.number}, {first.setting}"
        again = f"the best of those that were trained again for {counted(longer, 'epoch')}"
        return f"{name}{setting}, {again}{when}{searched}{now}."
    if record is best:
        return f"{name}, the best of the search."
    if facts.bundle.removesuffix(TAUGHT) != "best":
        kind = ", the space's default" if record.anchor == "default" else ""
        return f"{name}{kind}, which was asked for" + (
            f"; the best of the search is trial {best.number}." if best else "."
        )
    now = f"; the best trial now is {best.number}" if best else ""
    return f"{name}, which was the best when it was retrained{now}."


def _is_retrained(facts: Facts, one: Reranked) -> bool:
    """Whether `one` is what was retrained, because of its longer training."""
    metrics = facts.trained.metrics if facts.trained else {}
    chosen_by_it = metrics.get("reranked_epochs") is not None
    of_trial = facts.retrained is not None and facts.retrained.number == one.number
    return chosen_by_it and of_trial and metrics.get("reranked_setting") in (None, one.setting)


def gauge_blocks(facts: Facts) -> Sequence[Block]:
    """Accuracy, parameters and receptive field of the retrained network, else of the best trial, on their scales."""
    metrics = facts.trained.metrics if facts.trained else {}
    record, limits = facts.retrained or facts.best, facts.config.limits
    accuracy = _accuracy_gauge(facts, metrics)
    params = metrics.get("params", record and record.params)
    field = metrics.get("receptive_field", record and record.receptive_field)
    gauges = [accuracy] if accuracy else []
    if is_number(params):
        bound = limits.max_params
        most, words = max(1.15 * bound, params, 1), f"limit: below {bound:,}"
        gauges.append(Gauge("Parameters", whole(params), words, 0, most, params, bound, met=params < bound))
    if is_number(field):
        least = limits.min_receptive_field
        most, words = 1.15 * max(field, least, 1), f"limit: above {least} pixels"
        gauges.append(Gauge("Receptive field", whole(field), words, 0, most, field, least, met=field > least))
    return [Gauges(gauges)] if gauges else []


def _accuracy_gauge(facts: Facts, metrics: Mapping[str, Any]) -> Gauge | None:
    """The test accuracy against the target, else the validation accuracy of the best trial, with an interval."""
    at: Any = metrics.get("test_accuracy_mean")
    n, target = facts.trained.n_test if facts.trained else None, None
    label, what, required, met, caution = "Test accuracy", "test images", "", None, ""
    if is_number(at):
        caution = "; seeds differ, too" * (len(metrics.get("seeds") or ()) > 1)
        target = metrics.get("target_accuracy", facts.target)
        if is_number(target):
            met, required = at > target, f"target: above {percent(target)}"
    elif facts.best is not None and facts.best.accuracy is not None:
        label, what = f"Validation accuracy of trial {facts.best.number}", "validation images"
        at, n, required = facts.best.accuracy, facts.config.val_images, "short training: no target"
        caution = f"; the best of {counted(len(facts.ranked), 'trial')}, so partly by luck" * (len(facts.ranked) > 1)
    else:
        return None
    spread = accuracy_interval(at, n) if isinstance(n, int) and n > 0 else None
    between = f"{percent(spread[0])} to {percent(spread[1])}" if spread else ""
    note = f"95% interval {between} (Wilson, {n:,} {what}){caution}" if spread else ""
    # Between a tenth below what is shown and 1: of the whole scale an interval would be a hair.
    lowest = min([at, *([target] if is_number(target) else []), *(spread or ())])
    low = min(0.9, max(0.0, math.floor(10 * lowest - 0.5) / 10))
    ends = (percent(low, 0), "100%")
    return Gauge(label, percent(at, 2), required, low, 1.0, at, target, spread, met, note, ends)


def rerank_blocks(facts: Facts) -> Sequence[Block]:
    found = facts.reranking
    if found is None:
        return ()
    records, places = {r.number: r for r in facts.records}, {r.number: i + 1 for i, r in enumerate(facts.ranked)}
    config, first = found.config, found.ranked[0]
    several = any(each.setting != LIGHT for each in found.ranked)  # older ones had no other
    own = [limit.name for limit in facts.config.limits.own]
    rows, marked = [], set()
    for place, each in enumerate(found.ranked):
        record = records.get(each.number)
        note = "retrained" if _is_retrained(facts, each) else ""
        if note:
            marked.add(place)
        size = (whole(record.params), whole(record.receptive_field)) if record else (MISSING, MISSING)
        measured = [rounded(record.measured.get(name) if record else None) for name in own]
        searched = (percent(record.accuracy, 2) if record else MISSING, whole(places.get(each.number)))
        shown = (each.setting,) if several else ()
        figures = (*searched, *size, *measured)
        rows.append((whole(place + 1), whole(each.number), *shown, percent(each.accuracy, 2), *figures, note))
    columns = ("Rank", "Trial", *(("Setting",) if several else ()), "Longer training", "Search", "Rank there")
    columns += ("Parameters", "Receptive field", *own, "")
    numeric = [i for i, name in enumerate(columns) if name not in ("Setting", "")]
    how = " ".join(f"{name.capitalize()}: {words}." for name, words in SETTINGS.items()) + " " if several else ""
    which = [f"Trial {first.number}", *([first.setting] if several else [])]
    if places.get(first.number) != 1:
        which.append(f"number {places.get(first.number, MISSING)} of the search")
    n_candidates = len({each.number for each in found.ranked})
    text = (
        f"Trials of the search are short, so its {counted(n_candidates, 'best candidate')} were trained again for "
        f"{counted(config.epochs, 'epoch')} of {config.train_images:,} images, and validated on {config.val_images:,}. "
        f"{how}{', '.join(which)}{',' * (len(which) > 1)} came out first: that is the one to retrain."
    )
    return Text(text), Table(columns, rows, numeric=numeric, marked=marked)
