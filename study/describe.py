"""`python -m study.describe`: what a network, a bundle, a trial or a search space is. Imports no torch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search_spaces import SPACES
from search_spaces.architecture import ArchitectureError
from search_spaces.candidate import Candidate
from search_spaces.constraints import Limits, limit_rows
from search_spaces.layer_table import layer_table
from search_spaces.reference import REFERENCE
from search_spaces.space import Dimension, SearchSpace
from study.bundle.files import CANDIDATE, load_candidate
from study.command_line.options import add_study_options, storage_url, study_name
from study.command_line.parser import Parser, run_command
from study.errors import UserError
from study.storage.config import open_space

_REFERENCE = "reference"
_EPILOG = """\
examples:
  python -m study.describe reference              the published network
  python -m study.describe dilated                a search space and its default
  python -m study.describe results/runs/dilated/best
  python -m study.describe --trial 7 --json       a trial of the study
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one description.

    Raises:
        UserError: There is no such space, bundle or trial, or not exactly one was named.
    """
    options = _parser().parse_args(argv)
    if (options.target is None) == (options.trial is None):
        given = "both" if options.target is not None else "neither"
        raise UserError(f"Name either a target or --trial N, not {given}. Targets: {_targets()}.")
    if options.trial is not None:
        facts, text = _trial(options)
    elif options.target == _REFERENCE:
        facts, text = _candidate(REFERENCE, "The reference network")
    elif options.target in SPACES:
        facts, text = _space(open_space(options.target))
    elif Path(options.target).exists():
        facts, text = _candidate(load_candidate(Path(options.target)), f"Bundle {options.target}")
    else:
        raise UserError(f"Nothing is called {options.target!r}. Name {_targets()}.")
    print(json.dumps(facts) if options.json else text)
    return 0


def candidate_facts(candidate: Candidate) -> dict[str, Any]:
    """What `--json` prints of a candidate."""
    architecture = candidate.architecture
    return {
        "candidate_id": candidate.candidate_id,
        "architecture_id": architecture.architecture_id,
        "params": architecture.params,
        "receptive_field": architecture.receptive_field,
        "receptive_field_with_pool": architecture.receptive_field_with_pool,
        "macs": architecture.macs,
        "n_dilated_reductions": architecture.n_dilated_reductions,
        **candidate.to_json(),
        "layers": [
            {
                "layer": op.layer,
                "type": op.name,
                "detail": op.detail,
                "out_shape": list(op.out_shape),
                "params": op.params,
                "macs": op.macs,
                "receptive_field": op.receptive_field,
            }
            for op in architecture.operations
        ],
    }


def candidate_text(candidate: Candidate, title: str) -> str:
    """What is printed of a candidate: its ids, its layer table, how it is trained."""
    head = f"{title}: candidate {candidate.candidate_id}, architecture {candidate.architecture.architecture_id}"
    rest = "\n".join(
        f"{name:<13} {_assignments(dataclasses.asdict(part))}"
        for name, part in (("augmentation", candidate.augmentation), ("optimisation", candidate.optimisation))
    )
    return f"{head}\n\n{layer_table(candidate.architecture)}\n\n{rest}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m study.describe",
        description="Describe a network, layer by layer, or a search space.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", nargs="?", metavar="TARGET", help=_targets())
    parser.add_argument("--trial", type=int, metavar="N", help="describe trial N of the study instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_study_options(parser)
    return parser


def _targets() -> str:
    spaces = ", ".join(sorted(SPACES))
    return f"{_REFERENCE!r}, a search space ({spaces}), or a bundle (a folder with {CANDIDATE})"


def _candidate(candidate: Candidate, title: str) -> tuple[dict[str, Any], str]:
    return candidate_facts(candidate), candidate_text(candidate, title)


def _trial(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from study.reporting.facts import record_of
    from study.storage.database import candidate_of, get_trial, open_study

    trial = get_trial(open_study(storage_url(options), study_name(options)), options.trial)
    try:
        candidate = candidate_of(trial)
        facts = candidate_facts(candidate)
    except ArchitectureError as error:
        raise UserError(f"Trial {trial.number} cannot be read: {error}") from error
    record = record_of(trial)
    value = trial.value if trial.values else None
    facts |= {"trial": trial.number, "slot": record.slot, "state": trial.state.name, "outcome": record.outcome}
    facts["val_accuracy"] = value
    accuracy = "" if record.accuracy is None else "validation accuracy "
    title = f"Trial {trial.number} of {study_name(options)}, {accuracy}{record.reached}"
    return facts, candidate_text(candidate, title)


def _space(space: SearchSpace) -> tuple[dict[str, Any], str]:
    """A space, and the figures of its default under the default limits."""
    limits = Limits()
    values = space.anchors(limits)["default"]
    candidate = space.decode(values, limits).candidate
    dimensions = space.dimensions
    facts = {
        "name": space.name,
        "version": space.version,
        "limits": limits.to_json(),
        "dimensions": {name: _dimension(dimension) for name, dimension in dimensions.items()},
        "default": {name: values[name] for name in dimensions},
        **candidate_facts(candidate),
    }
    width = max(len(name) for name in dimensions)
    ranges = max(len(str(dimension)) for dimension in dimensions.values())
    rows = [
        f"{name:<{width}}  {dimension!s:<{ranges}}  {_number(values[name])}" for name, dimension in dimensions.items()
    ]
    limited = limit_rows(limits)
    labels = max(len(row.label) for row in limited)
    head = f"{'parameter':<{width}}  {'range':<{ranges}}  default"
    text = "\n".join(
        (
            f"Search space {space.name}, version {space.version}, {len(dimensions)} parameters",
            "",
            textwrap.dedent(space.tree),
            "",
            head,
            "-" * len(head),
            *rows,
            "",
            "Default limits",
            *(f"  {row.label:<{labels}}  {row.required}" for row in limited),
            "  More can be set: --max-macs, --max-epoch-s",
            "",
            candidate_text(candidate, "Default network"),
        )
    )
    return facts, text


def _dimension(dimension: Dimension) -> dict[str, Any]:
    kind = type(dimension).__name__.lower()
    return {"type": kind, **dataclasses.asdict(dimension)}


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_command(main)
