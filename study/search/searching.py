"""One search from its plan to its report: the study is found or made, the machine measured, workers kept busy."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from study.command_line.parser import EXIT_INTERRUPTED
from study.command_line.wording import duration, printable
from study.errors import StudyFailed, UserError
from study.reporting.optional import report
from study.search.creation import create_study, expected_seconds, find_study, refuse_early, remember_command
from study.search.plan import Given, SearchPlan

if TYPE_CHECKING:
    import optuna

    from study.calibration.prices import Calibration
    from study.storage.config import StudyConfig
    from study.storage.slots import SlotTable


@dataclass(frozen=True)
class Machine:
    """Where a search runs.

    Attributes:
        device: "cpu" or "cuda".
        data: Folder with the data set.
        calibration: What was measured here.
        jobs: Trials at once.
        rates: Images per second by trials at once, as far as they are known.
    """

    device: str
    data: Path
    calibration: Calibration
    jobs: int
    rates: dict[int, float]


def search(plan: SearchPlan) -> int:
    """Brings the study of `plan` to its end. Returns the exit code."""
    from study.storage.patience import storage_failures

    refuse_early(plan)
    existing = find_study(plan)
    machine = get_ready(plan)
    with storage_failures():
        study, storage = existing or create_study(plan, machine.device, machine.calibration)
        return bring_to_end(plan, machine, study, storage, created=existing is None)


def get_ready(plan: SearchPlan) -> Machine:
    """Decodes the data and measures this machine, unless both were done before.

    Raises:
        UserError: There is no such device, no data, or there are fewer cores than trials at once.
    """
    import optuna

    from study.calibration.prices import calibrate
    from study.data.cifar10 import find_folder, load_train
    from study.machine.hardware import n_cores, resolve_device

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    device = resolve_device(plan.device)
    if plan.jobs is not None and plan.jobs > n_cores():
        raise UserError(f"--jobs must not exceed the cores: {plan.jobs} > {n_cores()}.")
    data = find_folder(plan.data)
    load_train(str(data))  # decoded and checked once, before any worker needs it
    calibration = calibrate(device)
    jobs, rates = _trials_at_once(plan, device, calibration.precision)
    return Machine(device, data, calibration, jobs, rates)


def _trials_at_once(plan: SearchPlan, device: str, precision: str) -> tuple[int, dict[int, float]]:
    from study.calibration.concurrency import best_jobs, known_rates
    from study.machine.hardware import gpus, n_cores

    if plan.jobs is not None or plan.trials == 1 or n_cores() == 1:
        return plan.jobs or 1, known_rates(device, precision)
    jobs, rates = best_jobs(device, precision)
    n_gpus = max(1, len(gpus(device)))  # measured on one
    return min(n_cores(), jobs * n_gpus), rates if n_gpus == 1 else {}


def bring_to_end(
    plan: SearchPlan,
    machine: Machine,
    study: optuna.Study,
    storage: optuna.storages.RDBStorage,
    created: bool,
    given: Sequence[Given] | None = None,
) -> int:
    """Runs what is left of `study`, and writes its report. Returns the exit code.

    Args:
        plan: What is wanted.
        machine: Where.
        study, storage: Of the plan.
        created: Whether the study is new.
        given: The candidates of a study that samples none, one for every slot.

    Raises:
        StudyFailed: Several trials failed in a row, or the storage cannot be written.
    """
    from study.executors.local import LocalExecutor
    from study.executors.messages import WorkerSetup
    from study.machine.hardware import gpus, n_cores, n_loaders
    from study.search.asking import Asker
    from study.search.pruning import compared_epochs, make_pruner
    from study.search.supervisor import Supervisor
    from study.storage.database import config_of
    from study.storage.slots import SlotTable
    from study.training.records import TrainingConfig

    plan = dataclasses.replace(plan, jobs=machine.jobs)
    remember_command(study, plan.command)
    slots = SlotTable(study, storage)
    freed = slots.reconcile()
    config = config_of(study)
    study.pruner = make_pruner(config.pruner, config.epochs)
    _banner(plan, machine, config, slots, created, freed)
    setup = WorkerSetup(
        data=str(machine.data.resolve()),
        train_images=config.train_images,
        val_images=config.val_images,
        device=machine.device,
        n_threads=max(1, n_cores() // machine.jobs),
        checkpoint_s=plan.checkpoint_s,
    )

    def training(seed: int) -> TrainingConfig:
        return TrainingConfig(
            epochs=config.epochs,
            seed=seed,
            device=machine.device,
            precision=config.precision,
            n_loaders=n_loaders(machine.device, machine.jobs),
            native_depthwise=machine.calibration.native_depthwise,
            whole_validations=compared_epochs(config.pruner, config.epochs),
        )

    asker = Asker(study, storage, slots, config, plan.out / "artifacts", given)
    executor = LocalExecutor(setup, gpus(machine.device))
    supervisor = Supervisor(plan, study, storage, slots, config, asker, executor, training)
    try:
        stopped = supervisor.run()
    except StudyFailed:
        _finish(plan, study, storage)
        raise
    _finish(plan, study, storage)
    n_finished = slots.n_finished()
    if stopped == "interrupted":
        print(f"Stopped. {n_finished} trials are finished; the same command goes on.", flush=True)
        return EXIT_INTERRUPTED
    if stopped == "timeout":
        print(f"--timeout reached. {n_finished} trials are finished; the same command goes on.", flush=True)
    elif n_finished < plan.trials:
        print(f"{plan.trials - n_finished} trials are run by other processes.", flush=True)
    return 0


def _banner(
    plan: SearchPlan, machine: Machine, config: StudyConfig, slots: SlotTable, created: bool, freed: list[int]
) -> None:
    from study.storage.database import dashboard_command, hide_password

    done = slots.n_finished()
    left = max(0, plan.trials - done)
    jobs, rates, hardware = machine.jobs, machine.rates, machine.calibration.hardware
    # Trials at once share the cores of a CPU: without a measurement they gain nothing.
    gain = rates[jobs] / rates[1] if jobs in rates else 1.0 if machine.device == "cpu" else jobs
    seconds = expected_seconds(config, machine.calibration.cost) * left / gain
    limits = {name: value for name, value in config.limits.to_json().items() if value is not None}
    measured = "; ".join(f"{n}: {rate:,.0f}" for n, rate in sorted(rates.items()))
    lines = {
        "study": f"{plan.name} ({'new' if created else f'resumed, {done} trials finished'})",
        "space": f"{config.space} (version {config.space_version})",
        "limits": ", ".join(f"{name} {value:,}" for name, value in limits.items()),
        "trial": f"{config.epochs} epochs of {config.train_images:,} images, validated on {config.val_images:,}, "
        f"{config.precision}",
        "search": f"{config.sampler} sampler, {config.pruner} pruner, seed {config.seed}",
        "device": f"{hardware.get('gpu', hardware['cpu'])}, {hardware['n_cores']} cores, "
        f"{jobs} trial{'s' * (jobs > 1)} at once" + (f" (images/s by trials: {measured})" if measured else ""),
        "storage": hide_password(plan.url),
        "expected": f"about {duration(seconds)} for {left} more trials",
        "watch": dashboard_command(plan.url, plan.out / "artifacts"),
    }
    if freed:
        lines["recovered"] = f"slots {', '.join(map(str, freed))} of an interrupted run are run again"
    for name, value in lines.items():
        print(f"{name:>10}  {printable(value)}")
    sys.stdout.flush()


def _finish(plan: SearchPlan, study: optuna.Study, storage: optuna.storages.RDBStorage) -> None:
    from study.storage.database import checkpoint_sqlite

    checkpoint_sqlite(storage)
    report(study, plan.out)
    print(f"Next:   {printable(plan.next_command)}", flush=True)
