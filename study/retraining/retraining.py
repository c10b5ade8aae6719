"""One retrain from its plan to its bundle."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from search_spaces.candidate import Augmentation
from search_spaces.teacher import TEACHER
from search_spaces.training_dimensions import lengthened
from study.bundle.files import write_bundle
from study.calibration.prices import calibrate
from study.command_line.wording import duration
from study.data.cifar10 import Images, find_folder, load_test, load_train
from study.errors import StudyFailed, TrialFailed
from study.machine.hardware import hardware, n_cores, n_loaders, resolve_device, versions
from study.machine.paths import REPOSITORY
from study.reporting.optional import report
from study.retraining.plan import RetrainPlan
from study.retraining.seeds import Seed, seeds_at_once, train_all
from study.retraining.target import Target, find_target
from study.retraining.teacher import Teacher
from study.retraining.testing import Tested, test_seed
from study.training.checkpoints import checkpoint_name
from study.training.records import TrainingConfig

EPOCHS = {"cpu": 100, "cuda": 300}
SEEDS = {"cpu": 1, "cuda": 5}
MAX_SNAPSHOTS = 40


def retrain(plan: RetrainPlan) -> int:
    """Trains, tests once, writes the bundle. Returns the exit code.

    Raises:
        UserError: There is no such study, trial or data.
        StudyFailed: A training diverged, or a file cannot be written.
    """
    target = find_target(plan)
    work = _prepare(plan, target)
    try:
        if work.teacher is not None:
            epochs = work.teacher.config.epochs
            print(f"  teacher  {TEACHER.architecture.params:,} parameters, {epochs} epochs", flush=True)
            train_all([work.lesson], 1)
        train_all(work.seeds, work.jobs)
    except TrialFailed as error:
        raise StudyFailed(str(error)) from error

    # Every optimizer step is done: from here on, and only here, test images are loaded.
    test = load_test(work.seeds[0].data)
    results = [test_seed(seed, test) for seed in work.seeds]
    _write(target, work, results, test)
    return 0


@dataclass(frozen=True)
class _Work:
    """What is to be trained, and where its bundle goes.

    Attributes:
        folder: Of the bundle.
        seeds: The first one is shipped.
        jobs: Seeds at once.
        teacher: Trained before them, if they learn from one.
    """

    folder: Path
    seeds: list[Seed]
    jobs: int
    teacher: Teacher | None

    @property
    def lesson(self) -> Seed:
        """The teacher's training."""
        assert self.teacher is not None
        first = self.seeds[0]
        teacher = self.teacher
        return Seed(teacher.candidate, teacher.config, first.data, first.n_train, teacher.file, n_cores())


def _prepare(plan: RetrainPlan, target: Target) -> _Work:
    device = resolve_device(plan.device)
    data = str(find_folder(plan.data).resolve())
    n_train = plan.n_train or len(load_train(data))
    cost, precision = target.cost, target.precision
    if cost is None or precision is None or cost.device != device:
        calibration = calibrate(device)
        cost, precision = calibration.cost, calibration.precision
    epochs, n_seeds = plan.epochs or EPOCHS[device], plan.n_seeds or SEEDS[device]
    jobs, gain = seeds_at_once(plan.jobs, n_seeds, device, precision)
    candidate = target.candidate
    if plan.lengthens:
        candidate = dataclasses.replace(candidate, augmentation=lengthened(candidate.augmentation, epochs * n_train))
    config = TrainingConfig(
        epochs=epochs,
        seed=0,
        device=device,
        precision=precision,
        n_loaders=n_loaders(device, jobs),
        n_snapshots=MAX_SNAPSHOTS,
        compiled=True,
        native_depthwise=calibrate(device).native_depthwise if device == "cuda" else frozenset(),
    )
    configs = [config, *(dataclasses.replace(config, seed=seed, n_snapshots=0) for seed in range(1, n_seeds))]
    folder, checkpoints, teacher = target.folder, target.folder.parent / "checkpoints", None
    seconds = epochs * n_seeds * cost.epoch_seconds(candidate.architecture, n_train) / gain
    if plan.teacher:
        teacher = Teacher.of(candidate, config, plan.teacher_epochs or epochs, n_train, checkpoints)
        folder = folder.with_name(f"{folder.name}-distilled")
        lesson = cost.epoch_seconds(TEACHER.architecture, n_train)
        # Its own training, and its forward passes, a third of one, in every epoch of every seed.
        seconds += teacher.config.epochs * lesson + epochs * n_seeds * lesson / 3 / gain
    taught_by = [] if teacher is None else [teacher.file.stem]
    seeds = [
        Seed(
            candidate,
            config,
            data,
            n_train,
            checkpoints / f"{checkpoint_name(candidate, config, n_train, *taught_by)}.pt",
            max(1, n_cores() // jobs),
            None if teacher is None else teacher.file,
        )
        for config in configs
    ]
    params = candidate.architecture.params
    how_many = f"{n_seeds} seed{'s' * (n_seeds > 1)}" + (f" ({jobs} at once)" if jobs > 1 else "")
    print(f"  retrain  {target.facts['name']}: candidate {candidate.candidate_id}, {params:,} parameters")
    print(f"    train  {n_train:,} images, {epochs} epochs, {how_many}, {precision}, {device}")
    print(f" expected  about {duration(seconds)}; stopped, the same command goes on from its checkpoint", flush=True)
    if candidate != target.candidate:
        print("  raised   " + _raised(target.candidate.augmentation, candidate.augmentation), flush=True)
    return _Work(folder, seeds, jobs, teacher)


def _write(target: Target, work: _Work, results: list[Tested], test: Images) -> None:
    """The bundle of the first seed, with the figures of all, and the report of the study."""
    shipped, first = results[0], work.seeds[0]
    architecture, config = first.candidate.architecture, first.config
    accuracies = [result.accuracy for result in results]
    mean = statistics.mean(accuracies)
    metrics = {
        **target.facts,
        "candidate_id": first.candidate.candidate_id,
        "params": architecture.params,
        "receptive_field": architecture.receptive_field,
        "receptive_field_with_pool": architecture.receptive_field_with_pool,
        "macs": architecture.macs,
        "epochs": config.epochs,
        "train_images": first.n_train,
        "seeds": [seed.config.seed for seed in work.seeds],
        "test_accuracy": accuracies,
        "test_accuracy_mean": mean,
        "test_accuracy_std": _std(accuracies),
        "shipped_seed": config.seed,
        "test_accuracy_shipped": shipped.accuracy,
        "test_loss_shipped": shipped.loss,
        "train_accuracy": shipped.curve[-1]["train_accuracy"],
        "target_accuracy": target.target_accuracy,
        "target_met": mean > target.target_accuracy,
        "precision": config.precision,
        "compiled": shipped.compiled,
        "device": config.device,
        "hardware": hardware(config.device),
        "wall_s": sum(result.wall_s for result in results),
        "versions": versions(),
        "commit": _commit(),
        **({} if work.teacher is None else {"name": work.folder.name, "teacher": work.teacher.report()}),
    }
    write_bundle(work.folder, first.candidate, shipped.network, metrics, shipped.curve, test, shipped.logits)
    if target.study is not None:
        report(target.study, work.folder.parent, tell=False)
    print(f"Bundle: {work.folder}")
    print(_verdict(accuracies, mean, target.target_accuracy))


def _raised(before: Augmentation, after: Augmentation) -> str:
    """What the longer training changes, for people."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    return ", ".join(f"{name} {old[name]:.3g} -> {new[name]:.3g}" for name in old if old[name] != new[name])


def _verdict(accuracies: list[float], mean: float, target: float) -> str:
    spread = (
        f" (mean of {len(accuracies)} seeds, std {100 * (_std(accuracies) or 0):.2f})"
        if len(accuracies) > 1
        else " (1 seed)"
    )
    passes = "passes" if mean > target else "does NOT pass"
    return f"Test accuracy {100 * mean:.2f}%{spread} {passes} the target of {100 * target:.2f}%."


def _std(values: list[float]) -> float | None:
    """Sample standard deviation; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def _commit() -> str | None:
    """The repository's commit, if it is one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
