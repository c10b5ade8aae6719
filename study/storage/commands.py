"""Command lines as they are printed and kept: to be pasted as they are, but for passwords."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.command_line.options import default_space
from study.storage.database import hide_password

CARRIED = ("device", "data", "cluster", "worker_cpus", "worker_gpus", "storage", "study_name", "out")
"""Options that say where a study lies and where it is trained: what follows a command needs them too."""


def next_command(module: str, options: argparse.Namespace, name: str) -> str:
    """The line to paste to run `module` on the study `name`, with the options that are CARRIED as they were given."""
    given = {option: getattr(options, option, None) for option in CARRIED}
    given["storage"] = given["storage"] and hide_password(given["storage"])
    given["study_name"] = None if name == default_space() else name
    words = [word for option, value in given.items() for word in _words(option, value)]
    return shlex.join(["python", "-m", module, *words])


def _words(option: str, value: Any) -> list[str]:
    """An option and its value, which may begin with a dash; nothing where it is what it is anyway."""
    if value is None or (option, value) == ("device", "auto"):
        return []
    name, text = "--" + option.replace("_", "-"), f"{value:g}" if isinstance(value, float) else str(value)
    if (option, value) == ("cluster", "auto"):
        return [name]
    return [f"{name}={text}"] if text.startswith("-") else [name, text]


def command_of(module: str, argv: Sequence[str] | None, storage: str | None) -> str:
    """What the user typed, fit to print: a password in the URL `storage`, or in another one, is left out."""
    words = sys.argv[1:] if argv is None else argv
    if storage:
        words = [word.replace(storage, hide_password(storage)) for word in words]
    words = [hide_password(word) if "://" in word else word for word in words]
    return shlex.join(["python", "-m", module, *words])


def dashboard_command(url: str, artifacts: Path) -> str:
    """The line to paste to watch the study."""
    return shlex.join(["optuna-dashboard", hide_password(url), "--artifact-dir", str(artifacts.resolve())])
