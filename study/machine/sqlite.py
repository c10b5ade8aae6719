"""SQLite files: how a URL names one."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

from study.errors import UserError

_URL = re.compile(r"sqlite(?:\+\w+)?:///(?P<database>[^?]*)(?:\?(?P<query>.*))?", re.DOTALL)


def sqlite_url(file: Path) -> str:
    """The SQLAlchemy URL of `file`, whatever characters its path has.

    Raises:
        UserError: The path is no text.
    """
    try:
        return f"sqlite:///{quote(str(file.resolve()))}"
    except UnicodeEncodeError as error:
        raise UserError(f"A folder's name must be UTF-8: {str(file)!r} is not. Choose another with --out.") from error


def sqlite_file(url: str) -> Path | None:
    """The file that a SQLAlchemy URL names; None for a server and for a database in memory."""
    found = _URL.fullmatch(url)
    if found is None:
        return None
    file, options = unquote(found["database"]), parse_qs(found["query"] or "")
    if "uri" in options and file.startswith("file:"):  # SQLite's own URI
        if options.get("mode") == ["memory"]:
            return None
        file = unquote(re.split("[?#]", re.sub("^file:(//(localhost)?(?=/))?", "", file))[0])
    return Path(file) if file and file != ":memory:" else None
