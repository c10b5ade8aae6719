"""Numbers that options take: `action=at_least(1)` refuses what cannot be meant, in one line that names the option."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from study.command_line.wording import shown_value
from study.errors import UserError

Number = TypeVar("Number", int, float)


def _checked(
    kind: type[Number],
    shown: str,
    rule: str,
    meets: Callable[[Number], bool],
    hint: Callable[[Number], str] = lambda _: "",
) -> type[argparse.Action]:
    """The action of an option that takes a number which meets a rule; a hint says what another may have meant."""

    class Checked(argparse.Action):
        def __init__(self, **more: Any) -> None:
            settings: dict[str, Any] = {"type": kind, "metavar": shown, **more}
            super().__init__(**settings)

        def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
            if values is not None and not meets(values):
                raise UserError(f"{self.option_strings[0]} {rule}: {shown_value(values)}.{hint(values)}")
            setattr(namespace, self.dest, values)

    return Checked


def at_least(least: int) -> type[argparse.Action]:
    """The action of an option that takes a whole number, not smaller than `least`."""
    rule = f"must be at least {least:,}" if least else "must not be negative"
    return _checked(int, "N", rule, lambda value: value >= least)


def between(least: int, most: int) -> type[argparse.Action]:
    """The action of an option that takes a whole number from `least` to `most`."""
    rule = f"must be between {least:,} and {most:,}"
    return _checked(int, "N", rule, lambda value: least <= value <= most)


def above(bound: float, unit: str = "seconds") -> type[argparse.Action]:
    """The action of an option that takes more than `bound` of a unit."""
    return _checked(float, unit[0].upper(), f"must be above {bound:g} {unit}", lambda value: value > bound)


def fraction() -> type[argparse.Action]:
    """The action of an option that takes a number between 0 and 1, which some will write in per cent."""

    def hint(value: float) -> str:
        return f" For {value:g}% write {value / 100:g}." if 1 < value < 100 else ""

    return _checked(float, "A", "is a fraction between 0 and 1", lambda value: 0 < value < 1, hint)


def whole_or_auto(text: str) -> int | None:
    """The type of an option that takes a whole number or "auto", which is None."""
    try:
        return None if text == "auto" else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number or auto: {text!r}") from error
