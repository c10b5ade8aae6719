"""Where things live. Defaults are relative to the repository, not to the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from study.machine.sqlite import sqlite_url

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
RUNS = RESULTS / "runs"


def run_dir(study_name: str, out: str | None = None) -> Path:
    """The folder of a study: `out` if given, else results/runs/<study-name>/."""
    return Path(out) if out else RUNS / study_name


def default_storage(study_name: str, out: str | None = None) -> str:
    """SQLAlchemy URL of the SQLite file in the study's folder."""
    return sqlite_url(run_dir(study_name, out) / "study.db")


def cache_dir() -> Path:
    """The user's cache for this program (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "small-cnn-study"
