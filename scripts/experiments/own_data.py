"""Does the study work on other images than CIFAR-10's? Searches, retrains, reports and predicts on five data sets.

    python scripts/experiments/own_data.py [--only digits two-classes] [--digits scikit_learn-1.7.2-....whl]

cifar10-folders   1,250 images of CIFAR-10 as PNG files of odd sizes, train/<class>/ and test/<class>/
two-classes       600 of them, airplanes and frogs, in one folder: a test part is kept
digits            scikit-learn's 1,797 grey digits of 8x8 pixels; from the package, or from its wheel by --digits
CIFAR100, SVHN    made files of colours and noise as torchvision has them: a hundred classes, and files of MATLAB

Each takes the commands that a user would type, at a size of some minutes on two cores. What came out is kept in
results/own_data/<name>.json. Accuracies are of so few images that they only show that something was learned.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from study.command_line.parser import run_command
from study.data.cifar10 import find_folder, in_turns, own_folder
from study.errors import UserError
from study.machine.paths import RESULTS

SCRIPT = "experiments/own_data.py"
SEARCH = ["--trials", "2", "--epochs", "3", "--max-params", "50000", "--jobs", "1", "--device", "cpu"]
RETRAIN = ["--epochs", "10", "--device", "cpu"]
MADE = ("CIFAR100", "SVHN")
"""Of colours and noise: an accuracy says nothing of the data set whose name they have."""
N_PREDICTED = 20
DIGITS = "sklearn/datasets/data/digits.csv.gz"


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = evidence.parser(SCRIPT, __doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(MAKERS), help="(default: all)")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    parser.add_argument("--digits", type=Path, metavar="WHEEL", help="scikit-learn's, where it is not installed")
    parser.add_argument("--results", type=Path, default=RESULTS / "own_data", help="(default: results/own_data)")
    options = parser.parse_args(given)
    results = options.results.resolve()
    source = {
        "data": options.data and str(Path(options.data).resolve()),
        "digits": options.digits and options.digits.resolve(),
    }
    source["data"] = str(find_folder(source["data"]).resolve())
    os.environ.pop("STUDY_DATA", None)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # so that no made file is ever taken for a real one
        for name in options.only or MAKERS:
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                record = _tried(name, source)
            record["command"] = evidence.command_line(SCRIPT, given)
            evidence.write(results / f"{name}.json", record)
            print(
                f"{name}: test accuracy {record['test_accuracy']:.1%}, by chance {record['by_chance']:.1%}", flush=True
            )
    return 0


def block() -> str:
    """What results/README.md says of it."""
    found = evidence.records(RESULTS / "own_data")
    rows = [
        (
            f"{name} (made files)" if name in MADE else name,
            f"{len(record['classes'])}",
            f"{record['train_images']:,} + {record['test_images']:,}",
            "yes" if record["mirrored"] else "no",
            f"{record['test_accuracy']:.1%}",
            f"{record['by_chance']:.1%}",
            f"{record['predicted_right']} of {record['predicted']}",
            f"{record['params']:,}",
            evidence.machine(record["hardware"]),
            evidence.command_of(record),
        )
        for name, record in sorted(found.items())
    ]
    head = ("data", "classes", "images", "mirrored", "test accuracy", "by chance", "files predicted right",
            "parameters", "machine", "command")  # fmt: skip
    return evidence.table(head, rows) if rows else evidence.NOTHING


def _tried(name: str, source: dict[str, Any]) -> dict[str, Any]:
    """What a user sees of the data set `name`, which is made in the working directory."""
    from study import predict, report, rerank, retrain, run
    from study.data.opening import load_test, open_data

    started = time.monotonic()
    data = MAKERS[name](source)
    study = ["--data", data, "--out", "out"]
    commands = [
        ("run", [*SEARCH, *study]),
        ("rerank", ["--top", "1", "--epochs", "3", "--jobs", "1", "--device", "cpu", *study]),
        ("retrain", [*RETRAIN, *study]),
        ("report", ["--out", "out"]),
    ]
    for module, words in commands:
        {"run": run, "rerank": rerank, "retrain": retrain, "report": report}[module].main(words)
    found, test = open_data(data), load_test(data)
    files, rows = [], in_turns(test.labels, len(found.classes))[:N_PREDICTED]  # a folder's lie class by class
    for row in rows:
        files.append(f"{row}.png")
        Image.fromarray(np.asarray(test.pixels[row])).save(files[-1])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        predict.main(["out/best", *files, "--json"])
    predicted = [each["class"] for each in json.loads(said.getvalue())]
    metrics = json.loads(Path("out/best/metrics.json").read_text())
    labels = [found.classes[label] for label in test.labels[rows]]
    return {
        "data": found.fingerprint,
        "classes": list(found.classes),
        "train_images": found.n_train,
        "test_images": found.n_test,
        "mean": found.mean,
        "std": found.std,
        "mirrored": found.mirrored,
        "val_accuracy": metrics["val_accuracy"],
        "test_accuracy": metrics["test_accuracy_mean"],
        "by_chance": float(np.bincount(test.labels).max() / len(test)),
        "params": metrics["params"],
        "predicted_right": sum(a == b for a, b in zip(predicted, labels, strict=True)),
        "predicted": len(predicted),
        "commands": [f"python -m study.{module} {' '.join(words)}" for module, words in commands],
        "seconds": round(time.monotonic() - started, 1),
        "report_bytes": Path("out/report.html").stat().st_size,
        "hardware": metrics["hardware"],
    }


def _cifar10_folders(source: dict[str, Any]) -> str:
    _write_cifar10("cifar10-folders", "train", 100, source["data"])
    _write_cifar10("cifar10-folders", "test", 25, source["data"])
    return "cifar10-folders"


def _two_classes(source: dict[str, Any]) -> str:
    _write_cifar10("two-classes", "train", 300, source["data"], ("airplane", "frog"))
    return "two-classes"


def _write_cifar10(folder: str, part: str, n: int, data: str | None, only: Sequence[str] = ()) -> None:
    """The first `n` images of each class as files of sizes that a user's might have."""
    from study.data import cifar10

    images = cifar10.load_train(data) if part == "train" else cifar10.load_test(data)
    rng = np.random.default_rng(0)
    for label, name in enumerate(cifar10.CLASSES):
        if only and name not in only:
            continue
        target = Path(folder) / part / name
        target.mkdir(parents=True)
        for row in np.flatnonzero(images.labels == label)[:n]:
            width, height = rng.integers(20, 90, 2).tolist()
            Image.fromarray(np.asarray(images.pixels[row])).resize((width, height)).save(target / f"{row}.png")


def _digits(source: dict[str, Any]) -> str:
    rows = np.loadtxt(io.StringIO(gzip.decompress(_digits_file(source["digits"])).decode()), delimiter=",")
    for row, (*pixels, label) in enumerate(rows.astype(int).tolist()):
        target = Path("digits") / "train" / str(label)
        target.mkdir(parents=True, exist_ok=True)
        grey = (np.array(pixels).reshape(8, 8) * 255 // 16).astype(np.uint8)
        Image.fromarray(grey).save(target / f"{row}.png")
    return "digits"


def _digits_file(wheel: Path | None) -> bytes:
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(DIGITS)
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UserError(
            "scikit-learn's digits are in its wheel: pip download scikit-learn --no-deps, then name it by --digits."
        )
    return (Path(spec.origin).parents[1] / DIGITS).read_bytes()


def _made(n: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise around a colour and a stripe for each class: uint8 [N, 32, 32, 3], int64 [N]."""
    rng, colours = np.random.default_rng(seed), np.random.default_rng(1).integers(30, 226, (n_classes, 2, 3))
    labels = np.arange(n) % n_classes
    pixels = np.repeat(np.repeat(colours[labels][:, :, None, None], 16, 2), 32, 3).reshape(n, 32, 32, 3)
    return np.clip(pixels + rng.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8), labels


def _cifar100(source: dict[str, Any]) -> str:
    from torchvision.datasets import CIFAR100

    root = _data_folder() / CIFAR100.base_folder
    root.mkdir()
    sums = {}
    for part, n in (("train", 2_000), ("test", 500)):
        pixels, labels = _made(n, 100, seed=len(part))
        content = {"data": pixels.transpose(0, 3, 1, 2).reshape(n, -1), "fine_labels": labels.tolist()}
        sums[part] = _written(root / part, pickle.dumps(content))
    sums["meta"] = _written(root / "meta", pickle.dumps({"fine_label_names": [f"class {n}" for n in range(100)]}))
    # Torchvision holds files to the sums of the originals, which made ones cannot have.
    CIFAR100.train_list, CIFAR100.test_list = [["train", sums["train"]]], [["test", sums["test"]]]
    CIFAR100.meta = {**CIFAR100.meta, "md5": sums["meta"]}
    return "CIFAR100"


def _svhn(source: dict[str, Any]) -> str:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    root = _data_folder()
    for part, n in (("train", 1_500), ("test", 400)):
        pixels, labels = _made(n, 10, seed=len(part))
        content = io.BytesIO()
        savemat(content, {"X": pixels.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        url, name, _ = SVHN.split_list[part]
        SVHN.split_list[part] = [url, name, _written(root / name, content.getvalue())]
    return "SVHN"


def _data_folder() -> Path:
    """Where torchvision's data sets are looked for."""
    root = own_folder()
    assert root is not None
    root.mkdir(parents=True, exist_ok=True)
    return root


def _written(file: Path, content: bytes) -> str:
    """Its MD5, as torchvision asks for."""
    file.write_bytes(content)
    return hashlib.md5(content).hexdigest()


MAKERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "cifar10-folders": _cifar10_folders,
    "two-classes": _two_classes,
    "digits": _digits,
    "CIFAR100": _cifar100,
    "SVHN": _svhn,
}


if __name__ == "__main__":
    run_command(main)
