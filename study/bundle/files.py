"""The bundle: a trained network as a folder that is ready to use, written whole or not at all.

    best/
    |- weights.safetensors  state dict of study.model.network.Network: numbers alone, nothing in it can run
    |- weights.pt       the same as torch saves it (loads with weights_only=True)
    |- model.pt2        torch.export program: float32 images [N, 3, 32, 32] in [0, 1] -> logits [N, 10]
    |- candidate.json   what was trained
    |- metrics.json     what it reached
    |- summary.txt      layer table, key metrics, how to load the two files above
    |- curves.png       loss and accuracy by epoch, train and test
    |- misses.png       misclassified test images
    `- confusion.png, confusion.csv

Torch and matplotlib are imported where they are used: `load_candidate` needs neither.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.candidate import Candidate
from search_spaces.fields import DescriptionError
from search_spaces.layer_table import layer_table
from study.bundle.metrics import METRICS, read_metrics
from study.data.cifar10 import CLASSES, Images
from study.errors import UserError, said
from study.machine.files import (
    DamagedFileError,
    is_file,
    is_folder,
    numbers_as_bytes,
    read_json,
    read_numbers,
    read_tensors,
    tensors_as_bytes,
    unwritten,
    what_is,
)

if TYPE_CHECKING:
    import torch

    from study.model.network import Network

NUMBERS, WEIGHTS, MODEL, CANDIDATE = "weights.safetensors", "weights.pt", "model.pt2", "candidate.json"
SUMMARY, CURVES, MISSES = "summary.txt", "curves.png", "misses.png"
CONFUSION_PNG, CONFUSION_CSV = "confusion.png", "confusion.csv"
FILES = (NUMBERS, WEIGHTS, MODEL, CANDIDATE, METRICS, SUMMARY, CURVES, MISSES, CONFUSION_PNG, CONFUSION_CSV)
"""Every file of a bundle."""
_MAKE = "Write one with python -m study.retrain, or name its folder."
_AGAIN = "Copy the bundle again, or write it again with python -m study.retrain."

LOAD_MODEL = """\
import torch
model = torch.export.load("model.pt2").module()
logits = model(torch.rand(1, 3, 32, 32))  # images [N, 3, 32, 32], RGB in [0, 1]"""
LOAD_WEIGHTS = """\
from pathlib import Path
from study.bundle import load_bundle  # needs this repository on the Python path
network = load_bundle(Path(".")).network  # takes images normalised by study.data.cifar10.MEAN and STD"""
"""How to load, as printed in summary.txt: both run in the bundle's folder."""

_CHECKED_BATCHES = (1, 2, 7)
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read back.

    Attributes:
        folder: Where it lies.
        candidate: What was trained.
        metrics: Contents of metrics.json.
        network: The trained network on the CPU, in evaluation mode; it takes normalised images.
    """

    folder: Path
    candidate: Candidate
    metrics: dict[str, Any]
    network: Network


def write_bundle(
    folder: Path,
    candidate: Candidate,
    network: Network,
    metrics: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
    test_images: Images,
    test_logits: np.ndarray,
) -> None:
    """Writes the bundle of a trained network.

    It is built in a folder beside `folder` and moved into place when complete. A bundle that lay
    there is replaced; files there that are not a bundle's are kept.

    Args:
        folder: Where to write; made if it does not exist.
        candidate: What was trained.
        network: Its averaged weights.
        metrics: What goes into metrics.json.
        curves: One mapping per epoch: epoch (from zero), train_loss, train_accuracy, and test_loss and
            test_accuracy, which are None where no snapshot was tested.
        test_images: The N test images.
        test_logits: float [N, n_classes] of `network` on them.

    Raises:
        UserError, StudyFailed: The folder cannot be written.
        RuntimeError: The exported program does not compute what the network computes.
    """
    from study.bundle import figures as bundle_figures

    expected = (len(test_images), candidate.architecture.n_classes)
    if test_logits.shape != expected:
        raise ValueError(f"One row of logits per test image is needed: {test_logits.shape=}, {expected=}.")
    with _replaced(folder) as new:
        print("Exporting: the network as weights and as a program", flush=True)
        _write_networks(new, candidate, network)
        _write_json(new / CANDIDATE, candidate.to_json())
        _write_json(new / METRICS, dict(metrics))
        (new / SUMMARY).write_text(summary(candidate, metrics))
        confusion = bundle_figures.confusion_matrix(
            test_images.labels, test_logits.argmax(1), candidate.architecture.n_classes
        )
        _write_confusion(new / CONFUSION_CSV, confusion)
        print("Drawing: curves, confusion matrix, misses", flush=True)
        bundle_figures.draw_confusion(confusion, new / CONFUSION_PNG)
        bundle_figures.draw_curves(curves, new / CURVES, metrics.get("target_accuracy"))
        bundle_figures.draw_misses(test_images, test_logits, new / MISSES)


def load_bundle(folder: Path) -> Bundle:
    """Reads a bundle back, and runs nothing of it, whoever made it.

    Needs candidate.json, metrics.json, and weights.safetensors; weights.pt in a bundle that has none.

    Raises:
        UserError: The folder or a file is missing, damaged, or does not fit the others.
    """
    import torch

    from study.model.network import build, described

    candidate = load_candidate(folder)
    architecture = candidate.architecture
    if (architecture.in_channels, architecture.n_classes) != (3, len(CLASSES)):
        raise UserError(
            f"{str(folder / CANDIDATE)!r} is of a network from {architecture.in_channels} channels to "
            f"{architecture.n_classes} classes; only one from 3 to {len(CLASSES)} can be used here."
        )
    _require(folder, METRICS)
    try:
        metrics = read_metrics(folder)
    except DamagedFileError as error:
        raise UserError(f"{str(folder / METRICS)!r} cannot be read: {error}. {_AGAIN}") from error
    file, state = _read_weights(folder)
    network = build(architecture, seed=0)
    if described(state) != described(network.state_dict()):
        raise UserError(
            f"The weights must fit {CANDIDATE}, and {str(file)!r} belongs to another network. "
            "Take both files from one bundle."
        )
    network.load_state_dict(state)
    with torch.no_grad():
        if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
            raise UserError(f"{str(file)!r} is damaged: it holds NaN or infinity. {_AGAIN}")
    return Bundle(folder, candidate, metrics, network.eval().requires_grad_(False))


def load_candidate(folder: Path) -> Candidate:
    """Reads candidate.json alone. Needs no torch.

    Raises:
        UserError: The folder or the file is missing, damaged, or describes no network.
    """
    file = _require(folder, CANDIDATE)
    try:
        return Candidate.from_json(read_json(file))
    except DamagedFileError as error:
        raise UserError(f"{str(file)!r} cannot be read: {error}. {_AGAIN}") from error
    except DescriptionError as error:
        raise UserError(f"{str(file)!r} holds no candidate: {said(error)}. {_AGAIN}") from error


def summary(candidate: Candidate, metrics: Mapping[str, Any]) -> str:
    """The text of summary.txt: layer table, key metrics, and how to load the bundle."""
    parts = [
        f"Candidate {candidate.candidate_id}, architecture {candidate.architecture.architecture_id}",
        layer_table(candidate.architecture),
        "\n".join(f"{label:<18} {text}" for label, text in _key_metrics(metrics)),
        f"Load {MODEL} with torch alone, in this folder:\n\n{indent(LOAD_MODEL, '    ')}",
        f"Load {WEIGHTS} with this project, in this folder:\n\n{indent(LOAD_WEIGHTS, '    ')}",
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
    if found["device"] is not None:
        yield "Device", found["device"]
    if found["wall_s"] is not None:
        yield "Wall time", f"{found['wall_s']:,.0f} s"


def _write_networks(folder: Path, candidate: Candidate, network: Network) -> None:
    """The weights in both forms, and model.pt2. The module is built anew: whatever lies beside the weights in the
    trained one (device, memory format, training mode) must not leak into the export."""

    from study.model.network import Deployable, build

    shipped = build(candidate.architecture, seed=0)
    shipped.load_state_dict({name: tensor.detach().cpu() for name, tensor in network.state_dict().items()})
    shipped.eval().requires_grad_(False)
    (folder / WEIGHTS).write_bytes(tensors_as_bytes(shipped.state_dict()))
    (folder / NUMBERS).write_bytes(numbers_as_bytes(shipped.state_dict()))
    deployable = Deployable(shipped).eval().requires_grad_(False)
    _export(folder / MODEL, deployable, candidate.architecture.in_channels, candidate.architecture.image_size)


def _export(file: Path, module: torch.nn.Module, channels: int, side: int) -> None:
    import torch

    images = torch.rand(max(_CHECKED_BATCHES), channels, side, side, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1)
    # The example has two images: torch treats a dimension of one as a constant.
    program = torch.export.export(module, (images[:2],), dynamic_shapes={"x": {0: batch}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which are nobody's business
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    loaded = torch.export.load(content).module()
    for n_images in _CHECKED_BATCHES:
        with torch.inference_mode():
            found, expected = loaded(images[:n_images]), module(images[:n_images])
        if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            worst = float((found - expected).abs().max())
            raise RuntimeError(f"The exported program differs from the network by {worst:.3g} at {n_images=}.")
    file.write_bytes(content.getvalue())


def _write_confusion(file: Path, confusion: np.ndarray) -> None:
    names = CLASSES[: len(confusion)]
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("true \\ predicted", *names))
        writer.writerows((name, *row) for name, row in zip(names, confusion.tolist(), strict=True))


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which then takes the place of `folder`.

    Readers find the old bundle or the new one. Should the program die between the two renames, both
    lie complete beside `folder`.
    """
    folder = Path(os.path.realpath(folder))
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    if (found := what_is(folder)) not in ("is a folder", "does not exist"):
        raise UserError(f"A bundle is a folder, and {str(folder)!r} {found}. Name another place.")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        if old.exists():
            for kept in old.iterdir():
                if kept.name not in FILES:
                    kept.rename(folder / kept.name)
            shutil.rmtree(old)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise unwritten(f"The bundle {str(folder)!r}", error, "Name another place.") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n")


def _read_weights(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The file that holds them, and what it holds."""
    import torch

    safe = what_is(folder / NUMBERS) != "does not exist"
    file = _require(folder, NUMBERS if safe else WEIGHTS)
    try:
        state = read_numbers(file) if safe else read_tensors(file)
    except DamagedFileError as error:
        raise UserError(f"{str(file)!r} is damaged or no file of weights. {_AGAIN}") from error
    # Not by its own methods, which a stranger's file can replace.
    plain = dict(dict.items(state)) if isinstance(state, dict) else {}
    if not plain or not all(type(value) is torch.Tensor for value in plain.values()):
        raise UserError(f"{str(file)!r} must hold a state dict, and holds something else. {_AGAIN}")
    return file, plain


def _require(folder: Path, name: str) -> Path:
    if not is_folder(folder):
        raise UserError(f"A bundle is a folder with {CANDIDATE}, and {str(folder)!r} {what_is(folder)}. {_MAKE}")
    file = folder / name
    if not is_file(file):
        raise UserError(f"A bundle must hold {name}, and {str(folder)!r} does not. {_MAKE}")
    return file
