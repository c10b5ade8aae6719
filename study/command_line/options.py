"""The options that every command of a study shares, with the same defaults. Light: no Optuna, no torch."""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from search_spaces import DEFAULT_SPACE, GPU_SPACE
from study.errors import UserError
from study.machine.paths import default_storage

CHECKPOINT_S = 30.0


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """`--storage`, `--study-name`, `--out`: the same defaults for every command."""
    group = parser.add_argument_group("study")
    group.add_argument("--storage", metavar="URL", help="SQLAlchemy URL (default: sqlite in the study's folder)")
    group.add_argument(
        "--study-name",
        metavar="NAME",
        help=f"(default: the space's name; {GPU_SPACE} where there is a GPU, else {DEFAULT_SPACE})",
    )
    group.add_argument("--out", metavar="DIR", help="folder of the study (default: results/runs/<study-name>)")


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint-every`."""
    parser.add_argument(
        "--checkpoint-every",
        type=float,
        default=CHECKPOINT_S,
        metavar="S",
        help="an interrupted trial loses at most so many seconds of its training (default: %(default)g)",
    )


def storage_url(options: argparse.Namespace) -> str:
    """The URL that the options of `add_study_options` mean."""
    return options.storage or default_storage(study_name(options), options.out)


def study_name(options: argparse.Namespace) -> str:
    """The study name that the options mean; the space is its default.

    A command that takes no space finds the study of either default, whichever device it was made for.
    """
    name: str = options.study_name or space_name(options)
    if options.study_name or hasattr(options, "space"):
        return name
    for each in (name, *({DEFAULT_SPACE, GPU_SPACE} - {name})):
        if each in _names_in(options.storage or default_storage(each, options.out)):
            return each
    return name


def _names_in(url: str) -> list[str]:
    """Names of the studies in a SQLite file, read without Optuna, which takes a while to load; none elsewhere."""
    file = url.removeprefix("sqlite:///")
    if file == url or not Path(file).is_file():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(file)}?mode=ro", uri=True)) as connection:
            return [name for (name,) in connection.execute("SELECT study_name FROM studies")]
    except sqlite3.Error:  # no database, or none of Optuna's: who opens it in earnest will say so
        return []


def space_name(options: argparse.Namespace) -> str:
    """The space that the options mean: `--space`, else the one that the device can afford."""
    asked: str | None = getattr(options, "space", None)
    return asked or default_space(getattr(options, "device", "auto"))


def default_space(device: str = "auto") -> str:
    """What is searched on `device` ("auto", "cpu" or "cuda") unless a space is named."""
    return GPU_SPACE if device == "cuda" or (device == "auto" and has_gpu()) else DEFAULT_SPACE


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU that this process may use, found without torch, which takes seconds to load."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (not visible.strip() or visible.strip() == "-1"):
        return False
    gpus = Path("/proc/driver/nvidia/gpus")
    return gpus.is_dir() and any(gpus.iterdir())


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that the user gave."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def check_fraction(option: str, value: float | None) -> None:
    """Refuses what is no fraction between 0 and 1.

    Raises:
        UserError: It is given and is none.
    """
    if value is None or 0 < value < 1:
        return
    meant = f" For {value:g}% write {value / 100:g}." if 1 < value < 100 else ""
    raise UserError(f"{option} is a fraction between 0 and 1: {value:g}.{meant}")


def jobs_option(text: str) -> int | str:
    """The value of `--jobs`: a number or "auto"."""
    if text != "auto" and not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number or auto: {text!r}")
    return text if text == "auto" else int(text)
