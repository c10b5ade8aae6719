"""What was measured on this machine, kept as JSON in the user's cache: a convenience, never needed."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from study.machine.paths import cache_dir


def recall(name: str) -> Any:
    """What was kept under `name`; None if there is nothing, or it cannot be read."""
    try:
        return json.loads(_file(name).read_text())
    except (OSError, ValueError):
        return None


def keep(name: str, content: Any) -> None:
    """Keeps `content`, ready for JSON, under `name`. A cache that cannot be written costs time later, no more."""
    file = _file(name)
    temporary = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(file)


def _file(name: str) -> Any:
    return cache_dir() / f"{name}.json"
