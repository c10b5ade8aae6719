"""Rebuild the report of a study, `report.html` and `report.md`, from its storage.

python -m study.report
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from study.command_line.options import add_study_options, place_of
from study.command_line.parser import Parser, run_command
from study.command_line.waiting import say_first
from study.command_line.wording import printable


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m study.report",
        description="Rebuild report.html and report.md of a study from its storage.",
        epilog="example: python -m study.report --study-name dilated",
    )
    add_study_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    place = place_of(options)
    say_first(f"Reading the study {place.name!r} in {place.out}", sys.stderr)

    # Optuna and plotly: only with options that can be meant.
    from study.reporting.dashboard import publish_report, restore
    from study.reporting.page import write_page
    from study.reporting.report import build_page
    from study.storage.database import open_study
    from study.storage.folder import refuse_foreign

    study = open_study(place.url, place.name)
    refuse_foreign(place.out, place.name, study)
    page = build_page(study, place.out)
    for line in page.key_lines:
        print(printable(line))
    files = write_page(page, place.out)
    for file in files:
        print(printable(str(file)))
    restore(study, place.out / "artifacts")
    publish_report(study, place.out / "artifacts", files[0], add=False)
    return 0


if __name__ == "__main__":
    run_command(main)
