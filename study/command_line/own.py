"""What the user brings along in a Python file: a search space, a limit.

Loading such a file runs it. So only what was typed on the command line is ever loaded, never what a database or a
bundle says.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from search_spaces import SPACES, SearchSpace
from search_spaces.architecture import Architecture
from search_spaces.constraints import MEASURES, InfeasibleError, Limits, OwnLimit
from search_spaces.fields import DescriptionError
from search_spaces.reference import REFERENCE_ARCHITECTURE
from search_spaces.training_dimensions import TRAINING_DIMENSIONS
from study.errors import UserError, first_line, said, shortened
from study.machine.files import is_file, what_is

SPACE_FORM, LIMIT_FORM = "file.py:Class", "file.py:function"
_loaded: dict[tuple[Path, str], ModuleType] = {}
"""By the file and the beginning of its SHA-256."""
_spaces: set[str] = set()


@dataclass(frozen=True)
class OwnLimits:
    """The limits that were typed.

    Attributes:
        limits: What a study stores of them.
        functions: What measures those of a file, by their names: (name, value, bound) of an architecture.
    """

    limits: tuple[OwnLimit, ...] = ()
    functions: Mapping[str, Callable[[Architecture], Any]] = field(default_factory=dict)

    def measure(self, limit: OwnLimit, architecture: Architecture) -> float:
        """What the function of `limit` says of `architecture`.

        Raises:
            UserError: It was not typed, fails, or says another name or bound than before.
        """
        if limit.name not in self.functions:
            raise UserError(
                f"The study has the limit {limit.name} of a file, and files are loaded only as they are typed: add "
                f"--limit {limit.function}."
            )
        name, value, bound = _called(self.functions[limit.name], limit.function, architecture)
        if (name, bound) != (limit.name, limit.bound):
            raise UserError(
                f"--limit {limit.function} must return the same name and bound for every architecture: "
                f"{limit.name!r}, {limit.bound:g}, then {name!r}, {bound:g}."
            )
        return value


def is_own(text: str) -> bool:
    """Whether `text` names something in a Python file."""
    return ".py:" in text


def own_space(text: str) -> str:
    """The type of the option `--space`: a space of a file is loaded and registered, and called by its name.

    Raises:
        UserError: There is no such file or class, or it is no search space.
    """
    if not is_own(text):
        return text
    space = load_space(text)
    _check_anchors(space, text)
    return space.name


def _check_anchors(space: SearchSpace, text: str) -> None:
    """Refuses a space whose known points cannot be built. `describe --check` looks closer."""
    with told(space, f"--space {text}"):
        try:
            anchors = space.anchors(Limits())
        except InfeasibleError as error:
            raise UserError(f"--space {text}: its anchors meet no limits: {said(error)}.") from error
        if "default" not in anchors:
            raise UserError(f"--space {text}: its anchors must have a 'default', the point that searches start from.")
        for anchor, params in anchors.items():
            for name, dimension in space.dimensions.items():
                if not dimension.contains(params[name]):
                    raise UserError(f"--space {text}: its {anchor} has {name} {params[name]!r}, not of {dimension}.")
            with contextlib.suppress(InfeasibleError):  # by limits that may be others
                space.decode(params, Limits())


@contextlib.contextmanager
def told(space: SearchSpace, named: str = "", params: Mapping[str, Any] | None = None) -> Iterator[None]:
    """What goes wrong within a space of the user's is a mistake that gets a line; within one of ours it is a bug.

    Args:
        space: Whose methods are called here.
        named: What to call it.
        params: What it is called with.

    Raises:
        UserError: Something goes wrong in a space that was typed.
        InfeasibleError: As the space does.
    """
    try:
        yield
    except (UserError, InfeasibleError):
        raise
    except Exception as error:  # the user's own, of whatever kind
        if space.name not in _spaces:
            raise
        structure = (f"{name} {value!r}" for name, value in (params or {}).items() if name not in TRAINING_DIMENSIONS)
        of = f" with {', '.join(structure)}" if params else ""
        raise UserError(
            f"{named or f'The space {space.name!r}'} cannot be used: {first_line(error)}{_where(error)}{of}."
        ) from error


def load_space(text: str) -> SearchSpace:
    """The space `file.py:Class`, registered under its name.

    Raises:
        UserError: As `own_space`.
    """
    found, _ = _load(text, "--space", SPACE_FORM)
    if not (isinstance(found, type) and issubclass(found, SearchSpace)):
        raise UserError(f"--space {text}: it must be a subclass of search_spaces.space.SearchSpace.")
    try:
        space = found()
        name, version = space.name, space.version
    except Exception as error:  # whatever is wrong with it: of an abstract class, or the user's own
        raise UserError(f"--space {text} cannot be used: {first_line(error)}.") from error
    if not (isinstance(name, str) and name and name.isprintable() and isinstance(version, int)):
        raise UserError(f"--space {text}: its name must be text and its version a whole number.")
    if name in SPACES and name not in _spaces:
        raise UserError(f"--space {text} must have a name of its own: {name!r} is another space's.")
    _spaces.add(name)
    SPACES[name] = found
    return space


def own_limits(texts: Sequence[str] | None) -> OwnLimits:
    """What the options `--limit` mean; each function is called once, on the reference network.

    Raises:
        UserError: There is no such figure, file or function, or the function fails or returns something else.
    """
    limits, functions = [], {}
    try:
        for text in texts or ():
            if is_own(text):
                function, digest = _load(text, "--limit", LIMIT_FORM)
                if not callable(function):
                    raise UserError(f"--limit {text} must be a function of an architecture.")
                label = f"{Path(text.rpartition(':')[0]).name}:{text.rpartition(':')[2]}"
                name, _, bound = _called(function, text, REFERENCE_ARCHITECTURE)
                if name in MEASURES:
                    raise UserError(f"--limit {text} must return a name of its own: {name!r} is a figure of ours.")
                limits.append(OwnLimit(name, bound, f"{label} {digest}"))
                functions[name] = function
            else:
                limits.append(_built_in(text))
        Limits(own=tuple(limits))
    except DescriptionError as error:
        raise UserError(f"--limit: {said(error)}") from error
    return OwnLimits(tuple(limits), functions)


def _built_in(text: str) -> OwnLimit:
    name, _, number = text.partition("=")
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if name not in MEASURES or not 0 < bound < math.inf:
        forms = ", ".join(f"{each}=N" for each in MEASURES)
        raise UserError(f"--limit must be {forms} (with N above 0), or {LIMIT_FORM}: {shortened(text)!r}.")
    return OwnLimit(name, bound)


def _called(function: Callable[[Architecture], Any], text: str, architecture: Architecture) -> tuple[str, float, float]:
    """What a function of the user's returns, checked."""
    try:
        found = function(architecture)
    except Exception as error:  # the user's own, of whatever kind
        where = _where(error)
        raise UserError(
            f"--limit {text} failed on architecture {architecture.architecture_id}: {first_line(error)}{where}."
        ) from error
    try:
        name, value, bound = found
        value, bound = float(value), float(bound)
        if isinstance(name, str) and name.isidentifier() and math.isfinite(value) and math.isfinite(bound):
            return name, value, bound
    except (TypeError, ValueError):
        pass
    raise UserError(
        f'--limit {text} must return a name (letters, digits, underscores), a value and a bound, as in ("energy_mj", '
        f"3.5, 5.0): {shortened(repr(found))}."
    )


def _load(text: str, option: str, form: str) -> tuple[Any, str]:
    """What `text` names, and the beginning of the file's SHA-256."""
    path, _, name = text.rpartition(":")
    if not is_file(path):
        raise UserError(f"{option} {form} must name a file: {path!r} {what_is(path)}.")
    file = Path(path).resolve()
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise UserError(f"{option} {text}: the file cannot be read ({error.strerror or error}).") from error
    if (file, digest) not in _loaded:
        _run(file, digest, option)
    try:
        return getattr(_loaded[file, digest], name), digest
    except AttributeError as error:
        raise UserError(f"{option} {text}: the file has nothing called {name!r}.") from error


def _run(file: Path, digest: str, option: str) -> None:
    """Makes the module of `file`; what it imports may lie beside it."""
    spec = importlib.util.spec_from_file_location(f"own_{len(_loaded)}_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _loaded[file, digest] = sys.modules[spec.name] = module  # dataclasses look there
    sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own, of whatever kind
        where = _where(error)
        del _loaded[file, digest]
        raise UserError(f"{option}: {str(file)!r} cannot be loaded: {first_line(error)}{where}.") from error


def _where(error: Exception) -> str:
    """The last line of the user's that raised it."""
    files = {file for file, _ in _loaded}
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in files]
    return f" (line {own[-1].lineno} of {Path(own[-1].filename).name})" if own else ""
