"""Audits every search space: is each sample feasible, are networks distinct and spread over the budget?

    python scripts/audit_spaces.py [--samples 10000] [--max-params 200000 100000] [--out results/audit]

Writes <space>-<max_params>.json into the folder and prints a table. Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[0]))

import evidence
from search_spaces import SPACES, get_space
from search_spaces.architecture import Architecture
from search_spaces.constraints import InfeasibleError, Limits, certify
from study.command_line.parser import run_command
from study.machine.paths import RESULTS

CHUNK = 250
MIN_DISTINCT = 0.95
LOW_SHARE, HIGH_SHARE = 0.42, 0.98
"""Parameters must reach from below the first share of the budget to above the second."""


def shows(a: Architecture) -> set[str]:
    """What can be seen in a network: its operations, depthwise kernels, dilations, how it reduces."""
    found = {f"{op.name} {op.detail}" if op.name == "Gate" else op.name for op in a.operations}
    found |= {f"dilation {op.dilation}" for op in a.operations if op.dilation > 1}
    found |= {f"{op.kernel}x{op.kernel} depthwise" for op in a.operations if op.is_depthwise}
    return found | {"dilated reduction" if a.n_dilated_reductions else "strided reduction"}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = evidence.parser("audit_spaces.py", __doc__)
    parser.add_argument("--samples", type=int, default=10_000, help="samples per space and limit (%(default)s)")
    limits = [Limits().max_params, 100_000]
    parser.add_argument("--max-params", type=int, nargs="+", default=limits, help="limits to audit (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "audit", help="folder of the records (results/audit)")
    options = parser.parse_args(words)
    evidence.at_least(options, samples=1)
    found = []
    for name, max_params in itertools.product(sorted(SPACES), options.max_params):
        record = audit(name, Limits(max_params=max_params), options.samples, options.seed)
        record = {"command": evidence.command_line("audit_spaces.py", words), **record}
        evidence.write(options.out / f"{name}-{max_params}.json", record)
        found.append(record)
        print(f"{name}, < {max_params:,}: {'; '.join(record['goals_missed']) or 'goals met'}", flush=True)
    print(markdown(found))
    return int(any(record["goals_missed"] for record in found))


def audit(name: str, limits: Limits, n: int, seed: int) -> dict[str, Any]:
    """Everything the record holds about `n` samples of the space called `name`, but the command."""
    sizes = [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
    jobs = (joblib.delayed(_chunk)(name, limits, size, f"{seed}/{index}") for index, size in enumerate(sizes))
    rows = [row for chunk in joblib.Parallel(n_jobs=-1)(jobs) for row in chunk]
    feasible = [row for row in rows if row["architecture_id"] is not None]
    shown = Counter(key for row in feasible for key in row["shows"])
    repairs = Counter(repair for row in feasible for repair in row["repairs"])
    record: dict[str, Any] = {
        "space": name,
        "version": get_space(name).version,
        "limits": limits.to_json(),
        "n": n,
        "seed": seed,
        "n_infeasible": n - len(feasible),
        "infeasible_example": next((row for row in rows if row["architecture_id"] is None), None),
        "distinct": len({row["architecture_id"] for row in feasible}) / n,
        "params_share": _quantiles([row["n_params"] / limits.max_params for row in feasible]),
        "macs": _quantiles([row["macs"] for row in feasible]),
        "receptive_field": _quantiles([row["receptive_field"] for row in feasible]),
        "repaired": sum(bool(row["repairs"]) for row in feasible) / n,
        "repairs": {repair: count / n for repair, count in repairs.most_common()},
        "decoded": {key: shown[key] / n for key in sorted(shown)},
    }
    return {**record, "goals_missed": goals_missed(record)}


def goals_missed(record: dict[str, Any]) -> list[str]:
    """One sentence for every goal that the record misses."""
    missed = []
    if record["n_infeasible"]:
        missed.append(f"every sample is feasible: {record['n_infeasible']:,} are not")
    if record["distinct"] < MIN_DISTINCT:
        missed.append(f"at least {MIN_DISTINCT:.0%} distinct architectures: {record['distinct']:.1%}")
    share = record["params_share"]
    if not share or share["min"] > LOW_SHARE or share["max"] < HIGH_SHARE:
        found = f"{share['min']:.3f} to {share['max']:.3f}" if share else "none"
        missed.append(f"parameters spread from {LOW_SHARE} to {HIGH_SHARE} of the budget: {found}")
    return missed


def _chunk(name: str, limits: Limits, size: int, seed: str) -> list[dict[str, Any]]:
    space, rng = get_space(name), random.Random(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(size):
        params = space.sample(rng)
        try:
            decoded = space.decode(params, limits)
            certify(decoded.candidate.architecture, limits)
        except InfeasibleError as error:
            rows.append({"params": params, "architecture_id": None, "reason": str(error)})
            continue
        a = decoded.candidate.architecture
        figures = {"n_params": a.params, "macs": a.macs, "receptive_field": a.receptive_field}
        repairs = [repair.partition(" (")[0] for repair in decoded.repairs]  # without its values
        row = {"params": params, "architecture_id": a.architecture_id, "repairs": repairs, "shows": shows(a)}
        rows.append(row | figures)
    return rows


def _quantiles(values: list[float]) -> dict[str, float]:
    places = {"min": 0.0, "1%": 0.01, "50%": 0.5, "99%": 0.99, "max": 1.0}
    found = np.quantile(values, list(places.values()), method="nearest").tolist() if values else []
    return dict(zip(places, found, strict=False))


def markdown(records: Iterable[dict[str, Any]]) -> str:
    """One row a space and limit."""
    rows = []
    for a in records:
        share = a["params_share"]
        rows.append(
            (
                f"{a['space']}, < {a['limits']['max_params']:,} parameters",
                f"{a['n']:,}",
                str(a["n_infeasible"]),
                f"{100 * a['distinct']:.1f}%",
                f"{share['min']:.2f} to {share['max']:.2f}" if share else "none feasible",
                f"{100 * a['repaired']:.1f}%",
                # Only `dilated` chooses between this and strided reductions.
                f"{100 * a['decoded']['dilated reduction']:.1f}%" if "dilated reduction" in a["decoded"] else "",
            )
        )
    head = ("space, limit", "samples", "infeasible", "distinct", "share of budget", "repaired", "dilated reduction")
    return evidence.table(head, rows)


def block(results: Path = RESULTS) -> str:
    """What search_spaces/README.md says of it."""
    return markdown(evidence.records(results / "audit").values())


if __name__ == "__main__":
    run_command(main)
