"""The written report of a study: `report.html`, `report.md` and `trials.csv`, rebuilt from the storage alone.

No torch and no GPU: a report can be made on any machine that reads the storage. The same storage
gives the same bytes; nothing depends on the time or place where the report is written.

    study -> Facts -> Page -> report.html   one file that opens offline, figures included
                           -> report.md     the same facts as plain tables for a terminal, without figures
                           -> trials.csv    every trial with its hyperparameters, for a program
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import optuna

from study.reporting import sections, verdict
from study.reporting.facts import Record, read_facts
from study.reporting.figures import figure_sections, history_blocks
from study.reporting.page import Page, Section, write_page
from study.reporting.trained_sections import trained_sections

TRIALS = "trials.csv"
_COLUMNS = (
    "trial", "slot", "outcome", "val_accuracy", "epochs", "params", "receptive_field", "receptive_field_with_pool",
    "macs", "n_dilated_reductions", "wall_s", "anchor", "candidate_id", "repairs", "reason",
)  # fmt: skip


def write_report(study: optuna.Study, out: Path) -> tuple[Path, Path]:
    """Writes `out`/report.html, report.md and trials.csv; older ones stay whole if that fails.

    Args:
        study: Any study made by this program, in whatever state.
        out: The study's folder; the retrained network is read from the bundle in it, if there is one.

    Returns:
        The paths of the first two.

    Raises:
        UserError: The study holds no configuration, or the folder cannot be written.
    """
    return write_page(build_page(study, out), out)


def build_page(study: optuna.Study, out: Path) -> Page:
    """The report of `study` before it is written; the rest is as in `write_report`."""
    facts = read_facts(study, out)
    lines = verdict.verdict_blocks(facts)
    reranked = verdict.rerank_blocks(facts)
    parts = (
        Section("Verdict", (*lines, *verdict.gauge_blocks(facts)), history_blocks(facts)),
        *([Section("Re-ranking", reranked)] if reranked else []),
        *trained_sections(facts),
        Section("Key figures", sections.key_figure_blocks(facts)),
        Section("Limits", sections.limit_blocks(facts)),
        Section(f"The {sections.N_BEST} best trials and the anchors", sections.best_trial_blocks(facts)),
        Section("Side by side", sections.side_by_side_blocks(facts)),
        Section("Parameters of the best trial", sections.best_parameter_blocks(facts)),
        Section("Repair", sections.repair_blocks(facts)),
        *figure_sections(facts),
        Section("Conditions", sections.condition_blocks(facts)),
    )
    files = {TRIALS: trials_csv(facts.records, [limit.name for limit in facts.config.limits.own])}
    return Page(f"Study {study.study_name}", parts, [text.text for text in lines], files)


def trials_csv(records: Sequence[Record], own: Sequence[str] = ()) -> str:
    """One row a trial: what is known of it, the figures of the `own` limits, then all its hyperparameters."""
    names = sorted({name for record in records for name in record.sampled})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow((*_COLUMNS, *(f"measured_{name}" for name in own), *(f"param_{name}" for name in names)))
    for record in records:
        known = {
            **vars(record),
            "trial": record.number,
            "val_accuracy": record.accuracy,
            "epochs": len(record.curve),
            "repairs": "; ".join(record.repairs or ()),
        }
        figures = [record.measured.get(name) for name in own]
        sampled = [record.sampled.get(name) for name in names]
        writer.writerow((*(known[name] for name in _COLUMNS), *figures, *sampled))
    return stream.getvalue()
