"""Seconds from a command to its first useful moment: the first training step, and every `--help`.

First step: `study.run` makes a new study of one trial whose training is a single step of a whole batch; the
figure is the stored moment of the trial's end less the moment before the process was started. It holds
all from the interpreter's start over storage, worker, sampling, certifying and building to the end of the
first optimizer step, and, so that it can only be too high, the validation on 10 images. It holds neither
the decoding of the data set nor the calibration, which are there before, nor the copying of a larger
study's images. `trial_begins` is the moment that Optuna stores as the trial's start, before its parameters
are sampled; `whole_command` is the command to its end, report included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import evidence
from benchmarks.record import seconds, summary, write
from benchmarks.trials_per_hour import SPACE, search, trials
from study.calibration.prices import calibrate
from study.data.cifar10 import load_train
from study.errors import StudyFailed
from study.machine.paths import REPOSITORY
from study.storage.database import stored

GOAL, HELP_GOAL = "at most 10 s", "at most 0.5 s each"
TRAIN_IMAGES, VAL_IMAGES = 128, 10


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=5, help="of each figure (default: 5)")


def run(options: argparse.Namespace) -> int:
    evidence.at_least(options, samples=1)
    calibrate(options.device)
    load_train(options.data)
    moments: list[tuple[float, float, float]] = []
    helps: dict[str, list[float]] = {name: [] for name in commands(REPOSITORY / "study")}
    for _ in range(options.samples):
        for name, values in helps.items():
            values.append(seconds([sys.executable, "-m", name, "--help"]))
        moments.append(_first_step(options))
        shown = ", ".join(f"{name} {values[-1]:.2f}" for name, values in helps.items())
        print(f"first step after {moments[-1][1]:.2f} s; help: {shown}", flush=True)
    begins, steps, whole = map(list, zip(*moments, strict=True))
    more = {
        "trial_begins": summary(begins),
        "whole_command": summary(whole),
        "help": {name: summary(values) for name, values in helps.items()},
        "help_goal": HELP_GOAL,
    }
    title = "from the command study.run to the end of its first training step, on a warm cache"
    write(
        options,
        f"startup-{options.device}",
        title,
        options.device,
        "s",
        steps,
        goal=GOAL,
        higher_is_better=False,
        more=more,
    )
    return 0


def commands(package: Path) -> list[str]:
    """The modules of `package` that are commands, as `python -m` names them."""
    files = [file for file in sorted(package.glob("*.py")) if 'if __name__ == "__main__":' in file.read_text()]
    return [f"{package.name}.{file.stem}" for file in files]


def _first_step(options: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds from the start of the process to the trial's start, to its end, and to the command's."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        sizes = {"train_images": TRAIN_IMAGES, "val_images": VAL_IMAGES}
        whole = search(options, folder, trials=1, jobs=1, epochs=1, **sizes)
        found = trials(folder, SPACE)
    if [trial.state.name for trial in found] != ["COMPLETE"]:
        raise StudyFailed("the one trial of study.run did not complete")
    [trial] = found
    batch_size = stored(trial, "candidate")["optimisation"]["batch_size"]
    if batch_size < TRAIN_IMAGES:
        raise StudyFailed(f"the trial must be one step of {TRAIN_IMAGES} images: its batch size is {batch_size}")
    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    return trial.datetime_start.timestamp() - started, trial.datetime_complete.timestamp() - started, whole
