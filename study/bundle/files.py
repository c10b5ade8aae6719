"""The bundle: a trained network as a folder that is ready to use, written whole or not at all.

    best/
    |- weights.safetensors  state dict of study.model.network.Network: numbers alone, nothing in it can run
    |- weights.pt       the same as torch saves it (loads with weights_only=True)
    |- model.pt2        torch.export program: float32 images [N, 3, 32, 32] in [0, 1] -> logits [N, n_classes]
    |- candidate.json   what was trained
    |- metrics.json     what it reached
    |- config.json      classes, size, normalisation
    |- README.md        model card
    |- summary.txt      layer table, key metrics, how to load the files above
    |- curves.png       loss and accuracy by epoch, train and test
    |- misses.png       misclassified test images
    |- augmented.png    test images, augmented as the training images were
    |- confusion.png, confusion.csv
    `- evaluation.npz   answers to the test images, curves, mistakes: what the report shows

Torch and matplotlib are imported where they are used: `load_candidate` needs neither.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from search_spaces.candidate import Candidate
from search_spaces.fields import DescriptionError
from study.bundle.card import CARD, card
from study.bundle.evaluation import EVALUATION, confusion_matrix, evaluation_as_bytes, evaluation_of
from study.bundle.metrics import METRICS, read_metrics
from study.bundle.preprocessing import CIFAR_10, CONFIG, Preprocessing, read_preprocessing
from study.bundle.summary import SUMMARY, summary
from study.data.cifar10 import Images
from study.errors import UserError, said
from study.machine.files import (
    MOST_JSON,
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
    write_together,
)
from study.machine.processes import lives

if TYPE_CHECKING:
    import torch

    from study.model.network import Network

NUMBERS, WEIGHTS, MODEL, CANDIDATE = "weights.safetensors", "weights.pt", "model.pt2", "candidate.json"
CURVES, MISSES, AUGMENTED = "curves.png", "misses.png", "augmented.png"
CONFUSION_PNG, CONFUSION_CSV = "confusion.png", "confusion.csv"
FILES = (
    *(NUMBERS, WEIGHTS, MODEL, CANDIDATE, METRICS, CONFIG, CARD, SUMMARY),
    *(CURVES, MISSES, AUGMENTED, CONFUSION_PNG, CONFUSION_CSV, EVALUATION),
)
"""Every file of a bundle."""
ONNX, INT8, EXPORTS = "model.onnx", "model.int8.onnx", "exports.json"
"""What `study.export` puts beside them; another network that takes the bundle's place does not keep them."""
T = TypeVar("T")
_MAKE = "Write one with python -m study.retrain, or name its folder."
_AGAIN = "Copy the bundle again, or write it again with python -m study.retrain."

N_AUGMENTED, N_VIEWS = 6, 9
"""Images on the sheet of augmented ones, and how often each is augmented."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read back.

    Attributes:
        folder: Where it lies.
        candidate: What was trained.
        metrics: Contents of metrics.json.
        network: The trained network on the CPU, in evaluation mode; it takes normalised images.
        preprocessing: Its normalisation and its classes, contents of config.json.
    """

    folder: Path
    candidate: Candidate
    metrics: dict[str, Any]
    network: Network
    preprocessing: Preprocessing = CIFAR_10


def write_bundle(
    folder: Path,
    candidate: Candidate,
    network: Network,
    metrics: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
    test_images: Images,
    test_logits: np.ndarray,
    preprocessing: Preprocessing = CIFAR_10,
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
        preprocessing: What goes into config.json.

    Raises:
        UserError, StudyFailed: The folder cannot be written.
        RuntimeError: The exported program does not compute what the network computes.
    """
    from study.bundle import figures as bundle_figures
    from study.data.batches import augmented_views

    expected = (len(test_images), candidate.architecture.n_classes)
    if test_logits.shape != expected:
        raise ValueError(f"One row of logits per test image is needed: {test_logits.shape=}, {expected=}.")
    with _replaced(folder) as new:
        print("Exporting: the network as weights and as a program", flush=True)
        _write_networks(new, candidate, network, preprocessing)
        _write_json(new / CANDIDATE, candidate.to_json())
        _write_json(new / METRICS, dict(metrics))
        (new / SUMMARY).write_text(summary(candidate, metrics))
        confusion = confusion_matrix(test_images.labels, test_logits.argmax(1), candidate.architecture.n_classes)
        _write_confusion(new / CONFUSION_CSV, confusion, preprocessing.classes)
        _describe(new, candidate, metrics, preprocessing, confusion)
        print("Drawing: curves, confusion matrix, misses", flush=True)
        bundle_figures.draw_confusion(confusion, new / CONFUSION_PNG, preprocessing.classes)
        bundle_figures.draw_curves(curves, new / CURVES, metrics.get("target_accuracy"))
        bundle_figures.draw_misses(test_images, test_logits, new / MISSES, preprocessing.classes)
        some = test_images.take(np.linspace(0, len(test_images) - 1, min(len(test_images), N_AUGMENTED)).astype(int))
        bundle_figures.draw_augmented(augmented_views(some, candidate.augmentation, N_VIEWS), new / AUGMENTED)
        missed = bundle_figures.confident_misses(test_images.labels, test_logits)
        kept = evaluation_of(preprocessing.classes, test_images.labels, test_logits, curves, missed, test_images.pixels)
        (new / EVALUATION).write_bytes(evaluation_as_bytes(kept))


def load_bundle(folder: Path) -> Bundle:
    """Reads a bundle back, and runs nothing of it, whoever made it.

    Needs candidate.json, metrics.json, and weights.safetensors; weights.pt in a bundle that has none. One without
    config.json is of CIFAR-10.

    Raises:
        UserError: The folder or a file is missing, damaged, or does not fit the others.
    """
    import torch

    from study.model.network import build, described

    candidate = load_candidate(folder)
    architecture = candidate.architecture
    _require(folder, METRICS)
    metrics, preprocessing = _read(folder / METRICS, read_metrics), _read(folder / CONFIG, read_preprocessing)
    n_classes, size = len(preprocessing.classes), preprocessing.image_size
    if (architecture.in_channels, architecture.n_classes, architecture.image_size) != (3, n_classes, size):
        raise UserError(
            f"{str(folder / CANDIDATE)!r} is of a network from {architecture.in_channels} channels of "
            f"{architecture.image_size} pixels to {architecture.n_classes} classes; with its {CONFIG}, or without one, "
            f"only one from 3 of {size} to {n_classes} can be used."
        )
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
    return Bundle(folder, candidate, metrics, network.eval().requires_grad_(False), preprocessing)


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


def describe_bundle(bundle: Bundle) -> None:
    """Writes config.json and README.md of a bundle anew, of what its other files say.

    Raises:
        UserError: confusion.csv is damaged.
        OSError: They cannot be written.
    """
    classes = bundle.preprocessing.classes
    confusion = _read(bundle.folder / CONFUSION_CSV, lambda folder: read_confusion(folder, classes))
    _describe(bundle.folder, bundle.candidate, bundle.metrics, bundle.preprocessing, confusion)


def _write_networks(folder: Path, candidate: Candidate, network: Network, preprocessing: Preprocessing) -> None:
    """The weights in both forms, and model.pt2. The module is built anew: whatever lies beside the weights in the
    trained one (device, memory format, training mode) must not leak into the export."""

    from study.bundle.programs import torch_program
    from study.model.network import Deployable, build

    shipped = build(candidate.architecture, seed=0)
    shipped.load_state_dict({name: tensor.detach().cpu() for name, tensor in network.state_dict().items()})
    shipped.eval().requires_grad_(False)
    (folder / WEIGHTS).write_bytes(tensors_as_bytes(shipped.state_dict()))
    (folder / NUMBERS).write_bytes(numbers_as_bytes(shipped.state_dict()))
    deployable = Deployable(shipped, preprocessing.mean, preprocessing.std).eval().requires_grad_(False)
    (folder / MODEL).write_bytes(torch_program(deployable, candidate.architecture, preprocessing)[0])


def _describe(
    folder: Path,
    candidate: Candidate,
    metrics: Mapping[str, Any],
    preprocessing: Preprocessing,
    confusion: np.ndarray | None,
) -> None:
    """Writes config.json and README.md."""
    text = card(candidate, metrics, preprocessing, confusion)
    write_together({folder / CONFIG: preprocessing.to_text(), folder / CARD: text})


def _read(file: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(file.parent)
    except DamagedFileError as error:
        raise UserError(f"{str(file)!r} cannot be read: {error}. {_AGAIN}") from error


def _write_confusion(file: Path, confusion: np.ndarray, names: Sequence[str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("true \\ predicted", *names))
        writer.writerows((name, *row) for name, row in zip(names, confusion.tolist(), strict=True))


def read_confusion(folder: Path, names: Sequence[str]) -> np.ndarray | None:
    """What `_write_confusion` wrote; None where there is none.

    Raises:
        DamagedFileError: It holds something else.
    """
    file, n = folder / CONFUSION_CSV, len(names)
    if (found := what_is(file)) == "does not exist":
        return None
    try:
        if found != "is a file" or file.stat().st_size > MOST_JSON:
            raise ValueError(f"it {found}, or larger than {MOST_JSON:,} bytes")
        with file.open(encoding="utf-8", newline="") as stream:
            head, *rows = csv.reader(stream)
        counts = np.array([[int(count) for count in row[1:]] for row in rows], dtype=np.int64)
        if head[1:] != list(names) or [row[0] for row in rows] != list(names) or counts.shape != (n, n):
            raise ValueError(f"its classes are not those of {CONFIG}")
        if counts.min() < 0:
            raise ValueError("a count is negative")
        return counts
    except (OSError, ValueError, OverflowError, IndexError, csv.Error) as error:
        raise DamagedFileError(said(error)) from error


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
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.new"):
        if not lives(left.name.split(".")[-2]):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        if old.exists():
            for kept in old.iterdir():
                if kept.name not in (*FILES, ONNX, INT8, EXPORTS):
                    kept.rename(folder / kept.name)
            shutil.rmtree(old)
    except BaseException as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        if not isinstance(error, OSError):
            raise
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
