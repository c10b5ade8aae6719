"""Does what a search found stay ahead? Retrained networks of equal length, on the same test images.

    python scripts/experiments/finals.py FOLDER/best FOLDER/trial-1 ... [--names winner default ...] [--name dilated]

Takes bundles that `study.retrain --epochs N --seeds S` wrote, with the checkpoints beside them, and compares the first
with each other one: paired over test images and seeds, whose interval is a bootstrap over images. Trains and tests
nothing. Written to results/finals/<name>.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from study.bundle.files import CANDIDATE
from study.bundle.metrics import METRICS
from study.command_line.parser import run_command
from study.errors import UserError
from study.machine.files import read_arrays
from study.machine.paths import RESULTS

SCRIPT = "experiments/finals.py"


@dataclass(frozen=True)
class Final:
    """A retrained network.

    Attributes:
        name: For people.
        metrics: Of its bundle.
        correct: Whether each test image was told right by each seed, bool [S, N].
    """

    name: str
    metrics: dict[str, Any]
    correct: Any


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = evidence.parser(SCRIPT, __doc__)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="FOLDER", help="the first is compared with the others")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the networks, in tables (default: the folders')")
    parser.add_argument("--name", default="dilated", help="of the record (default: dilated)")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    parser.add_argument("--results", type=Path, default=RESULTS / "finals", help="(default: results/finals)")
    options = parser.parse_args(given)
    names = options.names or [folder.name for folder in options.bundles]
    if len(names) != len(options.bundles) or len(names) < 2:
        raise UserError(f"Name two bundles or more, and --names for each: {len(options.bundles)} and {len(names)}.")

    from study.data.opening import load_test, open_data

    labels = load_test(open_data(options.data).source).labels
    finals = [read(folder, name, labels) for folder, name in zip(options.bundles, names, strict=True)]
    options.results.mkdir(parents=True, exist_ok=True)
    # Where bundles lay is of this machine; how each was trained stands in its own record.
    words = ["--names", *names, "--name", options.name]
    evidence.write(
        options.results / f"{options.name}.json",
        {"command": evidence.command_line(SCRIPT, ["BUNDLE ...", *words]), **record(finals)},
    )
    print(block(options.results.parent))
    return 0


def read(folder: Path, name: str, labels: Any) -> Final:
    """The network of a bundle, and what its seeds said of the test images.

    Raises:
        UserError: It is no bundle, or the checkpoints of a seed are gone.
    """
    if not (folder / CANDIDATE).exists():
        raise UserError(f"{str(folder)!r} is no bundle: it has no {CANDIDATE}. Run study.retrain first.")
    metrics = json.loads((folder / METRICS).read_text())
    correct = []
    for seed, recorded in zip(metrics["seeds"], metrics["test_accuracy"], strict=True):
        for file in sorted((folder.parent / "checkpoints").glob(f"{metrics['candidate_id']}-seed{seed}-*.npz")):
            saved = read_arrays(file)
            logits = saved["logits"]  # older ones are of several epochs
            right = logits.reshape(-1, len(labels), logits.shape[-1])[-1].argmax(1) == labels
            if saved["epochs"][-1] == metrics["epochs"] - 1 and abs(right.mean() - recorded) < 1e-9:
                correct.append(right)
                break
        else:
            raise UserError(f"Beside {str(folder)!r} there is no tested checkpoint of seed {seed}: retrain it again.")
    return Final(name, metrics, np.stack(correct))


def record(finals: Sequence[Final]) -> dict[str, Any]:
    """Accuracies of all, and the first's lead over each other one."""
    first = finals[0]
    kept = ("params", "macs", "epochs", "candidate_id", "test_accuracy", "train_accuracy", "wall_s", "trial", "command")
    return {
        "hardware": first.metrics["hardware"],
        "networks": [
            {"name": each.name, **{key: each.metrics[key] for key in kept if key in each.metrics}} for each in finals
        ],
        "leads": [{"over": other.name, **lead(first.correct, other.correct)} for other in finals[1:]],
    }


def lead(correct: Any, others: Any) -> dict[str, Any]:
    """How much more often `correct` [S, N] is right than `others` [S', N], seeds of the same number in pairs."""
    n = min(len(correct), len(others))
    difference = correct[:n].astype(float) - others[:n]
    by_image = difference.mean(0)
    interval = evidence.bootstrap(len(by_image), lambda rows: float(by_image[rows].mean()))
    return {"mean": float(by_image.mean()), "interval_95": interval, "by_seed": difference.mean(1).round(6).tolist()}


def block(results: Path = RESULTS) -> str:
    """Its records as Markdown."""
    return evidence.folded([_markdown(each) for each in evidence.records(results / "finals").values()])


def _markdown(found: dict[str, Any]) -> str:
    leads = {each["over"]: each for each in found["leads"]}
    rows = []
    for each in found["networks"]:
        accuracies, behind = each["test_accuracy"], leads.get(each["name"])
        rows.append(
            (
                each["name"],
                f"{each['params']:,}",
                str(each["epochs"]),
                f"{100 * np.mean(accuracies):.2f}% ({', '.join(f'{100 * one:.2f}' for one in accuracies)})",
                evidence.points(behind["mean"], behind["interval_95"]) if behind else "",
                ", ".join(f"{100 * one:+.2f}" for one in behind["by_seed"]) if behind else "",
            )
        )
    first = found["networks"][0]["name"]
    head = ("network", "parameters", "epochs", "test accuracy (each seed)", f"{first} ahead by (95%)", "seed by seed")
    commands = "; ".join(f"`{each['command']}`" for each in found["networks"] if each.get("command"))
    return (
        f"{evidence.table(head, rows)}\n\nIn percentage points, over the same test images; intervals are over images. "
        f"{evidence.machine(found['hardware'])}. Trained by {commands}; compared by `{found['command']}`."
    )


if __name__ == "__main__":
    run_command(main)
