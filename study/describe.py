"""`python -m study.describe`: what a network, a bundle, a trial or a search space is. Imports no torch."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search_spaces import SPACES
from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, InfeasibleError, Limits, limit_rows
from search_spaces.layer_table import layer_table
from search_spaces.reference import REFERENCE
from search_spaces.space import SearchSpace
from study.bundle.files import CANDIDATE, load_candidate
from study.command_line.options import add_study_options, place_of
from study.command_line.own import SPACE_FORM, is_own, load_space, own_space
from study.command_line.parser import EXIT_FAILED, Parser, run_command
from study.command_line.waiting import say_first
from study.command_line.wording import MISSING, aligned, counted, printable
from study.errors import UserError
from study.machine.files import what_is
from study.storage.config import open_space

_REFERENCE = "reference"
_FIGURES = (
    "architecture_id",
    "params",
    "receptive_field",
    "receptive_field_with_pool",
    "macs",
    "n_dilated_reductions",
)
_OPERATION_FIGURES = ("detail", "out_shape", "params", "macs", "receptive_field")
_EPILOG = """\
examples:
  python -m study.describe reference              the published network
  python -m study.describe dilated                a search space and its default
  python -m study.describe mine.py:MySpace --check
  python -m study.describe results/runs/dilated/best
  python -m study.describe --trial 7 --json       a trial of the study
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one description.

    Raises:
        UserError: There is no such space, bundle or trial, or not exactly one was named.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.target is None) == (options.trial is None):
        given = "both" if options.target is not None else "neither"
        raise UserError(f"Name either a target or --trial N, not {given}. Targets: {_targets()}.")
    if options.target is not None:
        parser.refuse_beside(options.target, options, ("space", "study_name", "storage", "out"))
    if options.check:
        parser.refuse_beside("--check", options, ("json",))
        if options.target is None or not (is_own(options.target) or options.target in SPACES):
            raise UserError(f"--check holds a search space to its contract: name one, or {SPACE_FORM}.")
        return _check(options.target)
    if options.trial is not None:
        say_first(f"Reading trial {options.trial}", sys.stderr)
        facts, text = _trial(options)
    elif options.target == _REFERENCE:
        facts, text = _candidate(REFERENCE, "The reference network")
    elif is_own(options.target):
        own_space(options.target)  # refuses what cannot be built
        facts, text = _space(load_space(options.target))
    elif options.target in SPACES:
        facts, text = _space(open_space(options.target))
    elif what_is(options.target) != "does not exist":
        facts, text = _candidate(load_candidate(Path(options.target)), f"Bundle {options.target}")
    else:
        raise UserError(f"Nothing is called {options.target!r}. Name {_targets()}.")
    print(json.dumps(facts) if options.json else text)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m study.describe",
        description="Describe a network, layer by layer, or a search space.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", nargs="?", metavar="TARGET", help=_targets())
    parser.add_argument("--trial", type=int, metavar="N", help="describe trial N of the study instead")
    parser.add_argument(
        "--check", action="store_true", help="hold a search space to its contract, and say what it breaks"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_study_options(parser)
    return parser


def _targets() -> str:
    spaces = ", ".join(sorted(SPACES))
    return f"{_REFERENCE!r}, a search space ({spaces}, or {SPACE_FORM}), or a bundle (a folder with {CANDIDATE})"


def _check(target: str) -> int:
    """Says which promises a space breaks. Returns the exit code."""
    from study.model.contract import PROMISES, complaint_of

    space, n_broken = load_space(target) if is_own(target) else open_space(target), 0
    for promise in PROMISES:
        complaint = complaint_of(space, promise)
        n_broken += bool(complaint)
        print(printable(f"BROKEN  {promise}: {complaint}" if complaint else f"    ok  {promise}"), flush=True)
    print(f"The space {space.name!r} keeps its contract." if not n_broken else f"{n_broken} of {len(PROMISES)} broken.")
    return EXIT_FAILED if n_broken else 0


def _candidate(candidate: Candidate, title: str) -> tuple[dict[str, Any], str]:
    """A candidate: its ids, its layers, how it is trained."""
    architecture = candidate.architecture
    facts = {
        "candidate_id": candidate.candidate_id,
        **{name: getattr(architecture, name) for name in _FIGURES},
        **candidate.to_json(),
        "layers": [
            {"layer": op.layer, "type": op.name, **{name: getattr(op, name) for name in _OPERATION_FIGURES}}
            for op in architecture.operations
        ],
    }
    head = f"{printable(title)}: candidate {candidate.candidate_id}, architecture {architecture.architecture_id}"
    training = [
        (name, ", ".join(f"{field}={_number(value)}" for field, value in dataclasses.asdict(part).items()))
        for name, part in (("augmentation", candidate.augmentation), ("optimisation", candidate.optimisation))
    ]
    rest = "\n".join(f"{name:<13} {values}" for name, values in training)
    return facts, f"{head}\n\n{layer_table(architecture)}\n\n{rest}"


def _trial(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from study.reporting.facts import record_of
    from study.storage.database import candidate_of, config_of, cost_model_of, get_trial, open_study

    place = place_of(options)
    study = open_study(place.url, place.name)
    trial = get_trial(study, options.trial)
    record = record_of(trial)
    accuracy = "" if record.accuracy is None else "validation accuracy "
    title = f"Trial {trial.number} of {place.name}, {accuracy}{record.reached}"
    candidate = candidate_of(trial)
    facts, text = _candidate(candidate, title)
    with contextlib.suppress(UserError):  # of a study that others made
        config = config_of(study)
        clock = Clock(cost_model_of(study), config.train_images, config.val_images)
        measured = record_of(trial, own=config.limits.own).measured
        facts |= {"measured": measured} if measured else {}
        rows = limit_rows(config.limits, candidate.architecture, clock, measured)
        lines = aligned([(row.label, row.required, row.value, row.distance) for row in rows])
        text = "\n  ".join((f"{text}\n\nLimits of the study", *lines))
    facts |= {"trial": trial.number, "slot": record.slot, "state": trial.state.name, "outcome": record.outcome}
    facts["val_accuracy"] = trial.value if trial.values else None
    return facts, text


def _space(space: SearchSpace) -> tuple[dict[str, Any], str]:
    """A space, and the figures of its default under the default limits."""
    limits, dimensions, values, facts = Limits(), space.dimensions, dict[str, Any](), dict[str, Any]()
    try:
        values = dict(space.anchors(limits)["default"])
        facts, text = _candidate(space.decode(values, limits).candidate, "Default network")
    except InfeasibleError as error:  # made for other limits
        text = f"No default network under the default limits: {error}"
    facts = {
        "name": space.name,
        "version": space.version,
        "limits": limits.to_json(),
        "dimensions": {
            name: {"type": type(dimension).__name__.lower(), **dataclasses.asdict(dimension)}
            for name, dimension in dimensions.items()
        },
        "default": {name: values[name] for name in dimensions if name in values},
        **facts,
    }
    rows = [(name, str(each), _number(values.get(name, MISSING))) for name, each in dimensions.items()]
    head, *lines = aligned([("parameter", "range", "default"), *rows])
    parts = (
        f"Search space {space.name}, version {space.version}, {counted(len(dimensions), 'parameter')}",
        textwrap.dedent(space.tree),
        "\n".join((head, "-" * len(head), *lines)),
        "\n  ".join(
            (
                "Default limits",
                *aligned([(row.label, row.required) for row in limit_rows(limits)]),
                "More can be set: --max-macs, --max-epoch-s, --limit",
            )
        ),
        text,
    )
    return facts, "\n\n".join(parts)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_command(main)
