"""Search: bring a study to exactly N finished trials.

    python -m study.run --trials 50

New, interrupted or already done, the same command leads to the same end. Ctrl-C, a kill or a full disk
costs the trials that were running and nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from search_spaces import DEFAULT_SPACE, GPU_SPACE, SPACES
from search_spaces.constraints import Limits
from study.command_line.options import (
    add_checkpoint_option,
    add_study_options,
    check_fraction,
    given,
    jobs_option,
    space_name,
    storage_url,
    study_name,
)
from study.command_line.parser import Parser, run_command
from study.data.cifar10 import N_VALIDATION
from study.errors import UserError
from study.machine.paths import run_dir
from study.search.creation import FIDELITY
from study.search.plan import DEFAULT_PRUNER, DEFAULT_SAMPLER, PRUNERS, SAMPLERS, SearchPlan
from study.search.searching import search
from study.storage.config import DEFAULT_TARGET

SETTINGS = ("space", "epochs", "train_images", "val_images", "seed", "pruner", "sampler", "precision")
"""Options that belong to a study's fingerprint."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    _check(options)
    return search(_plan(options, argv))


def _plan(options: argparse.Namespace, argv: Sequence[str] | None) -> SearchPlan:
    from study.storage.database import command_of, retrain_command

    url, name = storage_url(options), study_name(options)
    return SearchPlan(
        url=url,
        name=name,
        out=run_dir(name, options.out),
        space=space_name(options),
        next_command=retrain_command(options.storage, name, options.out),
        settings=given(options, *SETTINGS),
        limits=given(options, *(field.name for field in dataclasses.fields(Limits))),
        trials=options.trials,
        jobs=None if options.jobs == "auto" else options.jobs,
        timeout_s=options.timeout,
        device=options.device,
        data=options.data,
        target_accuracy=options.target_accuracy,
        checkpoint_s=options.checkpoint_every,
        command=command_of("study.run", argv, options.storage),
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m study.run",
        description="Search small CIFAR-10 networks under hard limits. Omitted options of an existing study "
        "take its stored values; different ones are refused.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m study.run --trials 50\n"
        "  python -m study.run --trials 50 --max-params 100000 --study-name small\n"
        "  python -m study.run --trials 200 --storage postgresql+psycopg://user@host/db --jobs 2\n",
    )
    parser.add_argument("--trials", type=int, default=50, metavar="N", help="finished trials to reach (default: 50)")
    parser.add_argument("--timeout", type=float, metavar="S", help="start no trial after S seconds (default: none)")
    parser.add_argument(
        "--jobs",
        type=jobs_option,
        default="auto",
        metavar="N",
        help="trials at once; auto measures once on this machine what is fastest, 1 makes a study repeatable "
        "(default: auto)",
    )
    add_checkpoint_option(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument(
        "--data", metavar="DIR", help="folder with cifar-10-batches-py (default: $STUDY_DATA, else downloaded)"
    )
    add_study_options(parser)
    search = parser.add_argument_group("search (fixed when a study is created)")
    search.add_argument(
        "--space", help=f"one of: {', '.join(sorted(SPACES))} (default: {GPU_SPACE} on a GPU, {DEFAULT_SPACE} else)"
    )
    search.add_argument("--seed", type=int, help="base of all seeds (default: 0)")
    search.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="anchored starts with neighbours of the space's default, then takes turns between TPE and neighbours of "
        f"the best trial (default: {DEFAULT_SAMPLER})",
    )
    search.add_argument("--pruner", choices=PRUNERS, help=f"(default: {DEFAULT_PRUNER})")
    fidelity = parser.add_argument_group("fidelity of a trial (fixed when a study is created)")
    cpu, cuda = FIDELITY["cpu"], FIDELITY["cuda"]
    fidelity.add_argument("--epochs", type=int, help=f"(default: {cpu[0]} on a CPU, {cuda[0]} on a GPU)")
    fidelity.add_argument(
        "--train-images", type=int, metavar="N", help=f"(default: {cpu[1]:,} on a CPU, {cuda[1]:,} on a GPU)"
    )
    fidelity.add_argument("--val-images", type=int, metavar="N", help=f"(default: {N_VALIDATION:,})")
    fidelity.add_argument("--precision", choices=("bfloat16", "float32"), help="(default: the faster one here)")
    limits = parser.add_argument_group("limits (strict; fixed when a study is created)")
    defaults = Limits()
    limits.add_argument("--max-params", type=int, metavar="N", help=f"params < N (default: {defaults.max_params:,})")
    limits.add_argument(
        "--min-receptive-field", type=int, metavar="N", help=f"field > N (default: {defaults.min_receptive_field})"
    )
    limits.add_argument("--max-macs", type=int, metavar="N", help="multiply-accumulates < N (default: no limit)")
    limits.add_argument(
        "--max-epoch-s",
        type=float,
        metavar="S",
        help="predicted seconds of an epoch < S (default: some times the reference network's on a CPU, none on a GPU)",
    )
    parser.add_argument(
        "--target-accuracy",
        type=float,
        metavar="A",
        help=f"test accuracy to pass, a fraction (default: {DEFAULT_TARGET:g})",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuses values that cannot be meant, before anything is opened."""
    at_least_one = ("trials", "jobs", "epochs", "max_params", "max_macs")
    for name in at_least_one:
        value = getattr(options, name)
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1: {value}.")
    for name in ("timeout", "max_epoch_s"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0 seconds: {value:g}.")
    for name in ("seed", "min_receptive_field"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise UserError(f"--{name.replace('_', '-')} must not be negative: {value}.")
    check_fraction("--target-accuracy", options.target_accuracy)


if __name__ == "__main__":
    run_command(main)
