"""The larger network that a candidate may learn from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.candidate import Candidate
from search_spaces.teacher import TEACHER
from study.machine.hardware import n_loaders
from study.training.checkpoints import checkpoint_name, load_progress
from study.training.records import TrainingConfig


@dataclass(frozen=True)
class Teacher:
    """The larger network, how it is trained, and where its training is kept."""

    candidate: Candidate
    config: TrainingConfig
    file: Path

    @classmethod
    def of(cls, student: Candidate, config: TrainingConfig, epochs: int, n_train: int, checkpoints: Path) -> Teacher:
        """Augmented as `student`, which is trained as `config` says."""
        candidate = dataclasses.replace(TEACHER, augmentation=student.augmentation)
        # It trains alone, and no test curve is drawn of it.
        config = dataclasses.replace(config, epochs=epochs, n_snapshots=0, n_loaders=n_loaders(config.device, 1))
        return cls(candidate, config, checkpoints / f"teacher-{checkpoint_name(candidate, config, n_train)}.pt")

    def report(self) -> dict[str, Any]:
        """What it cost. Its test accuracy is nobody's business: it is not shipped."""
        progress = load_progress(self.file)
        assert progress is not None
        return {
            "params": self.candidate.architecture.params,
            "macs": self.candidate.architecture.macs,
            "epochs": self.config.epochs,
            "train_accuracy": progress.records[-1].train_accuracy,
            "wall_s": sum(record.wall_s for record in progress.records),
        }
