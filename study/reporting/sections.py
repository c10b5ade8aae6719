"""The sections that say what a study found, under which limits and conditions."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from search_spaces.constraints import check
from study.command_line.wording import MISSING, duration, millions, percent, whole
from study.reporting import figures
from study.reporting.facts import (
    Facts,
    architecture_of,
    clock_of,
    in_points,
    is_number,
    mean_of,
    n_trials,
    reached,
    shorten,
    shown_value,
)
from study.reporting.figures import Record
from study.reporting.page import Block, Table, Text, Tiles

N_BEST = 10


def verdict_blocks(facts: Facts) -> list[Text]:
    best = facts.best
    if best is None:
        return [Text(f"No trial is complete yet; {n_trials(len(facts.records))} recorded.", "note")]
    size = f", {best.params:,} parameters" if best.params is not None else ""
    field = f", receptive field {best.receptive_field}" if best.receptive_field is not None else ""
    lines = [
        Text(f"Best validation accuracy {percent(best.accuracy)}: trial {best.number}{size}{field}.", "good"),
        _tested(facts, best),
    ]
    broken = [row for row in _limit_rows(facts, best) if row[-1] == "no"]
    if broken:
        lines.append(Text("The best trial breaks a limit: " + ", ".join(row[0].lower() for row in broken) + ".", "bad"))
    elif best.candidate is None:
        lines.append(Text("The best trial has no stored candidate: its limits cannot be checked.", "bad"))
    else:
        lines.append(Text("The best trial meets every limit.", "good"))
    return lines


def _tested(facts: Facts, best: Record) -> Text:
    metrics = facts.metrics
    target: Any = metrics.get("target_accuracy", facts.target) if metrics else facts.target
    aim = f"the target of {percent(target)}" if is_number(target) else "no target"
    if metrics is None:
        return Text(f"Not retrained yet: no test accuracy to hold against {aim}. Run python -m study.retrain.", "note")
    mean: Any = metrics.get("test_accuracy_mean")
    if not is_number(mean):
        return Text("best/metrics.json holds no test accuracy. Run python -m study.retrain again.", "bad")
    accuracies = metrics.get("test_accuracy")
    n_seeds = len(accuracies) if isinstance(accuracies, list) else 1
    std: Any = metrics.get("test_accuracy_std")
    spread = f" ± {100 * std:.1f}" if is_number(std) and n_seeds > 1 else ""
    met = metrics.get("target_met", is_number(target) and mean > target)
    seeds = f"mean of {n_seeds} seeds" if n_seeds > 1 else "one seed"
    verdict = f"{aim} is {'met' if met else 'not met'}" if is_number(target) else "no target was set"
    note = ""
    # The retrain may have raised the augmentation, which makes another candidate of the trial's.
    found = metrics.get("trial_candidate_id", metrics.get("candidate_id"))
    if found not in (None, best.candidate_id):
        other = next((r for r in facts.records if r.candidate_id == found), None)
        which = f"trial {other.number}" if other else f"candidate {found}"
        note = f" That is {which}, not the best trial."
    tone = "good" if met else "bad"
    return Text(f"Retrained test accuracy {percent(mean)}{spread} ({seeds}): {verdict}.{note}", tone)


def retrained_blocks(facts: Facts) -> tuple[Block, ...]:
    metrics = facts.metrics
    if not metrics:
        return ()
    rows: list[tuple[str, str]] = []
    accuracies, seeds = metrics.get("test_accuracy"), metrics.get("seeds")
    if isinstance(accuracies, list) and accuracies:
        per_seed = ", ".join(percent(value, 2) for value in accuracies)
        rows.append(("Test accuracy per seed", per_seed))
        if isinstance(seeds, list):
            rows.append(("Seeds", ", ".join(map(str, seeds))))
    shipped = metrics.get("test_accuracy_shipped")
    if is_number(shipped):
        seed = f" (seed {metrics['shipped_seed']})" if "shipped_seed" in metrics else ""
        rows.append(("Shipped weights", percent(shipped, 2) + seed))
    formats: tuple[tuple[str, str, Any], ...] = (
        ("train_accuracy", "Train accuracy, augmented", lambda v: percent(mean_of(v), 2)),
        ("epochs", "Epochs", whole),
        ("params", "Parameters", whole),
        ("receptive_field", "Receptive field", whole),
        ("macs", "Multiply-accumulates", millions),
        ("wall_s", "Time", duration),
        ("device", "Device", str),
        ("candidate_id", "Candidate", str),
        ("commit", "Commit", str),
    )
    rows += [(label, show(metrics[key])) for key, label, show in formats if metrics.get(key) is not None]
    return (Table(("Retrained", ""), tuple(rows)),)


def key_figure_blocks(facts: Facts) -> tuple[Block, ...]:
    finished = [r for r in facts.records if r.outcome in (figures.COMPLETE, figures.PRUNED)]
    spent = sum(len(r.curve) for r in finished)
    possible = facts.config.epochs * len(finished)
    lost = sum(len(r.curve) for r in facts.records if r.outcome in (figures.FAILED, figures.INTERRUPTED))
    counted = (figures.COMPLETE, figures.PRUNED, figures.FAILED, figures.INTERRUPTED, figures.INFEASIBLE)
    tiles = [(whole(facts.count(outcome)), outcome) for outcome in counted]
    tiles += [
        (whole(facts.count(outcome)), outcome) for outcome in (figures.RUNNING, figures.WAITING) if facts.count(outcome)
    ]
    tiles.append((duration(sum(r.wall_s or 0.0 for r in facts.records)), "time of all trials"))
    share = f" ({spent / possible:.0%})" if possible else ""
    tiles.append((f"{spent:,} of {possible:,}", f"epochs spent of possible{share}"))
    blocks: list[Block] = [Tiles(tuple(tiles))]
    if lost:
        blocks.append(Text(f"Failed and interrupted trials spent {lost:,} more epochs.", "note"))
    reasons = Counter(r.reason or "no reason stored" for r in facts.records if r.outcome == figures.FAILED)
    if reasons:
        ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:5]
        rows = tuple((shorten(reason), whole(count)) for reason, count in ordered)
        blocks.append(Table(("Why trials failed", "Trials"), rows, numeric=frozenset({1})))
    return tuple(blocks)


def limit_blocks(facts: Facts) -> tuple[Block, ...]:
    best = facts.best
    if best is None:
        rows = tuple(row[:2] for row in _limit_rows(facts, None))
        return (Table(("Limit", "Required"), rows),)
    columns = ("Limit", "Required", f"Best (trial {best.number})", "Distance", "Met")
    rows = tuple(_limit_rows(facts, best))
    marked = frozenset(i for i, row in enumerate(rows) if row[-1] == "no")
    blocks: list[Block] = [Table(columns, rows, numeric=frozenset({2}), marked=marked)]
    if best.candidate is not None:
        blocks.append(Text("Checked again for this report, from the stored candidate.", "note"))
    return tuple(blocks)


def _limit_rows(facts: Facts, record: Record | None) -> list[tuple[str, ...]]:
    """(limit, required, value, distance, met) for every limit of the study."""
    limits = facts.config.limits
    architecture = architecture_of(record)
    clock = clock_of(facts)
    found = {c.name: c for c in check(architecture, limits, clock)} if architecture else {}

    def row(name: str, label: str, required: str, value: str, distance: str) -> tuple[str, ...]:
        if name not in found:
            return label, required, MISSING, MISSING, "not checked"
        return label, required, value, distance, "yes" if found[name].feasible else "no"

    a = architecture
    params, field = (a.params, a.receptive_field) if a else (0, 0)
    n_dilated, n_separable = (a.n_dilated, a.n_separable) if a else (0, 0)
    spare = limits.max_params - 1 - params
    rows = [
        row("parameters", "Parameters", f"< {limits.max_params:,}", whole(params), f"{spare:,} left"),
        row(
            "receptive_field", "Receptive field, pooling not counted", f"> {limits.min_receptive_field}",
            whole(field), f"{field - limits.min_receptive_field:+,} pixels",
        ),
        row(
            "dilated_convolution", "Dilated convolutions", "at least 1",
            whole(n_dilated), f"{n_dilated - 1} to spare",
        ),
        row(
            "depthwise_separable_convolution", "Depthwise separable convolutions", "at least 1",
            whole(n_separable), f"{n_separable - 1} to spare",
        ),
        row(
            "dilation_reach", "Outer taps of padded dilated convolutions", "inside their map",
            "inside" if "dilation_reach" in found and found["dilation_reach"].feasible else "outside",
            MISSING,
        ),
    ]  # fmt: skip
    n_pools = sum(op.name == "AvgPool2d" for op in a.operations) if a else 0
    met = "yes" if n_pools == 1 else "no"
    required = "1, global average"
    rows.append(("Poolings", required, whole(n_pools) if a else MISSING, MISSING, met if a else "not checked"))
    if limits.max_macs is not None:
        macs = a.macs if a else 0
        left = limits.max_macs - 1 - macs
        rows.append(row("macs", "Multiply-accumulates", f"< {limits.max_macs:,}", whole(macs), f"{left:,} left"))
    if limits.max_epoch_s is not None:
        seconds = clock.epoch_s(a) if clock and a else 0.0
        left_s = limits.max_epoch_s - seconds
        required = f"< {limits.max_epoch_s:g} s"
        rows.append(row("epoch_s", "Predicted time of an epoch", required, f"{seconds:.1f} s", f"{left_s:.1f} s left"))
    return rows


def best_trial_blocks(facts: Facts) -> tuple[Block, ...]:
    top = facts.ranked[:N_BEST]
    anchors = [
        r for r in facts.records
        if r.anchor and r not in top and r.outcome in (figures.COMPLETE, figures.PRUNED)
    ]  # fmt: skip
    shown = top + anchors
    if not shown:
        return (Text("No trial is complete yet.", "note"),)
    columns = (
        "Rank", "Trial", "Slot", "Val. accuracy", "Params", "Receptive field", "With pool", "MACs",
        "Dilated reductions", "Time", "Candidate", "Anchor",
    )  # fmt: skip
    ranks = {record.number: i + 1 for i, record in enumerate(facts.ranked)}
    rows = tuple(
        (
            whole(ranks.get(r.number)), whole(r.number), whole(r.slot), reached(r), whole(r.params),
            whole(r.receptive_field), whole(r.receptive_field_with_pool), millions(r.macs),
            whole(r.n_dilated_reductions), duration(r.wall_s), r.candidate_id or MISSING, r.anchor or "",
        )
        for r in shown
    )  # fmt: skip
    marked = frozenset(i for i, r in enumerate(shown) if r.anchor)
    blocks: list[Block] = [Table(columns, rows, numeric=frozenset(range(10)), marked=marked)]
    error = _standard_error(facts)
    if error is not None:
        blocks.append(
            Text(
                f"{facts.config.val_images:,} validation images: one standard error of an accuracy is "
                f"{100 * error:.1f} points, so trials closer than that are not told apart.",
                "note",
            )
        )
    return tuple(blocks)


def _standard_error(facts: Facts) -> float | None:
    """Of the best trial's validation accuracy, binomial."""
    best = facts.best
    if best is None or best.accuracy is None or facts.config.val_images < 1:
        return None
    return math.sqrt(best.accuracy * (1 - best.accuracy) / facts.config.val_images)


def side_by_side_blocks(facts: Facts) -> tuple[Block, ...]:
    best = facts.best
    if best is None:
        return (Text("No trial is complete yet.", "note"),)
    blocks: list[Block] = []
    columns: list[tuple[str, Record]] = [("Best", best)]
    dilated = next((r for r in facts.ranked if r.reduces_by_dilation), None)
    if dilated is None:
        blocks.append(Text("No complete trial reduces by a dilated unpadded convolution.", "note"))
    elif dilated is best:
        blocks.append(Text("The best trial itself reduces by dilated unpadded convolutions.", "good"))
        strided = next((r for r in facts.ranked if not r.reduces_by_dilation), None)
        if strided is not None:
            columns.append(("Best with strides only", strided))
    else:
        lead = (best.accuracy or 0.0) - (dilated.accuracy or 0.0)
        blocks.append(
            Text(
                f"The best trial that reduces by a dilated unpadded convolution is trial {dilated.number}, "
                f"{100 * lead:.1f} points behind the best.",
            )
        )
        columns.append(("Best reducing by dilation", dilated))
    for name in ("reference", "default"):
        anchors = [r for r in facts.records if r.anchor == name and r.accuracy is not None]
        if anchors:
            complete_first = sorted(anchors, key=lambda r: (r.outcome != figures.COMPLETE, r.number))
            columns.append((name.capitalize(), complete_first[0]))
    attributes: tuple[tuple[str, Any], ...] = (
        ("Trial", lambda r: whole(r.number)),
        ("Validation accuracy", reached),
        ("Difference to the best", lambda r: in_points((r.accuracy or 0.0) - (best.accuracy or 0.0))),
        ("Epochs", lambda r: whole(len(r.curve))),
        ("Parameters", lambda r: whole(r.params)),
        ("Receptive field", lambda r: whole(r.receptive_field)),
        ("Receptive field with pool", lambda r: whole(r.receptive_field_with_pool)),
        ("Multiply-accumulates", lambda r: millions(r.macs)),
        ("Dilated reductions", lambda r: whole(r.n_dilated_reductions)),
        ("Time", lambda r: duration(r.wall_s)),
        ("Candidate", lambda r: r.candidate_id or MISSING),
    )
    rows = tuple((label, *(show(record) for _, record in columns)) for label, show in attributes)
    numeric = frozenset(range(1, len(columns) + 1))
    blocks.append(Table(("", *(name for name, _ in columns)), rows, numeric=numeric))
    return tuple(blocks)


def condition_blocks(facts: Facts) -> tuple[Block, ...]:
    data = facts.config.to_json()
    limits = data.pop("limits")
    rows = [(name, shown_value(value)) for name, value in data.items()]
    rows += [(name, "no limit" if value is None else shown_value(value)) for name, value in limits.items()]
    if facts.target is not None:
        rows.append(("target_accuracy", shown_value(facts.target)))
    blocks: list[Block] = [
        Text(
            "Trials are ranked on the averaged weights' validation accuracy of the last epoch. "
            "No trial reads a test image."
        ),
        Table(("Configuration", ""), tuple(rows), folded=True, caption="Configuration"),
    ]
    for name, label in (("hardware", "Hardware"), ("versions", "Versions")):
        stored = facts.study.user_attrs.get(name)
        if isinstance(stored, dict) and stored:
            pairs = tuple((str(key), shown_value(value)) for key, value in sorted(stored.items()))
            blocks.append(Table((label, ""), pairs, folded=True, caption=label))
    created = facts.study.user_attrs.get("created")
    if created:
        blocks.append(Text(f"Study created {created}.", "note"))
    return tuple(blocks)
