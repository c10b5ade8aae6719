"""What was measured on this machine, kept as JSON in the user's cache: a convenience, never needed.

Whoever reads it is told once of what cannot be read or kept.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from study.errors import first_line
from study.machine.files import DamagedFileError, read_json, what_is, write_atomically
from study.machine.paths import cache_dir

T = TypeVar("T")


def recall(name: str, read: Callable[[dict[str, Any]], T]) -> T | None:
    """What `read` makes of what was kept under `name`; None if nothing was, or it cannot be read.

    Args:
        name: Of the measurement.
        read: May raise KeyError, TypeError or ValueError at what another version kept.
    """
    try:
        file = _file(name)
        return None if what_is(file) == "does not exist" else read(read_json(file))
    except (OSError, DamagedFileError, KeyError, TypeError, ValueError) as error:
        complain(f"{name}.json in the cache cannot be read ({first_line(error)}): what it kept is measured anew")
        return None


def keep(name: str, content: dict[str, Any]) -> None:
    """Keeps `content`, ready for JSON, under `name`."""
    try:
        write_atomically(_file(name), json.dumps(content, indent=1))
    except OSError as error:  # costs time later, no more
        complain(f"what was measured cannot be kept ({error}): it will be measured again")


@functools.cache
def complain(what: str) -> None:
    """Says once what the cache cannot do."""
    print(f"note: {what}.", file=sys.stderr, flush=True)


def _file(name: str) -> Path:
    return cache_dir() / f"{name}.json"
