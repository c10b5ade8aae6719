"""Does a GPU train as well as a CPU? The reference network on both, from the same seeds, compared.

    python scripts/same_as_cpu.py [--epochs 4] [--train-images 15000] [--seeds 3]

Augmentations are the same image by image; arithmetic is not, and small differences grow over the steps. So accuracies
are compared, not weights: the means over the seeds may differ by no more than three standard errors plus half a point.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from study.command_line.parser import Parser, run_command
from study.errors import UserError

MARGIN = 0.005
"""Allowed beyond noise: what bfloat16 kernels of two makers may differ by."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        description=__doc__, prog="python scripts/same_as_cpu.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="to compare with the CPU")
    parser.add_argument("--epochs", type=int, default=4, help="(default: 4)")
    parser.add_argument("--train-images", type=int, default=15_000, metavar="N", help="(default: 15,000)")
    parser.add_argument("--val-images", type=int, default=5_000, metavar="N", help="(default: 5,000)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    options = parser.parse_args(argv)
    for name in ("epochs", "seeds"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1: {getattr(options, name)}.")

    import torch

    from search_spaces.reference import REFERENCE
    from study.data.cifar10 import load_train, search_split
    from study.machine.hardware import n_cores, n_loaders, resolve_device
    from study.training.loop import train
    from study.training.records import TrainingConfig

    resolve_device(options.device)
    torch.set_num_threads(n_cores())
    everything = load_train(options.data)
    for_training, for_validation = search_split(everything.labels, options.train_images, options.val_images)
    images, validation = everything.take(for_training), everything.take(for_validation)
    found: dict[str, list[float]] = {}
    for device in dict.fromkeys((options.device, "cpu")):
        found[device] = []
        for seed in range(options.seeds):
            config = TrainingConfig(options.epochs, seed, device, "bfloat16", n_loaders(device, 1))
            accuracy = train(REFERENCE, images, config, validation).records[-1].val_accuracy
            assert accuracy is not None
            found[device].append(accuracy)
            print(f"{device}, seed {seed}: {accuracy:.4f}", flush=True)
    lost, allowed = compare(found["cpu"], found[options.device])
    print(f"lost on {options.device}: {100 * lost:+.2f} points; allowed {100 * allowed:.2f}")
    return 0 if lost <= allowed else 1


def compare(cpu: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Mean accuracy lost on the other device, and what may be lost by chance; fractions."""
    noise = 0.0
    if len(cpu) > 1:
        noise = 3 * (statistics.variance(cpu) / len(cpu) + statistics.variance(other) / len(other)) ** 0.5
    return statistics.mean(cpu) - statistics.mean(other), noise + MARGIN


if __name__ == "__main__":
    run_command(main)
