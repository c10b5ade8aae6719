"""The sections of the retrained network: how it learned, where it is wrong, what it is made of."""

from __future__ import annotations

import dataclasses
import html
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from search_spaces.architecture import ACTIVATION_NAMES, NORM_NAMES, Architecture
from search_spaces.candidate import Augmentation
from study.bundle.evaluation import CURVES, Evaluation, reliability
from study.bundle.metrics import LATENCY_BATCHES, accuracy_interval
from study.command_line.wording import counted, duration, for_all, millions, percent, shown_value, taught_by, whole
from study.reporting.facts import Facts, is_number
from study.reporting.figures import BLUE, GREEN, GREY, base_figure, whole_ticks
from study.reporting.page import Block, Charts, Layer, Layers, Picture, Pictures, Section, Table, Text, Tiles
from study.reporting.pictures import shape_text
from study.reporting.trained import Trained

MOST_IN_MATRIX = 20
"""Classes whose confusion is a table of all against all."""
MOST_CLASSES, MOST_PAIRS, MOST_LAYERS = 30, 20, 300
_UNNAMED = {*NORM_NAMES.values(), *ACTIVATION_NAMES.values()}
"""Operations that belong to the one before them."""


def trained_sections(facts: Facts) -> list[Section]:
    """One section a topic; what a bundle does not hold is left out."""
    trained = facts.trained
    sections = []
    if trained is not None:
        sections.append(Section("The retrained network", _summary(trained), _latency(trained)))
        evaluation = trained.evaluation
        if evaluation is not None:
            target = trained.metrics.get("target_accuracy")
            sections.append(Section("How it learned", _curves(evaluation, target)))
        if trained.confusion is not None:
            sections.append(Section("Right and wrong by class", _classes(trained.classes, trained.confusion)))
        if evaluation is not None:
            sections.append(Section("Calibration", _calibration(evaluation)))
            sections.append(Section("Misclassified images", _mistakes(evaluation)))
        elif trained.pictures:
            pictures = [Picture(png, words) for words, png in trained.pictures.items()]
            sections.append(Section("Its training and its mistakes", [Pictures(pictures)]))
    if trained is not None and trained.candidate is not None:
        sections.append(_drawing("Its layers", trained.candidate.architecture, facts))
        sections.append(Section("Augmentation", _augmentation(trained, trained.candidate.augmentation)))
    elif facts.best is not None and (architecture := facts.architecture(facts.best)) is not None:
        sections.append(_drawing("Layers of the best trial", architecture, facts))
    return sections


def _summary(trained: Trained) -> Sequence[Block]:
    metrics, blocks = trained.metrics, list[Block]()
    if trained.damaged:
        blocks.append(Text(f"Left out, since it cannot be read: {'; '.join(trained.damaged)}.", "bad"))

    def each(values: Any) -> str:
        return ", ".join(percent(value, 2) for value in (values if isinstance(values, list) else [values]))

    seed = f" (seed {metrics['shipped_seed']})" if "shipped_seed" in metrics else ""
    together = for_all(len(metrics.get("seeds") or ()))
    formats: tuple[tuple[str, str, Any], ...] = (
        ("test_accuracy", "Test accuracy per seed", each),
        ("seeds", "Seeds", lambda seeds: ", ".join(map(str, seeds))),
        ("test_accuracy_shipped", "Shipped weights", lambda value: percent(value, 2) + seed),
        ("test_images", "Test images", whole),
        ("train_accuracy", "Train accuracy, augmented", each),
        ("epochs", "Epochs", whole),
        ("params", "Parameters", whole),
        ("receptive_field", "Receptive field", whole),
        ("macs", "Multiply-accumulates", millions),
        ("wall_s", "Time", lambda wall_s: duration(wall_s) + together),
        ("teacher", "Learned from", taught_by),
        ("device", "Device", str),
        ("candidate_id", "Candidate", str),
        ("commit", "Commit", str),
    )
    rows = [(label, show(metrics[key])) for key, label, show in formats if metrics.get(key) not in (None, [])]
    if rows:
        blocks.append(Table(("Retrained", ""), rows))
    return blocks


def _latency(trained: Trained) -> Sequence[Block]:
    latency = trained.metrics.get("latency_ms")
    speeds = [
        (str(device), batch, f"{found[batch]:,.3g} ms", f"{1000 * int(batch) / found[batch]:,.0f}")
        for device, found in (latency.items() if isinstance(latency, dict) else ())
        for batch in map(str, LATENCY_BATCHES)
        if isinstance(found, dict) and is_number(found.get(batch)) and found[batch] > 0
    ]
    if not speeds:
        return ()
    columns = ("Latency on", "Images at once", "Median of a batch", "Images per second")
    return Table(columns, speeds, numeric={1, 2, 3}), Text("In float32, measured after the training.", "note")


def _curves(evaluation: Evaluation, target: Any) -> Sequence[Block]:
    figures = {}
    epochs = np.arange(1, len(evaluation.curves) + 1)
    for name, what, form in (("loss", "Cross-entropy", ".3f"), ("accuracy", "Accuracy", ".2%")):
        figure = base_figure("Epoch", what, height=320)
        for part, label, colour in (("train", "train (augmented)", GREY), ("test", "test (averaged weights)", BLUE)):
            values = evaluation.curves[:, CURVES.index(f"{part}_{name}")]
            known = np.isfinite(values)
            figure.add_scatter(
                x=epochs[known].tolist(), y=np.round(values[known], 5).tolist(), name=label,
                mode="lines+markers" if known.sum() <= 40 else "lines", line={"color": colour},
                hovertemplate=f"epoch %{{x}}: %{{y:{form}}}<extra>{label}</extra>",
            )  # fmt: skip
        figure.update_xaxes(whole_ticks(len(epochs)))
        if name == "loss":
            figure.update_yaxes(tickformat=None)
        elif is_number(target):
            line = {"color": GREEN, "dash": "dash", "width": 1.5}
            label = f"target {target:.1%}"
            figure.add_hline(y=target, line=line, annotation={"text": label, "xanchor": "right", "yanchor": "bottom"})
        figures[f"trained-{name}"] = figure
    words = "The test images were looked at once, after the training, with the weights that were saved on the way."
    return Text(words, "note"), Charts(figures, "Loss and accuracy of the retrained network by epoch")


def _classes(names: Sequence[str], confusion: np.ndarray) -> Sequence[Block]:
    totals, right = confusion.sum(1), confusion.diagonal()
    order = [c for c in np.argsort(-right / np.maximum(totals, 1), kind="stable") if totals[c]]
    shown = order if len(order) <= MOST_CLASSES else order[-MOST_CLASSES:]
    blocks: list[Block] = [
        Text("Share of each class's test images that is classified correctly, with its 95% interval (Wilson)."),
        Charts({"classes": _class_bars([(names[c], int(right[c]), int(totals[c])) for c in shown])}),
    ]
    if len(shown) < len(order):
        blocks.append(Text(f"The {len(shown)} weakest of {len(order)} classes.", "note"))
    if len(names) <= MOST_IN_MATRIX:
        shades = np.sqrt(confusion / np.maximum(totals, 1)[:, None]).tolist()  # mistakes are a few per cent each
        counts = [[f"{n:,}" if n else "·" for n in row] for row in confusion.tolist()]
        rows = [(name, *row) for name, row in zip(names, counts, strict=True)]
        numeric = range(1, len(names) + 1)
        blocks += [
            Text("Rows are true classes, columns predicted ones."),
            Table(("true \\ predicted", *names), rows, numeric=numeric, shades=shades),
        ]
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    pairs = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]]
    rows = [(names[a], names[b], f"{wrong[a, b]:,}", percent(wrong[a, b] / totals[a])) for a, b in pairs if wrong[a, b]]
    if rows:
        columns = ("True class", "Taken for", "Images", "Of the class")
        blocks.append(Table(columns, rows, numeric={2, 3}, folded="The most common confusions"))
    return blocks


def _class_bars(classes: Sequence[tuple[str, int, int]]) -> go.Figure:
    """Accuracy by class, the best on top: (name, right, all) of each."""
    shares = [right / total for _, right, total in classes]
    bounds = [accuracy_interval(right / total, total) for _, right, total in classes]
    figure = base_figure("Share classified correctly", "", height=100 + 26 * len(classes))
    figure.add_bar(
        x=shares,
        y=[f"{html.escape(name)}  {share:.1%}" for (name, _, _), share in zip(classes, shares, strict=True)],
        orientation="h",
        marker={"color": BLUE},
        error_x={
            "array": [high - share for share, (_, high) in zip(shares, bounds, strict=True)],
            "arrayminus": [share - low for share, (low, _) in zip(shares, bounds, strict=True)],
            "color": GREY, "thickness": 2, "width": 4,
        },
        hovertext=[
            f"{html.escape(name)}: {right:,} of {total:,}, 95% {low:.1%} to {high:.1%}"
            for (name, right, total), (low, high) in zip(classes, bounds, strict=True)
        ],
        hoverinfo="text",
    )  # fmt: skip
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    figure.update_yaxes(showgrid=False, tickformat=None, automargin=True, autorange="reversed", type="category")
    figure.update_layout(showlegend=False)
    return figure


def _calibration(evaluation: Evaluation) -> Sequence[Block]:
    confidences = evaluation.confidences
    found = reliability(evaluation.predictions == evaluation.labels, confidences)
    accuracy = float((evaluation.predictions == evaluation.labels).mean())
    bounds = [accuracy_interval(float(a), int(n)) for a, n in zip(found.accuracy, found.counts, strict=True)]
    figure = base_figure("Confidence", "Accuracy", height=380)
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dash"}, name="perfectly calibrated",
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=found.confidence.tolist(),
        y=found.accuracy.tolist(),
        mode="lines+markers",
        name="answers of a confidence, with 95%",
        line={"color": BLUE},
        # The area says how many images there are.
        marker={"color": BLUE, "size": (6 + 22 * np.sqrt(found.counts / found.counts.max())).tolist(), "opacity": 0.7},
        error_y={
            "array": [high - a for a, (_, high) in zip(found.accuracy.tolist(), bounds, strict=True)],
            "arrayminus": [a - low for a, (low, _) in zip(found.accuracy.tolist(), bounds, strict=True)],
            "color": GREY,
        },
        hovertext=[
            f"{counted(int(n), 'image')}: confidence {c:.1%}, accuracy {a:.1%}"
            for c, a, n in zip(found.confidence, found.accuracy, found.counts, strict=True)
        ],
        hoverinfo="text",
    )  # fmt: skip
    figure.update_xaxes(tickformat=".0%", range=[-0.02, 1.05])
    figure.update_yaxes(range=[-0.05, 1.08])
    tiles = [
        (percent(found.error), "expected calibration error"),
        (percent(float(confidences.mean())), "mean confidence"),
        (percent(accuracy), "accuracy"),
    ]
    words = (
        "Confidence is the probability that an answer comes with. Below the line answers are surer than they are "
        "right; the larger a point, the more images."
    )
    return Tiles(tiles), Text(words), Charts({"reliability": figure}, "Reliability diagram: accuracy by confidence")


def _mistakes(evaluation: Evaluation) -> Sequence[Block]:
    n_wrong = int((evaluation.predictions != evaluation.labels).sum())
    if not n_wrong:
        return (Text("No test image is misclassified.", "good"),)
    names, confidences, pictures = evaluation.classes, evaluation.confidences, []
    for row, pixels in zip(evaluation.missed, evaluation.missed_pixels, strict=True):
        truth, taken = names[evaluation.labels[row]], names[evaluation.predictions[row]]
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG")
        caption = (truth, f"{taken} {confidences[row]:.2f}")
        pictures.append(Picture(stream.getvalue(), f"{truth}, taken for {taken}", caption))
    words = (
        f"{n_wrong:,} of {counted(len(evaluation.labels), 'test image')} are misclassified; here the "
        f"{counted(len(pictures), 'most confident mistake')}. Under each: the true class, then the answer and its "
        "probability."
    )
    return Text(words), Pictures(pictures, small=True)


def _drawing(heading: str, architecture: Architecture, facts: Facts) -> Section:
    """The network from the image down, one bar an operation."""
    bound, rows = facts.config.limits.min_receptive_field, list[Layer]()
    operations = architecture.operations
    starts = [i for i, op in enumerate(operations) if op.name not in _UNNAMED]
    most = max(op.out_shape[0] for op in operations)
    for start, end in zip(starts, [*starts[1:], len(operations)], strict=True):
        op = operations[start]
        params = sum(each.params for each in operations[start:end])  # norms and activations count with what they follow
        kind = {"Conv2d": "conv", "AvgPool2d": "average pool"}.get(op.name, op.name.lower())
        rows.append(
            Layer(
                number=str(op.layer),
                words=f"{kind} {op.detail}".strip(),
                shape=shape_text(op.out_shape),
                params=whole(params) if params else "",
                side=op.out_shape[1] / architecture.image_size,
                depth=math.sqrt(op.out_shape[0] / most),
                field=op.receptive_field,
                inner=op.unit is not None,
            )
        )
    words = (
        f"From the image down. A bar on the left is as wide as its map and as high as it has channels; on the right "
        f"the receptive field grows, to {architecture.receptive_field} pixels before the pooling, and must pass the "
        f"line at {bound}. Indented: bodies of residual blocks."
    )
    blocks: list[Block] = [Text(words), Layers(rows[:MOST_LAYERS], bound)]
    if len(rows) > MOST_LAYERS:
        blocks.append(Text(f"{counted(len(rows) - MOST_LAYERS, 'more operation', 'are')} not drawn.", "note"))
    return Section(heading, blocks)


def _augmentation(trained: Trained, augmentation: Augmentation) -> Sequence[Block]:
    blocks: list[Block] = []
    if trained.augmented is not None:
        words = "Test images as they are, in the first column, and augmented as the training images were"
        blocks.append(Pictures([Picture(trained.augmented, words, (f"{words}; mixtures of two are not shown.",))]))
    rows = [(name, shown_value(value)) for name, value in dataclasses.asdict(augmentation).items()]
    blocks.append(Table(("Strength", "Value"), rows, numeric={1}, folded="The strengths"))
    return blocks
