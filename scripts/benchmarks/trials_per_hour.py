"""Finished trials an hour of a whole search, nothing pruned and nothing extrapolated.

Ours is the command `study.run`, from its start to its report; the peer is `scripts/benchmarks/peers/optuna_peer.py`, a
plain Optuna script, likewise from its start to its end. Both train the same candidates (those that ours samples from a
fixed seed) on equally many images, with the same augmentation, batch sizes and validation after every epoch, and take
turns. The decoded data set and the calibration are there before the first run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evidence
from benchmarks.record import seconds, summary, write
from search_spaces import get_space
from search_spaces.constraints import Limits
from study.calibration.concurrency import best_jobs
from study.calibration.prices import calibrate
from study.command_line.wording import counted
from study.data.cifar10 import check_sizes, load_train
from study.errors import StudyFailed, UserError
from study.machine.hardware import n_cores
from study.search.creation import typical

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

GOAL = {"cpu": "2.3 times", "cuda": "10 times"}
PEER = Path(__file__).parent / "peers" / "optuna_peer.py"
SPACE = "dilated"
"""The space whose candidates the peer can build."""
SIZES = ("epochs", "train_images", "val_images")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="of each side (default: 3)")
    parser.add_argument("--trials", type=int, default=6, metavar="N", help="of each repeat (default: 6)")
    parser.add_argument("--epochs", type=int, default=2, help="of a trial (default: 2)")
    parser.add_argument("--train-images", type=int, default=10_000, metavar="N", help="(default: 10,000)")
    parser.add_argument("--val-images", type=int, default=2_000, metavar="N", help="(default: 2,000)")
    parser.add_argument("--jobs", type=int, metavar="N", help="our trials at once (default: what --jobs auto chooses)")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of the peer (default: 2)")


def run(options: argparse.Namespace) -> int:
    from study.storage.database import stored

    evidence.at_least(options, repeats=1, trials=1, epochs=1, jobs=1, workers=0)
    if options.jobs is not None and options.jobs > n_cores():
        raise UserError(f"--jobs must be between 1 and the {n_cores()} cores: {options.jobs}.")
    check_sizes(options.train_images, options.val_images)
    calibration = calibrate(options.device)  # all before any run, so that none pays for them
    precision = calibration.precision
    default = typical(get_space(SPACE), Limits())
    options.jobs = options.jobs or best_jobs(default, calibration.training(precision))[0]
    load_train(options.data)
    taken: dict[str, list[float]] = {"ours": [], "peer": []}
    candidates: list[Any] = []
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            taken["ours"].append(search(options, folder, trials=options.trials, jobs=options.jobs))
            ours = sorted(trials(folder, SPACE), key=lambda trial: trial.user_attrs.get("slot", -1))
            _must_be_complete(ours, options.trials, "study.run")
            found = [stored(trial, "candidate") for trial in ours]
            if candidates and found != candidates:
                raise StudyFailed(f"repeat {repeat + 1} of study.run sampled other candidates than the first one")
            candidates = found
            taken["peer"].append(seconds(_peer(options, folder, candidates)))
            peer = trials(folder, "peer", "peer.db")
            _must_be_complete(peer, options.trials, PEER.name)
            _must_be_equal(ours, peer)
        print(f"repeat {repeat + 1}: {taken['ours'][-1]:,.1f} s, peer {taken['peer'][-1]:,.1f} s", flush=True)
    fidelity = f"{counted(options.epochs, 'epoch')} of {options.train_images:,} images"
    title = (
        f"{options.trials} whole trials of {fidelity}, {options.jobs} at once; peer: plain Optuna script, "
        f"{counted(options.workers, 'worker')}"
    )
    our_rates, rates = ([3600 * options.trials / value for value in values] for values in taken.values())
    shown = ("candidate_id", "params", "macs")
    more = {
        **{name: getattr(options, name) for name in (*SIZES, "jobs")},
        "peer_workers": options.workers,
        "seconds": {side: summary(values) for side, values in taken.items()},
        "candidates": [{name: trial.user_attrs[name] for name in shown} for trial in ours],
        "val_accuracy": {"ours": [trial.value for trial in ours], "peer": [trial.value for trial in peer]},
    }
    name = f"trials_per_hour-{options.device}"
    write(options, name, title, options.device, "trials/hour", our_rates, rates, GOAL[options.device], more=more)
    return 0


def _sizes(found: dict[str, Any]) -> list[str]:
    return [word for name, value in found.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def search(options: argparse.Namespace, folder: str, **sizes: int) -> float:
    """Seconds of a search that repeats itself, of a new study in `folder`: seeded, at random, nothing pruned.

    Sizes of trials are those given, else the options'.
    """
    found = {name: getattr(options, name) for name in SIZES if hasattr(options, name)} | sizes
    return seconds([
        sys.executable, "-m", "study.run", "--space", SPACE, "--seed", "0", "--sampler", "random", "--pruner", "none",
        "--device", options.device, "--data", options.data, "--out", folder, *_sizes(found),
    ])  # fmt: skip


def _peer(options: argparse.Namespace, folder: str, candidates: Sequence[Any]) -> list[str]:
    file = Path(folder) / "candidates.json"
    file.write_text(json.dumps(candidates))
    return [
        sys.executable, str(PEER), options.data, "--candidates", str(file), "--storage", f"sqlite:///{folder}/peer.db",
        "--device", options.device, *_sizes({name: getattr(options, name) for name in (*SIZES, "workers")}),
    ]  # fmt: skip


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
