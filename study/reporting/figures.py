"""The sections that are figures, and the plotly figures themselves.

Optuna's own figures mix pruned trials in or leave them out and repeat every parameter of the space;
these tell complete from pruned trials, flag the anchors, and keep to the parameters that matter.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from study.command_line.wording import counted, rounded, shown_value
from study.reporting.facts import MIN_FOR_IMPORTANCE, WHEN_STOPPED, Facts, Record, rank
from study.reporting.page import Block, Charts, Section, Table, Text
from study.storage.outcome import Outcome

N_AXES = 6
"""Parameters in the parallel coordinates and slices: more cannot be read."""
N_BARS = 12
TRUSTED_FOR_IMPORTANCE = 50
"""PED-ANOVA wants 5 trials in its best tenth (Optuna's documentation)."""

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
RED, PURPLE, GREY = "#D55E00", "#AA4499", "#9AA3AD"
_ANCHOR_COLOURS = {"reference": PURPLE, "default": RED}
_DULL_TO_BRIGHT = ((0.0, "#9AA3AD"), (0.6, "#56A5D8"), (1.0, "#E06000"))
"""Seen on white and on black."""
INK, GRID = "#1f2933", "#e4e8ec"


def figure_sections(facts: Facts) -> list[Section]:
    """One section a figure; where there is nothing to draw, it says why."""
    drawn = [r for r in facts.having(Outcome.COMPLETE, Outcome.PRUNED) if r.accuracy is not None]
    curves = [r for r in facts.records if r.curve]
    sized = [r for r in drawn if r.params is not None]
    names, n = list(facts.shares)[:N_AXES], len(facts.ranked)
    none = "No trial has reported an accuracy yet."
    needs = f"Needs {MIN_FOR_IMPORTANCE} complete trials to tell which parameters matter"
    few = f"{needs}; there {'is' if n == 1 else 'are'} {n}."
    glance = ""
    if any(r.glanced for r in curves):
        glance = "After epochs at which no trials are compared only a fifth of the validation images is looked at."
    together = "One line a complete trial; grey, blue, orange: the more accurate. Drag along an axis to select."
    apart = f"Blue: complete. Orange crosses: pruned, at the accuracy {WHEN_STOPPED}."
    front = "No complete trial is both smaller and more accurate than one on the Pareto front. "
    front += f"Pruned trials stand at the accuracy {WHEN_STOPPED}, and on no front."
    slices = {f"slice-{i}": slice_plot(drawn, name) for i, name in enumerate(names)}
    parallel = parallel_coordinates(drawn, names)
    size = size_against_accuracy(sized, facts.config.limits.max_params)

    def section(heading: str, wanted: Collection[Any], instead: str, words: str = "", **figures: go.Figure) -> Section:
        if not wanted:
            return Section(heading, [Text(instead, "note")])
        return Section(heading, [*([Text(words)] if words else []), Charts(figures)])

    return [
        section("Learning curves", curves, none, glance, curves=learning_curves(curves)),
        Section("Importance of parameters", _importance(facts) if names else [Text(few, "note")]),
        section("Size against accuracy", sized, none, front, size=size),
        section("The most important parameters together", names, few, together, parallel=parallel),
        section("The most important parameters one by one", names, few, apart, **slices),
    ]


def _importance(facts: Facts) -> Sequence[Block]:
    n = len(facts.ranked)
    caution = f" Fewer than {TRUSTED_FOR_IMPORTANCE}: take it as a hint." if n < TRUSTED_FOR_IMPORTANCE else ""
    top = dict(list(facts.shares.items())[:N_BARS])
    rows = [(name, f"{share:.1%}") for name, share in top.items()]
    return (
        Text(f"PED-ANOVA over {counted(n, 'complete trial')}: what tells the best from the rest.{caution}"),
        Charts({"importance": importance_bars(top)}),
        Table(("Parameter", "Share of importance"), rows, numeric={1}, folded="As a table"),
    )


def history_blocks(facts: Facts) -> Sequence[Block]:
    """What stands beside the verdict."""
    drawn = [r for r in facts.having(Outcome.COMPLETE, Outcome.PRUNED) if r.accuracy is not None]
    return [Charts({"history": history(drawn)}, "Validation accuracy by trial")] if drawn else []


def history(drawn: Sequence[Record]) -> go.Figure:
    """Accuracy by trial number: complete, pruned, anchors, and the best so far."""
    complete = _of(drawn, Outcome.COMPLETE)
    best = list(itertools.accumulate((r.accuracy or 0.0 for r in complete), max))
    figure = base_figure("Trial", "Validation accuracy")
    figure.add_trace(
        _markers(_of(drawn, Outcome.PRUNED), f"pruned, {WHEN_STOPPED}", attrgetter("number"), ORANGE, "x-thin-open", 7)
    )
    figure.add_trace(_markers(complete, "complete", attrgetter("number"), BLUE, "circle", 8))
    figure.add_scatter(
        x=[*(r.number for r in complete), drawn[-1].number] if complete else [],
        y=best + best[-1:],
        mode="lines",
        line={"color": GREEN, "width": 2, "shape": "hv"},
        name="best so far",
        hovertemplate="best so far %{y:.2%}<extra></extra>",
    )
    for record in drawn:
        if record.anchor:
            figure.add_annotation(
                x=record.number, y=record.accuracy, text=html.escape(record.anchor), showarrow=True, arrowhead=0,
                arrowcolor=GREY, ax=16, ay=28, xanchor="left", font={"size": 12},
            )  # fmt: skip
    figure.update_xaxes(whole_ticks(1 + max(r.number for r in drawn)))
    return figure


def learning_curves(curves: Sequence[Record]) -> go.Figure:
    """Validation accuracy by epoch, one line a trial; pruned ones end where they were stopped."""
    best = next(iter(rank(curves)), None)
    special = [r for r in curves if r.anchor or r is best]
    figure = base_figure("Epoch", "Validation accuracy")
    for outcome, colour in ((Outcome.RUNNING, GREY), (Outcome.PRUNED, ORANGE), (Outcome.COMPLETE, BLUE)):
        group = [r for r in _of(curves, outcome) if r not in special]
        if group:
            name = "pruned, until stopped" if outcome == Outcome.PRUNED else str(outcome)
            figure.add_trace(_lines(group, name, colour, width=1.0, opacity=0.55))
    ends = _of(curves, Outcome.PRUNED)
    if ends:
        figure.add_trace(_markers(ends, WHEN_STOPPED, lambda r: r.curve[-1][0] + 1, ORANGE, "x-thin-open", 7))
    for record in special:
        name = ": ".join(word for word in ("best" if record is best else None, record.anchor) if word)
        colour = GREEN if record is best else _ANCHOR_COLOURS.get(record.anchor or "", PURPLE)
        figure.add_trace(_lines([record], f"{name}, trial {record.number}", colour, width=3.0))
    figure.update_xaxes(rangemode="tozero", **whole_ticks(max((r.curve[-1][0] + 1 for r in curves), default=0)))
    return figure


def importance_bars(shares: Mapping[str, float]) -> go.Figure:
    """Share of importance per parameter, the first on top."""
    figure = base_figure("Share of importance", "", height=100 + 26 * len(shares))
    figure.add_bar(
        x=[round(share, 6) for share in shares.values()],
        y=[html.escape(name) for name in shares],
        orientation="h",
        marker={"color": BLUE},
        text=[f"{share:.0%}" for share in shares.values()],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y} %{x:.1%}<extra></extra>",
    )
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(showgrid=False, tickformat=None, automargin=True, autorange="reversed")
    figure.update_layout(showlegend=False)
    return figure


def size_against_accuracy(sized: Sequence[Record], max_params: int) -> go.Figure:
    """Parameters against accuracy; colour says how the map is reduced, shape whether it was pruned."""
    figure = base_figure("Parameters", "Validation accuracy")
    for outcome, open_, suffix in ((Outcome.COMPLETE, "", ""), (Outcome.PRUNED, "-open", f", {WHEN_STOPPED}")):
        for dilated, name, colour, symbol in (
            (False, "strided reductions", BLUE, "circle"),
            (True, "dilated unpadded reductions", RED, "diamond"),
        ):
            group = [r for r in _of(sized, outcome) if r.reduces_by_dilation == dilated]
            if group:
                figure.add_trace(_markers(group, name + suffix, attrgetter("params"), colour, symbol + open_, 9))
    front = pareto_front(sized)
    if front:
        figure.add_scatter(
            x=[r.params for r in front],
            y=[r.accuracy for r in front],
            mode="lines",
            line={"color": GREEN, "width": 2, "shape": "hv"},
            name="Pareto front",
            hoverinfo="skip",
        )
    figure.add_vline(
        x=max_params,
        line={"color": GREY, "dash": "dash", "width": 1.5},
        annotation={
            "text": f"limit {max_params:,}", "xanchor": "right", "yanchor": "bottom", "y": 0, "font": {"size": 12},
        },
    )  # fmt: skip
    sizes = [max_params, *(r.params or 0 for r in sized)]
    figure.update_xaxes(tickformat=",", range=_wider(min(sizes), max(sizes)))
    return figure


def pareto_front(records: Iterable[Record]) -> list[Record]:
    """The complete trials of which none is at once no larger and more accurate, the smallest first."""
    front: list[Record] = []
    sized = [r for r in rank(records) if r.params is not None]
    for record in sorted(sized, key=lambda r: r.params or 0):  # stable: of one size the most accurate comes first
        if not front or (record.accuracy or 0.0) > (front[-1].accuracy or 0.0):
            front.append(record)
    return front


def parallel_coordinates(drawn: Sequence[Record], names: Sequence[str]) -> go.Figure:
    """The complete trials across a handful of parameters, coloured by accuracy."""
    shown = [r for r in rank(drawn) if all(name in r.sampled for name in names)][::-1]  # best on top
    accuracies = [round(r.accuracy or 0.0, 6) for r in shown]
    dimensions = []
    for name in names:
        place, axis = _axis(shown[0].distributions[name])
        dimensions.append({"label": html.escape(name), "values": [place(r.sampled[name]) for r in shown], **axis})
    figure = base_figure("", "", height=400)
    figure.add_parcoords(
        dimensions=[*dimensions, {"label": "accuracy", "values": accuracies, "tickformat": ".1%"}],
        line={"color": accuracies, "colorscale": _DULL_TO_BRIGHT, "showscale": False},
        labelfont={"size": 12, "color": INK},
        tickfont={"size": 11, "color": INK},
        rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
    )
    figure.update_layout(margin={"l": 72, "r": 56, "t": 48, "b": 24})
    return figure


def slice_plot(drawn: Sequence[Record], name: str) -> go.Figure:
    """One parameter, over its whole range, against accuracy."""
    shown = [r for r in drawn if name in r.sampled]
    place, axis = _axis(shown[0].distributions[name])
    figure = base_figure("", "", height=250)
    for outcome, colour, symbol in ((Outcome.PRUNED, ORANGE, "x-thin-open"), (Outcome.COMPLETE, BLUE, "circle")):
        figure.add_trace(_markers(_of(shown, outcome), outcome, lambda r: place(r.sampled[name]), colour, symbol, 6))
    figure.update_xaxes(axis | {"range": _wider(*axis["range"])})
    figure.update_layout(
        title={"text": html.escape(name), "font": {"size": 14}, "x": 0.02, "y": 0.97},
        showlegend=False,
        margin={"l": 46, "r": 10, "t": 34, "b": 34},
    )
    return figure


def _axis(distribution: BaseDistribution) -> tuple[Callable[[Any], float], dict[str, Any]]:
    """How a parameter lies on a linear axis: a value's position (a choice's number, a logarithm or itself), and
    plotly's settings of the axis."""
    if isinstance(distribution, CategoricalDistribution):
        labels = [html.escape(shown_value(choice)) for choice in distribution.choices]
        n = len(labels)
        return distribution.choices.index, {"range": (-0.1, n - 0.9), "tickvals": list(range(n)), "ticktext": labels}
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    low, high = distribution.low, distribution.high
    if distribution.log:
        steps = (1, 3) if high / low > 20 else (1, 2, 5)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        labels = [f"{tick:.1g}" for tick in ticks]
        ends = (math.log10(low), math.log10(high))
        return math.log10, {"range": ends, "tickvals": [math.log10(tick) for tick in ticks], "ticktext": labels}
    few = isinstance(distribution, IntDistribution) and high - low <= 12
    return float, {"range": (low, high), "tickvals": list(range(int(low), int(high) + 1)) if few else None}


def base_figure(x: str, y: str, height: int = 420) -> go.Figure:
    """An empty figure with the report's looks; `y` is a share."""
    common = {"gridcolor": GRID, "zeroline": False, "linecolor": GREY, "ticks": "outside", "tickcolor": GRID}
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": INK},
            "margin": {"l": 68, "r": 16, "t": 12, "b": 48},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
            "hoverlabel": {"bgcolor": "white", "font": {"color": INK}},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hovermode": "closest",
            "xaxis": {"title": {"text": x, "font": {"size": 13}}, **common},
            "yaxis": {"title": {"text": y, "font": {"size": 13}}, "tickformat": ".1~%", **common},
        }
    )


def whole_ticks(n: int) -> dict[str, Any]:
    """Settings of an axis of `n` epochs or trials: none has half a one."""
    return {"dtick": 1} if n <= 12 else {}


def _of(records: Iterable[Record], outcome: str) -> list[Record]:
    return [record for record in records if record.outcome == outcome]


def _wider(low: float, high: float) -> list[float]:
    """[low, high] with room for markers at the ends."""
    margin = 0.04 * ((high - low) or 1)
    return [low - margin, high + margin]


def _markers(
    records: Sequence[Record], name: str, x: Callable[[Record], Any], colour: str, symbol: str, size: int
) -> go.Scatter:
    return go.Scatter(
        x=[x(r) for r in records],
        y=[r.accuracy for r in records],
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": symbol, "size": size, "line": {"width": 1.5, "color": colour}},
        text=[_hover(r) for r in records],
        hovertemplate="%{text}<extra></extra>",
    )


def _lines(records: Sequence[Record], name: str, colour: str, width: float, opacity: float = 1.0) -> go.Scatter:
    """Many lines in one trace, separated by gaps: a page with hundreds of traces is slow."""
    points: list[tuple[int | None, float | None, str]] = []
    for r in records:
        points += [(e + 1, round(value, 6), f"trial {r.number}, epoch {e + 1}: {value:.2%}") for e, value in r.curve]
        points.append((None, None, ""))
    xs, ys, texts = zip(*points, strict=True)
    return go.Scatter(
        x=xs, y=ys, text=texts, mode="lines+markers", name=html.escape(name), opacity=opacity, connectgaps=False,
        line={"color": colour, "width": width}, marker={"color": colour, "size": 2 + width},
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _hover(record: Record) -> str:
    lines = [f"trial {record.number}: {record.reached}"]
    if record.anchor:
        lines.append(f"anchor: {html.escape(record.anchor)}")
    if record.params is not None:
        lines.append(f"{record.params:,} parameters")
    if record.receptive_field is not None:
        lines.append(f"receptive field {record.receptive_field}")
    lines += [f"{name} {rounded(value)}" for name, value in record.measured.items()]
    return "<br>".join(lines)
