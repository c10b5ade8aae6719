"""`python -m study.export`: a bundle's network in other formats, each compared with the network itself and measured."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import shlex
import statistics
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from study.bundle.files import EXPORTS, INT8, MODEL, NUMBERS, ONNX, Bundle, describe_bundle, load_bundle
from study.bundle.metrics import LATENCY_BATCHES
from study.command_line.numbers import at_least
from study.command_line.parser import Parser, run_command
from study.command_line.wording import aligned, counted, percent, printable
from study.data.cifar10 import Images, in_turns
from study.data.dataset import DataSet
from study.data.opening import load_test, load_train, open_data_of
from study.errors import StudyFailed, UserError
from study.machine.files import numbers_as_bytes, unwritten, what_is, write_atomically
from study.machine.hardware import hardware, use_no_more_threads, versions
from study.machine.timing import timed

if TYPE_CHECKING:
    from study.bundle.classifier import Classifier
    from study.bundle.programs import Run

FORMATS = ("safetensors", "torch-export", "onnx", "card", "all")
_EXTRA = ("onnx", "onnxscript", "onnxruntime")
_SECONDS = 1.0
N_CALIBRATION, CALIBRATION_SEED = 1_000, 0
"""Training images that give the ranges of 8-bit activations."""
_TOLERANCE = 1e-3
"""How far a logit of the same numbers may differ, by the order in which they are added up."""
_EPILOG = """\
examples:
  python -m study.export results/runs/dilated/best --format onnx
  python -m study.export results/runs/dilated/best --format onnx --int8 --out small.onnx
  python -m study.export results/runs/dilated/best --format all      every format, a table, exports.json
  python -m study.export results/runs/dilated/best --format card     config.json and README.md of an older bundle

Every program takes float32 images [N, 3, H, W], RGB in [0, 1], of any N, and gives logits [N, classes]. ONNX needs
pip install -e '.[onnx]'. Figures are of this machine's CPU.
"""


@dataclass(frozen=True)
class Export:
    """A network in one format.

    Attributes:
        name: Of the format.
        file: What it is called in a bundle.
        content: Of the file.
        run: Its answers.
        exact: Whether it must answer as the network does.
    """

    name: str
    file: str
    content: bytes
    run: Run
    exact: bool = True


@dataclass(frozen=True)
class Measured:
    """What an export is.

    Attributes:
        size_bytes: Of its file.
        accuracy: On the test images; None without such.
        same: Images on which its class is the network's.
        difference: The largest of a logit.
        latency_ms: Median time for a batch, by the batch's size.
    """

    format: str
    file: str
    size_bytes: int
    accuracy: float | None
    same: int
    difference: float
    latency_ms: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a bundle's network in the format that is asked for, once it has been compared with the network.

    Raises:
        UserError: The bundle cannot be read, a package is missing, or a file cannot be written.
        StudyFailed: The format does not give the network's answers.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.format == "card":
        parser.refuse_beside("--format card", options, ("out", "images", "data"))
    if options.images == 0 and not options.int8 and options.format != "all":
        parser.refuse_beside("--images 0 without 8 bits", options, ("data",))
    _check(options)
    folder = Path(options.bundle)
    print(f"Exporting {printable(str(folder))}", flush=True)
    bundle = load_bundle(folder)
    if options.format == "card":
        try:
            describe_bundle(bundle)
        except OSError as error:
            raise unwritten(f"The card of {str(folder)!r}", error, "Copy the bundle to where you may write.") from error
        print("Wrote its config.json and README.md")
        return 0
    use_no_more_threads()
    from study.bundle.classifier import Classifier
    from study.bundle.programs import run_by_torch

    images, model = _images(options, bundle), Classifier(bundle)
    exports = _exports(bundle, model, options)
    measured = _measure(exports, run_by_torch(model), images, tested=options.images != 0)
    written = exports if options.format == "all" else exports[-1:]
    print("\n".join(_table(measured, {each.name for each in written}, len(images), tested=options.images != 0)))
    if options.format == "all":
        out = folder if options.out is None else Path(options.out)
        _write({out / export.file: export.content for export in written})
        _write({out / EXPORTS: _record(bundle, options, measured, len(images), argv)})
    else:
        _write({folder / exports[-1].file if options.out is None else Path(options.out): exports[-1].content})
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m study.export",
        description="Write a trained network in another format, compare it with the network and measure it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by study.retrain")
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("--out", metavar="FILE", help="where to (default: in the bundle); with --format all a folder")
    parser.add_argument("--int8", action="store_true", help="ONNX with 8-bit numbers, calibrated on training images")
    parser.add_argument(
        "--images",
        metavar="N",
        action=at_least(0),
        help="test images to compare on (default: all; 0: random ones, which give no accuracy and, without 8 bits, "
        "need no data set)",
    )
    parser.add_argument("--data", help="the data set, as study.retrain takes it")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuses what cannot be, before anything is loaded.

    Raises:
        UserError: Options do not fit together, or a package is missing.
    """
    if options.int8 and options.format not in ("onnx", "all"):
        raise UserError(f"--int8 is a variant of --format onnx, not of {options.format}.")
    wanted = "a folder" if options.format == "all" else "a file"
    found = what_is(options.out) if options.out else "names none"
    if options.out is not None and found not in (f"is {wanted}", "does not exist"):
        raise UserError(f"--out must be {wanted}: {options.out!r} {found}.")
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing and options.format in ("onnx", "all"):
        raise UserError(
            f"--format {options.format} needs {', '.join(missing)}, not installed here: pip install -e '.[onnx]'"
        )


def _data_set(bundle: Bundle, options: argparse.Namespace) -> DataSet:
    return open_data_of(bundle.preprocessing.classes, bundle.preprocessing.image_size, options.data)


def _training_images(bundle: Bundle, options: argparse.Namespace) -> Images:
    return load_train(_data_set(bundle, options).source)


def _images(options: argparse.Namespace, bundle: Bundle) -> Images:
    """What to compare on."""
    if options.images == 0:
        shape = (LATENCY_BATCHES[-1], bundle.preprocessing.image_size, bundle.preprocessing.image_size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return Images(pixels, np.zeros(len(pixels), np.int64))
    test = load_test(_data_set(bundle, options).source)
    if options.images is None:
        return test
    return test.take(in_turns(test.labels, len(test.of.classes))[: options.images])  # a folder's lie class by class


def _exports(bundle: Bundle, model: Classifier, options: argparse.Namespace) -> list[Export]:
    """Its numbers, and all that is asked for, each as its content is read again; the last one is what is written."""
    from safetensors.torch import load

    from study.bundle.classifier import Classifier
    from study.bundle.programs import int8_program, onnx_program, run_by_onnxruntime, run_by_torch, torch_program
    from study.model.network import build

    wanted = options.format
    content = numbers_as_bytes(bundle.network.state_dict())
    again = build(bundle.candidate.architecture, seed=0)
    again.load_state_dict(load(content))
    exports = [Export("safetensors", NUMBERS, content, run_by_torch(Classifier(replace(bundle, network=again.eval()))))]
    if wanted in ("torch-export", "all"):
        content, loaded = torch_program(model, bundle.candidate.architecture, bundle.preprocessing)
        exports.append(Export("torch-export", MODEL, content, run_by_torch(loaded)))
    if wanted in ("onnx", "all"):
        program = onnx_program(bundle.network, bundle.preprocessing)
        exports.append(Export("onnx", ONNX, program, run_by_onnxruntime(program)))
        if options.int8 or wanted == "all":
            train = _training_images(bundle, options)
            rows = np.random.default_rng(CALIBRATION_SEED).permutation(len(train))[:N_CALIBRATION]
            small = int8_program(program, _as_input(train.pixels[np.sort(rows)]), bundle.preprocessing)
            exports.append(Export("onnx int8", INT8, small, run_by_onnxruntime(small), exact=False))
    return exports


def _measure(exports: Sequence[Export], network: Run, images: Images, tested: bool) -> list[Measured]:
    """Compares each with the network itself, on `images`.

    Args:
        exports: What to measure.
        network: The answers to expect.
        images: What to ask them about.
        tested: Whether their labels mean anything.

    Raises:
        StudyFailed: One that must gives other answers.
    """
    expected, found = _logits(network, images), []
    for export in exports:
        logits = _logits(export.run, images)
        difference = float(np.abs(logits - expected).max())
        if export.exact and not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise StudyFailed(f"{export.name} gives other answers than the network: by {difference:.3g}. Not written.")
        found.append(
            Measured(
                format=export.name,
                file=export.file,
                size_bytes=len(export.content),
                accuracy=float((logits.argmax(1) == images.labels).mean()) if tested else None,
                same=int((logits.argmax(1) == expected.argmax(1)).sum()),
                difference=difference,
                latency_ms={str(size): _latency_ms(export.run, images, size) for size in LATENCY_BATCHES},
            )
        )
    return found


def _logits(run: Run, images: Images) -> np.ndarray:
    """float32 [N, n_classes]."""
    step = LATENCY_BATCHES[-1]
    return np.concatenate([run(_as_input(images.pixels[i : i + step])) for i in range(0, len(images), step)])


def _as_input(pixels: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [0, 1]."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / 255


def _latency_ms(run: Run, images: Images, size: int) -> float:
    """The median of at least a second."""
    batch = _as_input(np.resize(images.pixels, (size, *images.pixels.shape[1:])))
    return 1000 * statistics.median(timed(lambda: run(batch), _SECONDS, at_least=5))


def _table(measured: Sequence[Measured], written: Collection[str], n_images: int, tested: bool) -> list[str]:
    """What was measured, for people; of what is not `written` too, since the rest is compared with it."""
    machine = hardware("cpu")
    latencies = [f"ms for {size}" for size in LATENCY_BATCHES]
    rows = [("format", "size", "accuracy", "same class", *latencies)]
    for each in measured:
        size, same = f"{each.size_bytes / 2**10:,.0f} KiB", f"{each.same:,} of {n_images:,}"
        name = each.format if each.format in written else f"{each.format} (not written)"
        if each is measured[0] and each.format not in written:
            name = "the bundle itself"
        rows.append((name, size, percent(each.accuracy, 2), same, *(f"{t:.2f}" for t in each.latency_ms.values())))
    what = counted(n_images, "test image") if tested else f"{n_images:,} random images, so that no accuracy is known"
    return [f"On {what}; {machine['cpu']}, {counted(machine['n_cores'], 'core')}:", "", *aligned(rows), ""]


def _record(
    bundle: Bundle, options: argparse.Namespace, measured: Sequence[Measured], n_images: int, argv: Sequence[str] | None
) -> str:
    """The text of exports.json."""
    command = ["python", "-m", "study.export", *(sys.argv[1:] if argv is None else argv)]
    record: dict[str, Any] = {
        "candidate_id": bundle.candidate.candidate_id,
        "test_images": 0 if options.images == 0 else n_images,
        "calibration_images": min(N_CALIBRATION, len(_training_images(bundle, options))),
        "formats": [dataclasses.asdict(each) for each in measured],
        "hardware": hardware("cpu"),
        "versions": {**versions(), **{name: version(name) for name in _EXTRA}},
        "command": shlex.join(command),
    }
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def _write(contents: dict[Path, bytes | str]) -> None:
    for file, content in contents.items():
        try:
            write_atomically(file, content)
        except OSError as error:
            raise unwritten(f"{str(file)!r}", error, "Name another place with --out.") from error
        print(f"Wrote {printable(str(file))}")


if __name__ == "__main__":
    run_command(main)
