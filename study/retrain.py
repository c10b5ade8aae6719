"""Retrain the best trial on all 50,000 training images, test it once, and write the bundle.

    python -m study.retrain                     the study's best trial -> results/runs/<study>/best/
    python -m study.retrain --trial 12          another trial          -> .../trial-12/
    python -m study.retrain --reference         the reference network  -> .../reference/
    python -m study.retrain --yardstick         a published network by the best trial's recipe -> .../yardstick/
    python -m study.retrain --teacher           the best trial learns from a larger network -> .../best-distilled/
    python -m study.retrain --evaluate BUNDLE   tests a shipped bundle again

No test image is loaded before the last optimizer step of the last seed. The last epoch is reported,
not the best one; the test curve is drawn afterwards from kept snapshots, and nothing chooses from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.candidate import Augmentation, Candidate
from search_spaces.cost import CostModel
from search_spaces.reference import REFERENCE
from search_spaces.teacher import TEACHER
from search_spaces.training_dimensions import lengthened
from search_spaces.yardstick import YARDSTICK_ARCHITECTURE
from study.checkpoints import forget_snapshots, load_progress, save_progress
from study.errors import CaptureFailed, Parser, StudyFailed, TrialFailed, UserError, run_command
from study.paths import REPOSITORY, run_dir
from study.run import jobs_option, report
from study.wording import duration

if TYPE_CHECKING:
    import numpy as np
    import optuna

    from study.training import Progress, Trained, TrainingConfig

EPOCHS = {"cpu": 100, "cuda": 300}
SEEDS = {"cpu": 1, "cuda": 5}
MAX_SNAPSHOTS = 40
CHECKPOINT_S = 60
SAME_HARDWARE, OTHER_HARDWARE = 0.0, 0.0005
"""How far a bundle's accuracy may be from the recorded one."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    _check(options)
    if options.evaluate is not None:
        return evaluate_bundle(Path(options.evaluate), options.data, options.device)
    return _retrain(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m study.retrain",
        description="Retrain the best trial on all 50,000 training images, test it once, write the bundle.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--trial", type=int, metavar="N", help="this trial instead of the best one")
    what.add_argument("--reference", action="store_true", help="the reference network; needs no study")
    what.add_argument(
        "--yardstick",
        action="store_true",
        help="the published network of 97,530 parameters, trained as the best trial is (it pools, so it is no "
        "candidate)",
    )
    what.add_argument("--evaluate", metavar="BUNDLE", help="test a bundle again and compare with its record")
    parser.add_argument("--epochs", type=int, help=f"(default: {EPOCHS['cpu']} on a CPU, {EPOCHS['cuda']} on a GPU)")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help=f"(default: {SEEDS['cpu']} on a CPU, {SEEDS['cuda']} on a GPU)"
    )
    parser.add_argument(
        "--jobs",
        type=jobs_option,
        default="auto",
        metavar="N",
        help="seeds at once; auto measures once on this machine what is fastest (default: auto)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument(
        "--data", metavar="DIR", help="folder with cifar-10-batches-py (default: $STUDY_DATA, else downloaded)"
    )
    parser.add_argument(
        "--train-images", type=int, metavar="N", help="the first N only, for a trial run (default: all)"
    )
    parser.add_argument(
        "--augmentation",
        choices=("lengthened", "stored"),
        help="raise the trial's strengths for the longer training, or leave them (default: lengthened; stored for the "
        "reference)",
    )
    parser.add_argument(
        "--teacher",
        action="store_true",
        help=f"first train a larger network of {TEACHER.architecture.params:,} parameters on the same images, then "
        "learn from it",
    )
    parser.add_argument("--teacher-epochs", type=int, metavar="N", help="(default: as many as --epochs)")
    parser.add_argument(
        "--target-accuracy", type=float, metavar="A", help="a fraction (default: the study's, else 0.85)"
    )
    from study.options import add_study_options

    add_study_options(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    for name in ("epochs", "seeds", "jobs", "teacher_epochs"):
        value = getattr(options, name)
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1: {value}.")
    if options.teacher_epochs is not None and not options.teacher:
        raise UserError(f"--teacher-epochs {options.teacher_epochs} needs --teacher.")
    if options.train_images is not None and not 10 <= options.train_images <= 50_000:
        raise UserError(f"--train-images must be between 10 and 50,000: {options.train_images:,}.")
    if options.target_accuracy is not None and not 0 < options.target_accuracy < 1:
        raise UserError(
            f"--target-accuracy is a fraction between 0 and 1: {options.target_accuracy:g}. For 85% write 0.85."
        )


@dataclass(frozen=True)
class _Target:
    """What is retrained, and where its bundle goes."""

    candidate: Candidate
    folder: Path
    facts: dict[str, Any]
    precision: str | None
    target_accuracy: float
    cost: CostModel | None
    study: optuna.Study | None


def _find_target(options: argparse.Namespace) -> _Target:
    from study.options import storage_url, study_name
    from study.rerank import find_rerank
    from study.storage import best_trial, candidate_of, config_of, get_trial, open_study

    name = study_name(options)
    out = run_dir(name, options.out)
    facts: dict[str, Any] = {"name": "reference"}
    if options.reference:
        return _Target(REFERENCE, out / "reference", facts, None, options.target_accuracy or 0.85, None, None)
    study = open_study(storage_url(options), name)
    config = config_of(study)
    rerank = find_rerank(study) if options.trial is None else None
    if rerank is not None:
        trial = best_trial(rerank)
        number = rerank.user_attrs["given"][trial.user_attrs["slot"]]["trial"]
        facts = {"name": "best", "study": name, "trial": number, "reranked_epochs": config_of(rerank).epochs}
        print(
            f"  reranked  trial {number} is the best of {len(rerank.user_attrs['given'])} after "
            f"{config_of(rerank).epochs} epochs; that of the search is trial {best_trial(study).number} "
            "(--trial N retrains another)"
        )
    else:
        trial = best_trial(study) if options.trial is None else get_trial(study, options.trial)
        title = "best" if options.trial is None else f"trial-{trial.number}"
        facts = {"name": title, "study": name, "trial": trial.number}
    candidate = candidate_of(trial)
    if options.yardstick:
        candidate = dataclasses.replace(candidate, architecture=YARDSTICK_ARCHITECTURE)
        facts = {"name": "yardstick", "study": name, "recipe_of_trial": facts["trial"], "broken_limits": ["pooling"]}
    else:
        facts["val_accuracy"] = trial.value
        facts["trial_candidate_id"] = get_trial(study, facts["trial"]).user_attrs["candidate_id"]
    return _Target(
        candidate,
        out / facts["name"],
        facts,
        config.precision,
        options.target_accuracy or study.user_attrs["target_accuracy"],
        CostModel.from_json(study.user_attrs["cost_model"]),
        study,
    )


def _retrain(options: argparse.Namespace) -> int:
    target = _find_target(options)
    from study.calibration import calibrate, hardware, n_cores, n_loaders, resolve_device, versions
    from study.data import find_folder, load_test, load_train
    from study.training import TrainingConfig

    device = resolve_device(options.device)
    data = str(find_folder(options.data).resolve())
    n_train = options.train_images or len(load_train(data))
    cost, precision = target.cost, target.precision
    if cost is None or precision is None or cost.device != device:
        calibration = calibrate(device)
        cost, precision = calibration.cost, calibration.precision
    native_depthwise = calibrate(device).native_depthwise if device == "cuda" else frozenset()
    epochs, n_seeds = options.epochs or EPOCHS[device], options.seeds or SEEDS[device]
    jobs, gain = _seeds_at_once(options.jobs, n_seeds, device, precision)
    candidate = target.candidate
    if options.augmentation == "lengthened" or (options.augmentation is None and not options.reference):
        candidate = dataclasses.replace(candidate, augmentation=lengthened(candidate.augmentation, epochs * n_train))
    architecture = candidate.architecture
    seconds = epochs * n_seeds * cost.epoch_seconds(architecture, n_train) / gain
    folder = target.folder
    if options.teacher:
        folder = folder.with_name(f"{folder.name}-distilled")
        lesson = cost.epoch_seconds(TEACHER.architecture, n_train)
        # Its own training, and its forward passes, a third of one, in every epoch of every seed.
        seconds += (options.teacher_epochs or epochs) * lesson + epochs * n_seeds * lesson / 3 / gain
    checkpoints = folder.parent / "checkpoints"
    candidate_id = candidate.candidate_id
    print(f"  retrain  {target.facts['name']}: candidate {candidate_id}, {architecture.params:,} parameters")
    at_once = f" ({jobs} at once)" if jobs > 1 else ""
    seeds = f"{n_seeds} seed{'s' * (n_seeds > 1)}{at_once}"
    print(f"    train  {n_train:,} images, {epochs} epochs, {seeds}, {precision}, {device}")
    print(f" expected  about {duration(seconds)}; stopped, the same command goes on from its checkpoint", flush=True)
    if candidate != target.candidate:
        print("  raised   " + _raised(target.candidate.augmentation, candidate.augmentation), flush=True)
    config = TrainingConfig(
        epochs=epochs,
        seed=0,
        device=device,
        precision=precision,
        n_loaders=n_loaders(device, jobs),
        n_snapshots=MAX_SNAPSHOTS,
        compiled=True,
        native_depthwise=native_depthwise,
    )
    configs = [config, *(dataclasses.replace(config, seed=seed, n_snapshots=0) for seed in range(1, n_seeds))]
    threads = max(1, n_cores() // jobs)
    teacher = _Teacher.of(options, candidate, configs[0], epochs, n_train, checkpoints) if options.teacher else None
    files = [checkpoints / f"{_key(candidate, config, n_train, teacher)}.pt" for config in configs]
    teacher_file = None if teacher is None else teacher.file
    work = [
        (candidate, config, data, n_train, file, threads, teacher_file)
        for config, file in zip(configs, files, strict=True)
    ]
    try:
        if teacher is not None:
            print(f"  teacher  {TEACHER.architecture.params:,} parameters, {teacher.config.epochs} epochs", flush=True)
            _train_all([(teacher.candidate, teacher.config, data, n_train, teacher.file, n_cores())], 1)
        _train_all(work, jobs)
    except TrialFailed as error:
        raise StudyFailed(str(error)) from error

    # Every optimizer step is done: from here on, and only here, test images are loaded.
    test = load_test(data)
    results = [_test_seed(candidate, config, file, test) for config, file in zip(configs, files, strict=True)]
    shipped = results[0]
    accuracies = [result.accuracy for result in results]
    mean = sum(accuracies) / len(accuracies)
    metrics = {
        **target.facts,
        "candidate_id": candidate_id,
        "params": architecture.params,
        "receptive_field": architecture.receptive_field,
        "receptive_field_with_pool": architecture.receptive_field_with_pool,
        "macs": architecture.macs,
        "epochs": epochs,
        "train_images": n_train,
        "seeds": [config.seed for config in configs],
        "test_accuracy": accuracies,
        "test_accuracy_mean": mean,
        "test_accuracy_std": _std(accuracies),
        "shipped_seed": configs[0].seed,
        "test_accuracy_shipped": shipped.accuracy,
        "test_loss_shipped": shipped.loss,
        "train_accuracy": shipped.curve[-1]["train_accuracy"],
        "target_accuracy": target.target_accuracy,
        "target_met": mean > target.target_accuracy,
        "precision": precision,
        "compiled": shipped.compiled,
        "device": device,
        "hardware": hardware(device),
        "wall_s": sum(result.wall_s for result in results),
        "versions": versions(),
        "commit": _commit(),
        **({} if teacher is None else {"name": folder.name, "teacher": teacher.report()}),
    }
    from study.bundle import write_bundle

    write_bundle(folder, candidate, shipped.network, metrics, shipped.curve, test, shipped.logits)
    if target.study is not None:
        report(target.study, folder.parent, tell=False)
    print(f"Bundle: {folder}")
    print(_verdict(accuracies, mean, target.target_accuracy))
    return 0


def _seeds_at_once(asked: int | str, n_seeds: int, device: str, precision: str) -> tuple[int, float]:
    """How many seeds train at once, and how much faster all of them are for it than one after another."""
    from study.calibration import n_cores
    from study.concurrency import known_rates, rates

    if asked != "auto":
        measured = known_rates(device, precision)
        jobs = min(int(asked), n_seeds, n_cores())
    elif n_seeds == 1:
        return 1, 1.0
    else:
        measured = rates(device, precision)
        possible = [number for number in measured if number <= n_seeds] or [1]
        # The last round may be a partial one, and takes as long as the others.
        jobs = min(possible, key=lambda number: (-(-n_seeds // number) * number / measured[number], number))
    if jobs not in measured or 1 not in measured:
        # Not measured: seeds at once share the cores of a CPU and gain nothing there.
        return jobs, 1.0 if device == "cpu" else float(jobs)
    rounds = -(-n_seeds // jobs)
    return jobs, n_seeds / (rounds * jobs) * measured[jobs] / measured[1]


@dataclass(frozen=True)
class _Teacher:
    """The larger network, how it is trained, and where its training is kept."""

    candidate: Candidate
    config: TrainingConfig
    file: Path

    @classmethod
    def of(
        cls,
        options: argparse.Namespace,
        student: Candidate,
        config: TrainingConfig,
        epochs: int,
        n_train: int,
        checkpoints: Path,
    ) -> _Teacher:
        from study.calibration import n_loaders

        candidate = dataclasses.replace(TEACHER, augmentation=student.augmentation)
        config = dataclasses.replace(
            config,
            epochs=options.teacher_epochs or epochs,
            n_snapshots=0,
            n_loaders=n_loaders(config.device, 1),  # it trains alone
        )
        return cls(candidate, config, checkpoints / f"teacher-{_key(candidate, config, n_train)}.pt")

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


def _raised(before: Augmentation, after: Augmentation) -> str:
    """What the longer training changes, for people."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    return ", ".join(f"{name} {old[name]:.3g} -> {new[name]:.3g}" for name in old if old[name] != new[name])


def _train_all(work: Sequence[tuple[Any, ...]], jobs: int) -> None:
    """`train_seed` for each of `work`, `jobs` at a time; where a GPU cannot capture its step, with less of that.

    Raises:
        TrialFailed, StudyFailed, KeyboardInterrupt: As `_train_together`.
    """
    try:
        if jobs > 1:
            _train_together(work, jobs)
        else:
            for arguments in work:
                train_seed(*arguments)
        return
    except CaptureFailed as error:
        print(f"a CUDA graph could not be captured ({error}): goes on without compiling", flush=True)
    # In other processes: this one's allocator may be out of order. What is finished stays so.
    try:
        _train_together([_with(arguments, compiled=False) for arguments in work], jobs)
    except CaptureFailed as error:
        print(f"a CUDA graph could not be captured ({error}): goes on without graphs, slowly", flush=True)
        _train_together([_with(arguments, compiled=False, capture=False) for arguments in work], jobs)


def _with(arguments: tuple[Any, ...], **changes: bool) -> tuple[Any, ...]:
    candidate, config, *others = arguments
    return candidate, dataclasses.replace(config, **changes), *others


def _train_together(work: Sequence[tuple[Any, ...]], jobs: int) -> None:
    """`train_seed` for each of `work`, `jobs` at a time, each in a process that ends with this one.

    Raises:
        TrialFailed, CaptureFailed: As `train_seed`.
        StudyFailed: One of the processes was killed.
        KeyboardInterrupt: Ctrl-C or SIGTERM, once all of them have saved their progress.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    from study.processes import end_with_parent

    interrupted = _InterruptFlag(pass_on=True)
    context = multiprocessing.get_context("spawn")
    try:
        with interrupted, ProcessPoolExecutor(jobs, context, end_with_parent) as pool:
            # Round by round: after Ctrl-C none must begin what another left.
            for start in range(0, len(work), jobs):
                finished = list(pool.map(_trains_to_its_end, work[start : start + jobs]))
                if interrupted.raised or not all(finished):
                    raise KeyboardInterrupt
    except BrokenProcessPool as error:
        if interrupted.raised:  # it was stopped where there was nothing to save yet
            raise KeyboardInterrupt from error
        raise StudyFailed(
            "a process that trains a seed was killed (is there enough memory?); the same command goes on from its "
            "checkpoint, --jobs 1 needs less"
        ) from error


def _trains_to_its_end(arguments: tuple[Any, ...]) -> bool:
    """Whether `train_seed` was not interrupted."""
    try:
        train_seed(*arguments)
    except KeyboardInterrupt:
        return False
    return True


def train_seed(
    candidate: Candidate,
    config: TrainingConfig,
    data: str,
    n_train: int,
    file: Path,
    n_threads: int,
    teacher_file: Path | None = None,
) -> None:
    """Trains one seed to its end, from `file` if it was begun before, and leaves the result there.

    With `teacher_file`, the finished training of `TEACHER`, it learns from that too.

    Raises:
        TrialFailed: It diverged or ran out of memory.
        CaptureFailed: The step cannot be captured on this GPU; this process must train no more.
        KeyboardInterrupt: Ctrl-C; the progress is saved first.
    """
    import numpy as np
    import torch

    from study.data import load_train
    from study.training import EpochRecord, train

    torch.set_num_threads(n_threads)
    images = load_train(data).take(np.arange(n_train))
    resume = load_progress(file)
    forget_snapshots(file, resume)
    if resume is not None and resume.epoch >= config.epochs:
        return
    if resume is not None:
        print(f"seed {config.seed}: goes on at epoch {resume.epoch + 1}, step {resume.batch + 1}", flush=True)
    interrupted = _InterruptFlag()
    saved = time.monotonic()

    def on_epoch(record: EpochRecord) -> None:
        left = (config.epochs - record.epoch - 1) * record.wall_s
        print(
            f"seed {config.seed} epoch {record.epoch + 1}/{config.epochs}: train loss {record.train_loss:.3f}, "
            f"accuracy {100 * record.train_accuracy:.2f}%, {record.wall_s:.0f} s; {duration(left)} left",
            flush=True,
        )

    def on_checkpoint(capture: Callable[[], Progress]) -> None:
        nonlocal saved
        if not interrupted.raised and time.monotonic() - saved < CHECKPOINT_S:
            return
        save_progress(capture(), file)
        saved = time.monotonic()
        if interrupted.raised:
            print(f"seed {config.seed}: stopped; the same command goes on from here", flush=True)
            raise KeyboardInterrupt

    teacher = None
    if teacher_file is not None:
        from study.model import build

        finished = load_progress(teacher_file)
        if finished is None:
            raise StudyFailed(f"the teacher in {teacher_file} cannot be read; run the same command again.")
        teacher = build(TEACHER.architecture)
        teacher.load_state_dict(finished.ema)
    with interrupted:
        trained = train(candidate, images, config, None, on_epoch, resume, on_checkpoint, teacher)
    save_progress(_finished(trained, config.epochs), file)


def evaluate_bundle(folder: Path, data: str | None, device: str) -> int:
    """Tests a bundle again. Returns 0 if it gives the recorded accuracy, 1 otherwise."""
    from study.bundle import load_bundle
    from study.calibration import hardware, resolve_device
    from study.data import load_test
    from study.training import accuracy, evaluate

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
class _Tested:
    network: Any
    loss: float
    accuracy: float
    logits: np.ndarray
    curve: list[dict[str, Any]]
    wall_s: float
    compiled: bool


def _test_seed(candidate: Candidate, config: TrainingConfig, file: Path, test: Any) -> _Tested:
    """Tests a finished seed; a repeated call reads the stored logits instead of testing again."""
    import numpy as np

    from study.model import build
    from study.training import accuracy, evaluate

    progress = load_progress(file)
    if progress is None or progress.epoch < config.epochs:
        raise StudyFailed(f"{file} does not hold a finished training; run the same command again.")
    network = build(candidate.architecture)
    stored = file.with_suffix(".npz")
    try:
        with np.load(stored) as saved:
            epochs, losses, logits = saved["epochs"], saved["losses"], saved["logits"]
    except (OSError, ValueError, KeyError):
        found = []
        states = {**progress.snapshots, config.epochs - 1: progress.ema}  # the last snapshot is the final state
        for epoch in sorted(states):
            state = states[epoch]
            network.load_state_dict(state)
            found.append(evaluate(network.to(config.device).eval(), test, config.device))
        epochs = np.array(sorted(states))
        losses, logits = np.array([loss for loss, _ in found]), np.stack([rows for _, rows in found])
        np.savez(stored, epochs=epochs, losses=losses, logits=logits.astype(np.float32))
    network.load_state_dict(progress.ema)
    curve = [{**dataclasses.asdict(record), "test_loss": None, "test_accuracy": None} for record in progress.records]
    for epoch, loss, rows in zip(epochs, losses, logits, strict=True):
        curve[epoch]["test_loss"], curve[epoch]["test_accuracy"] = float(loss), accuracy(rows, test.labels)
    wall_s = sum(record.wall_s for record in progress.records)
    last = accuracy(logits[-1], test.labels)
    compiled = bool(progress.compiled)
    return _Tested(network.cpu().eval(), float(losses[-1]), last, logits[-1], curve, wall_s, compiled)


def _key(candidate: Candidate, config: TrainingConfig, n_train: int, teacher: _Teacher | None = None) -> str:
    """Names a checkpoint by everything that its training depends on."""
    from search_spaces.architecture import identifier
    from study.config import AUGMENTATION_ORDER

    what = [
        candidate.to_json(),
        config.epochs,
        config.seed,
        config.precision,
        config.n_snapshots,
        n_train,
        AUGMENTATION_ORDER,
        *([teacher.file.stem] if teacher is not None else []),
    ]
    return f"{candidate.candidate_id}-seed{config.seed}-{identifier(what)}"


def _finished(trained: Trained, epochs: int) -> Progress:
    from study.training import Progress

    return Progress(
        epoch=epochs,
        ema=trained.ema.state_dict(),
        records=trained.records,
        snapshots=trained.snapshots,
        compiled=trained.compiled,
    )


class _InterruptFlag:
    """Within it, the first Ctrl-C (or SIGTERM) only sets `raised`; the training saves and stops itself.

    Args:
        pass_on: Whether child processes are told of a SIGTERM, which comes to one process. Ctrl-C comes to all.
    """

    TOGETHER_S = 1.0
    """One wish to stop may arrive twice, directly and passed on."""

    def __init__(self, pass_on: bool = False) -> None:
        self.raised = False
        self._pass_on = pass_on
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        def note(signum: int, frame: Any) -> None:
            if self.raised and time.monotonic() - self._at > self.TOGETHER_S:
                raise KeyboardInterrupt
            if not self.raised and self._pass_on and signum == signal.SIGTERM:
                for child in multiprocessing.active_children():
                    child.terminate()
            self.raised, self._at = True, time.monotonic()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, note)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


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
    import statistics

    return statistics.stdev(values) if len(values) > 1 else None


def _commit() -> str | None:
    """The repository's commit, if it is one."""
    import subprocess

    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


if __name__ == "__main__":
    run_command(main)
