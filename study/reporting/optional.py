"""The report, where the packages that it needs are there; and while a study runs."""

from __future__ import annotations

import time
from collections.abc import Callable
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


EVERY = 10
"""Trials after which the report of a running study is written again."""
SHARE = 0.02
"""Of a search's time that it may take at most."""


class LiveReport:
    """The report of a running study, so that it can be watched: written again after every tenth trial, but for those
    that come before the last one has paid for itself. Whatever goes wrong costs the report, never the study.

    Args:
        study: Whose trials are told in this process.
        out: Its folder.
        write: Prints a line.
    """

    def __init__(self, study: optuna.Study, out: Path, write: Callable[[str], None]) -> None:
        self._study, self._out, self._write = study, out, write
        self._n, self._not_before = 0, 0.0

    def trial_finished(self) -> None:
        self._n += 1
        start = time.monotonic()
        if self._n % EVERY or start < self._not_before:
            return
        try:
            from study.reporting.report import write_report

            write_report(self._study, self._out)
        except Exception as error:  # whatever it is, the report at the end of the search says it in full
            self._write(f"no report while the study runs: {printable(first_line(error))}")
            self._not_before = float("inf")
            return
        end = time.monotonic()
        self._not_before = end + (end - start) / SHARE
