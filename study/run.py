"""Search: bring a study to exactly N finished trials.

    python -m study.run --trials 50

New, interrupted or already done, the same command leads to the same end. Ctrl-C, a kill or a full disk
costs the trials that were running and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import random
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import connection as mp_connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import DEFAULT_SPACE, GPU_SPACE, SPACES
from search_spaces.constraints import Clock, InfeasibleError, Limits
from search_spaces.cost import CostModel
from search_spaces.reference import REFERENCE_ARCHITECTURE
from search_spaces.space import Params, SearchSpace
from study.errors import EXIT_INTERRUPTED, Parser, StudyFailed, UserError, first_line, run_command
from study.options import default_space, space_name
from study.paths import run_dir
from study.wording import duration, percent

if TYPE_CHECKING:
    import optuna

    from study.calibration import Calibration
    from study.config import StudyConfig
    from study.slots import SlotTable
    from study.workers import Ended, Worker, WorkerSetup

MAX_FAILURES_IN_A_ROW = 5
MAX_INFEASIBLE_IN_A_ROW = 100
N_FEASIBILITY_SAMPLES = 100

FIDELITY = {
    # device: (epochs, training images) of a trial
    "cpu": (6, 15_000),
    "cuda": (16, 45_000),
}
_ATTRIBUTES = frozenset({"cost_model", "hardware", "versions", "created", "target_accuracy", "rerank_of", "given"})
"""What a new study is given before its configuration, which makes it whole."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    _check(options)
    from study.options import storage_url, study_name

    url, name = storage_url(options), study_name(options)
    out = run_dir(name, options.out)
    return Run(options, url, name, out).run()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m study.run",
        description="Search small CIFAR-10 networks under hard limits. Omitted options of an existing study "
        "take its stored values; different ones are refused.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m study.run --trials 50\n"
        "  python -m study.run --trials 50 --max-params 100000 --study-name small\n"
        "  python -m study.run --trials 200 --storage postgresql+psycopg://user@host/db --jobs 2\n",
    )
    parser.add_argument("--trials", type=int, default=50, metavar="N", help="finished trials to reach (default: 50)")
    parser.add_argument("--timeout", type=float, metavar="S", help="start no trial after S seconds (default: none)")
    parser.add_argument(
        "--jobs",
        type=jobs_option,
        default="auto",
        metavar="N",
        help="trials at once; auto measures once on this machine what is fastest, 1 makes a study repeatable "
        "(default: auto)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument(
        "--data", metavar="DIR", help="folder with cifar-10-batches-py (default: $STUDY_DATA, else downloaded)"
    )
    from study.options import add_study_options

    add_study_options(parser)
    search = parser.add_argument_group("search (fixed when a study is created)")
    search.add_argument(
        "--space", help=f"one of: {', '.join(sorted(SPACES))} (default: {GPU_SPACE} on a GPU, {DEFAULT_SPACE} else)"
    )
    search.add_argument("--seed", type=int, help="base of all seeds (default: 0)")
    search.add_argument(
        "--sampler",
        choices=("anchored", "tpe", "random", "gp"),
        help="anchored starts with neighbours of the space's default, then takes turns between TPE and neighbours of "
        "the best trial (default: anchored)",
    )
    search.add_argument(
        "--pruner", choices=("halving", "percentile", "hyperband", "median", "none"), help="(default: halving)"
    )
    fidelity = parser.add_argument_group("fidelity of a trial (fixed when a study is created)")
    cpu, cuda = FIDELITY["cpu"], FIDELITY["cuda"]
    fidelity.add_argument("--epochs", type=int, help=f"(default: {cpu[0]} on a CPU, {cuda[0]} on a GPU)")
    fidelity.add_argument(
        "--train-images", type=int, metavar="N", help=f"(default: {cpu[1]:,} on a CPU, {cuda[1]:,} on a GPU)"
    )
    fidelity.add_argument("--val-images", type=int, metavar="N", help="(default: 5,000)")
    fidelity.add_argument("--precision", choices=("bfloat16", "float32"), help="(default: the faster one here)")
    limits = parser.add_argument_group("limits (strict; fixed when a study is created)")
    defaults = Limits()
    limits.add_argument("--max-params", type=int, metavar="N", help=f"params < N (default: {defaults.max_params:,})")
    limits.add_argument(
        "--min-receptive-field", type=int, metavar="N", help=f"field > N (default: {defaults.min_receptive_field})"
    )
    limits.add_argument("--max-macs", type=int, metavar="N", help="multiply-accumulates < N (default: no limit)")
    limits.add_argument(
        "--max-epoch-s",
        type=float,
        metavar="S",
        help="predicted seconds of an epoch < S (default: some times the reference network's on a CPU, none on a GPU)",
    )
    parser.add_argument(
        "--target-accuracy", type=float, metavar="A", help="test accuracy to pass, a fraction (default: 0.85)"
    )
    return parser


def jobs_option(text: str) -> int | str:
    """The value of `--jobs`: a number or "auto"."""
    if text != "auto" and not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number or auto: {text!r}")
    return text if text == "auto" else int(text)


def _check(options: argparse.Namespace) -> None:
    """Refuses values that cannot be meant, before anything is opened."""
    at_least_one = ("trials", "jobs", "epochs", "max_params", "max_macs")
    for name in at_least_one:
        value = getattr(options, name)
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1: {value}.")
    for name in ("timeout", "max_epoch_s"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0 seconds: {value:g}.")
    for name in ("seed", "min_receptive_field"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise UserError(f"--{name.replace('_', '-')} must not be negative: {value}.")
    target = options.target_accuracy
    if target is not None and not 0 < target < 1:
        raise UserError(f"--target-accuracy is a fraction between 0 and 1: {target:g}. For 85% write 0.85.")


@dataclass(frozen=True)
class Given:
    """A candidate that a slot is to train, instead of sampling one.

    Attributes:
        name: For people; stored as the trial's anchor.
        params: Its parameters in the space.
        candidate: The candidate itself, as JSON.
    """

    name: str
    params: dict[str, Any]
    candidate: dict[str, Any]


class Run:
    """One call of the command, from its options to the report."""

    def __init__(self, options: argparse.Namespace, url: str, name: str, out: Path) -> None:
        self.options, self.url, self.name, self.out = options, url, name, out

    def run(self) -> int:
        options = self.options
        self._refuse_early()
        existing = self._existing()
        import optuna
        import sqlalchemy

        from study.calibration import calibrate, gpus, n_cores, n_loaders, resolve_device
        from study.data import find_folder, load_train

        optuna.logging.set_verbosity(optuna.logging.WARNING)

        device = resolve_device(options.device)
        if options.jobs != "auto" and options.jobs > n_cores():
            raise UserError(f"--jobs must not exceed the cores: {options.jobs} > {n_cores()}.")
        data = find_folder(options.data)
        load_train(str(data))  # decoded and checked once, before any worker needs it
        calibration = calibrate(device)
        rates = self._choose_jobs(device, calibration.precision)
        study, storage = existing or self._create(device, calibration)
        from study.slots import SlotTable
        from study.storage import config_of

        slots = SlotTable(study, storage)
        freed = slots.recover()
        config = config_of(study)
        self._banner(config, calibration, slots, existing is None, freed, rates)
        from study.workers import WorkerSetup

        setup = WorkerSetup(
            storage_url=self.url,
            study_name=self.name,
            data=str(data.resolve()),
            device=device,
            n_threads=max(1, n_cores() // options.jobs),
            n_loaders=n_loaders(device, options.jobs),
            artifacts=str(self.out / "artifacts"),
            native_depthwise=calibration.native_depthwise,
        )
        supervisor = _Supervisor(options, config, study, slots, setup, gpus(device), self._given(study))
        try:
            stopped = supervisor.run()
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.OperationalError) as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise StudyFailed(
                f"the storage cannot be written ({cause}). Finished trials are safe; mend it and run the same command."
            ) from error
        except StudyFailed:
            self._finish(study, storage)
            raise
        self._finish(study, storage)
        n_finished = slots.n_finished()
        if stopped == "interrupted":
            print(f"Stopped. {n_finished} trials are finished; the same command goes on.", flush=True)
            return EXIT_INTERRUPTED
        if stopped == "timeout":
            print(f"--timeout reached. {n_finished} trials are finished; the same command goes on.", flush=True)
        elif n_finished < options.trials:
            print(f"{options.trials - n_finished} trials are run by other processes.", flush=True)
        return 0

    def _given(self, study: optuna.Study) -> list[Given] | None:
        """The candidates of a study that samples none."""
        return None

    def _choose_jobs(self, device: str, precision: str) -> dict[int, float]:
        """Settles `--jobs auto`. Returns images per second by trials at once, as far as they are known."""
        from study.calibration import gpus, n_cores
        from study.concurrency import best_jobs, known_rates

        options = self.options
        if options.jobs != "auto" or options.trials == 1 or n_cores() == 1:
            options.jobs = 1 if options.jobs == "auto" else options.jobs
            return known_rates(device, precision)
        options.jobs, rates = best_jobs(device, precision)
        n_gpus = max(1, len(gpus(device)))  # measured on one
        options.jobs = min(n_cores(), options.jobs * n_gpus)
        return rates if n_gpus == 1 else {}

    def _explicit(self) -> dict[str, Any]:
        """The fingerprint's fields that the user gave."""
        fields = ("space", "epochs", "train_images", "val_images", "seed", "pruner", "sampler", "precision")
        return {name: value for name in fields if (value := getattr(self.options, name)) is not None}

    def _explicit_limits(self) -> dict[str, Any]:
        return {
            field.name: value
            for field in dataclasses.fields(Limits)
            if (value := getattr(self.options, field.name)) is not None
        }

    def _refuse_early(self) -> None:
        """Everything that can be refused without the storage, the data or a calibration."""
        from study.config import open_space
        from study.data import N_SEARCH, N_VALIDATION, check_sizes
        from study.search import DEFAULT_SAMPLER, check_names, default_pruner

        options = self.options
        open_space(space_name(options))
        n_train = N_SEARCH if options.train_images is None else options.train_images
        check_sizes(n_train, N_VALIDATION if options.val_images is None else options.val_images)
        sampler = options.sampler or DEFAULT_SAMPLER
        check_names(sampler, options.pruner or default_pruner(sampler))

    def _existing(self) -> tuple[optuna.Study, optuna.storages.RDBStorage] | None:
        """The stored study, if there is one and the options are its own.

        Raises:
            UserError: It was made with other settings.
        """
        import optuna

        from study.config import open_space
        from study.storage import config_of, open_storage, sqlite_file

        file = sqlite_file(self.url)
        if file is not None and not file.exists():
            return None
        storage = open_storage(self.url)
        if self.name not in [study.study_name for study in storage.get_all_studies()]:
            return None
        study = optuna.load_study(study_name=self.name, storage=storage)
        if "config" not in study.user_attrs and set(study.user_attrs) <= _ATTRIBUTES and not study.trials:
            # A kill in the moment of its creation left it half made; nothing is lost with it.
            optuna.delete_study(study_name=self.name, storage=storage)
            return None
        stored = config_of(study)
        asked = dataclasses.replace(
            stored,
            **self._explicit(),
            limits=dataclasses.replace(stored.limits, **self._explicit_limits()),
            space_version=open_space(stored.space).version,
        )
        differences = stored.differences(asked)
        if differences:
            raise UserError(
                f"The study {self.name!r} was made with other settings ({'; '.join(differences)}). "
                "Leave them out to go on with it, or choose another --study-name."
            )
        if self.options.target_accuracy is not None:
            study.set_user_attr("target_accuracy", self.options.target_accuracy)
        return study, storage

    def _create(self, device: str, calibration: Calibration) -> tuple[optuna.Study, optuna.storages.RDBStorage]:
        """Creates the study.

        Raises:
            UserError: Nothing can meet its limits.
        """
        from study.config import StudyConfig, open_space
        from study.data import N_VALIDATION
        from study.search import DEFAULT_SAMPLER, default_pruner

        options = self.options
        epochs, train_images = FIDELITY[device]
        space = open_space(space_name(options))
        defaults = {
            "space": space.name,
            "epochs": epochs,
            "train_images": train_images,
            "val_images": N_VALIDATION,
            "seed": 0,
            "pruner": default_pruner(options.sampler or DEFAULT_SAMPLER),
            "sampler": DEFAULT_SAMPLER,
            "precision": calibration.precision,
        }
        limits = dataclasses.replace(Limits(), **self._explicit_limits())
        config = StudyConfig(**(defaults | self._explicit()), space_version=space.version, limits=limits)  # type: ignore[arg-type]
        if device == "cpu" and limits.max_epoch_s is None:
            reference = calibration.cost.epoch_seconds(REFERENCE_ARCHITECTURE, config.train_images, config.val_images)
            limits = dataclasses.replace(limits, max_epoch_s=round(space.cpu_epoch_factor * reference, 1) or 0.1)
            config = dataclasses.replace(config, limits=limits)
        _refuse_impossible(space, config, calibration.cost)
        return new_study(self.url, self.name, config, calibration, options.target_accuracy or 0.85)

    def _banner(
        self,
        config: StudyConfig,
        calibration: Calibration,
        slots: SlotTable,
        created: bool,
        freed: list[int],
        rates: dict[int, float],
    ) -> None:
        from study.storage import dashboard_command, hide_password

        done, wanted = slots.n_finished(), self.options.trials
        state = "new" if created else f"resumed, {done} trials finished"
        seconds = expected_seconds(config, calibration.cost) * max(0, wanted - done)
        limits = {name: value for name, value in config.limits.to_json().items() if value is not None}
        hardware = calibration.hardware
        jobs = self.options.jobs
        # Trials at once share the cores of a CPU: without a measurement they gain nothing.
        gain = rates[jobs] / rates[1] if jobs in rates else 1.0 if calibration.device == "cpu" else jobs
        measured = "; ".join(f"{n}: {rate:,.0f}" for n, rate in sorted(rates.items()))
        lines = {
            "study": f"{self.name} ({state})",
            "space": f"{config.space} (version {config.space_version})",
            "limits": ", ".join(f"{name} {value:,}" for name, value in limits.items()),
            "trial": f"{config.epochs} epochs of {config.train_images:,} images, validated on {config.val_images:,}, "
            f"{config.precision}",
            "search": f"{config.sampler} sampler, {config.pruner} pruner, seed {config.seed}",
            "device": f"{hardware.get('gpu', hardware['cpu'])}, {hardware['n_cores']} cores, "
            f"{jobs} trial{'s' * (jobs > 1)} at once" + (f" (images/s by trials: {measured})" if measured else ""),
            "storage": hide_password(self.url),
            "expected": f"about {duration(seconds / gain)} for {max(0, wanted - done)} more trials",
            "watch": dashboard_command(self.url, self.out / "artifacts"),
        }
        if freed:
            lines["recovered"] = f"slots {', '.join(map(str, freed))} of an interrupted run are run again"
        for name, value in lines.items():
            print(f"{name:>10}  {value}")
        sys.stdout.flush()

    def _finish(self, study: optuna.Study, storage: optuna.storages.RDBStorage) -> None:
        from study.storage import checkpoint_sqlite

        checkpoint_sqlite(storage)
        report(study, self.out)
        print(f"Next:   {self._next_command()}", flush=True)

    def _retrained_name(self) -> str:
        """Name of the study that `study.retrain` is to be given next."""
        return self.name

    def _next_command(self) -> str:
        """The retrain of this study, with the options that lead to it."""
        from study.storage import hide_password

        words = ["python -m study.retrain"]
        if self.options.storage:
            words.append(f"--storage {shlex.quote(hide_password(self.url))}")
        if self._retrained_name() != default_space():
            words.append(f"--study-name {shlex.quote(self._retrained_name())}")
        if self.options.out:
            words.append(f"--out {shlex.quote(self.options.out)}")
        return " ".join(words)


def report(study: optuna.Study, out: Path, tell: bool = True) -> None:
    """Writes the report, unless a package that only reports need is missing: results are never lost for that."""
    try:
        from study.report import write_report

        html, markdown = write_report(study, out)
    except ImportError as error:
        print(f"No report: {first_line(error)}. With that package python -m study.report writes it.", flush=True)
        return
    if tell:
        print(f"Report: {html}\n        {markdown}", flush=True)


def new_study(
    url: str, name: str, config: StudyConfig, calibration: Calibration, target_accuracy: float, **more: Any
) -> tuple[optuna.Study, optuna.storages.RDBStorage]:
    """An empty study with our direction, metric and configuration, and `more` user attributes.

    Raises:
        UserError: The storage cannot be used, or another process was faster.
    """
    import optuna

    from study.calibration import versions
    from study.dashboard import publish_study
    from study.storage import METRIC, open_storage

    storage = open_storage(url)
    try:
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    except optuna.exceptions.DuplicatedStudyError as error:
        raise UserError(
            f"The study {name!r} was just created by another process. Run the same command again to join it."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([METRIC])
    for key, value in {
        "cost_model": calibration.cost.to_json(),
        "hardware": calibration.hardware,
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "target_accuracy": target_accuracy,
        **more,
        "config": config.to_json(),  # last: a study that has it is whole
    }.items():
        study.set_user_attr(key, value)
    publish_study(study)
    return study, storage


def expected_seconds(config: StudyConfig, cost: CostModel) -> float:
    """Predicted seconds of an average trial: the reference's time, less what pruning usually saves."""
    share = 1.0 if config.pruner == "none" else 0.5
    epoch = cost.epoch_seconds(REFERENCE_ARCHITECTURE, config.train_images, config.val_images)
    return share * config.epochs * epoch


def anchors(space: SearchSpace, config: StudyConfig, cost: CostModel) -> list[tuple[str, Params]]:
    """The named points that the first slots run, unrepaired under these limits."""
    clock = Clock(cost, config.train_images, config.val_images)
    usable = []
    for name, params in space.anchors(config.limits).items():
        decoded = space.decode(params, config.limits, clock)
        # A network with a name of its own must be that network, not what the limits leave of it.
        unlimited = dataclasses.replace(config.limits, max_epoch_s=None, max_macs=None)
        if name == "default" or decoded.candidate == space.decode(params, unlimited).candidate:
            usable.append((name, params))
    return usable


def _refuse_impossible(space: SearchSpace, config: StudyConfig, cost: CostModel) -> None:
    """Refuses limits that no candidate of the space can meet.

    Raises:
        UserError: Neither the default nor any of many samples meets them; names the broken limit.
    """
    clock = Clock(cost, config.train_images, config.val_images)
    rng = random.Random(config.seed)
    last: InfeasibleError | None = None
    for params in (*space.anchors(config.limits).values(), *(space.sample(rng) for _ in range(N_FEASIBILITY_SAMPLES))):
        try:
            space.decode(params, config.limits, clock)
            return
        except InfeasibleError as error:
            last = error
    assert last is not None
    raise UserError(
        f"No candidate of the space {space.name!r} can meet these limits; the smallest one has: {last}. Relax them."
    )


class _Supervisor:
    """Keeps workers busy until every slot is finished."""

    def __init__(
        self,
        options: argparse.Namespace,
        config: StudyConfig,
        study: optuna.Study,
        slots: SlotTable,
        setup: WorkerSetup,
        gpus: Sequence[str] = (),
        given: Sequence[Given] | None = None,
    ) -> None:
        self.options, self.config, self.study, self.slots, self.setup = options, config, study, slots, setup
        self.gpus, self.given = gpus, given
        from study.config import open_space

        cost = CostModel.from_json(study.user_attrs["cost_model"])
        self.anchors = anchors(open_space(config.space), config, cost)
        self.workers: list[Worker] = []
        self.failures_in_a_row = 0
        self.infeasible_in_a_row = 0
        self.last_reason = ""
        self.progress = _Progress(study, options.trials, slots.n_finished())

    def run(self) -> str:
        """Returns "done", "timeout" or "interrupted".

        Raises:
            StudyFailed: Several trials failed in a row.
        """
        deadline = time.monotonic() + self.options.timeout if self.options.timeout else None
        with _interruptible():
            try:
                while True:
                    late = deadline is not None and time.monotonic() > deadline
                    if not late:
                        self._assign()
                    busy = [worker for worker in self.workers if worker.slot is not None]
                    if not busy:
                        return "timeout" if late and self.slots.n_finished() < self.options.trials else "done"
                    self._wait(busy)
            except KeyboardInterrupt:
                return "interrupted"
            finally:
                with _uninterruptible():
                    self._shut_down()

    def _assign(self) -> None:
        n_busy = sum(worker.slot is not None for worker in self.workers)
        while n_busy < self.options.jobs:
            # Others may work on the same study: no more than N finished, whoever finishes them.
            if self.slots.n_finished() >= self.options.trials:
                return
            claim = self.slots.claim(self.options.trials)
            if claim is None:
                return
            for worker in [worker for worker in self.workers if worker.slot is None and not worker.process.is_alive()]:
                self.workers.remove(worker)  # it died without work, so nothing is lost
                worker.stop()
            idle = next((worker for worker in self.workers if worker.slot is None), None)
            if idle is None:
                from study.workers import Worker

                idle = Worker(dataclasses.replace(self.setup, gpu=self._free_gpu()))
                self.workers.append(idle)
            idle.run(self._slot(claim.slot, claim.attempt, claim.trial_number))
            n_busy += 1

    def _free_gpu(self) -> str | None:
        """The GPU that the fewest workers work on; None where there is no choice."""
        if len(self.gpus) < 2:
            return None
        used = [worker.gpu for worker in self.workers]
        return min(self.gpus, key=used.count)

    def _slot(self, index: int, attempt: int, trial_number: int | None) -> Any:
        from study.config import open_space
        from study.objective import Slot
        from study.search import is_neighbour, neighbour, sampler_seed, training_seed

        seed = self.config.seed
        fixed, anchor, candidate = None, None, None
        if self.given is not None:  # whatever became of it before, there is nothing else to run
            given = self.given[index]
            anchor, fixed, candidate = given.name, given.params, given.candidate
        elif index < len(self.anchors) and attempt == 0:
            anchor, fixed = self.anchors[index][0], dict(self.anchors[index][1])
        elif trial_number is not None:
            fixed = dict(self.study.trials[trial_number].params)
        elif self.config.sampler == "anchored" and is_neighbour(index, n_finished := self.slots.n_finished()):
            space = open_space(self.config.space)
            fixed = neighbour(space, self._centre(space, n_finished), sampler_seed(seed, index, attempt))
        return Slot(
            index,
            attempt,
            sampler_seed(seed, index, attempt),
            training_seed(seed, index),
            fixed,
            anchor,
            trial_number,
            candidate,
        )

    def _centre(self, space: SearchSpace, n_finished: int) -> Params:
        """The point whose neighbour is drawn: the default during the start-up, then the best trial."""
        from study.search import N_STARTUP_TRIALS
        from study.storage import best_trial

        if n_finished >= N_STARTUP_TRIALS:
            with contextlib.suppress(UserError):  # none is complete yet
                return best_trial(self.study).params
        return space.anchors(self.config.limits)["default"]

    def _wait(self, busy: list[Worker]) -> None:
        handles: dict[Any, Worker] = {}
        for worker in busy:
            handles[worker.connection] = worker
            handles[worker.process.sentinel] = worker
        ready = mp_connection.wait(list(handles), timeout=1.0)
        for worker in {id(handles[handle]): handles[handle] for handle in ready}.values():
            self._listen(worker)
        self.progress.tick()

    def _listen(self, worker: Worker) -> None:
        from study.workers import Crashed, Ended, Epoch, Started

        crash = None
        try:
            while worker.connection.poll():
                message = worker.connection.recv()
                if isinstance(message, Started):
                    worker.trial_number = message.trial_number
                elif isinstance(message, Epoch):
                    self.progress.epoch(worker.slot, message.epoch, message.val_accuracy)
                elif isinstance(message, Ended):
                    self._ended(worker, message)
                elif isinstance(message, Crashed):
                    crash = message
        except (EOFError, ConnectionResetError):
            pass
        if not worker.process.is_alive() and worker.slot is not None and not worker.connection.closed:
            if crash is not None:
                self.progress.write(crash.traceback)
            self._died(worker, crash.traceback.strip().splitlines()[-1] if crash else worker.death())

    def _ended(self, worker: Worker, ended: Ended) -> None:
        slot = worker.slot
        assert slot is not None
        worker.slot = None
        self.progress.ended(slot.index, ended)
        if ended.state != "FAIL":
            self.failures_in_a_row = self.infeasible_in_a_row = 0
            self.slots.finish(slot.index)
        elif ended.infeasible:
            self.slots.failed(slot.index, None)
            self.infeasible_in_a_row += 1
            if self.infeasible_in_a_row >= MAX_INFEASIBLE_IN_A_ROW:
                raise StudyFailed(
                    f"{self.infeasible_in_a_row} samples in a row broke a limit; the last: {ended.reason}"
                )
        else:
            self.slots.failed(slot.index, ended.trial_number)
            self._count_failure(ended.reason)

    def _died(self, worker: Worker, reason: str) -> None:
        """A worker is gone: its trial fails with the reason, its slot is run again by another one."""
        from study.slots import fail_trial

        slot = worker.slot
        assert slot is not None
        worker.slot = None
        self.workers.remove(worker)
        worker.stop()
        trial = self._running_trial(worker, slot.index)
        if trial is not None and trial.state.is_finished() and trial.state.name != "FAIL":
            self.slots.finish(slot.index)  # it died after its result was stored
            self.progress.n_finished += 1
            return
        if trial is not None and not trial.state.is_finished():
            fail_trial(self.study, trial, reason)
        self.progress.write(f"slot {slot.index}: failed: {reason}")
        if trial is None:  # the slot was never begun: the next worker runs it as this one should have
            self.slots.interrupted(slot.index, slot.repeats)
        else:
            reusable = self.slots.reusable(trial)
            self.slots.failed(slot.index, slot.repeats if reusable is None else reusable)
        self._count_failure(reason)

    def _running_trial(self, worker: Worker, slot: int) -> Any:
        trials = self.study.get_trials(deepcopy=False)
        if worker.trial_number is not None:
            return trials[worker.trial_number]
        running = [trial for trial in trials if trial.user_attrs.get("slot") == slot and not trial.state.is_finished()]
        return running[-1] if running else None

    def _count_failure(self, reason: str) -> None:
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise StudyFailed(f"{self.failures_in_a_row} trials failed in a row; the last: {reason}")

    def _shut_down(self) -> None:
        """Stops all workers; what they ran is run again from its start by the next call."""
        from study.slots import fail_trial

        for worker in self.workers:
            slot = worker.slot
            worker.stop()
            if slot is None:
                continue
            trial = self._running_trial(worker, slot.index)
            if trial is not None and trial.state.name in ("COMPLETE", "PRUNED"):
                self.slots.finish(slot.index)
                continue
            if trial is not None and not trial.state.is_finished():
                fail_trial(self.study, trial, "interrupted")
            reusable = self.slots.reusable(trial)
            self.slots.interrupted(slot.index, slot.repeats if reusable is None else reusable)
        self.progress.close()


class _Progress:
    """A progress bar on a terminal, a line per trial elsewhere."""

    def __init__(self, study: optuna.Study, wanted: int, n_finished: int) -> None:
        from tqdm import tqdm

        from study.storage import best_trial

        self.wanted, self.n_finished, self.n_before = wanted, n_finished, n_finished
        self.started = time.monotonic()
        try:
            self.best: float | None = best_trial(study).value
        except UserError:
            self.best = None
        self.bar = (
            tqdm(total=wanted, initial=min(wanted, n_finished), unit="trial", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def tick(self) -> None:
        if self.bar is not None:
            self.bar.refresh()

    def epoch(self, slot: Any, epoch: int, val_accuracy: float) -> None:
        if self.bar is not None and slot is not None:
            self.bar.set_postfix_str(
                f"best {_percent(self.best)}, slot {slot.index} epoch {epoch + 1}: {_percent(val_accuracy)}"
            )

    def ended(self, slot: int, ended: Ended) -> None:
        if ended.state == "FAIL":
            self.write(f"slot {slot}: failed: {ended.reason}")
            return
        self.n_finished += 1
        if ended.state == "COMPLETE" and ended.value is not None:
            self.best = max(self.best or 0.0, ended.value)
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix_str(f"best {_percent(self.best)}")
            return
        spent = time.monotonic() - self.started
        left = spent / max(1, self.n_finished - self.n_before) * max(0, self.wanted - self.n_finished)
        detail = f"{_percent(ended.value)}" + (f", {ended.reason}" if ended.state == "PRUNED" else "")
        print(
            f"[{self.n_finished}/{self.wanted}] slot {slot}, trial {ended.trial_number}: {detail}, "
            f"{ended.wall_s:.0f} s; best {_percent(self.best)}; {duration(left)} left",
            flush=True,
        )

    def write(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _percent(value: float | None) -> str:
    return "none yet" if value is None else percent(value, 2)


@contextmanager
def _interruptible() -> Iterator[None]:
    """A SIGTERM ends a run as cleanly as Ctrl-C."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _uninterruptible() -> Iterator[None]:
    """The moment in which workers are stopped and slots freed must not be cut short by a second Ctrl-C."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    run_command(main)
