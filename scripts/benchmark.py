"""Benchmarks, each against the usual way where there is one, side by side on one machine in one run.

    python scripts/benchmark.py throughput [--workers 2]

Results go to results/benchmarks/<name>.json, from which scripts/publish.py makes a table.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from study.command_line.parser import Parser, run_command
from study.machine.paths import RESULTS

BENCHMARKS = (
    "throughput",
    "throughput-ours",
    "slots",
    "epoch",
    "busy",
    "operations",
    "neighbour",
    "accuracy",
    "trials-per-hour",
    "overhead",
    "memory",
    "startup",
)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        description=__doc__, prog="python scripts/benchmark.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    modules = {name: importlib.import_module(f"benchmarks.{name.replace('-', '_')}") for name in BENCHMARKS}
    for name, module in modules.items():
        summary, _, details = str(module.__doc__).partition("\n")
        raw = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=summary, description=f"{summary}\n{details}", formatter_class=raw)
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
        command.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
        command.add_argument(
            "--out", type=Path, default=RESULTS / "benchmarks", metavar="DIR", help="(default: results/benchmarks)"
        )
        module.add_options(command)
    options = parser.parse_args(words)
    options.command = shlex.join(["python", "scripts/benchmark.py", *_repeatable(words)])
    from study.data.cifar10 import find_folder
    from study.machine.hardware import resolve_device

    options.device = resolve_device(options.device)
    options.data = str(find_folder(options.data).resolve())
    code: int = modules[options.benchmark].run(options)
    return code


def _repeatable(words: Sequence[str]) -> list[str]:
    """The command line without the places of this machine."""
    kept, skip = [], False
    for word in words:
        if skip or word.startswith(("--data=", "--out=")):
            skip = False
        elif word in ("--data", "--out"):
            skip = True
        else:
            kept.append(word)
    return kept


if __name__ == "__main__":
    run_command(main)
