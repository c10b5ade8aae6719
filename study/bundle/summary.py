"""summary.txt of a bundle: for people at a terminal. No torch here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from textwrap import indent
from typing import Any

from search_spaces.candidate import Candidate
from search_spaces.layer_table import layer_table
from study.command_line.wording import for_all, taught_by

SUMMARY = "summary.txt"
USE_WITH_PROJECT = """\
import study  # needs this project on the Python path

model = study.load(".")  # images [N, 3, H, W], RGB in [0, 1] -> logits [N, n_classes]
logits = model(model.preprocess("photo.jpg")[None])
print(model.classes[logits.argmax()])"""
USE_WITH_TORCH = """\
import torch

model = torch.export.load("model.pt2").module()
logits = model(torch.rand(1, 3, 32, 32))  # images [N, 3, 32, 32], RGB in [0, 1]"""
"""How to use a bundle, as printed: both run in its folder."""


def summary(candidate: Candidate, metrics: Mapping[str, Any]) -> str:
    """The text of summary.txt: layer table, key metrics, and how to load the bundle."""
    parts = [
        f"Candidate {candidate.candidate_id}, architecture {candidate.architecture.architecture_id}",
        layer_table(candidate.architecture),
        "\n".join(f"{label:<18} {text}" for label, text in _key_metrics(metrics)),
        f"With this project, in this folder:\n\n{indent(USE_WITH_PROJECT, '    ')}",
        "With torch alone, in this folder (where model.pt2 is missing, `python -m study.export . --format torch-export`"
        f" makes it):\n\n{indent(USE_WITH_TORCH, '    ')}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _key_metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of every key metric that is there."""
    found: defaultdict[str, Any] = defaultdict(lambda: None, metrics)
    if (mean := found["test_accuracy_mean"]) is not None:
        std, n_seeds = found["test_accuracy_std"], len(found["seeds"] or ())
        spread, what = ("", "mean") if std is None else (f" ± {100 * std:.2f}", "mean and standard deviation")
        yield "Test accuracy", f"{100 * mean:.2f}{spread} %" + (f" ({what} of {n_seeds} seeds)" if n_seeds > 1 else "")
    if (shipped := found["test_accuracy_shipped"]) is not None:
        seed = "" if found["shipped_seed"] is None else f" (seed {found['shipped_seed']})"
        yield "  of these weights", f"{100 * shipped:.2f} %{seed}"
    if (train := found["train_accuracy"]) is not None:
        yield "Train accuracy", f"{100 * train:.2f} % (running mean, last epoch's augmented images)"
    if (target := found["target_accuracy"]) is not None:
        verdict = {None: "", True: ", met", False: ", missed"}[found["target_met"]]
        yield "Target", f"{100 * target:.2f} %{verdict}"
    if found["epochs"] is not None:
        yield "Epochs", f"{found['epochs']:,}"
    if taught := taught_by(found["teacher"]):
        yield "Teacher", taught
    if found["device"] is not None:
        yield "Device", found["device"]
    if found["wall_s"] is not None:
        yield "Training time", f"{found['wall_s']:,.0f} s{for_all(len(found['seeds'] or ()))}"
