"""Numbers, names and tables as people read them."""

from __future__ import annotations

import re

import pytest

from study.command_line.wording import counted, duration, markdown_table, markdown_text

EVIL = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (42.4, "42 s"),
        (59.9, "1 min"),
        (200, "3 min 20 s"),
        (3599, "1 h 0 min"),
        (600, "10 min"),
        (120, "2 min"),
        (4325, "1 h 12 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_counted() -> None:
    assert [counted(n, "trial") for n in (0, 1, 1200)] == ["0 trials", "1 trial", "1,200 trials"]
    assert [counted(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]
    assert [counted(n, "slot", "are") for n in (1, 2)] == ["1 slot is", "2 slots are"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("< 200,000", "< 200,000"),
        (EVIL, "&lt;img src=x onerror=alert(1)>"),
        ("</td><!-- x", "&lt;/td>&lt;!-- x"),
        ("\\<b>", "\\&lt;b>"),  # a backslash of its own would free the tag after an escape by another backslash
        ("a\nb\r\nc", "a b c"),
        ("[here](javascript:alert(1))", "[here]\\(javascript:alert(1))"),
    ],
)
def test_markdown_text_holds_no_markup(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


def test_markdown_table() -> None:
    rows = [("a|b", "1"), ("x\ny", "1,000")]
    assert markdown_table(("Name", "N"), rows, numeric={1}) == "\n".join(
        ["| Name | N |", "| --- | --: |", "| a\\|b | 1 |", "| x y | 1,000 |"]
    )
    assert markdown_table(("Name", "N"), rows, numeric={1}, padded=True) == "\n".join(
        ["| Name |     N |", "| ---- | ----: |", "| a\\|b |     1 |", "| x y  | 1,000 |"]
    )
    assert markdown_table(("Name",), []) == "| Name |\n| --- |"


@pytest.mark.parametrize("cell", ["|", "\\|", "\\\\|", "a\\", EVIL + "|", "| --- |\n| x |"])
def test_a_cell_stays_one_cell(cell: str) -> None:
    line = markdown_table(("A", "B"), [(cell, "end")]).splitlines()[-1]
    bars = re.findall(r"(?<!\\)(?:\\\\)*\|", line)  # those that no odd number of backslashes escapes
    assert len(bars) == 3
    assert "<img" not in line
