"""The files that optuna-dashboard shows beside a trial: its layers and its curves. No torch, no Optuna.

Workers, which load neither storage nor sampler, make the curves.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.architecture import Architecture

_COLUMNS = ("layer", "operation", "detail", "in_shape", "out_shape", "params", "macs", "receptive_field")


def layers_csv(architecture: Architecture) -> str:
    """Every operation of the network, one row each; shapes are CxHxW."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for op in architecture.operations:
        shapes = shape_text(op.in_shape), shape_text(op.out_shape)
        writer.writerow((op.layer, op.name, op.detail, *shapes, op.params, op.macs, op.receptive_field))
    return buffer.getvalue()


def curve_png(curve: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Loss and accuracy by epoch, training and validation, as a PNG.

    Args:
        curve: One mapping per epoch: epoch (from zero), {train,val}_{loss,accuracy}; what is None or missing is left
            out.
        title: Stands above both.
    """
    from study.bundle.figures import draw_curves  # loads matplotlib

    buffer = io.BytesIO()
    draw_curves(curve, buffer, parts={"train": "train (augmented)", "val": "validation (EMA)"}, title=title, dpi=100)
    return buffer.getvalue()


def shape_text(shape: tuple[int, int, int]) -> str:
    """(16, 32, 32) -> 16x32x32."""
    return "x".join(map(str, shape))
