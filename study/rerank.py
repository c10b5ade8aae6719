"""Re-rank: train the best candidates of a study longer, and rank them anew.

    python -m study.rerank --top 8 --epochs 80

Short trials find good candidates; which of the best is the very best, they cannot tell. The re-ranking is a
study of its own, `<study-name>-rerank`, in the same storage, and never counts among the trials of the search.
It is stopped and resumed as a search is. `study.retrain` prefers its winner.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from study.command_line.options import (
    add_checkpoint_option,
    add_study_options,
    given,
    jobs_option,
    space_name,
    storage_url,
    study_name,
)
from study.command_line.parser import Parser, run_command
from study.data.cifar10 import N_SEARCH, N_VALIDATION
from study.errors import UserError
from study.machine.paths import run_dir
from study.search.plan import SearchPlan
from study.search.reranking import FIDELITY, RerankPlan, rerank
from study.storage.reranked import rerank_name


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    for name in ("top", "epochs", "jobs"):
        value = getattr(options, name)
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{name} must be at least 1: {value}.")
    return rerank(_plan(options, argv))


def _plan(options: argparse.Namespace, argv: Sequence[str] | None) -> RerankPlan:
    from study.storage.database import command_of, retrain_command

    source = study_name(options)
    search = SearchPlan(
        url=storage_url(options),
        name=rerank_name(source),
        out=run_dir(source, options.out) / "rerank",
        space=space_name(options),
        next_command=retrain_command(options.storage, source, options.out),
        settings=given(options, "epochs", "train_images", "val_images"),
        jobs=None if options.jobs == "auto" else options.jobs,
        timeout_s=options.timeout,
        device=options.device,
        data=options.data,
        checkpoint_s=options.checkpoint_every,
        command=command_of("study.rerank", argv, options.storage),
    )
    return RerankPlan(search, source, options.top)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m study.rerank",
        description="Train the best candidates of a study longer and rank them anew; study.retrain then prefers the "
        "winner. Omitted options of an existing re-ranking take its stored values.",
    )
    add_study_options(parser)
    (cpu_top, cpu_epochs), (top, epochs) = FIDELITY["cpu"], FIDELITY["cuda"]
    parser.add_argument(
        "--top", type=int, metavar="N", help=f"candidates (default: {cpu_top} on a CPU, {top} on a GPU)"
    )
    parser.add_argument("--epochs", type=int, help=f"(default: {cpu_epochs} on a CPU, {epochs} on a GPU)")
    parser.add_argument(
        "--train-images", type=int, metavar="N", help=f"(default: all {N_SEARCH:,} that do not validate)"
    )
    parser.add_argument("--val-images", type=int, metavar="N", help=f"(default: {N_VALIDATION:,})")
    parser.add_argument("--timeout", type=float, metavar="S", help="start no training after S seconds (default: none)")
    parser.add_argument("--jobs", type=jobs_option, default="auto", metavar="N", help="at once (default: auto)")
    add_checkpoint_option(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    return parser


if __name__ == "__main__":
    run_command(main)
