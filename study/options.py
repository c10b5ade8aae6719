"""The options that every command of a study shares, with the same defaults. Light: no Optuna, no torch."""

from __future__ import annotations

import argparse

from search_spaces import DEFAULT_SPACE
from study.paths import default_storage


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """`--storage`, `--study-name`, `--out`: the same defaults for every command."""
    group = parser.add_argument_group("study")
    group.add_argument("--storage", metavar="URL", help="SQLAlchemy URL (default: sqlite in the study's folder)")
    group.add_argument("--study-name", metavar="NAME", help=f"(default: the space's name, {DEFAULT_SPACE})")
    group.add_argument("--out", metavar="DIR", help="folder of the study (default: results/runs/<study-name>)")


def storage_url(options: argparse.Namespace) -> str:
    """The URL that the options of `add_study_options` mean."""
    return options.storage or default_storage(study_name(options), options.out)


def study_name(options: argparse.Namespace) -> str:
    """The study name that the options mean; `--space`, where a command has it, is its default."""
    return options.study_name or getattr(options, "space", None) or DEFAULT_SPACE
