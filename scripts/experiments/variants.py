"""What a change of network, augmentation or optimisation is worth, on validation images at equal epochs.

    python scripts/experiments/variants.py reference [--epochs 10] [--seeds 1] [--jobs 2] [--only NAME ...]

A group is one candidate and changes of it, named below. Each is trained on 45,000 images (--train-images) from every
seed and validated on 5,000; trainings at once have one thread each. What is finished is kept in
results/variants/<group>.json, what is not in --checkpoints: the same command goes on. `--time`, on an otherwise idle
machine, trains nothing and measures how fast each one trains, in turns.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from search_spaces import get_space
from search_spaces.architecture import Architecture
from search_spaces.candidate import Augmentation, Candidate, Optimisation
from search_spaces.constraints import Limits
from search_spaces.reference import REFERENCE_ARCHITECTURE
from search_spaces.training_dimensions import LONG_AUGMENTATION, SMALL_IMAGES
from study.calibration.prices import calibrate
from study.command_line.parser import run_command
from study.command_line.wording import counted
from study.errors import UserError
from study.machine.hardware import hardware
from study.machine.paths import RESULTS

SCRIPT = "experiments/variants.py"
N_TURNS = 5
SEARCH_IMAGES, VAL_IMAGES = 45_000, 5_000
LIGHT = Augmentation(crop_padding=3)
EARLIER = Augmentation(crop_padding=0, affine_p=0.5, shift_frac=0.1, scale_frac=0.1, rotate_deg=10.0, dropout_p=0.25)
"""What the reference network was trained with before: the kinds that it was published with."""


def changed(candidate: Candidate, augmentation: Augmentation | None = None, **optimisation: Any) -> Candidate:
    return dataclasses.replace(
        candidate,
        augmentation=augmentation or candidate.augmentation,
        optimisation=dataclasses.replace(candidate.optimisation, **optimisation),
    )


def near_default(**params: Any) -> Candidate:
    """The default of `dilated` as it was when its changes were measured, with these parameters."""
    space = get_space("dilated")
    return space.decode({**space.anchors(Limits())["default"], "batch_size": 128, **params}, Limits()).candidate


def _strided(architecture: Architecture) -> Architecture:
    """Another network than the reference: it reduces as most do, and is dilated where it does not reduce."""
    layers: list[Any] = list(architecture.layers)
    layers[3], layers[7] = (dataclasses.replace(layers[i], stride=2, dilation=1, padded=True) for i in (3, 7))
    layers[9] = dataclasses.replace(layers[9], dilation=2)
    return Architecture(tuple(layers))


def _last_pair_twice(architecture: Architecture) -> Architecture:
    """The last residual pair that is not separable runs twice, by the same weights."""
    layers: list[Any] = list(architecture.layers)
    layers[-2] = dataclasses.replace(layers[-2], times=2)
    return Architecture(tuple(layers))


def groups() -> dict[str, dict[str, Candidate]]:
    """The candidates by group and name; the first of a group is what the others change."""
    plain, small = near_default(), near_default(batch_size=64)
    long = changed(small, LONG_AUGMENTATION)
    muon: Any = {"optimizer": "muon", "weight_decay": 0.05}
    earlier = Candidate(REFERENCE_ARCHITECTURE, EARLIER, Optimisation(lr=0.1, batch_size=128, weight_decay=5e-4))
    return {
        "reference": {
            "SGD, stronger augmentation": earlier,
            "SGD, light augmentation": changed(earlier, LIGHT),
            "Muon, stronger augmentation": changed(earlier, lr=0.015, **muon),
            "Muon, light augmentation": changed(earlier, LIGHT, lr=0.015, **muon),
            "Muon, light augmentation, rate doubled": changed(earlier, LIGHT, lr=0.03, **muon),
            "Muon, light augmentation, batches of 64": changed(earlier, LIGHT, lr=0.015, batch_size=64, **muon),
            "Muon, light augmentation, batches of 32": changed(earlier, LIGHT, lr=0.015, batch_size=32, **muon),
            "Muon, light augmentation, a tenth of the decay": changed(
                earlier, LIGHT, lr=0.015, optimizer="muon", weight_decay=0.005
            ),
            "Muon, light augmentation, a third of the rate": changed(earlier, LIGHT, lr=0.005, **muon),
            "SGD, long augmentation": changed(earlier, LONG_AUGMENTATION),
            "Muon, long augmentation": changed(earlier, LONG_AUGMENTATION, lr=0.015, **muon),
            "Muon, light augmentation, strides in place of dilation": changed(
                dataclasses.replace(earlier, architecture=_strided(REFERENCE_ARCHITECTURE)), LIGHT, lr=0.015, **muon
            ),
        },
        "space": {
            "batches of 128": plain,
            "depths 4, 5, 5": near_default(depth_1=4, depth_2=5, depth_3=5),
            "depths 1, 5, 5": near_default(depth_1=1, depth_2=5, depth_3=5),
            "depths 1, 3, 4": near_default(depth_1=1, depth_2=3, depth_3=4),
            "last stage 2.75 times as wide": near_default(width_ratio_3=2.75),
            "middle stage separable": near_default(separable_2="all"),
            "middle stage separable, last one 2.75 times as wide": near_default(separable_2="all", width_ratio_3=2.75),
            "last reduction dilated": near_default(reduction="dilated", dilated_at="second"),
            "ratios of 1.5": near_default(width_ratio_2=1.5, width_ratio_3=1.5),
            "last pair twice": dataclasses.replace(plain, architecture=_last_pair_twice(plain.architecture)),
            "batches of 64": small,
            "batches of 256": near_default(batch_size=256),
            "depths 1, 3, 4, batches of 64": near_default(depth_1=1, depth_2=3, depth_3=4, batch_size=64),
            "batches of 64, small images first": changed(small, small_images=SMALL_IMAGES),
            "batches of 64, long augmentation": long,
            "batches of 64, long augmentation, small images first": changed(long, small_images=SMALL_IMAGES),
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = evidence.parser(SCRIPT, __doc__)
    known = groups()
    parser.add_argument("group", choices=sorted(known), help="which candidates")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of them (default: all)")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="(default: 10)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--train-images", type=int, default=SEARCH_IMAGES, metavar="N", help="(default: all 45,000)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at once (default: 2)")
    parser.add_argument("--time", action="store_true", help="measure images per second instead, with one thread")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar-10-batches-py")
    parser.add_argument(
        "--checkpoints", type=Path, default=RESULTS / "runs" / "variants", help="(default: results/runs/variants)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "variants", help="(default: results/variants)")
    options = parser.parse_args(given)
    evidence.at_least(options, epochs=1, seeds=1, jobs=1, train_images=10)
    candidates = known[options.group]
    chosen = options.only or list(candidates)
    if unknown := [name for name in chosen if name not in candidates]:
        raise UserError(f"--only must be of {', '.join(map(repr, candidates))}: {unknown[0]!r}.")

    file = options.results / f"{options.group}.json"
    command = evidence.command_line(SCRIPT, given)
    if options.time:
        before, machine = _read(file), hardware("cpu")
        older = before.get("speed") or {}
        rates = _rates({name: candidates[name] for name in chosen}, calibrate("cpu").precision)
        if older.get("hardware") == machine:  # those of another one do not compare
            rates = {**older["rates"], **rates}
            command = " && ".join(dict.fromkeys([*older["command"].split(" && "), command]))
        evidence.write(file, {**before, "speed": {"rates": rates, "command": command, "hardware": machine}})
        return 0

    from joblib import Parallel, delayed

    from study.data.opening import load_train, open_data
    from study.machine.hardware import n_cores, versions

    data = open_data(options.data).source
    load_train(data)  # decoded once, before several processes ask for it
    done = {_key(run) for run in _read(file)["runs"]}
    wanted = [
        (name, seed)
        for seed in range(options.seeds)
        for name in chosen
        if (name, seed, options.epochs, options.train_images, candidates[name].candidate_id) not in done
    ]
    threads, precision = max(1, n_cores() // options.jobs), calibrate("cpu").precision
    work = (
        delayed(_run)(
            name,
            candidates[name],
            options.epochs,
            seed,
            options.train_images,
            threads,
            precision,
            data,
            options.checkpoints,
        )
        for name, seed in wanted
    )
    more = {
        "hardware": hardware("cpu"),
        "versions": versions(),
        "command": command,
        "jobs": options.jobs,
        "precision": precision,
    }
    order = list(candidates)
    for run in Parallel(options.jobs, return_as="generator_unordered")(work):
        found = _read(file)
        options.results.mkdir(parents=True, exist_ok=True)
        evidence.write(file, {**found, "runs": [*found["runs"], {**run, "order": order.index(run["name"]), **more}]})
        print(f"{run['name']}, seed {run['seed']}: {run['val_accuracy']:.4f}, {run['wall_s']:.0f} s", flush=True)
    return 0


def _read(file: Path) -> dict[str, Any]:
    return evidence.read(file) or {"runs": []}


def _rates(candidates: Mapping[str, Candidate], precision: str) -> dict[str, float]:
    """Images per second of each on one thread, over a whole training, augmentation left out: the median of several
    turns."""
    import numpy as np
    import torch

    from study.data.cifar10 import Images
    from study.training.loop import Training
    from study.training.records import TrainingConfig

    torch.set_num_threads(1)
    images = Images(np.zeros((512, 32, 32, 3), np.uint8), np.arange(512) % 10)
    # So many epochs as all sizes of images, which may differ, have a share of.
    config = TrainingConfig(10, 0, precision=precision)
    ready = {name: Training(each, images, config) for name, each in candidates.items()}
    found: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(N_TURNS):
        for name, training in ready.items():
            training.network.train()
            of_side: dict[int | None, float] = {}
            steps = []
            for epoch in range(config.epochs):
                if training.resize(epoch) or not of_side:
                    of_side[training.step.settings.side] = training.seconds_a_step()
                steps.append(of_side[training.step.settings.side])
            found[name].append(training.candidate.optimisation.batch_size / statistics.fmean(steps))
    return {name: round(statistics.median(rates), 1) for name, rates in found.items()}


def block(results: Path = RESULTS) -> str:
    """What results/README.md says of it: a table per group and length."""
    parts = []
    for record in evidence.records(results / "variants").values():
        lengths = sorted({(run["epochs"], run["train_images"]) for run in record["runs"]})
        parts += [_table(record, *length) for length in lengths]
    return "\n\n".join(parts) or evidence.NOTHING


def _table(record: Mapping[str, Any], epochs: int, n_train: int) -> str:
    runs, speed = record["runs"], record.get("speed", {"rates": {}})
    runs = [run for run in runs if (run["epochs"], run["train_images"]) == (epochs, n_train)]
    names = list(dict.fromkeys(run["name"] for run in sorted(runs, key=lambda run: run["order"])))
    by_name = {name: {run["seed"]: run for run in runs if run["name"] == name} for name in names}
    first = by_name[names[0]]
    rows = []
    for name, found in by_name.items():
        accuracies = [run["val_accuracy"] for run in found.values()]
        differences = [
            run["val_accuracy"] - first[seed]["val_accuracy"] for seed, run in found.items() if seed in first
        ]
        any_run = next(iter(found.values()))
        rows.append(
            (
                name,
                f"{any_run['macs'] / 1e6:.1f} M",
                f"{speed['rates'][name]:,.0f}" if name in speed["rates"] else "",
                evidence.percent(statistics.mean(accuracies)),
                evidence.percent(statistics.mean(run["train_accuracy"] for run in found.values())),
                "" if found is first or not differences else f"{100 * statistics.mean(differences):+.2f}",
                str(len(accuracies)),
            )
        )
    head = ("variant", "MACs", "images/s", "validation accuracy", "training accuracy", f"against {names[0]!r}", "seeds")
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(run["command"] for run in runs))
    commands += f"; images per second of one thread by `{speed['command']}`" if speed["rates"] else ""
    told = f"{counted(epochs, 'epoch')} of {n_train:,} images, {evidence.machine(runs[0]['hardware'])} ({commands})."
    return f"{evidence.table(head, rows)}\n\n{told}"


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("name", "seed", "epochs", "train_images", "candidate_id"))


def _run(
    name: str,
    candidate: Candidate,
    epochs: int,
    seed: int,
    n_train: int,
    threads: int,
    precision: str,
    data: str,
    folder: Path,
) -> dict[str, Any]:
    """One training to its end, from its checkpoint if there is one."""
    import torch

    from study.data.cifar10 import search_split
    from study.data.opening import load_train
    from study.training import loop
    from study.training.checkpoints import checkpoint_name, load_progress, save_progress
    from study.training.records import Progress, TrainingConfig

    torch.set_num_threads(threads)
    everything = load_train(data)
    for_training, for_validation = search_split(everything.labels, n_train, VAL_IMAGES)
    config = TrainingConfig(epochs, seed, precision=precision, whole_validations=(epochs - 1,))
    file = folder / f"{checkpoint_name(candidate, config, n_train)}.pt"
    saved = [time.monotonic()]

    def keep(progress: Any) -> None:
        if time.monotonic() - saved[0] > 60:
            save_progress(progress(), file)
            saved[0] = time.monotonic()

    resume: Progress | None = load_progress(file, (candidate, config))
    images, validation = everything.take(for_training), everything.take(for_validation)
    records = loop.train(candidate, images, config, validation, None, resume, keep).records
    file.unlink(missing_ok=True)
    last = records[-1]
    return {
        "name": name,
        "seed": seed,
        "epochs": epochs,
        "train_images": n_train,
        "candidate_id": candidate.candidate_id,
        "params": candidate.architecture.params,
        "macs": candidate.architecture.macs,
        "val_accuracy": last.val_accuracy,
        "train_accuracy": last.train_accuracy,
        "curve": [record.val_accuracy for record in records],
        "wall_s": sum(record.wall_s for record in records),
    }


if __name__ == "__main__":
    run_command(main)
