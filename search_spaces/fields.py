"""What the fields of a frozen description may hold: their types, and sizes that no honest network reaches.

Descriptions come from files and databases of strangers. `check_fields` looks at the annotations of a dataclass when one
is made; `from_fields` makes one of JSON. What it refuses never gets as far as an allocation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, TypeVar

T = TypeVar("T")


class DescriptionError(ValueError):
    """A description has a value that its field does not take, or describes nothing that can be."""


@dataclass(frozen=True)
class Within:
    """A number from `least` to `most`."""

    least: float
    most: float


Count = Annotated[int, Within(1, 2**16)]
"""Of channels, classes, images in a batch."""
Fraction = Annotated[float, Within(0, 1)]
Amount = Annotated[float, Within(0, 1e300)]
"""Neither NaN nor infinite."""

_Kind = tuple[tuple[type, ...], Within | None]
"""The types of a value, and its range if it has one: that of a tuple is of its length."""


def check_fields(description: Any) -> None:
    """Holds every field of a dataclass against its annotation.

    Raises:
        DescriptionError: One has another type or is out of its range.
    """
    for name, kind, item in _rules(type(description)):  # type: ignore[arg-type]
        value = getattr(description, name)
        if item is None or value is None:
            _check(name, value, kind)
            continue
        types, within = kind
        _check(name, value, (types, None))
        if within is not None:
            _check(f"the number of {name}", len(value), ((int,), within))
        for each in value:
            _check(f"each of {name}", each, item)


def fitting(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that the fields of `cls` take, by name."""
    found = {}
    for name, kind, _ in _rules(cls):
        if name in values:
            with contextlib.suppress(DescriptionError):
                _check(name, values[name], kind)
                found[name] = values[name]
    return found


def _check(name: str, value: Any, kind: _Kind) -> None:
    types, within = kind
    # True and False are integers to Python, and to nobody else.
    if type(value) not in types and (isinstance(value, bool) or not isinstance(value, types)):
        raise DescriptionError(f"{name} must be {_named(types)}: {shown(value)}.")
    if within is not None and value is not None and not within.least <= value <= within.most:
        raise DescriptionError(f"{name} must be between {within.least:g} and {within.most:g}: {shown(value)}.")


def from_fields(cls: type[T], data: Any) -> T:
    """The dataclass `cls` with the fields that the JSON object `data` gives.

    Raises:
        DescriptionError: Fields are missing, unknown, or hold what they do not take.
    """
    what, data = cls.__name__, opened(data, cls.__name__)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := [name for name in data if name not in fields]:
        raise DescriptionError(f"{what} has no field {shown(unknown[0])}.")
    needed = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in data]:
        raise DescriptionError(f"{what} needs the field {missing[0]!r}.")
    return cls(**data)


def opened(data: Any, what: str) -> dict[str, Any]:
    """A copy of a JSON object.

    Raises:
        DescriptionError: It is something else.
    """
    if not isinstance(data, Mapping):
        raise DescriptionError(f"{what} must be a JSON object: {shown(data)}.")
    return dict(data)


@functools.cache
def _rules(cls: type) -> tuple[tuple[str, _Kind, _Kind | None], ...]:
    """(name, what it takes, what its items are, if it has any) of every field."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return tuple((field.name, *_rule(hints[field.name])) for field in dataclasses.fields(cls))


def _rule(hint: Any) -> tuple[_Kind, _Kind | None]:
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, UnionType) else (hint,)
    types: list[type] = []
    within: Within | None = None
    item: _Kind | None = None
    for part in parts:
        if typing.get_origin(part) is Annotated:
            part, within = typing.get_args(part)
        if typing.get_origin(part) is tuple:
            item, _ = _rule(typing.get_args(part)[0])
        part = typing.get_origin(part) or part
        types += (float, int) if part is float else (part,)  # JSON writes 1.0 as 1
    return (tuple(types), within), item


def _named(types: tuple[type, ...]) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return " or ".join(words.get(each, each.__name__) for each in types if each is not int or float not in types)


def shown(value: Any) -> str:
    """The beginning of it: what was given may be of any size, and a number too long to print."""
    if isinstance(value, int) and not -(10**20) < value < 10**20:
        return "a number of more than 20 digits"
    text = repr(value) if isinstance(value, (int, float, str, type(None))) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."
