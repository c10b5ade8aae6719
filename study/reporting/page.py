"""A report's page, and how it becomes HTML (one file that opens offline) or plain Markdown for a terminal.

Page
|- title
`- sections, each a heading and blocks: Text | Tiles | Table | Charts

Whatever a study's name or attributes hold is text: `page.html.j2` and `markdown_text` see to that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
import plotly.offline
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from study.command_line.wording import markdown_table, markdown_text
from study.machine.files import unwritten, write_together


@dataclass(frozen=True)
class Text:
    """A paragraph. `tone` is "", "good", "bad" or "note"."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Tiles:
    """Key figures: (value, label)."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        columns: Headings.
        rows: One cell per column.
        numeric: Indices of the columns to align to the right.
        marked: Indices of the rows to set off.
        folded: What HTML hides it behind until it is opened, if anything.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Collection[int] = ()
    marked: Collection[int] = ()
    folded: str = ""


@dataclass(frozen=True)
class Charts:
    """Figures by their fixed ids in the page; several stand side by side."""

    figures: Mapping[str, go.Figure]


Block = Text | Tiles | Table | Charts


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report; `key_lines` say it in a few lines of a terminal."""

    title: str
    sections: Sequence[Section]
    key_lines: Sequence[str]


def to_markdown(page: Page) -> str:
    """The page as Markdown whose tables line up in a terminal; figures are left out."""
    parts = [f"# {markdown_text(page.title)}"]
    for section in page.sections:
        if {Charts} <= {type(block) for block in section.blocks} <= {Charts, Text}:
            continue  # only the words around a figure would be left
        parts.append(f"## {markdown_text(section.heading)}")
        parts += [text for block in section.blocks if (text := _block_markdown(block))]
    return "\n\n".join(parts) + "\n"


def _block_markdown(block: Block) -> str:
    match block:
        case Text():
            return markdown_text(block.text)
        case Tiles():
            rows = [(label[0].upper() + label[1:], value) for value, label in block.items]
            return markdown_table(("Figure", "Value"), rows, numeric={1}, padded=True)
        case Table():
            return markdown_table(block.columns, block.rows, block.numeric, padded=True)
    return ""


def to_html(page: Page) -> str:
    """The page as one file that needs nothing from a network."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        page=page, plotly_js=plotly.offline.get_plotlyjs(), draw=_drawn, kind=lambda block: type(block).__name__
    )


def _drawn(name: str, figure: go.Figure) -> str:
    """The figure's element and script, as HTML; plotly escapes what its JSON holds."""
    config = {"responsive": True, "displaylogo": False, "displayModeBar": False, "scrollZoom": False}
    height = f"{figure.layout.height}px"
    drawn = plotly.io.to_html(
        figure, config, full_html=False, include_plotlyjs=False, div_id=name, default_height=height
    )
    return str(drawn)


def write_page(page: Page, out: Path) -> tuple[Path, Path]:
    """Writes report.html and report.md into `out`, both or neither; returns their paths.

    Raises:
        UserError, StudyFailed: They cannot be written; older ones are left as they are.
    """
    html, markdown = out / "report.html", out / "report.md"
    try:
        write_together({html: to_html(page), markdown: to_markdown(page)})
    except OSError as error:
        what = f"The report in {str(out)!r}"
        otherwise = "Allow writing there, or name the study's --storage and another folder with --out."
        raise unwritten(what, error, otherwise) from error
    return html, markdown
