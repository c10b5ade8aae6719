"""Rebuild the report of a study, `report.html` and `report.md`, from its storage.

python -m study.report
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from study.command_line.options import add_study_options, storage_url, study_name
from study.command_line.parser import Parser, run_command
from study.machine.paths import run_dir


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

    # Optuna and plotly: only with options that can be meant.
    from study.reporting.page import write_page
    from study.reporting.report import build_page
    from study.storage.database import open_study

    name = study_name(options)
    study = open_study(storage_url(options), name)
    out = run_dir(name, options.out)
    page = build_page(study, out)
    paths = write_page(page, out)
    for line in page.key_lines:
        print(line)
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    run_command(main)
