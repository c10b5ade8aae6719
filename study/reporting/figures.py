"""What a report draws: trials read into plain records, and the plotly figures made of them.

Optuna's own figures mix pruned trials in or leave them out and repeat every parameter of the space;
these tell complete from pruned trials, flag the anchors, and keep to the parameters that matter.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
INTERRUPTED, INFEASIBLE, RUNNING, WAITING = "interrupted", "infeasible", "running", "waiting"

MIN_FOR_IMPORTANCE = 10
"""Complete trials below which a ranking of parameters would be noise."""
TRUSTED_FOR_IMPORTANCE = 50
"""PED-ANOVA wants 5 trials in its best tenth (Optuna's documentation)."""

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#AA4499",
    "#9AA3AD",
)
_ANCHOR_COLOURS = {"reference": _PURPLE, "default": _RED}
_LIGHT_TO_DARK = ((0.0, "#cfd8e0"), (0.6, "#56A5D8"), (1.0, "#00334d"))
_INK, _GRID = "#1f2933", "#e4e8ec"
_HEIGHT = 420


@dataclass(frozen=True)
class Record:
    """One trial, with None for whatever it has not stored (yet).

    Attributes:
        number, slot: Optuna's number, and the slot of work it filled.
        outcome: One of the constants of this module.
        accuracy: EMA validation accuracy of the last epoch it reached, in [0, 1].
        curve: (epoch from zero, validation accuracy) per epoch.
        glanced: Whether some epochs were validated on fewer images than others.
        sampled: Value per parameter of the space.
        distributions: Optuna's distribution per parameter.
        params, receptive_field, receptive_field_with_pool, macs, n_dilated_reductions: Of the network.
        wall_s: Seconds it took.
        anchor: "reference", "default" or None.
        candidate: JSON of the candidate.
        repairs: What decoding changed; None if it was not decoded.
        reason: Why it failed or was pruned.
    """

    number: int
    outcome: str
    slot: int | None = None
    accuracy: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    glanced: bool = False
    sampled: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    params: int | None = None
    receptive_field: int | None = None
    receptive_field_with_pool: int | None = None
    macs: int | None = None
    n_dilated_reductions: int | None = None
    wall_s: float | None = None
    anchor: str | None = None
    candidate_id: str | None = None
    candidate: Mapping[str, Any] | None = None
    repairs: tuple[str, ...] | None = None
    reason: str | None = None

    @property
    def reduces_by_dilation(self) -> bool:
        """At least one dilated unpadded convolution does what others leave to a stride or a pooling."""
        return bool(self.n_dilated_reductions)


def read_records(study: optuna.Study) -> list[Record]:
    """Every trial of the study, by number."""
    return [_record(trial) for trial in study.get_trials(deepcopy=False)]


def rank(records: Sequence[Record]) -> list[Record]:
    """The complete trials, best first; the earlier one where two are equal."""
    complete = [r for r in records if r.outcome == COMPLETE and r.accuracy is not None]
    return sorted(complete, key=lambda r: (-(r.accuracy or 0.0), r.number))


def _record(trial: FrozenTrial) -> Record:
    attrs = trial.user_attrs
    curve = tuple((epoch, value) for epoch, value in sorted(trial.intermediate_values.items()) if math.isfinite(value))
    accuracy = curve[-1][1] if curve else None
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        accuracy = trial.value if math.isfinite(trial.value) else None
    wall_s = attrs.get("wall_s")
    if wall_s is None and trial.state.is_finished() and trial.duration is not None:
        wall_s = trial.duration.total_seconds()
    repairs = attrs.get("repairs")
    return Record(
        number=trial.number,
        outcome=_outcome(trial),
        slot=attrs.get("slot"),
        accuracy=accuracy,
        curve=curve,
        glanced=len({epoch.get("n_val") for epoch in attrs.get("curve", ())}) > 1,
        sampled=trial.params,
        distributions=trial.distributions,
        params=attrs.get("params"),
        receptive_field=attrs.get("receptive_field"),
        receptive_field_with_pool=attrs.get("receptive_field_with_pool"),
        macs=attrs.get("macs"),
        n_dilated_reductions=attrs.get("n_dilated_reductions"),
        wall_s=wall_s,
        anchor=attrs.get("anchor"),
        candidate_id=attrs.get("candidate_id"),
        candidate=attrs.get("candidate"),
        repairs=None if repairs is None else tuple(repairs),
        reason=attrs.get("reason"),
    )


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return COMPLETE
    if trial.state == TrialState.RUNNING:
        return RUNNING
    if trial.state == TrialState.WAITING:
        return WAITING
    reason = str(trial.user_attrs.get("reason", ""))
    if reason.startswith("infeasible") or any(value > 0 for value in trial.constraints.values()):
        return INFEASIBLE
    if trial.state == TrialState.PRUNED:
        return PRUNED
    return INTERRUPTED if reason.startswith("interrupted") else FAILED


def importances(study: optuna.Study, records: Sequence[Record]) -> dict[str, float]:
    """Share of importance per sampled parameter, largest first; empty with too few complete trials.

    PED-ANOVA (Watanabe et al. 2023): unlike fANOVA and mean decrease of impurity it needs no scikit-learn.
    """
    complete = rank(records)
    if len(complete) < MIN_FOR_IMPORTANCE:
        return {}
    names = sorted({name for record in complete for name in record.distributions})
    quantile = min(0.5, max(0.1, 5 / len(complete)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small regimes; the report states the number of trials instead
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
    return dict(sorted(found.items(), key=lambda item: (-round(item[1], 9), item[0])))


def history(records: Sequence[Record]) -> go.Figure:
    """Accuracy by trial number: complete, pruned, anchors, and the best so far."""
    complete = [r for r in records if r.outcome == COMPLETE and r.accuracy is not None]
    pruned = [r for r in records if r.outcome == PRUNED and r.accuracy is not None]
    figure = _figure("Trial", "Validation accuracy")
    figure.add_trace(_markers(pruned, "pruned, when stopped", _number, _ORANGE, "x-thin-open", 7))
    figure.add_trace(_markers(complete, "complete", _number, _BLUE, "circle", 8))
    best, steps = -math.inf, []
    for record in complete:
        best = max(best, record.accuracy or 0.0)
        steps.append((record.number, best))
    if steps:
        steps.append((max(records[-1].number, steps[-1][0]), best))
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in steps],
            y=[y for _, y in steps],
            mode="lines",
            line={"color": _GREEN, "width": 2, "shape": "hv"},
            name="best so far",
            hovertemplate="best so far %{y:.2%}<extra></extra>",
        )
    )
    for record in (r for r in (*complete, *pruned) if r.anchor):
        figure.add_annotation(
            x=record.number, y=record.accuracy, text=record.anchor, showarrow=True, arrowhead=0,
            arrowcolor=_GREY, ax=16, ay=28, xanchor="left", font={"size": 12},
        )  # fmt: skip
    return figure


def learning_curves(records: Sequence[Record]) -> go.Figure:
    """Validation accuracy by epoch, one line a trial; pruned ones end where they were stopped."""
    best = next(iter(rank(records)), None)
    figure = _figure("Epoch", "Validation accuracy")
    special = [r for r in records if r.curve and (r.anchor or r is best)]
    rest = [r for r in records if r.curve and r not in special]
    groups = (
        ("running", RUNNING, _GREY, 1.0),
        ("pruned", PRUNED, _ORANGE, 1.0),
        ("complete", COMPLETE, _BLUE, 1.0),
    )
    for name, outcome, colour, width in groups:
        group = [r for r in rest if r.outcome == outcome]
        if group:
            figure.add_trace(_lines(group, name, colour, width, opacity=0.55))
    ends = [r for r in records if r.curve and r.outcome == PRUNED]
    if ends:
        figure.add_trace(
            go.Scatter(
                x=[r.curve[-1][0] + 1 for r in ends],
                y=[r.curve[-1][1] for r in ends],
                mode="markers",
                marker={"symbol": "x-thin-open", "color": _ORANGE, "size": 7, "line": {"width": 2}},
                name="stopped here",
                hoverinfo="skip",
            )
        )
    for record in special:
        label = f"{record.anchor}, trial {record.number}" if record.anchor else f"best, trial {record.number}"
        if record is best and record.anchor:
            label = f"best: {label}"
        colour = _GREEN if record is best else _ANCHOR_COLOURS.get(record.anchor or "", _PURPLE)
        figure.add_trace(_lines([record], label, colour, 3.0, opacity=1.0))
    figure.update_xaxes(rangemode="tozero")
    return figure


def importance_bars(shares: Mapping[str, float], n: int = 12) -> go.Figure:
    """The `n` most important parameters."""
    top = list(shares.items())[:n][::-1]
    figure = _figure("Share of importance", "", height=100 + 26 * len(top))
    figure.add_trace(
        go.Bar(
            x=[round(share, 6) for _, share in top],
            y=[name for name, _ in top],
            orientation="h",
            marker={"color": _BLUE},
            text=[f"{share:.0%}" for _, share in top],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y} %{x:.1%}<extra></extra>",
        )
    )
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(showgrid=False, tickformat=None, automargin=True)
    figure.update_layout(showlegend=False)
    return figure


def size_against_accuracy(records: Sequence[Record], max_params: int) -> go.Figure:
    """Parameters against accuracy; colour says how the map is reduced, shape whether it was pruned."""
    shown = [r for r in records if r.accuracy is not None and r.params is not None]
    figure = _figure("Parameters", "Validation accuracy")
    for outcome, open_, suffix in ((COMPLETE, "", ""), (PRUNED, "-open", ", pruned")):
        for dilated, name, colour, symbol in (
            (False, "strided reductions", _BLUE, "circle"),
            (True, "dilated unpadded reductions", _RED, "diamond"),
        ):
            group = [r for r in shown if r.outcome == outcome and r.reduces_by_dilation == dilated]
            if group:
                figure.add_trace(_markers(group, name + suffix, lambda r: r.params, colour, symbol + open_, 9))
    limit = f"limit {max_params:,}"
    figure.add_vline(
        x=max_params,
        line={"color": _GREY, "dash": "dash", "width": 1.5},
        annotation={"text": limit, "xanchor": "right", "yanchor": "bottom", "y": 0, "font": {"size": 12}},
    )
    sizes = [r.params for r in shown if r.params is not None] + [max_params]
    margin = 0.04 * max(1, max(sizes) - min(sizes))
    figure.update_xaxes(tickformat=",", range=[min(sizes) - margin, max(sizes) + margin])
    return figure


def parallel_coordinates(records: Sequence[Record], names: Sequence[str]) -> go.Figure:
    """The complete trials across a handful of parameters, coloured by accuracy."""
    complete = [r for r in rank(records) if all(name in r.sampled for name in names)][::-1]  # best on top
    accuracies = [round(r.accuracy or 0.0, 6) for r in complete]
    dimensions = [_axis(name, complete) for name in names]
    dimensions.append({"label": "accuracy", "values": accuracies, "tickformat": ".1%"})
    figure = _figure("", "", height=400)
    figure.add_trace(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": accuracies, "colorscale": _LIGHT_TO_DARK, "showscale": False},
            labelfont={"size": 12, "color": _INK},
            tickfont={"size": 11, "color": _INK},
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
        )
    )
    figure.update_layout(margin={"l": 56, "r": 56, "t": 48, "b": 24})
    return figure


def slice_plot(records: Sequence[Record], name: str) -> go.Figure:
    """One parameter against accuracy."""
    shown = [r for r in records if r.accuracy is not None and name in r.sampled]
    figure = _figure("", "", height=250)
    for outcome, colour, symbol in ((PRUNED, _ORANGE, "x-thin-open"), (COMPLETE, _BLUE, "circle")):
        group = [r for r in shown if r.outcome == outcome]
        figure.add_trace(_markers(group, outcome, lambda r: _plain(r.sampled[name]), colour, symbol, 6))
    distribution = next((r.distributions[name] for r in shown if name in r.distributions), None)
    if isinstance(distribution, CategoricalDistribution):
        order = [str(_plain(choice)) for choice in distribution.choices]
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    elif getattr(distribution, "log", False):
        ticks = _log_ticks(distribution)
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:.1g}" for tick in ticks])
    elif isinstance(distribution, IntDistribution) and distribution.high - distribution.low <= 12:
        figure.update_xaxes(dtick=1 if distribution.high - distribution.low <= 6 else 2)
    figure.update_layout(
        title={"text": name, "font": {"size": 14}, "x": 0.02, "y": 0.97},
        showlegend=False,
        margin={"l": 46, "r": 10, "t": 34, "b": 34},
    )
    figure.update_yaxes(tickformat=".0%")
    return figure


def _figure(x: str, y: str, height: int = _HEIGHT) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": _INK},
        margin={"l": 60, "r": 16, "t": 12, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        hoverlabel={"bgcolor": "white", "font": {"color": _INK}},
        hovermode="closest",
    )
    common = {
        "gridcolor": _GRID,
        "zeroline": False,
        "linecolor": _GREY,
        "ticks": "outside",
        "tickcolor": _GRID,
    }
    figure.update_xaxes(title={"text": x, "font": {"size": 13}}, **common)
    figure.update_yaxes(title={"text": y, "font": {"size": 13}}, tickformat=".0%", **common)
    return figure


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


def _lines(records: Sequence[Record], name: str, colour: str, width: float, opacity: float) -> go.Scatter:
    """Many lines in one trace, separated by gaps: a page with hundreds of traces is slow."""
    xs: list[int | None] = []
    ys: list[float | None] = []
    texts: list[str] = []
    for record in records:
        for epoch, value in record.curve:
            xs.append(epoch + 1)
            ys.append(round(value, 6))
            texts.append(f"trial {record.number}, epoch {epoch + 1}: {value:.2%}")
        xs.append(None)
        ys.append(None)
        texts.append("")
    return go.Scatter(
        x=xs, y=ys, text=texts, mode="lines+markers", name=name, opacity=opacity, connectgaps=False,
        line={"color": colour, "width": width}, marker={"color": colour, "size": 2 + width},
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _hover(record: Record) -> str:
    lines = [f"trial {record.number}: {record.accuracy:.2%}"]
    if record.outcome != COMPLETE:
        lines[0] += f", {record.outcome} after {len(record.curve)} epochs"
    if record.anchor:
        lines.append(f"anchor: {record.anchor}")
    if record.params is not None:
        lines.append(f"{record.params:,} parameters")
    if record.receptive_field is not None:
        lines.append(f"receptive field {record.receptive_field}")
    return "<br>".join(lines)


def _number(record: Record) -> int:
    return record.number


def _plain(value: Any) -> Any:
    """Booleans would become 0 and 1 on an axis."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _axis(name: str, records: Sequence[Record]) -> dict[str, Any]:
    distribution = next((r.distributions[name] for r in records if name in r.distributions), None)
    values = [r.sampled[name] for r in records]
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        return {
            "label": name,
            "values": [choices.index(value) for value in values],
            "tickvals": list(range(len(choices))),
            "ticktext": [str(_plain(choice)) for choice in choices],
            "range": [-0.1, len(choices) - 0.9],
        }
    low, high = getattr(distribution, "low", min(values)), getattr(distribution, "high", max(values))
    if getattr(distribution, "log", False):
        ticks = _log_ticks(distribution)
        return {
            "label": name,
            "values": [math.log10(value) for value in values],
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [f"{tick:.1g}" for tick in ticks],
            "range": [math.log10(low), math.log10(high)],
        }
    axis: dict[str, Any] = {"label": name, "values": values, "range": [low, high]}
    if all(isinstance(value, int) for value in values) and high - low <= 12:
        axis["tickvals"] = list(range(int(low), int(high) + 1))
    return axis


def _log_ticks(distribution: Any) -> list[float]:
    """Round numbers 1, 3, 10, ... or 1, 2, 5, 10, ... times a power of ten within the range."""
    low, high = distribution.low, distribution.high
    steps = (1, 3) if high / low > 20 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
