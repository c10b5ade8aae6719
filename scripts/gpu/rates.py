"""What README files say of how fast a GPU trains: the records of `scripts/gpu/smoke.py` in results/gpu/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evidence
from study.machine.paths import RESULTS

NAME = "gpu"
_N_KERNELS = 5
_WORDS = {"taught": "with a teacher"}


def block(results: Path = RESULTS) -> str:
    """A table for each card."""
    found = evidence.records(results / NAME)
    return "\n\n".join(_of(record) for record in found.values()) or evidence.NOTHING


def _of(record: dict[str, Any]) -> str:
    rows = []
    for name, each in record.items():
        what, _, how = name.partition(" ")
        if what == "rate" and "images_s" in each:
            space, _, how = how.partition(", ")
            rows.append(
                (
                    f"`{space}`",
                    _WORDS.get(how, how),
                    str(each["batch_size"]),
                    f"{each['images_s']:,.0f}",
                    f"{each['step_ms']:.2f}",
                )
            )
    head = ("default of", "but", "batch", "images/s", "ms a step")
    parts = [evidence.table(head, rows), f"{evidence.machine(record['machine'])}, by {evidence.command_of(record)}."]
    gap, profile = record.get("twenty", {}).get("gap"), record.get("profile best", {})
    if gap is not None:
        parts[1] += f" The losses of 20 captured steps and of 20 eager ones differ by a share of {gap:.1g}."
    if "ms" in profile:
        largest = sum(ms for _, ms, _ in profile["largest"][:_N_KERNELS])
        parts[1] += (
            f" A step of `best`'s default launches {profile['kernels']:.0f} kernels that take {profile['ms']:.1f} ms, "
            f"the {_N_KERNELS} kinds that take longest {largest:.1f} ms."
        )
    return "\n\n".join(parts)
