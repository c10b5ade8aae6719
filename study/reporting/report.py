"""The written report of a study: `report.html` and `report.md`, rebuilt from the storage alone.

No torch and no GPU: a report can be made on any machine that reads the storage. The same storage
gives the same bytes; nothing depends on the time or place where the report is written.

    study -> Facts -> Page -> report.html   one file that opens offline, figures included
                           -> report.md     the same facts as plain tables for a terminal, without figures
"""

from __future__ import annotations

from pathlib import Path

import optuna

from study.reporting import sections
from study.reporting.facts import read_facts
from study.reporting.figures import figure_sections
from study.reporting.page import Page, Section, write_page


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
    """The report of `study` before it is written; the rest is as in `write_report`."""
    facts = read_facts(study, out)
    verdict = sections.verdict_blocks(facts)
    parts = (
        Section("Verdict", (*verdict, *sections.retrained_blocks(facts))),
        Section("Key figures", sections.key_figure_blocks(facts)),
        Section("Limits", sections.limit_blocks(facts)),
        Section(f"The {sections.N_BEST} best trials and the anchors", sections.best_trial_blocks(facts)),
        Section("Side by side", sections.side_by_side_blocks(facts)),
        Section("Parameters of the best trial", sections.best_parameter_blocks(facts)),
        Section("Repair", sections.repair_blocks(facts)),
        *figure_sections(facts),
        Section("Conditions", sections.condition_blocks(facts)),
    )
    return Page(f"Study {study.study_name}", parts, [text.text for text in verdict])
