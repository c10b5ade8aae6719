"""Re-rank: train the best candidates of a study longer, each with two settings, and rank them anew.

    python -m study.rerank --top 8 --epochs 80

Short trials find good candidates; which of the best is the very best, they cannot tell, and neither how strongly a
long training should be augmented and regularised. So each of the best is trained with a light and a strong setting.
The re-ranking is a study of its own, `<study-name>-rerank`, in the same storage, and never counts among the trials of
the search. It is stopped and resumed as a search is; after more trials of that it adds those that are among the best.
`study.retrain` prefers its winner: a candidate and a setting.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from study.command_line.numbers import at_least
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
from study.command_line.parser import Parser, run_command
from study.command_line.waiting import say_first
from study.search.creation import or_join
from study.search.plan import SearchPlan
from study.search.reranking import FIDELITY, RerankPlan, rerank
from study.storage.reranked import SETTINGS, rerank_name

BOTH = "both"


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    say_first(f"Re-ranking: the best candidates of the study {place_of(options).name!r}, trained longer")
    plan = _plan(options, argv)
    return or_join(lambda: rerank(plan))


def _plan(options: argparse.Namespace, argv: Sequence[str] | None) -> RerankPlan:
    from study.storage.commands import command_of, next_command

    source = place_of(options)
    search = SearchPlan(
        url=source.url,
        name=rerank_name(source.name),
        out=source.out / "rerank",
        space=space_name(options),
        next_commands=[next_command("study.retrain", options, source.name)],
        settings=given(options, "epochs", "train_images", "val_images"),
        jobs=options.jobs,
        timeout_s=options.timeout,
        device=options.device,
        data=options.data,
        checkpoint_s=options.checkpoint_every,
        cluster=cluster_of(options),
        command=command_of("study.rerank", argv, options.storage),
        shared=source.out / "artifacts",
    )
    settings = {None: None, BOTH: tuple(SETTINGS)}.get(options.settings, (options.settings,))
    return RerankPlan(search, source.name, source.out, options.top, settings)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m study.rerank",
        description="Train the best candidates of a study longer, each with two settings, and rank them anew; "
        "study.retrain then prefers the winner. Omitted options of an existing re-ranking take its stored values.",
    )
    add_study_options(parser)
    top, epochs = (by_device(*each) for each in zip(FIDELITY["cpu"], FIDELITY["cuda"], strict=True))
    parser.add_argument("--top", action=at_least(1), help=f"candidates (default: {top})")
    what = "; ".join(f"{name}: {words}" for name, words in SETTINGS.items())
    parser.add_argument("--settings", choices=(*SETTINGS, BOTH), help=f"how each is trained: {what} (default: {BOTH})")
    add_fidelity_options(parser, epochs, "all that do not validate", VALIDATION)
    add_training_options(parser, "candidates")
    add_stopping_options(parser)
    return parser


if __name__ == "__main__":
    run_command(main, resumes=True)
