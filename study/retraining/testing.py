"""Testing finished seeds and shipped bundles. Test images are loaded here and nowhere else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from study.bundle.files import load_bundle
from study.data.cifar10 import Images, load_test
from study.errors import StudyFailed
from study.machine.files import replaced
from study.machine.hardware import hardware, resolve_device
from study.retraining.seeds import Seed
from study.training.checkpoints import load_progress

SAME_HARDWARE, OTHER_HARDWARE = 0.0, 0.0005
"""How far a bundle's accuracy may be from the recorded one."""


def evaluate_bundle(folder: Path, data: str | None, device: str) -> int:
    """Tests a bundle again. Returns 0 if it gives the recorded accuracy, 1 otherwise."""
    from study.training.evaluation import accuracy, evaluate

    bundle = load_bundle(folder)
    device = resolve_device(device)
    test = load_test(data)
    _, logits = evaluate(bundle.network.to(device), test, device)
    found, recorded = accuracy(logits, test.labels), bundle.metrics["test_accuracy_shipped"]
    same = hardware(device) == bundle.metrics["hardware"]
    tolerance = SAME_HARDWARE if same else OTHER_HARDWARE
    agrees = abs(found - recorded) <= tolerance + 1e-12
    print(f"Test accuracy {100 * found:.2f}% on {len(test):,} images; recorded {100 * recorded:.2f}%.")
    print(f"{'The same' if agrees else 'NOT the same'} (allowed difference {tolerance:g}).")
    return 0 if agrees else 1


@dataclass(frozen=True)
class Tested:
    """A finished seed on the test images."""

    network: Any
    loss: float
    accuracy: float
    logits: np.ndarray
    curve: list[dict[str, Any]]
    wall_s: float
    compiled: bool


def test_seed(seed: Seed, test: Images) -> Tested:
    """Tests a finished seed; a repeated call reads the stored logits instead of testing again."""
    from study.model.network import build, use_native_depthwise
    from study.training.evaluation import accuracy, evaluate

    config, file = seed.config, seed.file
    progress = load_progress(file)
    if progress is None or progress.epoch < config.epochs:
        raise StudyFailed(f"{file} does not hold a finished training; run the same command again.")
    network = use_native_depthwise(build(seed.candidate.architecture), config.native_depthwise)
    stored = file.with_suffix(".npz")
    if stored.exists():
        with np.load(stored) as saved:
            epochs, losses, logits = saved["epochs"], saved["losses"], saved["logits"]
    else:
        found = []
        states = {**progress.snapshots, config.epochs - 1: progress.ema}  # the last snapshot is the final state
        for epoch in sorted(states):
            state = states[epoch]
            network.load_state_dict(state)
            found.append(evaluate(network.to(config.device).eval(), test, config.device))
        epochs = np.array(sorted(states))
        losses, logits = np.array([loss for loss, _ in found]), np.stack([rows for _, rows in found])
        with replaced(stored, lasting=True) as temporary, temporary.open("wb") as stream:
            np.savez(stream, epochs=epochs, losses=losses, logits=logits.astype(np.float32))
    network.load_state_dict(progress.ema)
    curve = [{**dataclasses.asdict(record), "test_loss": None, "test_accuracy": None} for record in progress.records]
    for epoch, loss, rows in zip(epochs, losses, logits, strict=True):
        curve[epoch]["test_loss"], curve[epoch]["test_accuracy"] = float(loss), accuracy(rows, test.labels)
    wall_s = sum(record.wall_s for record in progress.records)
    last = accuracy(logits[-1], test.labels)
    compiled = bool(progress.compiled)
    return Tested(network.cpu().eval(), float(losses[-1]), last, logits[-1], curve, wall_s, compiled)
