"""The larger network that a candidate may learn from."""

from __future__ import annotations

import dataclasses
from typing import Any

from search_spaces.teacher import TEACHER
from study.machine.hardware import n_loaders
from study.retraining.seeds import Seed
from study.training.checkpoints import finished


def teacher_of(student: Seed, epochs: int, cores: int) -> Seed:
    """The training of the larger network, on the images of `student` and augmented alike, before it and alone."""
    n_classes = student.candidate.architecture.n_classes
    architecture = dataclasses.replace(TEACHER.architecture, n_classes=n_classes)
    candidate = dataclasses.replace(TEACHER, architecture=architecture, augmentation=student.candidate.augmentation)
    loaders = n_loaders(student.config.device, cores)
    config = dataclasses.replace(student.config, epochs=epochs, n_snapshots=0, n_loaders=loaders)  # no curve is drawn
    return dataclasses.replace(student, candidate=candidate, config=config, n_threads=cores, role="teacher-")


def cost_of(teacher: Seed) -> dict[str, Any]:
    """What it cost. Its test accuracy is nobody's business: it is not shipped."""
    records = finished(teacher.file, teacher.candidate, teacher.config).records
    return {
        "params": teacher.candidate.architecture.params,
        "macs": teacher.candidate.architecture.macs,
        "epochs": teacher.config.epochs,
        "train_accuracy": records[-1].train_accuracy,
        "wall_s": sum(record.wall_s for record in records),
    }
