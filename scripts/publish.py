"""Publish a study: copy what is worth keeping from results/runs/<study>/ to results/<name>/.

    python scripts/publish.py                          the default study -> results/dilated/
    python scripts/publish.py --study-name S --name N  another one
    python scripts/publish.py --readme                 only rewrite the result blocks of the README files
    python scripts/publish.py --pictures               only draw the pictures of all records in results/ again

Published are `study.json` (configuration and every trial), `trials.csv`, `history.png`, `report.md`, `report.png` (its
first screen, where a Chromium is installed) and, without `model.pt2`, the bundles of the best trial, the reference
network, the yardstick and trials that were asked for. The figures of README.md, results/README.md and
search_spaces/README.md come from these files and those of the experiments and benchmarks.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[0]))

import audit_spaces
import evidence
from benchmarks import memory, record
from experiments import faults, fidelity, own_data, pruners, published, replays, samplers, scaling, tables, variants
from gpu import rates
from study.command_line.options import add_study_options
from study.command_line.parser import run_command
from study.errors import UserError
from study.machine.files import unwritten
from study.machine.paths import REPOSITORY, RESULTS, run_dir

READMES = tuple(REPOSITORY / folder / "README.md" for folder in ("", "results", "search_spaces"))
"""The files with blocks between `<!-- results:NAME -->` and `<!-- end -->`."""
BLOCKS: dict[str, Callable[[], str]] = {
    "headline": published.headline,
    "study": functools.partial(published.block, "dilated"),
    "gpu-study": functools.partial(published.block, "best"),
    "gpu": rates.block,
    "exports": functools.partial(published.exports_block, "dilated/best"),
    "gpu-exports": functools.partial(published.exports_block, "best/trial-0"),
    "benchmarks": record.block,
    "fidelity": fidelity.block,
    "pruners": pruners.block,
    "audit": audit_spaces.block,
    "samplers": samplers.block,
    "replays": replays.block,
    "tables": tables.block,
    "variants": variants.block,
    "whole-studies": replays.whole_studies_block,
    "faults": faults.block,
    "scaling": scaling.block,
    "own-data": own_data.block,
}
"""What makes each block, from the files in results/."""

PICTURES: dict[str, Callable[[Any, Path], None]] = {
    "*/study.json": published.draw,
    "replays/*.json": replays.draw,
    "samplers/*.json": samplers.draw,
    "pruners/*.json": pruners.draw,
    "benchmarks/**/memory-*.json": memory.draw,
}
"""What draws the picture of each record in results/, beside it."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = evidence.parser("publish.py", __doc__)
    add_study_options(parser)
    parser.add_argument("--name", help="folder in results/ (default: the study's name)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="another folder; README files are left alone then"
    )
    parser.add_argument("--readme", action="store_true", help="only rewrite the result blocks of the README files")
    parser.add_argument("--pictures", action="store_true", help="only draw the pictures of all records again")
    options = parser.parse_args(argv)
    if options.pictures:
        draw_pictures(options.results)
        return 0
    if not options.readme:
        name, study = evidence.named_study(options)
        folder = options.results / (options.name or name)
        if folder.resolve() == (RESULTS / "runs").resolve():
            raise UserError("--name must not be 'runs': unpublished studies live there. Choose another.")
        try:
            published.publish(study, run_dir(name, options.out), folder)
        except OSError as error:
            raise unwritten(f"The record in {str(folder)!r}", error, "Name another folder with --results.") from error
        print(f"Published to {folder}")
    if options.results.resolve() == RESULTS.resolve():
        for readme in READMES:
            text = rewritten(readme)
            if text != readme.read_text():
                readme.write_text(text)
                print(f"Rewrote the result blocks of {readme}")
    return 0


def draw_pictures(results: Path) -> None:
    """Draws the picture of every record again, where the scripts that made them would."""
    for pattern, draw in PICTURES.items():
        for file in sorted(results.glob(pattern)):
            if not file.stem.endswith("-table"):
                draw(evidence.read(file), file.with_suffix(".png"))
    if found := evidence.records(results / scaling.NAME):
        scaling.draw(found, results / scaling.NAME / "scaling.png")


def rewritten(readme: Path) -> str:
    """The text of `readme` with every block made anew.

    Raises:
        KeyError: It has a block that nothing makes.
    """

    def block(found: re.Match[str]) -> str:
        text = re.sub(r"(?<=\]\()results/[^)]*", link, BLOCKS[found["name"]]())
        return f"<!-- results:{found['name']} -->\n{text}\n<!-- end -->"

    def link(found: re.Match[str]) -> str:
        """A block names files from the repository's root; a link starts from the file that it stands in."""
        return os.path.relpath(REPOSITORY / found[0], readme.parent)

    return re.sub(r"<!-- results:(?P<name>\S+) -->.*?<!-- end -->", block, readme.read_text(), flags=re.DOTALL)


if __name__ == "__main__":
    run_command(main)
