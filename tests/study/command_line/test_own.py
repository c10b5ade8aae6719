"""What the user brings along in a file: loaded where it is typed, and every mistake is one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search_spaces import SPACES
from search_spaces.architecture import Architecture
from search_spaces.constraints import OwnLimit
from search_spaces.reference import REFERENCE_ARCHITECTURE
from study.command_line.own import load_space, own_limits, own_space
from study.errors import UserError

FILE = """
from dataclasses import dataclass

from search_spaces.dilated import DilatedSpace

@dataclass
class Helper:
    value: "int" = 3

class Mine(DilatedSpace):
    name, version = "mine", 2

class Clash(DilatedSpace):
    name = "separable"

class Unnamed(DilatedSpace):
    name = 7

class Other:
    pass

def depth(architecture):
    return "depth", len(architecture.layers), 20

def growing(architecture):
    return "growing", 1, len(architecture.layers)

def fails(architecture):
    return 1 / 0

def vague(architecture):
    return 5

def infinite(architecture):
    return "infinite", float("nan"), 5

def huge(architecture):
    return "huge", 1.0, 1e305

def ours(architecture):
    return "latency_ms", 1, 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "brought.py").write_text(FILE)
    yield tmp_path / "brought.py"
    SPACES.pop("mine", None)


def test_a_space_is_registered_under_its_name(file: Path) -> None:
    assert own_space("dilated") == "dilated"
    assert own_space(f"{file}:Mine") == own_space(f"{file}:Mine") == "mine"
    assert (SPACES["mine"].version, load_space(f"{file}:Mine").name) == (2, "mine")


SPACE = """
from search_spaces.architecture import Architecture, Conv
from search_spaces.simple import SimpleSpace
from search_spaces.space import Integer

class Broken(SimpleSpace):
    name, version, wider, smallest = "mine", 1, ("depth",), {"depth": 1}
    structure = {"depth": (Integer(4, 12), DEFAULT)}

    def build(self, width, depth):
        return BUILT
"""


@pytest.mark.parametrize(
    ("default", "built", "words"),
    [
        ("60", "Architecture((Conv(width, separable=True, dilation=3),) * depth)", "has depth 60, not of 4 .. 12"),
        ("6", "undefined_name", r"cannot be used: NameError: .*undefined_name.* \(line 11 of brought.py\)"),
        ("6", "5", "cannot be used: AttributeError: 'int' object"),
    ],
)
def test_what_a_space_cannot_build_is_a_line(file: Path, default: str, built: str, words: str) -> None:
    file.write_text(SPACE.replace("DEFAULT", default).replace("BUILT", built))
    with pytest.raises(UserError, match=words) as caught:
        own_space(f"{file}:Broken")
    assert "\n" not in str(caught.value)


def test_a_space_has_a_point_to_start_from(file: Path) -> None:
    built = "Architecture((Conv(width, separable=True, dilation=3),) * depth)"
    none = "    def anchors(self, limits):\n        return {}\n"
    file.write_text(SPACE.replace("DEFAULT", "6").replace("BUILT", built) + none)
    with pytest.raises(UserError, match="its anchors must have a 'default'"):
        own_space(f"{file}:Broken")


def test_anchors_that_meet_no_limits_are_said(file: Path) -> None:
    built = "Architecture((Conv(width, separable=True, dilation=3),) * depth)"
    fails = "    def anchors(self, limits):\n        raise InfeasibleError(())\n"
    imports = "from search_spaces.constraints import InfeasibleError\n"
    file.write_text(imports + SPACE.replace("DEFAULT", "6").replace("BUILT", built) + fails)
    with pytest.raises(UserError, match="its anchors meet no limits: "):
        own_space(f"{file}:Broken")


def test_limits_are_measured_once_on_the_reference(file: Path) -> None:
    own = own_limits(["latency_ms=2", f"{file}:depth", "size_kb=400"])
    latency, depth, size = own.limits
    assert (latency, size) == (OwnLimit("latency_ms", 2.0), OwnLimit("size_kb", 400.0))
    assert (depth.name, depth.bound, depth.function) == ("depth", 20.0, "brought.py:depth")
    assert len(depth.source.split()[1]) == 12
    assert own.measure(depth, REFERENCE_ARCHITECTURE) == 13
    assert own_limits(None).limits == ()
    file.write_text(FILE + "# changed")
    assert own_limits([f"{file}:depth"]).limits != (depth,)


def test_a_limit_stays_the_same_for_every_architecture(file: Path) -> None:
    own = own_limits([f"{file}:growing"])
    with pytest.raises(UserError, match=r"the same name and bound .*'growing', 13, then 'growing', 1\."):
        own.measure(own.limits[0], Architecture(REFERENCE_ARCHITECTURE.layers[:1]))
    with pytest.raises(UserError, match=r"files are loaded only as they are typed: add --limit brought\.py:growing"):
        own_limits(None).measure(own.limits[0], REFERENCE_ARCHITECTURE)


@pytest.mark.parametrize(
    ("use", "text", "words"),
    [
        (load_space, "{folder}/none.py:Mine", "--space file.py:Class must name a file: .* does not exist"),
        (load_space, "{file}:Absent", "the file has nothing called 'Absent'"),
        (load_space, "{file}:Other", "must be a subclass of search_spaces.space.SearchSpace"),
        (load_space, "{file}:Clash", "'separable' is another space's"),
        (load_space, "{file}:Unnamed", "its name must be text"),
        (load_space, "{folder}/broken.py:Mine", r"cannot be loaded: ZeroDivisionError: .* \(line 2 of broken.py\)"),
        (load_space, "{folder}/typo.py:Mine", "cannot be loaded: SyntaxError"),
        (own_limits, "{file}:fails", r"failed on architecture .*: ZeroDivisionError: .* \(line \d+ of brought.py\)"),
        (own_limits, "{file}:vague", "must return a name .*: 5"),
        (own_limits, "{file}:infinite", "must return a name"),
        (own_limits, "{file}:ours", "'latency_ms' is a figure of ours"),
        (own_limits, "{file}:FILE", "the file has nothing called"),
        (own_limits, "latency_ms", "must be latency_ms=N, size_kb=N .*, or file.py:function: 'latency_ms'"),
        (own_limits, "size_kb=0", "with N above 0"),
        (own_limits, "latency_ms=1e301", "bound must be"),
        (own_limits, "{file}:huge", "bound must be"),
        (own_limits, "size_kb=nan", "with N above 0"),
        (own_limits, "energy=3", "must be latency_ms=N"),
    ],
)
def test_mistakes_take_one_line(use: Callable[..., object], text: str, words: str, file: Path) -> None:
    (file.parent / "broken.py").write_text("x = 1\nx / 0\n")
    (file.parent / "typo.py").write_text("def (:\n")
    given = text.format(file=file, folder=file.parent)
    with pytest.raises(UserError, match=words) as caught:
        use([given] if use is own_limits else given)
    assert "\n" not in str(caught.value)


def test_a_limit_cannot_be_given_twice(file: Path) -> None:
    with pytest.raises(UserError, match="a name of its own: 'depth'"):
        own_limits([f"{file}:depth", f"{file}:depth"])
