"""Does a short trial rank candidates as a fuller training does?

    python scripts/fidelity.py [--study-name dilated] [--candidates 12] [--epochs 3] [--train-images 45000]

Takes complete trials of a study, evenly spread over its ranking, trains each at a higher fidelity on the
same split and from the same seeds, and compares the two rankings on validation accuracy. Every result is
kept in results/fidelity/<study>.json as soon as it is there; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from study.command_line.parser import Parser, run_command
from study.errors import UserError
from study.machine.files import write_atomically
from study.machine.paths import RESULTS

N_BOOTSTRAP = 2000


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "scripts/fidelity.py", *given])
    parser = Parser(
        description=__doc__, prog="python scripts/fidelity.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    from study.command_line.options import add_study_options, storage_url, study_name
    from study.storage.database import candidate_of, config_of, open_study

    add_study_options(parser)
    parser.add_argument("--candidates", type=int, default=12, metavar="N", help="(default: 12)")
    parser.add_argument("--epochs", type=int, default=3, help="of the fuller training (default: 3)")
    parser.add_argument("--train-images", type=int, default=45_000, metavar="N", help="(default: 45,000)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    parser.add_argument("--results", type=Path, default=RESULTS / "fidelity", help="(default: results/fidelity)")
    options = parser.parse_args(given)
    if options.candidates < 3:
        raise UserError(f"--candidates must be at least 3 for a rank correlation: {options.candidates}.")
    name = study_name(options)
    study = open_study(storage_url(options), name)
    config = config_of(study)
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    complete.sort(key=lambda trial: (-(trial.value or 0.0), trial.number))
    if len(complete) < options.candidates:
        raise UserError(f"--candidates must not exceed the {len(complete)} complete trials: {options.candidates}.")
    step = (len(complete) - 1) / (options.candidates - 1)
    chosen = [complete[round(index * step)] for index in range(options.candidates)]

    from study.data.cifar10 import load_train, search_split
    from study.machine.hardware import n_cores, n_loaders, resolve_device
    from study.training.loop import train
    from study.training.records import TrainingConfig

    device = resolve_device(options.device)
    everything = load_train(options.data)
    for_training, for_validation = search_split(everything.labels, options.train_images, config.val_images)
    images, validation = everything.take(for_training), everything.take(for_validation)
    import torch

    torch.set_num_threads(n_cores())
    file = options.results / f"{name}.json"
    fuller = {"epochs": options.epochs, "train_images": options.train_images}
    known = _known(file, fuller)
    # From both ends inwards: whatever time allows, the candidates stay spread over the ranking.
    order = sorted(range(len(chosen)), key=lambda index: -abs(index - (len(chosen) - 1) / 2))
    for index in order:
        trial = chosen[index]
        candidate = candidate_of(trial)
        if candidate.candidate_id in known:
            continue
        training = TrainingConfig(
            options.epochs, trial.user_attrs["training_seed"], device, config.precision, n_loaders(device, 1)
        )
        record = train(candidate, images, training, validation).records[-1]
        known[candidate.candidate_id] = {
            "candidate_id": candidate.candidate_id,
            "trial": trial.number,
            "params": candidate.architecture.params,
            "short_val_accuracy": trial.value,
            "fuller_val_accuracy": record.val_accuracy,
        }
        _write(file, command, name, config, fuller, list(known.values()))
        print(f"trial {trial.number}: {trial.value:.4f} short, {record.val_accuracy:.4f} fuller", flush=True)
    if file.exists():
        print(file.read_text())
    return 0


def _known(file: Path, fuller: dict[str, int]) -> dict[str, Any]:
    """Results of an earlier call at the same fidelity."""
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    if found["fuller"] != fuller:
        raise UserError(f"{file} holds another fidelity ({found['fuller']}): remove it or choose the same options.")
    return {candidate["candidate_id"]: candidate for candidate in found["candidates"]}


def _write(
    file: Path, command: str, name: str, config: Any, fuller: dict[str, int], candidates: list[dict[str, Any]]
) -> None:
    import numpy as np
    from scipy.stats import spearmanr

    short = np.array([candidate["short_val_accuracy"] for candidate in candidates])
    full = np.array([candidate["fuller_val_accuracy"] for candidate in candidates])
    rng = np.random.default_rng(0)
    found = []
    for _ in range(N_BOOTSTRAP if len(candidates) > 2 else 0):
        rows = rng.integers(0, len(short), len(short))
        if len(set(rows)) > 2:
            found.append(spearmanr(short[rows], full[rows]).statistic)
    record = {
        "command": command,
        "study": name,
        "short": {"epochs": config.epochs, "train_images": config.train_images},
        "fuller": fuller,
        "spearman": float(spearmanr(short, full).statistic) if len(candidates) > 2 else None,
        "spearman_interval_95": [float(np.nanpercentile(found, q)) for q in (2.5, 97.5)] if found else None,
        "candidates": sorted(candidates, key=lambda candidate: -candidate["short_val_accuracy"]),
    }
    write_atomically(file, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
