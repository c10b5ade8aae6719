"""Where things live. Defaults are relative to the repository, not to the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from study.errors import UserError, shortened
from study.machine.sqlite import sqlite_url

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
RUNS = RESULTS / "runs"
MAX_FOLDER_BYTES = 200


def run_dir(study_name: str, out: str | None = None) -> Path:
    """The folder of a study: `out` if given, else results/runs/<study-name>/.

    Raises:
        UserError: There can be no such folder there.
    """
    if out is not None:
        if not out or "\0" in out:
            raise UserError(f"--out must name a folder: {out!r} is none.")
        return Path(out)
    if "/" in study_name or study_name.startswith(".") or len(study_name.encode()) > MAX_FOLDER_BYTES:
        raise UserError(
            f"A study's folder has its name, so that it holds no slash, no dot at its start and at most "
            f"{MAX_FOLDER_BYTES} bytes: {shortened(study_name)!r}. Name a folder with --out."
        )
    return RUNS / study_name


def default_storage(study_name: str, out: str | None = None) -> str:
    """SQLAlchemy URL of the SQLite file in the study's folder."""
    return sqlite_url(run_dir(study_name, out) / "study.db")


def cache_dir() -> Path:
    """The user's cache for this program (XDG base directory specification).

    Raises:
        FileNotFoundError: There is no home folder either.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if not base and (home := os.path.expanduser("~")) == "~":
        raise FileNotFoundError("no home folder is known; $XDG_CACHE_HOME names one for caches")
    return Path(base or f"{home}/.cache") / "small-cnn-study"
