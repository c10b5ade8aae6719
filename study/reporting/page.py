"""A report's page, and how it becomes HTML (one file that opens offline) or plain markdown for a terminal.

Page
|- title
`- sections, each a heading and blocks: Text | Tiles | Table | Chart | Charts
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
import plotly.offline

from study.errors import UserError


@dataclass(frozen=True)
class Text:
    """A paragraph. `tone` is "", "good", "bad" or "note"."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Tiles:
    """Key figures: (value, label)."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        columns: Headings.
        rows: One cell per column.
        numeric: Indices of the columns to align to the right.
        marked: Indices of the rows to set off.
        folded: Hidden behind its caption until opened (HTML only).
        caption: Shown above it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()
    folded: bool = False
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure; `name` is its fixed id in the page."""

    name: str
    figure: go.Figure


@dataclass(frozen=True)
class Charts:
    """Small figures side by side."""

    charts: tuple[Chart, ...]


Block = Text | Tiles | Table | Chart | Charts


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; without a heading it belongs to the one before."""

    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A whole report; `key_lines` say it in a few lines of a terminal."""

    title: str
    sections: tuple[Section, ...]
    key_lines: tuple[str, ...]


def to_markdown(page: Page) -> str:
    """The page as Markdown whose tables line up in a terminal."""
    lines = [f"# {page.title}", ""]
    for section in page.sections:
        blocks = [text for block in section.blocks if (text := _block_markdown(block))]
        drawn = any(isinstance(block, (Chart, Charts)) for block in section.blocks)
        if drawn and not any(isinstance(block, (Table, Tiles)) for block in section.blocks):
            continue  # only the words around a figure would be left
        if blocks:
            lines += [f"## {section.heading}", "", *(line for block in blocks for line in (block, ""))]
    return "\n".join(lines).rstrip() + "\n"


def _block_markdown(block: Block) -> str:
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Tiles):
        rows = tuple((label[0].upper() + label[1:], value) for value, label in block.items)
        return _table_markdown(Table(("Figure", "Value"), rows, numeric=frozenset({1})))
    if isinstance(block, Table):
        return _table_markdown(block)
    return ""


def _table_markdown(table: Table) -> str:
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(table.columns))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if i in table.numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * (width - 1) + ":" if i in table.numeric else "-" * width for i, width in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *(line(row) for row in rows[1:])])


# --- HTML -------------------------------------------------------------------------------------------

_CSS = """
:root { --ink: #1f2933; --soft: #5b6773; --rule: #dfe4e8; --good: #007a55; --bad: #b34700; --mark: #fff6df; }
* { box-sizing: border-box; }
html { overflow-y: scroll; }
body { margin: 0; background: #f4f6f8; color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 16px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 10px; }
section { background: #fff; border: 1px solid var(--rule); border-radius: 8px;
  padding: 18px 20px; margin: 0 0 16px; }
section > :last-child { margin-bottom: 0; }
p { margin: 0 0 10px; max-width: 100ch; }
p.note { color: var(--soft); }
.verdict p.good, .verdict p.bad, .verdict p.note { font-size: 17px; padding-left: 14px;
  border-left: 4px solid var(--rule); }
p.good { border-color: var(--good) !important; }
p.bad { border-color: var(--bad) !important; color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 10px;
  margin: 0 0 12px; }
.tiles div { border: 1px solid var(--rule); border-radius: 6px; padding: 10px 12px; }
.tiles b { display: block; font-size: 20px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; margin: 0 0 12px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: left; vertical-align: bottom;
  border-bottom: 1px solid var(--rule); }
td { vertical-align: top; }
th:first-child, td:first-child { padding-left: 6px; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
th.n, td.n { text-align: right; }
td.n { white-space: nowrap; }
tr.marked td { background: var(--mark); }
tbody tr:last-child td { border-bottom: 0; }
details { margin: 0 0 8px; }
summary { cursor: pointer; color: var(--soft); margin-bottom: 6px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 8px; }
.chart { min-width: 0; overflow: hidden; }
@media (max-width: 600px) {
  main { padding: 16px 8px; } section { padding: 14px 12px; } h1 { font-size: 23px; }
  .tiles { grid-template-columns: repeat(2, 1fr); } .wide { overflow-x: auto; }
  .wide > .chart { min-width: 640px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
_PLOT_CONFIG = {"responsive": True, "displaylogo": False, "displayModeBar": False, "scrollZoom": False}


def to_html(page: Page) -> str:
    """The page as one file that needs nothing from a network."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(page.title)}</title>",
        # An empty icon: a browser would otherwise ask a server for one.
        '<link rel="icon" href="data:,">',
        f"<style>{_CSS}</style>",
        f"<script>{plotly.offline.get_plotlyjs()}</script></head>",
        "<body><main>",
        f"<h1>{html.escape(page.title)}</h1>",
    ]
    for section in page.sections:
        name = section.heading.split()[0].lower()
        parts.append(f'<section class="{html.escape(name)}"><h2>{html.escape(section.heading)}</h2>')
        parts += [_block_html(block) for block in section.blocks]
        parts.append("</section>")
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


def _block_html(block: Block) -> str:
    if isinstance(block, Text):
        tone = f' class="{block.tone}"' if block.tone else ""
        return f"<p{tone}>{html.escape(block.text)}</p>"
    if isinstance(block, Tiles):
        tiles = "".join(
            f"<div><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>" for value, label in block.items
        )
        return f'<div class="tiles">{tiles}</div>'
    if isinstance(block, Table):
        return _table_html(block)
    if isinstance(block, Charts):
        return '<div class="charts">' + "".join(_chart_html(chart) for chart in block.charts) + "</div>"
    # Parallel axes need room for their labels: on a narrow screen they scroll instead of shrinking.
    return f'<div class="wide">{_chart_html(block)}</div>' if block.name == "parallel" else _chart_html(block)


def _table_html(table: Table) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if i in table.numeric else ''}>{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(
        f"<tr{' class=marked' if i in table.marked else ''}>{cells('td', row)}</tr>" for i, row in enumerate(table.rows)
    )
    text = (
        f'<div class="scroll"><table><thead><tr>{cells("th", table.columns)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    if table.folded:
        return f"<details><summary>{html.escape(table.caption)}</summary>{text}</details>"
    return text


def _chart_html(chart: Chart) -> str:
    drawn = plotly.io.to_html(
        chart.figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=chart.name,
        config=_PLOT_CONFIG,
        default_height=f"{chart.figure.layout.height}px",
    )
    return f'<div class="chart">{drawn}</div>'


# --- Files and command ------------------------------------------------------------------------------


def write_page(page: Page, out: Path) -> tuple[Path, Path]:
    """Writes report.html and report.md into `out`, both or neither; returns their paths.

    Raises:
        UserError: They cannot be written; older ones are left as they are.
    """
    files = {out / "report.html": to_html(page), out / "report.md": to_markdown(page)}
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            with temporary[path].open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for path in files:
            os.replace(temporary[path], path)
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {str(out)!r}: {error.strerror or error}. "
            "Make room or allow writing there, or name another folder with --out."
        ) from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return out / "report.html", out / "report.md"
