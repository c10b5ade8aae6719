"""A report's page, and how it becomes HTML (one file that opens offline) or plain Markdown for a terminal.

Page
|- title
|- sections, each a heading and blocks: Text | Tiles | Gauges | Table | Charts | Pictures | Layers
`- files: what lies beside it

Whatever a study's name or attributes hold is text: `page.html.j2` and `markdown_text` see to that.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
import plotly.offline
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from study.command_line.wording import markdown_table, markdown_text
from study.machine.files import unwritten, write_together

PRINT_WIDTH = 680
"""Pixels of CSS that every sheet of paper has between its margins."""


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
        shades: How dark the cells after the first of each row are, in [0, 1].
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Collection[int] = ()
    marked: Collection[int] = ()
    folded: str = ""
    shades: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Gauge:
    """A figure on a scale with what is required of it.

    Attributes:
        label, value, required: In words.
        low, high: Ends of the scale; a bar grows from a low end of 0.
        at: The figure.
        bound: What is required.
        spread: Interval of the figure.
        met: None: nothing is required.
        note: Said below it.
        ends: The ends of the scale in words, if they are not plain.
    """

    label: str
    value: str
    required: str
    low: float
    high: float
    at: float
    bound: float | None = None
    spread: tuple[float, float] | None = None
    met: bool | None = None
    note: str = ""
    ends: tuple[str, str] | None = None

    def place(self, value: float) -> str:
        """Where `value` lies, as CSS says it."""
        return f"{100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))):.2f}%"


@dataclass(frozen=True)
class Gauges:
    """Figures and their limits."""

    items: Sequence[Gauge]


@dataclass(frozen=True)
class Charts:
    """Figures by their fixed ids in the page; several stand side by side.

    Attributes:
        figures: What is drawn.
        words: What they show, for those who do not see it; nothing: what the section's heading says.
    """

    figures: Mapping[str, go.Figure]
    words: str = ""

    def label(self, name: str, heading: str) -> str:
        """What a screen reader says of the figure `name` under `heading`: of several also by what they differ."""
        layout, words = self.figures[name].layout, self.words or heading
        own = layout.title.text or layout.yaxis.title.text
        return f"{words}: {own}" if len(self.figures) > 1 and own else words


@dataclass(frozen=True)
class Picture:
    """A PNG, what it shows for those who do not see it, and lines under it."""

    png: bytes
    words: str
    caption: Sequence[str] = ()

    @property
    def address(self) -> str:
        """The picture itself, so that nothing is loaded."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side if they are `small`, else one below the other."""

    items: Sequence[Picture]
    small: bool = False


@dataclass(frozen=True)
class Layer:
    """One operation in a drawing of a network: its map and its receptive field.

    Attributes:
        number: Of the layer in candidate.json.
        words, shape, params: In words.
        side: Of the map, as a share of the image's.
        depth: Of the map's channels, as a share of the drawing's most.
        field: Receptive field, in pixels.
        inner: Whether it belongs to the body of a residual block.
    """

    number: str
    words: str
    shape: str
    params: str
    side: float
    depth: float
    field: int
    inner: bool


@dataclass(frozen=True)
class Layers:
    """A network from image to classes, drawn; the receptive field must exceed `bound`."""

    items: Sequence[Layer]
    bound: int

    def width(self, pixels: int) -> str:
        """Of a bar of a receptive field, as CSS says it."""
        most = max([self.bound, *(layer.field for layer in self.items)])
        return f"{100 * pixels / max(1, most):.2f}%"


Block = Text | Tiles | Gauges | Table | Charts | Pictures | Layers


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, with `aside` beside it where there is room."""

    heading: str
    blocks: Sequence[Block]
    aside: Sequence[Block] = ()

    @property
    def name(self) -> str:
        """Its address in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.heading.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A whole report; `key_lines` say it in a few lines of a terminal, `files` lie beside it, by name."""

    title: str
    sections: Sequence[Section]
    key_lines: Sequence[str]
    files: Mapping[str, str] = field(default_factory=dict)


def to_markdown(page: Page) -> str:
    """The page as Markdown whose tables line up in a terminal; figures are left out."""
    parts = [f"# {markdown_text(page.title)}"]
    for section in page.sections:
        shown = (*section.blocks, *section.aside)
        kinds = {type(block) for block in section.blocks}
        if kinds & {Charts, Pictures} and kinds <= {Charts, Pictures, Text}:
            continue  # only the words around a figure would be left
        parts.append(f"## {markdown_text(section.heading)}")
        parts += [text for block in shown if (text := _block_markdown(block))]
    return "\n\n".join(parts) + "\n"


def _block_markdown(block: Block) -> str:
    match block:
        case Text():
            return markdown_text(block.text)
        case Tiles():
            rows = [(label[0].upper() + label[1:], value) for value, label in block.items]
            return markdown_table(("Figure", "Value"), rows, numeric={1}, padded=True)
        case Gauges():
            gauges = [(each.label, each.value, each.required, each.note) for each in block.items]
            return markdown_table(("Figure", "Value", "Required", ""), gauges, numeric={1}, padded=True)
        case Layers():
            columns = ("#", "Operation", "Output", "Parameters", "Receptive field")
            layers = [(each.number, each.words, each.shape, each.params, str(each.field)) for each in block.items]
            return markdown_table(columns, layers, numeric={3, 4}, padded=True)
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
        page=page,
        plotly_js=plotly.offline.get_plotlyjs(),  # the package has no smaller one
        draw=_drawn,
        kind=lambda block: type(block).__name__,
        print_width=PRINT_WIDTH,
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
    """Writes report.html, report.md and the page's files into `out`, all or none; returns the paths of the first two.

    Raises:
        UserError, StudyFailed: They cannot be written; older ones are left as they are.
    """
    html, markdown = out / "report.html", out / "report.md"
    try:
        beside = {out / name: text for name, text in page.files.items()}
        write_together({html: to_html(page), markdown: to_markdown(page), **beside})
    except OSError as error:
        what = f"The report in {str(out)!r}"
        otherwise = "Allow writing there, or name the study's --storage and another folder with --out."
        raise unwritten(what, error, otherwise) from error
    return html, markdown
