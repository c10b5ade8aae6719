"""What must be known of a GPU before its minutes are spent: does a step run there, right, and how fast.

    python scripts/gpu/smoke.py OUT.json [--device cuda] [--budget-s 105]

Needs no data set. Every part stands alone: one that fails is recorded and the others go on; what is found is written
after each, and the same command goes on from there. In the order of their worth:

machine     names, versions, cores, memory for the loaders
calibrate   price of every class of operation; both ways to run each class of depthwise convolutions (kept for later)
twenty      20 captured steps against 20 eager ones from the same seed
rate        images/s of a step alone: the default of `best` and of `dilated`
loaded      images/s with the augmentation of a long training, loaders and all
profile     kernels of a step and the largest of them
compile     what compiling the default of `best` brings and costs (kept for later), and its kernels then
rate        with a teacher, and of what might be faster: other batch sizes, optimizers, precision
at once     images/s of several trainings at once (kept for later)
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

import evidence
from benchmarks.operations import default_of
from search_spaces.candidate import Augmentation, Candidate
from search_spaces.teacher import TEACHER
from search_spaces.training_dimensions import LONG_PASSES, lengthened
from study.calibration.concurrency import rates
from study.calibration.prices import calibrate
from study.command_line.parser import run_command
from study.data.batches import Batch
from study.data.cifar10 import Images
from study.errors import CaptureFailed, first_line
from study.machine.hardware import hardware, n_cores, n_loaders, resolve_device, versions
from study.machine.paths import default_storage
from study.model.network import build
from study.training import compiling
from study.training.loop import Training, train
from study.training.records import TrainingConfig
from study.training.step import AnyStep, moved

TOLERANCE = 0.01
"""Relative difference of the losses that graph and eager steps may have."""

MOVED = Augmentation(flip_p=0.5, crop_padding=4)
"""Images only move: nothing makes the device wait."""
NEEDED_S = {"compile best": 35.0, "at once": 35.0}
"""Seconds of parts that are not begun with less of the budget: what they took on an H100, and a reserve."""


@dataclasses.dataclass
class Smoke:
    """One call: its device, its end and what it found."""

    out: Path
    device: str
    budget_s: float
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def part(self, name: str, measure: Callable[[], Any], needs_s: float = 0.0) -> None:
        """Runs `measure` unless its time is over, and writes what it found, or why it failed."""
        if name in self.found:
            return
        if time.monotonic() - self.started + needs_s > self.budget_s:
            print(f"-- {name}: no time left", flush=True)
            return
        began = time.monotonic()
        spoiled = False
        try:
            self.found[name] = measure()
            print(f"{name}: {json.dumps(self.found[name])[:600]}  [{time.monotonic() - began:.1f} s]", flush=True)
        except Exception as error:  # told and recorded: what one part lacks must not hide the others
            self.found[name] = {"failed": first_line(error)}
            print(f"{name} FAILED: {first_line(error)}", flush=True)
            traceback.print_exc(limit=-4)
            spoiled = isinstance(error, CaptureFailed)
        evidence.write(self.out, self.found)
        if spoiled:  # the rest runs in a new process
            left = max(0.0, self.budget_s - (time.monotonic() - self.started))
            words = [__file__, str(self.out), "--device", self.device, "--budget-s", f"{left:.0f}"]
            os.execv(sys.executable, [sys.executable, *words])

    def images(self, n: int) -> Images:
        """Made ones, of 10 colours."""
        rng = np.random.default_rng(0)
        labels = np.arange(n) % 10
        colours = rng.integers(0, 256, (10, 1, 1, 3))
        pixels = np.clip(colours[labels] + rng.normal(0, 40, (n, 32, 32, 3)), 0, 255).astype(np.uint8)
        return Images(pixels, labels.astype(np.int64))

    def prepared(self, candidate: Candidate, precision: str = "bfloat16", taught: bool = False) -> Training:
        """A training whose step is ready, with images that only move."""
        native = calibrate(self.device).native_depthwise
        config = TrainingConfig(1, 3, self.device, precision, native_depthwise=native)
        images = self.images(candidate.optimisation.batch_size)
        teacher = build(TEACHER.architecture, seed=0) if taught else None
        training = Training(dataclasses.replace(candidate, augmentation=MOVED), images, config, None, teacher)
        training.prepare()
        return training

    def machine(self) -> dict[str, Any]:
        shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
        return {
            **hardware(self.device),
            **versions(),
            "cudnn": torch.backends.cudnn.version() if self.on_gpu else None,  # type: ignore[no-untyped-call]
            "shm_mib": None if shm is None else shm.f_bavail * shm.f_frsize >> 20,
        }

    def calibrated(self) -> dict[str, Any]:
        began = time.monotonic()
        found = calibrate(self.device)
        return {"seconds": time.monotonic() - began, **found.to_json()}

    def twenty(self, candidate: Candidate) -> dict[str, Any]:
        candidate = dataclasses.replace(candidate, augmentation=MOVED)
        images = self.images(20 * candidate.optimisation.batch_size if self.on_gpu else 200)
        losses = []
        for capture in (True, False):
            config = TrainingConfig(1, 3, self.device, "float32", capture=capture)
            losses.append(train(candidate, images, config).records[0].train_loss)
        gap = abs(losses[0] - losses[1]) / losses[1]
        if not gap < TOLERANCE:
            raise ValueError(f"graph and eager steps differ: losses {losses[0]:.5f} and {losses[1]:.5f}")
        return {"losses": losses, "gap": gap}

    def rate(self, candidate: Candidate, precision: str = "bfloat16", taught: bool = False) -> dict[str, Any]:
        began = time.monotonic()
        training = self.prepared(candidate, precision, taught)
        ready_s = time.monotonic() - began
        step_s = training.seconds_a_step()
        size = len(training.example()[1])
        return {"images_s": size / step_s, "step_ms": 1e3 * step_s, "batch_size": size, "ready_s": ready_s}

    def loaded(self, candidate: Candidate) -> dict[str, Any]:
        """The second of two epochs: the first one warms up."""
        augmentation = lengthened(candidate.augmentation, LONG_PASSES * 50_000)
        candidate = dataclasses.replace(candidate, augmentation=augmentation)
        images = self.images(64 * candidate.optimisation.batch_size if self.on_gpu else 256)
        native, loaders = calibrate(self.device).native_depthwise, n_loaders(self.device, n_cores())
        config = TrainingConfig(2, 3, self.device, n_loaders=loaders, native_depthwise=native)
        record = train(candidate, images, config).records[-1]
        return {"images_s": len(images) / record.wall_s, "wait_frac": record.wait_frac}

    def profile(self, candidate: Candidate) -> dict[str, Any]:
        training = self.prepared(candidate)
        training.seconds_a_step()
        return self.kernels(training.train_on, moved(training.example(), self.device))

    def kernels(self, train_on: AnyStep, example: Batch) -> dict[str, Any]:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
        n = 3
        with profile(activities=activities) as profiled:
            for _ in range(n):
                train_on(example, 0.01, 0.5)
            if self.on_gpu:
                torch.cuda.synchronize()

        def spent(event: Any) -> float:
            return float(event.self_device_time_total if self.on_gpu else event.self_cpu_time_total)

        events = sorted(profiled.key_averages(), key=spent, reverse=True)
        if self.on_gpu:
            events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]  # type: ignore[attr-defined]
        return {
            "kernels": sum(event.count for event in events) / n,
            "ms": sum(map(spent, events)) / n / 1e3,
            "largest": [[event.key[:100], spent(event) / n / 1e3, event.count / n] for event in events[:16]],
        }

    def compile(self, candidate: Candidate) -> dict[str, Any]:
        training = self.prepared(candidate)
        training.network.train()
        example = training.example()
        step, found = compiling.measured(training.step, example, candidate.architecture.architecture_id)
        images_s = len(example[1]) / found.compiled_s
        return {**dataclasses.asdict(found), "images_s": images_s, **self.kernels(step, moved(example, self.device))}


def default(space: str, **optimisation: Any) -> Candidate:
    """The default of a space, with another optimisation."""
    candidate = default_of(space)
    return dataclasses.replace(candidate, optimisation=dataclasses.replace(candidate.optimisation, **optimisation))


def main(argv: Sequence[str] | None = None) -> int:
    parser = evidence.parser("gpu/smoke.py", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--budget-s", type=float, default=105.0, metavar="S", help="(default: 105)")
    parser.add_argument(
        "--winner-of", metavar="DIR", help="only how fast the best trial of the study best in this folder trains"
    )
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(words)
    smoke = Smoke(options.out, resolve_device(options.device), options.budget_s, evidence.read(options.out) or {})
    named = ["OUT.json" if word == str(options.out) else word for word in words]
    smoke.found.setdefault("command", evidence.command_line("gpu/smoke.py", named))
    if not smoke.on_gpu:
        torch.set_num_threads(n_cores())
    if options.winner_of is not None:
        from study.storage.database import best_trial, candidate_of, open_study

        study = open_study(default_storage("best", options.winner_of), "best")
        winner = candidate_of(best_trial(study))
        smoke.part("loaded best", lambda: smoke.loaded(winner))
        return 0
    small = {} if smoke.on_gpu else {"batch_size": 32}
    best, dense = default("best", **small), default("dilated", **small)
    parts: dict[str, Callable[[], Any]] = {
        "machine": smoke.machine,
        "calibrate": smoke.calibrated,
        "twenty": lambda: smoke.twenty(best),
        "rate best": lambda: smoke.rate(best),
        "rate dilated": lambda: smoke.rate(dense),
        "loaded best": lambda: smoke.loaded(best),
        "profile best": lambda: smoke.profile(best),
    }
    if smoke.on_gpu:
        parts |= {
            "compile best": lambda: smoke.compile(best),
            "rate best, taught": lambda: smoke.rate(best, taught=True),
            "rate best, batch 64": lambda: smoke.rate(default("best", batch_size=64)),
            "rate best, batch 128": lambda: smoke.rate(default("best", batch_size=128)),
            "rate best, batch 512": lambda: smoke.rate(default("best", batch_size=512)),
            "rate best, AdamW": lambda: smoke.rate(default("best", optimizer="adamw", lr=4e-3)),
            "rate best, float32": lambda: smoke.rate(best, "float32"),
            "rate dilated, SGD": lambda: smoke.rate(default("dilated", optimizer="sgd", lr=0.1)),
            "at once": lambda: rates(best, TrainingConfig(1, 0, smoke.device, "bfloat16")),
            "profile dilated": lambda: smoke.profile(dense),
        }
    for name, measure in parts.items():
        smoke.part(name, measure, needs_s=NEEDED_S.get(name, 0.0))
    print(f"smoke: {time.monotonic() - smoke.started:.0f} s")
    return 0


if __name__ == "__main__":
    run_command(main)
