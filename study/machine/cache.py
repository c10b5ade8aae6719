"""What was measured on this machine, kept as JSON in the user's cache: a convenience, never needed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from study.machine.files import DamagedFileError, read_json, write_atomically
from study.machine.paths import cache_dir


def recall(name: str) -> dict[str, Any]:
    """What was kept under `name`; empty if nothing was, or it cannot be read."""
    try:
        return read_json(_file(name))
    except DamagedFileError:
        return {}


def keep(name: str, content: dict[str, Any]) -> None:
    """Keeps `content`, ready for JSON, under `name`."""
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time later, no more
        write_atomically(_file(name), json.dumps(content, indent=1))


def _file(name: str) -> Path:
    return cache_dir() / f"{name}.json"
