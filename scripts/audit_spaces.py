"""Audits every search space: is each sample feasible, distinct, spread over the budget and over every choice?

python scripts/audit_spaces.py [--samples 10000] [--max-params 200000 100000] [--out results/audit]

Writes <space>-<max_params>.json into the folder and prints a table. Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import itertools
import json
import random
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import joblib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a clone, nothing installed

from search_spaces import SPACES, get_space
from search_spaces.architecture import Architecture, Branch, Branches, Residual
from search_spaces.constraints import InfeasibleError, Limits, certify
from search_spaces.space import Choice, Dimension, Integer, Real
from study.command_line.parser import Parser, run_command
from study.errors import UserError
from study.machine.paths import RESULTS

CHUNK = 250
N_BINS = 4
MIN_DISTINCT = 0.95
MIN_CHOICE = 0.01
LOW_SHARE, HIGH_SHARE = 0.42, 0.98
"""Parameters must reach from below the first share of the budget to above the second."""

COLUMNS = "{:12}{:>11}{:>9}{:>12}{:>10}{:>17}{:>10}{:>15}  {}"

Structures = dict[str, Callable[[Architecture], bool]]


def _has_gate(architecture: Architecture, activation: str) -> bool:
    return any(op.name == "Gate" and op.detail == activation for op in architecture.operations)


def _has_depthwise(architecture: Architecture, kernel: int) -> bool:
    return any(op.is_depthwise and op.kernel == kernel for op in architecture.operations)


def _has_dilation(architecture: Architecture, dilation: int) -> bool:
    return any(op.dilation == dilation for op in architecture.operations)


def _shows(name: str) -> Callable[[Architecture], bool]:
    """Whether a network has operations of that name."""
    return lambda architecture: any(op.name == name for op in architecture.operations)


_DILATED: Structures = {
    "dilated reduction": lambda a: a.n_dilated_reductions > 0,
    "strided reduction": lambda a: any(unit.stride > 1 for unit in a.convs),
    "residual": lambda a: any(isinstance(layer, Residual) for layer in a.layers),
    "no residual": lambda a: not any(isinstance(layer, Residual) for layer in a.layers),
    "more than one separable unit": lambda a: sum(unit.separable for unit in a.convs) > 1,
    "5x5 kernel": lambda a: any(unit.kernel == 5 for unit in a.convs),
    "padded dilated unit": lambda a: any(unit.is_dilated and unit.padded for unit in a.convs),
    "unpadded head": lambda a: any(not unit.padded and not unit.is_dilated for unit in a.convs),
}
_SEPARABLE: Structures = {
    "16x16 map at the end": lambda a: a.operations[-2].in_shape[1] == 16,
    "8x8 map at the end": lambda a: a.operations[-2].in_shape[1] == 8,
    "separable reduction": lambda a: any(unit.stride > 1 and unit.separable for unit in a.convs),
    "patch reduction": lambda a: any(unit.kernel == 2 for unit in a.convs),
    "expansion": lambda a: any(len(block.body) == 3 for block in _blocks(a)),
    "no expansion": lambda a: any(len(block.body) == 2 for block in _blocks(a)),
    "repeated block": lambda a: any(block.times > 1 for block in _blocks(a)),
    "no repeated block": lambda a: all(block.times == 1 for block in _blocks(a)),
    **{f"{kernel}x{kernel} depthwise": partial(_has_depthwise, kernel=kernel) for kernel in (3, 5, 7)},
    **{name: _shows(name) for name in ("BatchNorm2d", "LayerNorm2d")},
    **{name: _shows(name) for name in ("ReLU", "GELU", "SiLU")},
}
_BEST: Structures = {
    **{name: partial(_has_gate, activation=name) for name in ("GELU", "SiLU")},
    **{f"dilation {dilation}": partial(_has_dilation, dilation=dilation) for dilation in (2, 3, 4, 5)},
    "scaled body": lambda a: any(block.scaled == "body" for block in _blocks(a)),
    "scaled identity": lambda a: any(block.scaled == "identity" for block in _blocks(a)),
    "more blocks before the reduction": lambda a: _n_blocks(a, 32) > _n_blocks(a, 16),
    "more blocks after the reduction": lambda a: _n_blocks(a, 32) < _n_blocks(a, 16),
}
_MULTISCALE: Structures = {
    **_BEST,
    **{name: partial(_has_gate, activation=name) for name in ("ReLU", "TanhExp")},
    **{name: _shows(name) for name in ("Sum", "Concat")},
    "identity branch": lambda a: any(branch.kernel == 1 for branch in _branches(a)),
    "no identity branch": lambda a: all(branch.kernel > 1 for branch in _branches(a)),
    "separable reduction": lambda a: any(unit.stride > 1 and unit.separable for unit in a.convs),
    "patch reduction": lambda a: any(unit.kernel == 2 for unit in a.convs),
    "grouped reduction": lambda a: any(unit.kernel == 4 for unit in a.convs),
    "nothing scaled": lambda a: all(block.scaled is None for block in _blocks(a)),
    **{name: _shows(name) for name in ("BatchNorm2d", "LayerNorm2d")},
}
STRUCTURES = {"best": _BEST, "dilated": _DILATED, "multiscale": _MULTISCALE, "separable": _SEPARABLE}
"""What the networks of every space must show, each in a share of them: that what was sampled arrives in them."""


def _blocks(architecture: Architecture) -> list[Residual]:
    return [layer for layer in architecture.layers if isinstance(layer, Residual)]


def _branches(architecture: Architecture) -> list[Branch]:
    return [branch for unit in architecture.units if isinstance(unit, Branches) for branch in unit.branches]


def _n_blocks(architecture: Architecture, side: int) -> int:
    return sum(op.name == "Add" and op.out_shape[1] == side for op in architecture.operations)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python scripts/audit_spaces.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000, help="samples per space and limit (%(default)s)")
    parser.add_argument(
        "--max-params",
        type=int,
        nargs="+",
        default=[Limits().max_params, 100_000],
        help="limits to audit (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "audit", help="folder of the records (%(default)s)")
    options = parser.parse_args(argv)
    if options.samples < 1 or min(options.max_params) < 1:
        raise UserError(
            f"--samples and --max-params must be at least 1: {options.samples} and {min(options.max_params)}."
        )
    command = shlex.join(["python", "scripts/audit_spaces.py", *(sys.argv[1:] if argv is None else argv)])
    options.out.mkdir(parents=True, exist_ok=True)
    missed = False
    print(
        COLUMNS.format(
            "space",
            "max params",
            "samples",
            "infeasible",
            "distinct",
            "of budget",
            "repaired",
            "rarest choice",
            "goals",
        )
    )
    for name in sorted(SPACES):
        for max_params in options.max_params:
            record = audit(name, Limits(max_params=max_params), options.samples, options.seed)
            file = options.out / f"{name}-{max_params}.json"
            file.write_text(json.dumps({"command": command, **record}, indent=1) + "\n")
            print(_row(record))
            for goal in record["goals_missed"]:
                print(f"  missed: {goal}")
            missed = missed or bool(record["goals_missed"])
    return int(missed)


def audit(name: str, limits: Limits, n: int, seed: int) -> dict[str, Any]:
    """Everything the record holds about `n` samples of the space called `name`, but the command."""
    sizes = [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
    jobs = (joblib.delayed(_chunk)(name, limits, size, f"{seed}/{index}") for index, size in enumerate(sizes))
    rows = [row for chunk in joblib.Parallel(n_jobs=-1)(jobs) for row in chunk]
    feasible = [row for row in rows if row["architecture_id"] is not None]
    dimensions = {
        key: _shares([_bin(dimension, row["params"][key]) for row in rows], _bins(dimension))
        for key, dimension in get_space(name).dimensions.items()
    }
    structures = {key: sum(key in row["structures"] for row in feasible) / n for key in STRUCTURES[name]}
    shares = [row["n_params"] / limits.max_params for row in feasible]
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
        "params_share": _quantiles(shares),
        "macs": _quantiles([row["macs"] for row in feasible]),
        "receptive_field": _quantiles([row["receptive_field"] for row in feasible]),
        "repaired": sum(bool(row["repairs"]) for row in feasible) / n,
        "repairs": {repair: count / n for repair, count in repairs.most_common()},
        "sampled": dimensions,
        "decoded": structures,
        "rarest_choice": min(min(found.values()) for found in [*dimensions.values(), structures]),
    }
    record["goals_missed"] = goals_missed(record)
    return record


def _row(record: dict[str, Any]) -> str:
    share = record["params_share"]
    return COLUMNS.format(
        record["space"],
        f"{record['limits']['max_params']:,}",
        f"{record['n']:,}",
        f"{record['n_infeasible']:,}",
        f"{record['distinct']:.4f}",
        f"{share['min']:.3f} .. {share['max']:.3f}" if share else "none feasible",
        f"{record['repaired']:.3f}",
        f"{record['rarest_choice']:.3f}",
        "MISSED" if record["goals_missed"] else "met",
    )


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
    for key, shares in {**record["sampled"], "decoded": record["decoded"]}.items():
        missed += [
            f"every choice in at least {MIN_CHOICE:.0%} of the samples: {key} = {choice} in {of_samples:.2%}"
            for choice, of_samples in shares.items()
            if of_samples < MIN_CHOICE
        ]
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
        architecture = decoded.candidate.architecture
        rows.append(
            {
                "params": params,
                "architecture_id": architecture.architecture_id,
                "n_params": architecture.params,
                "macs": architecture.macs,
                "receptive_field": architecture.receptive_field,
                "repairs": [_kind(repair) for repair in decoded.repairs],
                "structures": [key for key, has in STRUCTURES[name].items() if has(architecture)],
            }
        )
    return rows


def _kind(repair: str) -> str:
    """The repair without its values: `dilations (1, 1, 1) -> (1, 1, 2)` is counted as `dilations`."""
    return repair.partition(" (")[0]


def _bins(dimension: Dimension) -> list[str]:
    if isinstance(dimension, Choice):
        return [str(value) for value in dimension.values]
    if isinstance(dimension, Integer):
        return [str(value) for value in range(dimension.low, dimension.high + 1)]
    edges = [_edge(dimension, i / N_BINS) for i in range(N_BINS + 1)]
    return [f"{low:.3g} .. {high:.3g}" for low, high in itertools.pairwise(edges)]


def _bin(dimension: Dimension, value: Any) -> str:
    if isinstance(dimension, (Choice, Integer)):
        return str(value)
    above: int = sum(value >= _edge(dimension, i / N_BINS) for i in range(1, N_BINS))
    return _bins(dimension)[above]


def _edge(dimension: Real, fraction: float) -> float:
    if dimension.log:
        return float(dimension.low * (dimension.high / dimension.low) ** fraction)
    return float(dimension.low + (dimension.high - dimension.low) * fraction)


def _shares(found: list[str], bins: list[str]) -> dict[str, float]:
    counts = Counter(found)
    return {name: counts[name] / len(found) for name in bins}


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    places = {"min": 0.0, "1%": 0.01, "50%": 0.5, "99%": 0.99, "max": 1.0}
    return {name: ordered[round(place * (len(ordered) - 1))] for name, place in places.items()}


if __name__ == "__main__":
    run_command(main)
