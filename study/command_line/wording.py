"""Numbers as people read them."""

from __future__ import annotations

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
