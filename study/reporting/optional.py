"""The report, where the packages that it needs are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from study.command_line.wording import printable
from study.errors import first_line

if TYPE_CHECKING:
    import optuna


def report(study: optuna.Study, out: Path, tell: bool = True) -> Path | None:
    """Writes the report, unless a package that only reports need is missing: results are never lost for that.

    Returns:
        The page, if there is one.
    """
    try:
        from study.reporting.report import write_report

        html, markdown = write_report(study, out)
    except ImportError as error:
        print(f"No report: {first_line(error)}. With that package python -m study.report writes it.", flush=True)
        return None
    if tell:
        print(f"Report: {printable(str(html))}\n        {printable(str(markdown))}", flush=True)
    return html
