"""Does a short trial rank candidates as a fuller training does?

    python scripts/experiments/fidelity.py [--study-name dilated] [--candidates 12] [--epochs 3] [--train-images 45000]

Takes complete trials of a study, evenly spread over its ranking, trains each at a higher fidelity on the same split
and from the same seeds, and compares the two rankings on validation accuracy. Every result is kept in
results/fidelity/<study>.json as soon as it is there; the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from study.command_line.options import add_study_options
from study.command_line.parser import run_command
from study.errors import UserError
from study.machine.paths import RESULTS

SCRIPT = "experiments/fidelity.py"


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = evidence.parser(SCRIPT, __doc__)
    add_study_options(parser)
    parser.add_argument("--candidates", type=int, default=12, metavar="N", help="(default: 12)")
    parser.add_argument("--epochs", type=int, default=3, help="of the fuller training (default: 3)")
    parser.add_argument("--train-images", type=int, default=45_000, metavar="N", help="(default: 45,000)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    parser.add_argument("--results", type=Path, default=RESULTS / "fidelity", help="(default: results/fidelity)")
    options = parser.parse_args(given)
    evidence.at_least(options, candidates=3, epochs=1)

    import torch

    from study.data.cifar10 import search_split
    from study.data.opening import load_train, open_data
    from study.machine.hardware import n_cores, n_loaders, resolve_device
    from study.storage.config import refuse_other_data
    from study.storage.database import candidate_of, config_of
    from study.training import loop
    from study.training.records import TrainingConfig

    name, study = evidence.named_study(options)
    config = config_of(study)
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    complete.sort(key=lambda trial: (-(trial.value or 0.0), trial.number))
    if len(complete) < options.candidates:
        raise UserError(f"--candidates must not exceed the {len(complete)} complete trials: {options.candidates}.")
    fuller = {"epochs": options.epochs, "train_images": options.train_images}
    file = options.results / f"{name}.json"
    short = {"epochs": config.epochs, "train_images": config.train_images}
    of = {"study_created": study.user_attrs.get("created"), "short": short, "fuller": fuller}
    known = evidence.read(file) or {**of, "candidates": []}
    if other := [name for name, value in of.items() if known.get(name, value) != value]:
        raise UserError(f"{file} is of another study or fidelity ({', '.join(other)}): remove it or name that.")
    candidates = {each["candidate_id"]: each for each in known["candidates"]}

    device = resolve_device(options.device)
    torch.set_num_threads(n_cores())
    data = open_data(options.data)
    refuse_other_data(name, config, data)
    everything = load_train(data.source)
    for_training, for_validation = search_split(
        everything.labels, options.train_images, config.val_images, everything.of
    )
    images, validation = everything.take(for_training), everything.take(for_validation)
    chosen = [complete[round(place)] for place in np.linspace(0, len(complete) - 1, options.candidates)]
    # From both ends inwards: whatever time allows, the candidates stay spread over the ranking.
    for index in sorted(range(len(chosen)), key=lambda index: -abs(index - (len(chosen) - 1) / 2)):
        trial, candidate = chosen[index], candidate_of(chosen[index])
        if candidate.candidate_id in candidates:
            continue
        seed = trial.user_attrs["training_seed"]
        how = TrainingConfig(options.epochs, seed, device, config.precision, n_loaders(device, n_cores()))
        accuracy = loop.train(candidate, images, how, validation).records[-1].val_accuracy
        candidates[candidate.candidate_id] = {
            "candidate_id": candidate.candidate_id,
            "trial": trial.number,
            "params": candidate.architecture.params,
            "short_val_accuracy": trial.value,
            "fuller_val_accuracy": accuracy,
        }
        record = {
            "command": evidence.command_line(SCRIPT, given),
            "study": name,
            **of,
            **correlation(list(candidates.values())),
            "candidates": sorted(candidates.values(), key=lambda each: -each["short_val_accuracy"]),
        }
        evidence.write(file, record)
        print(f"trial {trial.number}: {trial.value:.4f} short, {accuracy:.4f} fuller", flush=True)
    if (found := evidence.read(file)) and found["spearman"] is not None:
        print(_sentence(found))
    return 0


def correlation(candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Spearman's rank correlation and its bootstrap interval; None of fewer than three candidates."""
    if len(candidates) < 3:
        return {"spearman": None, "spearman_interval_95": None}
    short, full = (np.array([each[f"{key}_val_accuracy"] for each in candidates]) for key in ("short", "fuller"))

    def drawn(rows: evidence.Integers) -> float:
        return float(spearmanr(short[rows], full[rows]).statistic) if len(set(rows.tolist())) > 2 else np.nan

    interval = evidence.bootstrap(len(candidates), drawn)
    return {"spearman": float(spearmanr(short, full).statistic), "spearman_interval_95": interval}


def block(results: Path = RESULTS) -> str:
    """What results/README.md says of it."""
    found = evidence.records(results / "fidelity").values()
    return "\n\n".join(_sentence(each) for each in found if each["spearman"] is not None) or evidence.NOTHING


def _sentence(found: dict[str, Any]) -> str:
    short, fuller = (f"{found[k]['epochs']} epochs of {found[k]['train_images']:,} images" for k in ("short", "fuller"))
    low, high = found["spearman_interval_95"]
    return (
        f"Spearman's rank correlation between the validation accuracy of trials ({short}) and that of a fuller "
        f"training of the same candidates ({fuller}): **{found['spearman']:.2f}** over "
        f"{len(found['candidates'])} candidates (95% bootstrap interval {low:.2f} to {high:.2f}; "
        f"{evidence.command_of(found)})."
    )


if __name__ == "__main__":
    run_command(main)
