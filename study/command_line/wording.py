"""Numbers, names and tables as people read them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

MISSING = "-"
"""What stands for a value that is not known."""


def percent(value: float | None, digits: int = 1) -> str:
    """0.8734 -> 87.3%."""
    return MISSING if value is None else f"{100 * value:.{digits}f}%"


def whole(value: int | None) -> str:
    """175696 -> 175,696."""
    return MISSING if value is None else f"{value:,}"


def millions(value: int | None) -> str:
    """27400000 -> 27.4M."""
    return MISSING if value is None else f"{value / 1e6:,.1f}M"


def rounded(value: float | None) -> str:
    """2.34567 -> 2.346; 123456.7 -> 123,457."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:,.4g}"


def duration(seconds: float | None) -> str:
    """4325 -> 1 h 12 min."""
    if seconds is None:
        return MISSING
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if round(seconds / 60) < 60:
        return f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def for_all(n_seeds: int) -> str:
    """What follows a time that several seeds took, some of them at once perhaps."""
    return f", summed over {n_seeds} seeds" if n_seeds > 1 else ""


def taught_by(teacher: Any) -> str:
    """The larger network that a network learned from, of its metrics; empty if there is none, or it cannot be told."""
    try:
        size, epochs = f"{teacher['params']:,} parameters", counted(teacher["epochs"], "epoch")
        return f"{size}, trained before it for {epochs} in {duration(teacher['wall_s'])}"
    except (KeyError, OverflowError, TypeError, ValueError):
        return ""


def counted(n: int, noun: str, verb: str = "") -> str:
    """(1, "trial") -> 1 trial; (1200, "trial") -> 1,200 trials; (2, "class") -> 2 classes; (3, "trial", "are") -> 3
    trials are."""
    one = n == 1
    plural = "" if one else "es" if noun.endswith("s") else "s"
    return f"{n:,} {noun}{plural}" + f" {'is' if one else verb}" * bool(verb)


_OF_USER = re.compile(r"(://[^\s:/@]*|\b[\w.+-]+):(?![\s/])\S+@(?=[\w\[])")
_NO_PORT = re.compile(r"(://[^\s:/@\[]+):(?!\d+\b)[^\s/@'\"]+")
_IN_OPTION = re.compile(r"(\w*(?:pass|pwd|secret|token)\w*=)[^\s&'\"]+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """`text` with stars for what looks like a password in a URL, in its options, or in one that was mistyped."""
    return _IN_OPTION.sub(r"\1***", _NO_PORT.sub(r"\1:***", _OF_USER.sub(r"\1:***@", text)))


def shown_value(value: Any) -> str:
    """A setting: True -> yes, 45000 -> 45,000, 0.012345 -> 0.01235, and whatever else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """`text` with escapes in place of what moves a cursor, ends a line or is no character; file names hold such."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line per row, columns two spaces apart and as wide as their longest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def markdown_text(text: str) -> str:
    """`text` on one line, with no HTML and no link of its own; everything else stays as a terminal shows it best."""
    line = " ".join(text.splitlines())
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line).replace("](", "]\\(")


def markdown_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Collection[int] = (), padded: bool = False
) -> str:
    """A table in GitHub's Markdown, without a line break at its end.

    Args:
        columns: Headings.
        rows: One cell per column, in whatever characters.
        numeric: Indices of the columns to align to the right.
        padded: Whether columns line up in a terminal too.
    """
    lines = [[_cell(text) for text in row] for row in (columns, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) if padded else 3 for i in range(len(columns))]
    rule = ["-" * (width - 1) + (":" if i in numeric else "-") for i, width in enumerate(widths)]

    def pad(i: int, cell: str) -> str:
        width = widths[i] if padded else 0
        return cell.rjust(width) if i in numeric else cell.ljust(width)

    lines.insert(1, rule)
    return "\n".join(f"| {' | '.join(pad(i, cell) for i, cell in enumerate(line))} |" for line in lines)


def _cell(text: str) -> str:
    """A backslash before a bar would end what escapes the bar, so it is doubled."""
    return re.sub(r"(\\*)\|", r"\1\1\\|", markdown_text(text))
