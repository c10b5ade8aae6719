"""What was measured on this machine, kept as JSON in the user's cache: a convenience, never needed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from study.machine.files import write_whole
from study.machine.paths import cache_dir


def recall(name: str) -> Any:
    """What was kept under `name`; None if there is nothing, or it cannot be read."""
    try:
        return json.loads(_file(name).read_text())
    except (OSError, ValueError):
        return None


def keep(name: str, content: Any) -> None:
    """Keeps `content`, ready for JSON, under `name`. A cache that cannot be written costs time later, no more."""
    with contextlib.suppress(OSError):
        write_whole({_file(name): json.dumps(content, indent=1)})


def _file(name: str) -> Path:
    return cache_dir() / f"{name}.json"
