"""README.md of a bundle: a model card as hubs of models read it, a head in YAML and then Markdown. No torch here."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import yaml

from search_spaces.candidate import Candidate
from study.bundle.metrics import accuracy_interval
from study.bundle.preprocessing import Preprocessing
from study.bundle.summary import USE_WITH_PROJECT, USE_WITH_TORCH
from study.command_line.wording import (
    counted,
    duration,
    for_all,
    markdown_table,
    markdown_text,
    percent,
    printable,
    shown_value,
    taught_by,
)

CARD = "README.md"
LICENCE = "mit"
_ON_THE_HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn",
    "mnist": "ylecun/mnist",
    "fashionmnist": "zalando-datasets/fashion_mnist",
}
"""What hubs call data sets, by their name's letters and digits; one that they do not have is not named to them."""
_N_CONFUSED, _N_WEAK = 5, 3


def card(
    candidate: Candidate, metrics: Mapping[str, Any], preprocessing: Preprocessing, confusion: np.ndarray | None
) -> str:
    """The text of README.md.

    Args:
        candidate: What was trained.
        metrics: Contents of metrics.json, which may lack everything.
        preprocessing: Contents of config.json.
        confusion: Counts [n_classes, n_classes] on the test images, rows are true classes; None if they are not known.
    """
    known: defaultdict[str, Any] = defaultdict(lambda: None, metrics)
    n_test = 0 if confusion is None else int(confusion.sum())
    head = yaml.safe_dump(_head(known, preprocessing), sort_keys=False, allow_unicode=True, width=120)
    architecture, n_classes = candidate.architecture, len(preprocessing.classes)
    names = ", ".join(_text(name) for name in preprocessing.classes[:20]) + (", ..." if n_classes > 20 else "")
    size, data = preprocessing.image_size, _text(preprocessing.data)
    parts = [
        f"---\n{head}---",
        f"# A small CNN for {data}",
        f"It sorts images of {size}x{size} pixels into {n_classes} classes: {names}. `small-cnn-study`, "
        "which searches such networks with Optuna under hard limits on their size, made this folder.",
        "## Accuracy",
        _list(_accuracy(known, n_test)) or "Not measured.",
    ]
    if confusion is not None and n_test:
        parts += [
            "On the test images of each class (recall: its images that are recognised; precision: right answers among "
            "those of this name):",
            _per_class(confusion, preprocessing),
            "## Weaknesses",
            _list(_weaknesses(confusion, preprocessing)),
        ]
    else:
        parts += ["## Weaknesses", _list(_always(preprocessing))]
    parts += [
        "## Limits",
        f"{architecture.params:,} parameters ({architecture.params * 4 / 2**20:.2f} MiB as float32), "
        f"{architecture.macs:,} multiply-accumulates for an image, a receptive field of {architecture.receptive_field} "
        f"pixels ({architecture.receptive_field_with_pool} with the pooling). Layer by layer: `summary.txt`.",
        "## Data",
        _list(_data(known, preprocessing, n_test)),
        "## Recipe",
        _list(_recipe(candidate, known)),
        "## Use",
        "In this folder, with this project (`config.json` tells other programs the classes and the normalisation):\n\n"
        f"```python\n{USE_WITH_PROJECT}\n```",
        "With torch alone (only if you trust who made `model.pt2`; where it is missing, `python -m study.export BUNDLE "
        f"--format torch-export` makes it):\n\n```python\n{USE_WITH_TORCH}\n```",
        "ONNX: `python -m study.export BUNDLE --format onnx`; of 8 bits: with `--int8` behind it.",
        "## Licence",
        f"MIT, as the project. The images of {data} have terms of their own.",
    ]
    return "\n\n".join(parts) + "\n"


def _head(known: Mapping[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """What hubs read."""
    # A folder of the user's may be called as a data set is.
    letters = "" if known["own_images"] else re.sub(r"[^a-z0-9]+", "", preprocessing.data.lower())
    on_the_hub = _ON_THE_HUB.get(letters)
    head: dict[str, Any] = {
        "license": LICENCE,
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "cnn", "small", "neural-architecture-search", "optuna"],
    }
    if on_the_hub:
        head["datasets"] = [on_the_hub]
    head["metrics"] = ["accuracy"]
    if (accuracy := known["test_accuracy_shipped"]) is not None:
        name = "-".join(str(known[part]) for part in ("study", "name") if known[part]) or "small-cnn"
        value = {"type": "accuracy", "value": accuracy, "name": "Test accuracy"}
        data = {"type": on_the_hub or letters or "own", "name": preprocessing.data, "split": "test"}
        task = {"type": "image-classification", "name": "Image classification"}
        head["model-index"] = [{"name": name, "results": [{"task": task, "dataset": data, "metrics": [value]}]}]
    return head


def _accuracy(known: Mapping[str, Any], n_test: int) -> Iterator[str]:
    if (shipped := known["test_accuracy_shipped"]) is not None:
        seed = "" if known["shipped_seed"] is None else f"seed {known['shipped_seed']}"
        of = [seed, f"{n_test:,} test images" if n_test else ""]
        if n_test:
            least, most = accuracy_interval(shipped, n_test)
            of.append(f"95% interval {percent(least, 2)} to {percent(most, 2)}")
        words = ", ".join(filter(None, of))
        yield f"**{percent(shipped, 2)}** of the test images" + (f" ({words})" if words else "")
    if (std := known["test_accuracy_std"]) is not None and known["test_accuracy_mean"] is not None:
        each = ", ".join(percent(value, 2) for value in known["test_accuracy"] or ())
        n_seeds = len(known["seeds"] or ())
        yield f"{percent(known['test_accuracy_mean'], 2)} ± {100 * std:.2f} over {counted(n_seeds, 'seed')}" + (
            f": {each}" if each else ""
        )
    if (target := known["target_accuracy"]) is not None:
        verdict = {None: "", True: ", met", False: ", missed"}[known["target_met"]]
        yield f"Target {percent(target, 2)}{verdict}"
    if known["test_accuracy_shipped"] is not None:
        chosen = known["chosen_by_test_images"]
        but = f" but {_text(chosen)}, before" if chosen else ""
        yield (
            "Of the last epoch, without test-time augmentation. The test images were looked at once, after training; "
            f"nothing was chosen by them{but}. The interval is Wilson's, of other test images; other seeds differ, too."
        )


def _per_class(confusion: np.ndarray, preprocessing: Preprocessing) -> str:
    right, of_class, answered = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    rows = [
        (_text(name), *(percent(int(k) / int(n)) if n else "-" for n in (total, given)), f"{int(total):,}")
        for name, k, total, given in zip(preprocessing.classes, right, of_class, answered, strict=True)
    ]
    return markdown_table(("class", "recall", "precision", "test images"), rows, numeric=(1, 2, 3))


def _weaknesses(confusion: np.ndarray, preprocessing: Preprocessing) -> Iterator[str]:
    names, totals = preprocessing.classes, confusion.sum(1)
    both = np.triu(confusion + confusion.T, k=1)
    pairs = [np.unravel_index(place, both.shape) for place in np.argsort(-both, axis=None, kind="stable")]
    worst = [(int(a), int(b)) for a, b in pairs[:_N_CONFUSED] if both[a, b]]
    if worst:
        each = (
            f"{_text(names[a])} and {_text(names[b])} ({int(both[a, b]):,} of their {int(totals[a] + totals[b]):,})"
            for a, b in worst
        )
        yield f"Most often taken for one another: {'; '.join(each)}."
    recall = confusion.diagonal() / np.maximum(totals, 1)
    weak = [place for place in np.argsort(recall, kind="stable") if totals[place] and recall[place] < 1][:_N_WEAK]
    if weak:
        yield f"Least recognised: {', '.join(f'{_text(names[i])} {percent(float(recall[i]))}' for i in weak)}."
    yield from _always(preprocessing)


def _always(preprocessing: Preprocessing) -> Iterator[str]:
    """What holds for every network of this kind."""
    size = preprocessing.image_size
    yield "It answers with one of its classes whatever it is shown, and its probabilities are no promise."
    yield f"It sees the centre square of a picture at {size}x{size} pixels; what is small or at the edge is lost."
    yield f"It was tested on images of {_text(preprocessing.data)} alone; on others it will be right less often."


def _data(known: Mapping[str, Any], preprocessing: Preprocessing, n_test: int) -> Iterator[str]:
    n_train = "" if known["train_images"] is None else f", {known['train_images']:,} images to train on"
    yield f"{_text(preprocessing.data)}{n_train}" + (f", {n_test:,} to test" if n_test else "")
    yield f"Image to input: {_text(preprocessing.resize)}; RGB in [0, 1]"
    mean, std = (", ".join(f"{value:g}" for value in each) for each in (preprocessing.mean, preprocessing.std))
    yield f"Normalised by the mean {mean} and the standard deviation {std} (inside the model)"


def _recipe(candidate: Candidate, known: Mapping[str, Any]) -> Iterator[str]:
    for label, part in (("Optimisation", candidate.optimisation), ("Augmentation", candidate.augmentation)):
        settings = dataclasses.asdict(part).items()
        yield f"{label}: {', '.join(f'{name} {shown_value(value)}' for name, value in settings)}"
    if known["epochs"] is not None:
        seconds, together = known["wall_s"], for_all(len(known["seeds"] or ()))
        spent = "" if seconds is None else f" in {duration(seconds)}{together}"
        yield f"{counted(known['epochs'], 'epoch')}{spent}, averaged weights (EMA)"
    if taught := taught_by(known["teacher"]):
        yield f"It also learned from a larger network, {taught}, in every seed the same"
    if seeds := known["seeds"]:
        shipped = "" if known["shipped_seed"] is None else f"; these weights are of seed {known['shipped_seed']}"
        yield f"Seeds {', '.join(map(str, seeds))}{shipped}"
    machine = known["hardware"] or {}
    where = [known["device"], known["precision"], machine.get("gpu") or machine.get("cpu")]
    if any(where):
        yield "On " + ", ".join(_text(str(each)) for each in where if each)
    if isinstance(versions := known["versions"], dict):
        yield ", ".join(_text(f"{name} {version}") for name, version in versions.items())
    if known["command"]:
        yield f"By `{_text(str(known['command'])).replace('`', '')}`"
    yield f"Candidate {candidate.candidate_id}" + (f", commit {_text(known['commit'])}" if known["commit"] else "")


def _list(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _text(text: str) -> str:
    """A name or a setting that somebody gave, on one line and without markup of its own."""
    return markdown_text(printable(text))
