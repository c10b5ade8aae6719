"""One retrain from its plan to its bundle."""

from __future__ import annotations

import dataclasses
import shlex
import statistics
import subprocess
from collections.abc import Sequence
from typing import Any

from search_spaces.candidate import Candidate
from search_spaces.training_dimensions import SMALL_IMAGES, keeps_scale, lengthened, with_small_images
from study.bundle.files import write_bundle
from study.bundle.preprocessing import Preprocessing
from study.calibration.experience import START_S, experience
from study.calibration.prices import calibrate
from study.command_line.wording import counted, duration, percent, printable
from study.data.dataset import DataSet
from study.data.folders import digest_of
from study.data.opening import load_test, load_train, open_data, refuse_changed
from study.data.torchvision_sets import SETS
from study.errors import StudyFailed, TrialFailed, UserError
from study.executors.workplace import Workplace, workplace
from study.machine.hardware import hardware, n_loaders, use_no_more_threads, versions
from study.machine.paths import REPOSITORY
from study.reporting.optional import report
from study.retraining.plan import SEEDS, RetrainPlan
from study.retraining.seeds import Seed, seeds_at_once, train_all
from study.retraining.target import Target, find_target
from study.retraining.teacher import cost_of, teacher_of
from study.retraining.testing import Tested, latencies, test_seed
from study.storage.config import RETRAIN_EPOCHS, default_target, refuse_cifar10, refuse_other_data
from study.storage.folder import claim_folder
from study.training.records import PRECISIONS, TrainingConfig

MAX_SNAPSHOTS = 40
FINISH_S = 15.0
"""Of a retrain, after its test: pictures, exported files, the report."""


def retrain(plan: RetrainPlan) -> int:
    """Trains, tests once, writes the bundle. Returns the exit code.

    Raises:
        UserError: There is no such study, trial or data.
        StudyFailed: A training diverged, or a file cannot be written.
    """
    from study.reporting.dashboard import publish_report
    from study.storage.database import config_of, open_study

    target = find_target(plan)
    place = workplace(plan.cluster, plan.device)
    if target.study is not None:
        refuse_cifar10(plan.name, config_of(target.study), plan.data)
    data = open_data(plan.data)
    if target.study is not None:
        refuse_other_data(plan.name, config_of(target.study), data)
    target = _fitted(target, data)
    seeds, jobs = _prepare(plan, target, place, data)
    if target.study is not None:
        claim_folder(plan.out, target.study)
    teacher = seeds[0].teacher
    try:
        if teacher is not None:
            params = teacher.candidate.architecture.params
            print(f"  teacher  {params:,} parameters, {counted(teacher.config.epochs, 'epoch')}", flush=True)
            train_all([teacher], place, 1)
        train_all(seeds, place, jobs)
    except TrialFailed as error:
        raise StudyFailed(str(error)) from error

    # Every optimizer step is done: from here on, and only here, test images are loaded.
    test = load_test(seeds[0].data)
    refuse_changed(test, data.digest)
    use_no_more_threads()
    print(f"Testing: {counted(len(seeds), 'seed')} on {len(test):,} images", flush=True)
    results = [test_seed(seed, test) for seed in seeds]
    shipped = results[0]
    metrics = {
        **_metrics(target, seeds, results, place),
        "test_images": len(test),
        "test_digest": digest_of(test.pixels, test.labels, data.classes) if data.digest else None,
        "own_images": bool(data.digest) and data.source not in SETS,
        "latency_ms": latencies(shipped.network, seeds[0]),
        "command": plan.command,
    }
    preprocessing = Preprocessing(data.classes, mean=data.mean, std=data.std, data=data.name)
    tested = shipped.network, metrics, shipped.curve, test, shipped.logits
    write_bundle(target.folder, seeds[0].candidate, *tested, preprocessing)
    print(f"Bundle: {printable(str(target.folder))}")
    print(_verdict(metrics), flush=True)
    if target.study is not None:
        study = open_study(plan.url, plan.name)  # hours later: it may have been deleted, or made anew
        claim_folder(plan.out, study)
        page = report(study, plan.out, tell=False)
        if page is not None:
            publish_report(study, plan.out / "artifacts", page, add=False)
    command = shlex.join(["python", "-m", "study.predict", str(target.folder), "--serve"])
    print(f"Next:   {printable(command)}", flush=True)
    return 0


def _fitted(target: Target, data: DataSet) -> Target:
    """`target` with an output for each class of `data`: the reference and the yardstick are CIFAR-10's."""
    candidate = target.candidate if data.mirrored else target.candidate.without_flips()
    architecture = dataclasses.replace(candidate.architecture, n_classes=len(data.classes))
    candidate = dataclasses.replace(candidate, architecture=architecture)
    return dataclasses.replace(
        target, candidate=candidate, target_accuracy=target.target_accuracy or default_target(data)
    )


def _prepare(plan: RetrainPlan, target: Target, place: Workplace, data: DataSet) -> tuple[list[Seed], int]:
    """The trainings, the first of which is shipped, and how many run at once.

    Raises:
        UserError: There are not so many images.
    """
    device = place.device
    n_images, n_classes = len(load_train(data.source)), len(data.classes)
    n_train = plan.n_train or n_images
    if not n_classes <= n_train <= n_images:
        raise UserError(
            f"--train-images must be between {n_classes} (one per class) and all {n_images:,}: {n_train:,}. Name one "
            "of these, or leave it out."
        )
    calibration = place.call(calibrate, device)
    cost, precision = calibration.cost, calibration.precision_of(target.precision, target.searched_on)
    epochs, n_seeds = plan.epochs or RETRAIN_EPOCHS[device], plan.n_seeds or SEEDS[device]
    candidate = target.candidate
    if plan.augmentation == "lengthened":
        candidate = _for_length(candidate, target.recipe_of or candidate, epochs * n_train, device)
    jobs, gain = seeds_at_once(plan.jobs, n_seeds, place, candidate, calibration.training(precision))
    cores = place.cores(jobs)
    config = TrainingConfig(
        epochs=epochs,
        seed=0,
        device=device,
        precision=precision,
        n_loaders=n_loaders(device, cores),
        n_snapshots=MAX_SNAPSHOTS,
        compiled=True,
        native_depthwise=calibration.native_depthwise,
    )
    alone = Seed(candidate, config, data.source, n_train, plan.out / "checkpoints", cores, digest=data.digest)
    ways = [alone.changed(precision=each) for each in (precision, *PRECISIONS)]
    if plan.teacher:
        n, all_cores = plan.teacher_epochs or epochs, place.cores(1)
        ways = [dataclasses.replace(way, teacher=teacher_of(way, n, all_cores)) for way in ways]
    first = as_begun(ways)
    seconds = cost.candidate_seconds(candidate, n_train) * epochs * n_seeds / gain
    if first.teacher is not None:
        lesson = cost.epoch_seconds(first.teacher.candidate.architecture, n_train)
        # Its own training, and its forward passes, a third of one, in every epoch of every seed.
        seconds += lesson * (first.teacher.config.epochs + epochs * n_seeds / 3 / gain)
    n_tests = min(MAX_SNAPSHOTS, epochs) + n_seeds - 1
    seconds += n_tests * cost.epoch_seconds(candidate.architecture, 0, data.n_test)
    seconds = START_S + FINISH_S + experience(place.call(hardware, device), jobs).factor * seconds
    params, how_long = candidate.architecture.params, counted(epochs, "epoch")
    how_many = counted(n_seeds, "seed") + f" ({jobs} at once)" * (jobs > 1)
    print(f"  retrain  {target.facts['name']}: candidate {candidate.candidate_id}, {params:,} parameters")
    print(f"    train  {n_train:,} images of {data.name}, {how_long}, {how_many}, {first.config.precision}, {device}")
    print(f" expected  about {duration(seconds)}; stopped, the same command goes on from its checkpoint", flush=True)
    if raised := _raised(target.candidate, candidate):
        print(f"  raised   {raised}", flush=True)
    if small := _small(candidate, epochs):
        print(f"   small   {small}", flush=True)
    return [first, *(first.changed(seed=seed, n_snapshots=0) for seed in range(1, n_seeds))], jobs


def as_begun(ways: Sequence[Seed]) -> Seed:
    """The one of `ways` to train a seed that was begun, itself or its teacher, else the first: which precision is the
    faster may be a close call, or have been made elsewhere."""
    for way in ways:
        if any(each is not None and each.file.exists() for each in (way, way.teacher)):
            return way
    return ways[0]


def _metrics(target: Target, seeds: list[Seed], results: list[Tested], place: Workplace) -> dict[str, Any]:
    """What the bundle of the first seed says of all."""
    first, shipped = seeds[0], results[0]
    architecture, config = first.candidate.architecture, first.config
    accuracies = [result.accuracy for result in results]
    mean = statistics.mean(accuracies)
    return {
        **target.facts,
        "candidate_id": first.candidate.candidate_id,
        "params": architecture.params,
        "receptive_field": architecture.receptive_field,
        "receptive_field_with_pool": architecture.receptive_field_with_pool,
        "macs": architecture.macs,
        "epochs": config.epochs,
        "train_images": first.n_train,
        "seeds": [seed.config.seed for seed in seeds],
        "test_accuracy": accuracies,
        "test_accuracy_mean": mean,
        "test_accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "shipped_seed": config.seed,
        "test_accuracy_shipped": shipped.accuracy,
        "test_loss_shipped": shipped.loss,
        "train_accuracy": shipped.curve[-1]["train_accuracy"],
        "target_accuracy": target.target_accuracy,
        "target_met": None if target.target_accuracy is None else mean > target.target_accuracy,
        "precision": config.precision,
        "compiled": shipped.compiled,
        "device": config.device,
        "hardware": place.call(hardware, config.device),
        "wall_s": sum(result.wall_s for result in results),
        "versions": versions(),
        "commit": _commit(),
        **({} if first.teacher is None else {"teacher": cost_of(first.teacher)}),
    }


def _for_length(candidate: Candidate, recipe_of: Candidate, n_images: int, device: str) -> Candidate:
    """`candidate` for a training that sees so many images; on a GPU, where that was not tried, whole ones always."""
    candidate = dataclasses.replace(candidate, augmentation=lengthened(candidate.augmentation, n_images))
    small = device == "cpu" and keeps_scale(recipe_of.architecture)
    return with_small_images(candidate, SMALL_IMAGES if small else 0.0)


def _small(candidate: Candidate, epochs: int) -> str:
    """The sizes of images in the epochs before they are whole, for people."""
    whole = candidate.architecture.image_size
    last = {candidate.optimisation.side_in(epoch, epochs, whole): epoch for epoch in range(epochs)}
    return ", ".join(f"images of {side}x{side} up to epoch {last[side] + 1}" for side in last if side != whole)


def _raised(before: Candidate, after: Candidate) -> str:
    """What the longer training changes, for people."""
    old, new = dataclasses.asdict(before.augmentation), dataclasses.asdict(after.augmentation)
    return ", ".join(f"{name} {old[name]:.3g} -> {new[name]:.3g}" for name in old if old[name] != new[name])


def _verdict(metrics: dict[str, Any]) -> str:
    n_seeds, std = len(metrics["seeds"]), metrics["test_accuracy_std"]
    spread = "1 seed" if std is None else f"mean of {n_seeds} seeds, std {100 * std:.2f}"
    found = f"Test accuracy {percent(metrics['test_accuracy_mean'], 2)} ({spread})"
    if metrics["target_met"] is None:
        return f"{found}."
    passes = "passes" if metrics["target_met"] else "does NOT pass"
    return f"{found} {passes} the target of {percent(metrics['target_accuracy'], 2)}."


def _commit() -> str | None:
    """The repository's commit, if it is one."""
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
