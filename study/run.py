"""Search: bring a study to exactly N finished trials.

    python -m study.run --trials 50

New, interrupted or already done, the same command leads to the same end. Ctrl-C, a kill or a full disk
costs half a minute of each running trial and nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from search_spaces.constraints import MEASURES, Limits
from study.command_line.numbers import above, at_least, fraction
from study.command_line.options import (
    VALIDATION,
    add_fidelity_options,
    add_stopping_options,
    add_study_options,
    add_training_options,
    by_device,
    cluster_of,
    given,
    place_of,
    space_name,
)
from study.command_line.own import LIMIT_FORM, own_limits
from study.command_line.parser import Parser, run_command
from study.command_line.waiting import say_first
from study.command_line.wording import counted
from study.search.creation import FIDELITY, or_join
from study.search.plan import DEFAULT_PRUNER, DEFAULT_SAMPLER, PRUNERS, SAMPLERS, SearchPlan
from study.search.searching import search
from study.storage.config import DEFAULT_TARGET
from study.training.records import PRECISIONS

SETTINGS = ("space", "epochs", "train_images", "val_images", "seed", "pruner", "sampler", "precision")
LIMITS = ("max_params", "min_receptive_field", "max_macs", "max_epoch_s")
"""Options that belong to a study's fingerprint."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    place = place_of(options)
    say_first(f"Searching: {counted(options.trials, 'trial')} of the study {place.name!r}, in {place.out}")
    plan = _plan(options, argv)
    return or_join(lambda: search(plan))


def _plan(options: argparse.Namespace, argv: Sequence[str] | None) -> SearchPlan:
    from study.storage.commands import command_of, next_command

    place, own = place_of(options), own_limits(options.limit)
    limits = given(options, *LIMITS)
    return SearchPlan(
        url=place.url,
        name=place.name,
        out=place.out,
        space=space_name(options),
        next_commands=[next_command(name, options, place.name) for name in ("study.rerank", "study.retrain")],
        settings=given(options, *SETTINGS),
        limits=limits | ({"own": own.limits} if own.limits else {}),
        own=own,
        trials=options.trials,
        jobs=options.jobs,
        timeout_s=options.timeout,
        device=options.device,
        data=options.data,
        target_accuracy=options.target_accuracy,
        checkpoint_s=options.checkpoint_every,
        cluster=cluster_of(options),
        command=command_of("study.run", argv, options.storage),
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m study.run",
        description="Search small networks under hard limits. Of an existing study the options that are fixed when it "
        "is created\ntake their stored values where they are left out, and are refused where they differ.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m study.run --trials 50\n"
        "  python -m study.run --trials 50 --max-params 100000 --study-name small\n"
        "  python -m study.run --limit latency_ms=2 --limit size_kb=400 --study-name quick\n"
        "  python -m study.run --trials 200 --storage postgresql+psycopg://user@host/db --jobs 2\n",
    )
    parser.add_argument("--trials", action=at_least(1), default=50, help="finished trials to reach (default: 50)")
    add_training_options(parser, "trials")
    add_stopping_options(parser)
    add_study_options(parser, creates=True)
    search = parser.add_argument_group("search (fixed when a study is created)")
    search.add_argument("--seed", action=at_least(0), help="base of all seeds (default: 0)")
    search.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="anchored is TPE that starts with neighbours of the space's default while they are better than samples "
        f"(default: {DEFAULT_SAMPLER})",
    )
    search.add_argument("--pruner", choices=PRUNERS, help=f"(default: {DEFAULT_PRUNER})")
    fidelity = parser.add_argument_group("fidelity of a trial (fixed when a study is created)")
    epochs, images = (by_device(*each) for each in zip(FIDELITY["cpu"], FIDELITY["cuda"], strict=True))
    add_fidelity_options(fidelity, epochs, images, VALIDATION)
    fidelity.add_argument("--precision", choices=PRECISIONS, help="(default: the faster one here)")
    limits = parser.add_argument_group("limits (strict; fixed when a study is created)")
    default = Limits()
    limits.add_argument("--max-params", action=at_least(1), help=f"params < N (default: {default.max_params:,})")
    field = f"field > N (default: {default.min_receptive_field})"
    limits.add_argument("--min-receptive-field", action=at_least(0), help=field)
    limits.add_argument("--max-macs", action=at_least(1), help="multiply-accumulates < N (default: no limit)")
    limits.add_argument(
        "--max-epoch-s",
        action=above(0),
        help="predicted seconds of an epoch in batches of 128 < S (default: some times the reference network's on a "
        "CPU, none on a GPU)",
    )
    figures = "; ".join(f"{name}=N: {what.lower().replace('cpu', 'CPU')} < N" for name, what in MEASURES.items())
    limits.add_argument(
        "--limit",
        action="append",
        metavar="LIMIT",
        help=f"a further limit, any number of times. {figures}. {LIMIT_FORM}: a function of an Architecture that "
        "returns a name, a value and what it must stay below; the file is run, now and with every later study.run",
    )
    target = f"test accuracy to pass, a fraction (default: {DEFAULT_TARGET:g} for CIFAR-10)"
    parser.add_argument("--target-accuracy", action=fraction(), help=target)
    return parser


if __name__ == "__main__":
    run_command(main, resumes=True)
