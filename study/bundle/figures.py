"""The figures of a bundle: learning curves, misclassified and augmented images, confusion matrix. No torch here.

Drawn without pyplot, so no display and no global state is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from study.bundle.evaluation import softmax
from study.data.cifar10 import CLASSES, Images

_TRAIN, _TEST, _TARGET, _WRONG, _GREY = "#7a8793", "#0b6fb8", "#2e8b57", "#b3261e", "#555555"
_DPI = 150
_MISSES_PER_ROW = 10
_MISS_ROWS = 6
_COUNTED_CLASSES = 20
"""More of them leave no room for counts in a confusion matrix."""
_UPSCALE, _AUGMENTED_UPSCALE = 5, 3
"""Screen pixels per image pixel in the sheets of images; whole numbers keep every pixel square."""

_as_written = rc_context({"text.parse_math": False})
"""Classes may be called anything, `$` and `$$` too, which would be mathematics."""

TRAIN_AND_TEST = {"train": "train (augmented images, running mean)", "test": "test (averaged weights)"}
Curves = Sequence[Mapping[str, Any]]


def confident_misses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Indices of misclassified images, the most confident mistake first."""
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    confidence = softmax(logits[wrong]).max(1) if len(wrong) else np.empty(0)
    return wrong[np.argsort(-confidence, kind="stable")]


def draw_curves(
    curves: Curves,
    file: Path | BinaryIO,
    target_accuracy: float | None = None,
    parts: Mapping[str, str] = TRAIN_AND_TEST,
    title: str = "",
    dpi: int = _DPI,
) -> None:
    """Loss and accuracy by epoch, on two kinds of images.

    Args:
        curves: One mapping per epoch: epoch (from zero), and {part}_loss and {part}_accuracy of every part, which
            are None where nothing was tested.
        file: PNG to write.
        target_accuracy: Drawn as a line, if given.
        parts: What is drawn, and what the legend calls it.
        title: Stands above both, if given.
        dpi: Pixels per inch of a figure of 10.5 by 4.4 inches.
    """
    figure = _figure(10.5, 4.4)
    axes_loss, axes_accuracy = figure.subplots(1, 2)
    for axes, name, heading in ((axes_loss, "loss", "Loss"), (axes_accuracy, "accuracy", "Accuracy")):
        for (part, label), color in zip(parts.items(), (_TRAIN, _TEST), strict=True):
            _plot(axes, curves, f"{part}_{name}", color, label)
        _title(axes, heading)
        axes.set_xlabel("epochs trained")
        axes.set_xlim(0, 1.02 * max((row["epoch"] + 1 for row in curves), default=1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#e3e3e3", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    axes_loss.set_ylabel("cross-entropy")
    axes_accuracy.set_ylabel("share of images classified correctly")
    axes_accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    if target_accuracy is not None:
        axes_accuracy.axhline(
            target_accuracy, color=_TARGET, linestyle="--", linewidth=1, label=f"target {target_accuracy:.1%}"
        )
    if title:
        figure.suptitle(title, parse_math=False)
    # One legend below both: inside, it would hide a curve sooner or later.
    figure.legend(*axes_accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    _save(figure, file, dpi)


@_as_written
def draw_misses(images: Images, logits: np.ndarray, file: Path, classes: Sequence[str] = CLASSES) -> None:
    """A sheet of misclassified images with true and predicted class, the most confident mistakes first.

    Args:
        images: What was tested.
        logits: float [N, n_classes] of the network on them.
        file: PNG to write.
        classes: Their names.
    """
    misses = confident_misses(images.labels, logits)
    shown = misses[: _MISSES_PER_ROW * _MISS_ROWS]
    probabilities = softmax(logits)
    side = images.pixels.shape[1] * _UPSCALE
    gap, caption, header, margin = 16, 52, 92, 28
    n_rows = max(1, math.ceil(len(shown) / _MISSES_PER_ROW))
    width = 2 * margin + _MISSES_PER_ROW * side + (_MISSES_PER_ROW - 1) * gap
    height = header + n_rows * (side + caption) + margin
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)

    def text(x: int, y: int, words: str, size: float, color: str, weight: str = "normal") -> None:
        figure.text(x / width, 1 - y / height, words, size=size, color=color, weight=weight, va="top", ha="left")

    title = f"{len(misses):,} of {len(images):,} test images misclassified"
    if len(misses) > len(shown):
        title += f", the {len(shown)} most confident mistakes"
    text(margin, 20, title, 11, "black", "bold")
    text(margin, 52, "under each image: true class, then predicted class and its probability", 8, _GREY)
    if not len(shown):
        text(margin, header + 20, "No test image is misclassified.", 10, _GREY)
    for position, index in enumerate(shown):
        row, column = divmod(position, _MISSES_PER_ROW)
        left, top = margin + column * (side + gap), header + row * (side + caption)
        pixels = np.kron(images.pixels[index], np.ones((_UPSCALE, _UPSCALE, 1), dtype=np.uint8))
        figure.figimage(pixels, left, height - top - side, origin="upper")
        predicted = int(logits[index].argmax())
        text(left, top + side + 4, classes[images.labels[index]], 6.5, "black")
        text(left, top + side + 21, f"{classes[predicted]} {probabilities[index, predicted]:.2f}", 6.5, _WRONG)
    figure.savefig(file, dpi=_DPI)


def draw_augmented(rows: np.ndarray, file: Path) -> None:
    """A sheet of images, one row each, with nothing but room between them.

    Args:
        rows: uint8 [R, V, S, S, 3]: V views of R images.
        file: PNG to write.
    """
    n_rows, n_views, side = rows.shape[:3]
    step = side + 2
    sheet = np.zeros((n_rows * step - 2, n_views * step - 2, 4), dtype=np.uint8)
    for (row, view), _ in np.ndenumerate(rows[:, :, 0, 0, 0]):
        place = sheet[row * step : row * step + side, view * step : view * step + side]
        place[..., :3], place[..., 3] = rows[row, view], 255
    Image.fromarray(sheet.repeat(_AUGMENTED_UPSCALE, 0).repeat(_AUGMENTED_UPSCALE, 1)).save(file, format="PNG")


@_as_written
def draw_confusion(confusion: np.ndarray, file: Path, classes: Sequence[str] = CLASSES) -> None:
    """The confusion matrix as a heat map of row shares, with the counts written in.

    Args:
        confusion: Counts [n_classes, n_classes]: rows are true classes, columns predicted ones.
        file: PNG to write.
        classes: Their names.
    """
    totals, names = confusion.sum(1), classes[: len(confusion)]
    shares = confusion / np.maximum(totals, 1)[:, None]
    few = len(names) <= _COUNTED_CLASSES
    figure = _figure(7.6, 6.6) if few else _figure(13, 12)
    axes = figure.subplots()
    # Mistakes are a few per cent each; a root scale keeps them visible beside the diagonal.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.45, 0, 1))
    for (row, column), count in np.ndenumerate(confusion) if few else ():
        axes.text(
            column,
            row,
            f"{count:,}" if count else "·",
            ha="center",
            va="center",
            fontsize=8.5,
            color="white" if shares[row, column] > 0.3 else "#222222" if count else "#aaaaaa",
            fontweight="bold" if row == column else "normal",
        )
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    axes.set_xticks(range(len(names)), names, **turned)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    recall = axes.secondary_yaxis("right")
    recall.set_yticks(
        range(len(names)),
        [f"{share:.1%}" if total else "-" for share, total in zip(shares.diagonal(), totals, strict=True)],
    )
    recall.set_ylabel("share of the true class classified correctly", labelpad=8)
    for each in (axes, recall):
        each.tick_params(length=0, labelsize="medium" if few else min(8, 700 / len(names)))
        each.spines[:].set_visible(False)
    _title(axes, f"{int(np.trace(confusion)):,} of {int(totals.sum()):,} test images classified correctly")
    _save(figure, file)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold")


def _save(figure: Figure, file: Path | BinaryIO, dpi: int = _DPI) -> None:
    figure.savefig(file, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})


def _plot(axes: Axes, curves: Curves, name: str, color: str, label: str) -> None:
    points = [(row["epoch"] + 1, row[name]) for row in curves if row.get(name) is not None]
    if points:
        # Single points of a short training would be invisible as a line.
        marker = "o" if len(points) <= 40 else ""
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, color=color, label=label, linewidth=1.6, marker=marker, markersize=3)
