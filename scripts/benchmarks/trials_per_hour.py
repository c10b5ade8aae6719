"""Finished trials an hour of a whole search, nothing pruned and nothing extrapolated.

Ours is the command `study.run`, from its start to its report; the peer is `scripts/optuna_peer.py`, a plain
Optuna script, likewise from its start to its end. Both train the same candidates (those that ours samples
from a fixed seed) on equally many images, with the same augmentation, batch sizes and validation after
every epoch, and take turns. The decoded data set and the calibration are there before the first run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import clean_environment, summary, write
from study.errors import StudyFailed, UserError
from study.machine.paths import REPOSITORY

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

GOAL = {"cpu": "2.3 times", "cuda": "10 times"}
PEER = REPOSITORY / "scripts" / "optuna_peer.py"
SPACE = "dilated"
"""The space whose candidates the peer can build."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="of each side (default: 3)")
    parser.add_argument("--trials", type=int, default=6, metavar="N", help="of each repeat (default: 6)")
    parser.add_argument("--epochs", type=int, default=2, help="of a trial (default: 2)")
    parser.add_argument("--train-images", type=int, default=10_000, metavar="N", help="(default: 10,000)")
    parser.add_argument("--val-images", type=int, default=2_000, metavar="N", help="(default: 2,000)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="trials at once on our side (default: what --jobs auto chooses)"
    )
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of the peer (default: 2)")


def run(options: argparse.Namespace) -> int:
    from study.calibration.concurrency import best_jobs
    from study.calibration.prices import calibrate
    from study.data.cifar10 import check_sizes, load_train
    from study.machine.hardware import n_cores

    if min(options.repeats, options.trials, options.epochs) < 1:
        raise UserError(
            "--repeats, --trials and --epochs must be at least 1: "
            f"{options.repeats}, {options.trials}, {options.epochs}."
        )
    if options.workers < 0 or not 1 <= (1 if options.jobs is None else options.jobs) <= n_cores():
        raise UserError(
            f"--workers must not be negative and --jobs be between 1 and the {n_cores()} cores: "
            f"{options.workers}, {options.jobs}."
        )
    check_sizes(options.train_images, options.val_images)
    precision = calibrate(options.device).precision  # all before any run, so that none pays for them
    options.jobs = options.jobs or best_jobs(options.device, precision)[0]
    load_train(options.data)
    taken: dict[str, list[float]] = {"ours": [], "peer": []}
    candidates: list[Any] = []
    accuracies: dict[str, list[float | None]] = {}
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            taken["ours"].append(seconds(_ours(options, folder)))
            ours = sorted(trials(folder, SPACE), key=lambda trial: trial.user_attrs.get("slot", -1))
            _must_be_complete(ours, options.trials, "study.run")
            found = [trial.user_attrs["candidate"] for trial in ours]
            if candidates and found != candidates:
                raise StudyFailed(f"repeat {repeat + 1} of study.run sampled other candidates than the first one")
            candidates = found
            taken["peer"].append(seconds(_peer(options, folder, candidates)))
            peer = trials(folder, "peer", "peer.db")
            _must_be_complete(peer, options.trials, PEER.name)
            _must_be_equal(ours, peer)
            accuracies = {side: [t.value for t in done] for side, done in (("ours", ours), ("peer", peer))}
        print(f"repeat {repeat + 1}: {taken['ours'][-1]:,.1f} s, peer {taken['peer'][-1]:,.1f} s", flush=True)
    fidelity = f"{options.epochs} epochs of {options.train_images:,} images"
    write(
        options,
        f"trials_per_hour-{options.device}",
        f"{options.trials} whole trials of {fidelity}, {options.jobs} at once; peer: plain Optuna script, "
        f"{options.workers} workers",
        options.device,
        "trials/hour",
        [3600 * options.trials / value for value in taken["ours"]],
        [3600 * options.trials / value for value in taken["peer"]],
        GOAL[options.device],
        more={
            "epochs": options.epochs,
            "train_images": options.train_images,
            "val_images": options.val_images,
            "jobs": options.jobs,
            "peer_workers": options.workers,
            "seconds": {side: summary(values) for side, values in taken.items()},
            "candidates": [
                {name: trial.user_attrs[name] for name in ("candidate_id", "params", "macs")} for trial in ours
            ],
            "val_accuracy": accuracies,
        },
    )
    return 0


def _ours(options: argparse.Namespace, folder: str) -> list[str]:
    fidelity = ("--epochs", "--train-images", "--val-images", "--jobs")
    values = (options.epochs, options.train_images, options.val_images, options.jobs)
    words = [word for name, value in zip(fidelity, values, strict=True) for word in (name, str(value))]
    return search_command(options, folder, "--space", SPACE, "--trials", str(options.trials), *words)


def _peer(options: argparse.Namespace, folder: str, candidates: Sequence[Any]) -> list[str]:
    file = Path(folder) / "candidates.json"
    file.write_text(json.dumps(candidates))
    return [
        sys.executable, str(PEER), options.data, "--candidates", str(file), "--storage", f"sqlite:///{folder}/peer.db",
        "--epochs", str(options.epochs), "--train-images", str(options.train_images),
        "--val-images", str(options.val_images), "--workers", str(options.workers), "--device", options.device,
    ]  # fmt: skip


def search_command(options: argparse.Namespace, folder: str, *words: str) -> list[str]:
    """A search that repeats itself, of a new study in `folder`: seeded, sampled at random, nothing pruned."""
    return [
        sys.executable, "-m", "study.run", "--seed", "0", "--sampler", "random", "--pruner", "none",
        "--device", options.device, "--data", options.data, "--out", folder, *words,
    ]  # fmt: skip


def seconds(command: Sequence[str]) -> float:
    """Wall time of a command, from its start to its end.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    started = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return wall_s


def trials(folder: str, name: str, file: str = "study.db") -> list[FrozenTrial]:
    """All trials of a study in `folder`, by number."""
    from study.storage.database import open_study

    return open_study(f"sqlite:///{folder}/{file}", name).get_trials()


def _must_be_complete(found: Sequence[FrozenTrial], wanted: int, side: str) -> None:
    """A trial more or less, or one that failed and was run again, is other work than the peer's."""
    if [trial.state.name for trial in found] != ["COMPLETE"] * wanted:
        left = "; ".join(f"{trial.state.name} {trial.user_attrs.get('reason', '')}".strip() for trial in found)
        raise StudyFailed(f"{side} must complete {wanted} trials and no other: it left {left or 'none'}")


def _must_be_equal(ours: Sequence[FrozenTrial], peer: Sequence[FrozenTrial]) -> None:
    for index, (mine, other) in enumerate(zip(ours, peer, strict=True)):
        n_mine, n_other = mine.user_attrs["params"], other.user_attrs["params"]
        if other.params != {"index": index} or n_mine != n_other:
            raise StudyFailed(
                f"both sides must train the same network: candidate {index} has {n_mine:,} parameters, "
                f"the peer's {other.params} has {n_other:,}"
            )
