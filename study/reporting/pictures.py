"""Tables and pictures of one trial, as bytes. Needs neither Optuna nor torch: workers draw them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.architecture import Architecture

_COLUMNS = ("layer", "operation", "detail", "in_shape", "out_shape", "params", "macs", "receptive_field")


def layers_csv(architecture: Architecture) -> str:
    """Every operation of the network, one row each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for op in architecture.operations:
        writer.writerow(
            (
                op.layer, op.name, op.detail, _shape(op.in_shape), _shape(op.out_shape), op.params, op.macs,
                op.receptive_field,
            )
        )  # fmt: skip
    return buffer.getvalue()


def curve_png(curve: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Loss and accuracy by epoch, training and validation, as a PNG."""
    # Figures of their own, without pyplot: its registry is global and keeps every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for part, label, colour in (
            ("train", "train (augmented)", "#E69F00"),
            ("val", "validation (EMA)", "#0072B2"),
        ):
            points = [(e["epoch"] + 1, e[f"{part}_{name}"]) for e in curve if e.get(f"{part}_{name}") is not None]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, label=label, marker="o", markersize=3)
                axis.legend(frameon=False)
        axis.set_xlabel("epoch")
        axis.set_title(name)
        axis.grid(color="#e4e8ec")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _shape(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
