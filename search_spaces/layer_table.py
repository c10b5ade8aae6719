"""The layer table: every operation of an architecture with its exact figures, for people. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

from search_spaces.architecture import Architecture, Residual

_HEADER = ("#", "Layer (type)", "Details", "Output [C, H, W]", "Params", "MACs", "Receptive field")
_LEFT_ALIGNED = 3
"""The first columns are words; the rest are figures, which align on the right."""
_BYTES_PER_PARAM = 4
_Row = tuple[str, ...]


def layer_table(architecture: Architecture) -> str:
    """The table of `architecture`, in the style of torchsummary, with totals below it.

    `#` counts the layers of `candidate.json` from zero; `7.1` is the second unit in the body of
    residual layer 7. A unit's number stands beside its first operation, in every run of its block.

    Raises:
        ArchitectureError: The description is not a network.
    """
    rows = list(_rows(architecture))
    widths = [max(len(row[column]) for row in (_HEADER, *rows)) for column in range(len(_HEADER))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    header, *lines = (_line(row, widths) for row in (_HEADER, *rows))
    return "\n".join((header, rule, *lines, rule, *_totals(architecture)))


def weights_mib(architecture: Architecture) -> float:
    """Size of the float32 parameters in MiB."""
    return architecture.params * _BYTES_PER_PARAM / 2**20


def _rows(architecture: Architecture) -> Iterator[_Row]:
    last_layer, last_place = -1, None
    for op in architecture.operations:
        layer = architecture.layers[op.layer] if op.layer < len(architecture.layers) else None
        residual = isinstance(layer, Residual)
        if isinstance(layer, Residual) and op.layer != last_layer:
            detail = f"{layer.times} runs, shared weights" if layer.times > 1 else ""
            yield (str(op.layer), "Residual", detail, "", "", "", "")
        place = (op.layer, op.unit, op.run)
        number = ""
        if place != last_place and not (residual and op.unit is None):
            number = f"{op.layer}.{op.unit}" if residual else str(op.layer)
        figures = (f"{figure:,}" for figure in (op.params, op.macs, op.receptive_field))
        shape = f"[{', '.join(str(side) for side in op.out_shape)}]"
        yield (number, "  " * residual + op.name, op.detail, shape, *figures)
        last_layer, last_place = op.layer, place


def _line(row: _Row, widths: list[int]) -> str:
    cells = [
        cell.ljust(width) if column < _LEFT_ALIGNED else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _totals(architecture: Architecture) -> list[str]:
    totals = {
        "Parameters": (f"{architecture.params:,}", ""),
        "Multiply-accumulates": (f"{architecture.macs:,}", ""),
        "Receptive field": (f"{architecture.receptive_field:,}", ""),
        "  with the global pooling": (f"{architecture.receptive_field_with_pool:,}", ""),
        "Size of the weights": (f"{weights_mib(architecture):.2f}", " MiB"),
    }
    names = max(len(name) for name in totals)
    values = max(len(value) for value, _ in totals.values())
    return [f"{name:<{names}}  {value:>{values}}{unit}" for name, (value, unit) in totals.items()]
