"""The written report of a study: `report.html` and `report.md`, rebuilt from the storage alone.

No torch and no GPU: a report can be made on any machine that reads the storage. The same storage
gives the same bytes; nothing depends on the time or place where the report is written.

    study -> Page
               |- title
               `- sections, each a heading and blocks: Text | Tiles | Table | Chart | Charts
    Page -> report.html   one file that opens offline, figures included
         -> report.md     the same facts as plain tables for a terminal, without figures
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from search_spaces import SPACES
from search_spaces.architecture import Architecture, ArchitectureError
from search_spaces.constraints import Clock, check
from search_spaces.cost import CostModel
from search_spaces.space import Integer, Real
from study.command_line.wording import MISSING, duration, millions, percent, whole
from study.reporting import figures
from study.reporting.figures import Record
from study.reporting.page import Block, Chart, Charts, Page, Section, Table, Text, Tiles, write_page
from study.storage.config import StudyConfig
from study.storage.database import config_of

N_BEST = 10
N_AXES = 6
"""Parameters in the parallel coordinates and slices: more cannot be read."""

BOUND_FRAC = 0.01
"""A real parameter within this share of its range from an end counts as being at the bound."""


@dataclass(frozen=True)
class _Facts:
    """Everything that sections are made of, read once."""

    study: optuna.Study
    out: Path
    config: StudyConfig
    records: list[Record]
    ranked: list[Record]
    shares: dict[str, float]
    metrics: dict[str, Any] | None
    target: float | None

    @property
    def best(self) -> Record | None:
        return self.ranked[0] if self.ranked else None

    def count(self, outcome: str) -> int:
        return sum(record.outcome == outcome for record in self.records)


def write_report(study: optuna.Study, out: Path) -> tuple[Path, Path]:
    """Writes `out`/report.html and `out`/report.md; older ones stay whole if that fails.

    Args:
        study: Any study made by this program, in whatever state.
        out: The study's folder; the retrained bundle is read from its best/metrics.json, if there is one.

    Returns:
        The two paths.

    Raises:
        UserError: The study holds no configuration, or the folder cannot be written.
    """
    return write_page(build_page(study, out), out)


def build_page(study: optuna.Study, out: Path) -> Page:
    """The report of `study` before it is written.

    Raises:
        UserError: The study holds no configuration.
    """
    facts = _read(study, out)
    verdict = _verdict(facts)
    sections = [
        Section("Verdict", (*verdict, *_retrained(facts))),
        Section("Key figures", _key_figures(facts)),
        Section("Limits", _limits(facts)),
        Section(f"The {N_BEST} best trials and the anchors", _best_trials(facts)),
        Section("Side by side", _side_by_side(facts)),
        Section("Parameters of the best trial", _best_parameters(facts)),
        Section("Repair", _repair(facts)),
        *_figure_sections(facts),
        Section("Conditions", _conditions(facts)),
    ]
    return Page(f"Study {study.study_name}", tuple(sections), tuple(text.text for text in verdict))


def _read(study: optuna.Study, out: Path) -> _Facts:
    config = config_of(study)
    records = figures.read_records(study)
    target = study.user_attrs.get("target_accuracy")
    return _Facts(
        study=study,
        out=out,
        config=config,
        records=records,
        ranked=figures.rank(records),
        shares=figures.importances(study, records),
        metrics=_metrics(out / "best" / "metrics.json"),
        target=target if isinstance(target, (int, float)) else None,
    )


def _metrics(path: Path) -> dict[str, Any] | None:
    """The retrain's figures; None without a retrain, an empty dict if the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _verdict(facts: _Facts) -> list[Text]:
    best = facts.best
    if best is None:
        return [Text(f"No trial is complete yet; {_trials(len(facts.records))} recorded.", "note")]
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


def _tested(facts: _Facts, best: Record) -> Text:
    metrics = facts.metrics
    target: Any = metrics.get("target_accuracy", facts.target) if metrics else facts.target
    aim = f"the target of {percent(target)}" if _is_number(target) else "no target"
    if metrics is None:
        return Text(f"Not retrained yet: no test accuracy to hold against {aim}. Run python -m study.retrain.", "note")
    mean: Any = metrics.get("test_accuracy_mean")
    if not _is_number(mean):
        return Text("best/metrics.json holds no test accuracy. Run python -m study.retrain again.", "bad")
    accuracies = metrics.get("test_accuracy")
    n_seeds = len(accuracies) if isinstance(accuracies, list) else 1
    std: Any = metrics.get("test_accuracy_std")
    spread = f" ± {100 * std:.1f}" if _is_number(std) and n_seeds > 1 else ""
    met = metrics.get("target_met", _is_number(target) and mean > target)
    seeds = f"mean of {n_seeds} seeds" if n_seeds > 1 else "one seed"
    verdict = f"{aim} is {'met' if met else 'not met'}" if _is_number(target) else "no target was set"
    note = ""
    # The retrain may have raised the augmentation, which makes another candidate of the trial's.
    found = metrics.get("trial_candidate_id", metrics.get("candidate_id"))
    if found not in (None, best.candidate_id):
        other = next((r for r in facts.records if r.candidate_id == found), None)
        which = f"trial {other.number}" if other else f"candidate {found}"
        note = f" That is {which}, not the best trial."
    tone = "good" if met else "bad"
    return Text(f"Retrained test accuracy {percent(mean)}{spread} ({seeds}): {verdict}.{note}", tone)


def _retrained(facts: _Facts) -> tuple[Block, ...]:
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
    if _is_number(shipped):
        seed = f" (seed {metrics['shipped_seed']})" if "shipped_seed" in metrics else ""
        rows.append(("Shipped weights", percent(shipped, 2) + seed))
    formats: tuple[tuple[str, str, Any], ...] = (
        ("train_accuracy", "Train accuracy, augmented", lambda v: percent(_mean(v), 2)),
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


def _key_figures(facts: _Facts) -> tuple[Block, ...]:
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


def _limits(facts: _Facts) -> tuple[Block, ...]:
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


def _limit_rows(facts: _Facts, record: Record | None) -> list[tuple[str, ...]]:
    """(limit, required, value, distance, met) for every limit of the study."""
    limits = facts.config.limits
    architecture = _architecture(record)
    clock = _clock(facts)
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


def _architecture(record: Record | None) -> Architecture | None:
    if record is None or record.candidate is None:
        return None
    try:
        return Architecture.from_json(record.candidate["architecture"])
    except (ArchitectureError, KeyError, TypeError):
        return None


def _clock(facts: _Facts) -> Clock | None:
    stored = facts.study.user_attrs.get("cost_model")
    if not isinstance(stored, dict):
        return None
    try:
        return Clock(CostModel.from_json(stored), facts.config.train_images, facts.config.val_images)
    except TypeError:
        return None


def _best_trials(facts: _Facts) -> tuple[Block, ...]:
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
            whole(ranks.get(r.number)), whole(r.number), whole(r.slot), _reached(r), whole(r.params),
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


def _standard_error(facts: _Facts) -> float | None:
    """Of the best trial's validation accuracy, binomial."""
    best = facts.best
    if best is None or best.accuracy is None or facts.config.val_images < 1:
        return None
    return math.sqrt(best.accuracy * (1 - best.accuracy) / facts.config.val_images)


def _side_by_side(facts: _Facts) -> tuple[Block, ...]:
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
        ("Validation accuracy", _reached),
        ("Difference to the best", lambda r: _points((r.accuracy or 0.0) - (best.accuracy or 0.0))),
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


def _best_parameters(facts: _Facts) -> tuple[Block, ...]:
    best = facts.best
    if best is None:
        return (Text("No trial is complete yet.", "note"),)
    rows = []
    for name in _parameter_order(facts, best):
        found = _bounds(facts, best, name)
        value = best.sampled[name]
        if found is None:
            rows.append((name, _value(value), _choices(best, name), ""))
            continue
        low, high, log = found
        suffix = ", log" if log else ""
        rows.append((name, _value(value), f"{low:g} to {high:g}{suffix}", at_bound(value, low, high, log)))
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


def _parameter_order(facts: _Facts, record: Record) -> list[str]:
    space = SPACES.get(facts.config.space)
    known = list(space().dimensions) if space else []
    return [name for name in known if name in record.sampled] + sorted(set(record.sampled) - set(known))


def _bounds(facts: _Facts, record: Record, name: str) -> tuple[float, float, bool] | None:
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
        return " or ".join(_value(choice) for choice in distribution.choices)
    return MISSING


def _repair(facts: _Facts) -> tuple[Block, ...]:
    decoded = [r for r in facts.records if r.repairs is not None]
    if not decoded:
        return (Text("No trial was decoded yet.", "note"),)
    changed = [r for r in decoded if r.repairs]
    blocks: list[Block] = [
        Text(
            f"Repair changed what was sampled in {len(changed):,} of {_trials(len(decoded))} "
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


def _figure_sections(facts: _Facts) -> list[Section]:
    reached = [r for r in facts.records if r.outcome in (figures.COMPLETE, figures.PRUNED) and r.accuracy is not None]
    curves = [r for r in facts.records if r.curve]
    names = list(facts.shares)[:N_AXES]
    n_complete = len(facts.ranked)
    few = Text(
        f"Needs {figures.MIN_FOR_IMPORTANCE} complete trials to tell which parameters matter; "
        f"there {_are(n_complete)}.",
        "note",
    )
    none = Text("No trial has reported an accuracy yet.", "note")
    glanced = Text(
        "After epochs at which no trials are compared only a fifth of the validation images is looked at.", "note"
    )
    learning = (Chart("curves", figures.learning_curves(facts.records)),) if curves else (none,)
    sections = [
        Section("History", (Chart("history", figures.history(facts.records)),) if reached else (none,)),
        Section(
            "Learning curves",
            (*learning, glanced) if any(r.glanced for r in curves) else learning,
        ),
        Section("Importance of parameters", _importance(facts) if names else (few,)),
        Section("Size against accuracy", _size(facts, reached) if reached else (none,)),
        Section(
            "The most important parameters together",
            (
                Text("One line a complete trial; the darker, the more accurate. Drag along an axis to select."),
                Chart("parallel", figures.parallel_coordinates(facts.records, names)),
            )
            if names
            else (few,),
        ),
        Section(
            "The most important parameters one by one",
            (
                Text("Blue: complete. Orange crosses: pruned, at the accuracy where they were stopped."),
                Charts(
                    tuple(Chart(f"slice-{i}", figures.slice_plot(facts.records, name)) for i, name in enumerate(names))
                ),
            )
            if names
            else (few,),
        ),
    ]
    return sections


def _importance(facts: _Facts) -> tuple[Block, ...]:
    n = len(facts.ranked)
    caution = ""
    if n < figures.TRUSTED_FOR_IMPORTANCE:
        caution = f" Fewer than {figures.TRUSTED_FOR_IMPORTANCE}: take it as a hint."
    rows = tuple((name, f"{share:.1%}") for name, share in list(facts.shares.items())[:12])
    return (
        Text(f"PED-ANOVA over {_trials(n, 'complete ')}: what tells the best from the rest.{caution}"),
        Chart("importance", figures.importance_bars(facts.shares)),
        Table(
            ("Parameter", "Share of importance"),
            rows,
            numeric=frozenset({1}),
            folded=True,
            caption="As a table",
        ),
    )


def _size(facts: _Facts, reached: Sequence[Record]) -> tuple[Block, ...]:
    if not any(r.params is not None for r in reached):
        return (Text("No trial has stored its parameters.", "note"),)
    return (Chart("size", figures.size_against_accuracy(facts.records, facts.config.limits.max_params)),)


def _conditions(facts: _Facts) -> tuple[Block, ...]:
    data = facts.config.to_json()
    limits = data.pop("limits")
    rows = [(name, _value(value)) for name, value in data.items()]
    rows += [(name, "no limit" if value is None else _value(value)) for name, value in limits.items()]
    if facts.target is not None:
        rows.append(("target_accuracy", _value(facts.target)))
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
            pairs = tuple((str(key), _value(value)) for key, value in sorted(stored.items()))
            blocks.append(Table((label, ""), pairs, folded=True, caption=label))
    created = facts.study.user_attrs.get("created")
    if created:
        blocks.append(Text(f"Study created {created}.", "note"))
    return tuple(blocks)


def shorten(text: str, length: int = 120) -> str:
    """The first line of `text`, at most `length` characters."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= length else line[: length - 1] + "…"


def _reached(record: Record) -> str:
    accuracy = percent(record.accuracy, 2)
    if record.outcome == figures.COMPLETE:
        return accuracy
    return f"{accuracy} ({record.outcome}, epoch {len(record.curve)})"


def _points(difference: float) -> str:
    return MISSING if difference == 0 else f"{100 * difference:+.2f} points"


def _trials(n: int, kind: str = "") -> str:
    return f"{n:,} {kind}trial" + ("" if n == 1 else "s")


def _are(n: int) -> str:
    return f"is {n}" if n == 1 else f"are {n}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _mean(value: Any) -> float:
    return sum(value) / len(value) if isinstance(value, list) else float(value)
