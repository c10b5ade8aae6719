"""Where things live. Defaults are relative to the repository, not to the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from study.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
RUNS = RESULTS / "runs"


def run_dir(study_name: str, out: str | None = None) -> Path:
    """The folder of a study: `out` if given, else results/runs/<study-name>/.

    Raises:
        UserError: The name would lead out of results/runs.
    """
    if not out and (study_name in ("", ".", "..") or "/" in study_name):
        raise UserError(f"A study called {study_name!r} has no folder of its own. Name one with --out.")
    return Path(out) if out else RUNS / study_name


def default_storage(study_name: str, out: str | None = None) -> str:
    """SQLAlchemy URL of the SQLite file in the study's folder."""
    # Not resolved: that asks the system about every part, and fails where a link leads to itself.
    folder = os.path.abspath(run_dir(study_name, out))
    if "?" in folder:
        raise UserError(f"SQLite's URLs take no question mark: {folder!r}. Name another folder with --out.")
    return f"sqlite:///{folder}/study.db"


def cache_dir() -> Path:
    """The user's cache for this program (XDG base directory specification).

    Raises:
        FileNotFoundError: There is no home folder either.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if not base and (home := os.path.expanduser("~")) == "~":
        raise FileNotFoundError("no home folder is known; $XDG_CACHE_HOME names one for caches")
    return Path(base or f"{home}/.cache") / "small-cnn-study"
