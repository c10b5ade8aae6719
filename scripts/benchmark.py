"""Benchmarks, each against the usual way where there is one, side by side on one machine in one run.

    python scripts/benchmark.py throughput [--workers 2]

Results go to results/benchmarks/<name>.json, from which scripts/publish.py makes a table.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[0]))

import evidence
from study.command_line.parser import run_command
from study.data.cifar10 import find_folder
from study.machine.hardware import resolve_device
from study.machine.paths import RESULTS

BENCHMARKS = ("throughput", "throughput-ours", "slots", "epoch", "operations", "neighbour", "accuracy",
              "trials-per-hour", "overhead", "memory", "startup")  # fmt: skip
ON_MADE_IMAGES = {"slots", "operations", "neighbour", "memory"}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = evidence.parser("benchmark.py", __doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    modules = {name: importlib.import_module(f"benchmarks.{name.replace('-', '_')}") for name in BENCHMARKS}
    for name, module in modules.items():
        doc, raw = str(module.__doc__), argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=doc.partition("\n")[0], description=doc, formatter_class=raw)
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
        if name not in ON_MADE_IMAGES:
            command.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
        out = RESULTS / "benchmarks"
        command.add_argument("--out", type=Path, default=out, metavar="DIR", help="(default: results/benchmarks)")
        module.add_options(command)
    options = parser.parse_args(words)
    options.command = evidence.command_line("benchmark.py", words)
    options.device = resolve_device(options.device)
    if options.benchmark not in ON_MADE_IMAGES:
        options.data = str(find_folder(options.data).resolve())
    code: int = modules[options.benchmark].run(options)
    return code


if __name__ == "__main__":
    run_command(main)
