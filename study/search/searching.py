"""One search from its plan to its report: the study is found or made, the machine measured, workers kept busy."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from search_spaces import SearchSpace
from search_spaces.candidate import Candidate
from search_spaces.constraints import Limits
from study.command_line.wording import counted, duration, printable, shown_value
from study.errors import StudyDeleted, StudyFailed, UserError, as_told
from study.reporting.optional import report
from study.search.creation import (
    create_study,
    expected_seconds,
    find_study,
    refuse_early,
    refuse_other_dimensions,
    refuse_untyped,
    remember_command,
    typed,
    typical,
)
from study.search.plan import Given, SearchPlan
from study.storage.config import open_space
from study.storage.folder import claim_folder, refuse_foreign

if TYPE_CHECKING:
    import optuna

    from study.calibration.prices import Calibration
    from study.data.dataset import DataSet
    from study.executors.workplace import Workplace
    from study.storage.config import StudyConfig
    from study.storage.slots import SlotTable
    from study.training.records import TrainingConfig


@dataclass(frozen=True)
class Machine:
    """Where a search runs.

    Attributes:
        place: Where workers run.
        data: What is trained on.
        calibration: What was measured here.
        jobs: Trials at once.
        rates: Images per second by trials at once on one device, as far as they are known.
        candidates: What trials are like.
    """

    place: Workplace
    data: DataSet
    calibration: Calibration
    jobs: int
    rates: dict[int, float]
    candidates: tuple[Candidate, ...]

    @property
    def gain(self) -> float:
        """How much faster trials at once are than one after another."""
        from study.calibration.concurrency import gains
        from study.machine.hardware import n_devices

        if self.place.room() is not None:
            return float(self.jobs)
        known = gains(self.rates, n_devices(self.place.device))
        return max(gain for jobs, gain in known.items() if jobs <= self.jobs)


def search(plan: SearchPlan) -> int:
    """Brings the study of `plan` to its end. Returns the exit code."""
    from study.executors.workplace import workplace
    from study.storage.config import refuse_cifar10, refuse_other_data
    from study.storage.database import config_of

    refuse_early(plan)
    existing = find_study(plan)
    if existing is not None:
        if "given" in existing[0].user_attrs:
            raise UserError(
                f"The study {plan.name!r} re-ranks another one, which study.rerank goes on with. Choose another "
                "--study-name."
            )
        refuse_untyped(plan, existing[0])
        refuse_cifar10(plan.name, config_of(existing[0]), plan.data)
    refuse_foreign(plan.out, plan.name, existing and existing[0], new=existing is None)
    with typed():
        space, limits = (plan.space, Limits(**plan.limits)) if existing is None else _searched(existing[0])
    if existing is not None:
        refuse_other_dimensions(existing[0], open_space(space))
    asked = config_of(existing[0]).precision if existing else plan.settings.get("precision")
    machine = get_ready(
        plan,
        workplace(plan.cluster, plan.device),
        typical(open_space(space), limits),
        precision=lambda found: asked or found.precision,
    )
    if existing is not None:
        refuse_other_data(plan.name, config_of(existing[0]), machine.data)
    study, storage = existing or create_study(plan, machine.place.device, machine.calibration, machine.data)
    return bring_to_end(plan, machine, study, storage, created=existing is None)


def _searched(study: optuna.Study) -> tuple[str, Limits]:
    """Its space and limits."""
    from study.storage.database import config_of

    config = config_of(study)
    return config.space, config.limits


def get_ready(
    plan: SearchPlan,
    place: Workplace,
    like: Candidate,
    candidates: Sequence[Candidate] = (),
    precision: Callable[[Calibration], str] = attrgetter("precision"),
) -> Machine:
    """Decodes the data and measures this machine, unless both were done before.

    Args:
        plan: What is wanted.
        place: Where.
        like: What is trained to see how many trials at once are fastest.
        candidates: What trials cost about as much as; `like`, if none are given.
        precision: What they are trained in.

    Raises:
        UserError: There is no data.
    """
    import optuna

    from study.calibration.prices import calibrate
    from study.data.opening import load_train, open_data
    from study.machine.hardware import warn_of_jobs

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if plan.cluster is None:
        warn_of_jobs(plan.jobs)
    data = open_data(plan.data)
    load_train(data.source)  # decoded and checked once, before any worker needs it
    calibration = place.call(calibrate, place.device)
    jobs, rates = _trials_at_once(plan, place, like, calibration.training(precision(calibration)))
    return Machine(place, data, calibration, jobs, rates, tuple(candidates) or (like,))


def _trials_at_once(
    plan: SearchPlan, place: Workplace, candidate: Candidate, how: TrainingConfig
) -> tuple[int, dict[int, float]]:
    from study.calibration.concurrency import best_jobs, known_rates
    from study.machine.hardware import n_cores, n_devices

    room = place.room()
    if room is not None:
        return plan.jobs or min(room, plan.trials), {}
    if plan.jobs is not None or plan.trials == 1 or n_cores() == 1:
        return plan.jobs or 1, known_rates(candidate, how)
    jobs, rates = best_jobs(candidate, how)
    return min(n_cores(), jobs * n_devices(place.device)), rates


def bring_to_end(
    plan: SearchPlan,
    machine: Machine,
    study: optuna.Study,
    storage: optuna.storages.RDBStorage,
    created: bool,
    given: Sequence[Given] | None = None,
    space: SearchSpace | None = None,
) -> int:
    """Runs what is left of `study`, and writes its report. Returns the exit code.

    Args:
        plan: What is wanted.
        machine: Where.
        study, storage: Of the plan.
        created: Whether the study is new.
        given: The candidates of a study that samples none, one for every slot.
        space: What they are of, where it is none that is registered.

    Raises:
        StudyFailed: Several trials failed in a row.
        Interrupted, OSError: It was, or its output cannot be written; what was done is saved.
        STORAGE_ERRORS: The storage does not answer for too long.
    """
    from study.executors.messages import WorkerSetup
    from study.machine.hardware import n_loaders
    from study.reporting.dashboard import gather, publish_study
    from study.search.asking import Asker
    from study.search.pruning import compared_epochs, make_pruner
    from study.search.supervisor import Supervisor
    from study.storage.database import config_of, first_step
    from study.storage.known import KnownTrials
    from study.storage.patience import STORAGE_ERRORS
    from study.storage.slots import SlotTable
    from study.training.records import TrainingConfig

    claim_folder(plan.out, study)
    remember_command(study, plan.command)
    if plan.target_accuracy not in (None, study.user_attrs.get("target_accuracy")):
        study.set_user_attr("target_accuracy", plan.target_accuracy)
        publish_study(study)
    slots = SlotTable(study, storage, None if given is None else len(given))
    freed = slots.reconcile()
    config = config_of(study)
    study.pruner = make_pruner(config.pruner, config.epochs, first_step(study))
    n_left = max(0, plan.trials - slots.n_finished())
    # What few are left have all cores.
    machine = dataclasses.replace(machine, jobs=min(machine.jobs, max(1, n_left)))
    plan, place = dataclasses.replace(plan, jobs=machine.jobs), machine.place
    expected_s, by = _expected(machine, config, n_left)
    expected = f"about {duration(expected_s)} for {counted(n_left, 'more trial')}{by}" if n_left else "nothing to run"
    _banner(plan, machine, config, slots, created, freed, [each.name for each in given or ()], expected)
    started = time.monotonic()
    setup = WorkerSetup(
        data=machine.data.source,
        train_images=config.train_images,
        val_images=config.val_images,
        device=place.device,
        n_threads=place.cores(machine.jobs),
        checkpoint_s=plan.checkpoint_s,
        digest=machine.data.digest,
    )

    def training(seed: int) -> TrainingConfig:
        return TrainingConfig(
            epochs=config.epochs,
            seed=seed,
            device=place.device,
            precision=config.precision,
            n_loaders=n_loaders(place.device, place.cores(machine.jobs)),
            native_depthwise=machine.calibration.native_depthwise,
            whole_validations=compared_epochs(config.pruner, config.epochs),
        )

    known = KnownTrials(study, storage, slots)
    gather(plan.artifacts)
    asker = Asker(study, known, config, plan.artifacts, given, plan.own, space)
    predicted_s = expected_s / n_left if n_left else None
    supervisor = Supervisor(plan, study, known, config, asker, place.executor(setup), training, predicted_s)
    try:
        stopped = supervisor.run()
    except StudyDeleted:
        raise
    except StudyFailed:
        with contextlib.suppress(UserError, StudyFailed, *STORAGE_ERRORS):  # the cause is what is to be said
            _finish(plan, study, storage)
        raise
    except STORAGE_ERRORS:
        if supervisor.interrupted.raised:  # while it was waited for
            supervisor.interrupted.end()
        raise
    if stopped == "interrupted":
        with contextlib.suppress(OSError):  # of output that nobody reads
            _say_stopped(plan, study, storage, slots)
        supervisor.interrupted.end()
    n_finished = slots.n_finished()
    finished = f"{counted(n_finished, 'trial', 'are')} finished"
    _finish(plan, study, storage, whole=stopped == "done")
    _learn(machine, config, study, supervisor.told, time.monotonic() - started - supervisor.waited_s)
    if stopped == "timeout":
        print(f"--timeout reached. {finished}; the same command goes on.", flush=True)
    for what in supervisor.left_out.values():
        print(printable(f"Left out after failing twice, until the same command tries it again: {what}"), flush=True)
    if supervisor.left_out and not n_finished:
        raise StudyFailed("no candidate could be trained")
    return 0


def _expected(machine: Machine, config: StudyConfig, n_trials: int) -> tuple[float, str]:
    """Seconds of so many more trials, and by what, if not by measured prices alone."""
    from study.calibration.experience import experience

    known = experience(machine.calibration.hardware, machine.jobs)
    epochs_s = expected_seconds(config, machine.calibration.cost, machine.candidates)
    by = f", by {counted(known.n_trials, 'trial')} that ran here" if known.n_trials else ""
    return known.seconds(n_trials, epochs_s, machine.jobs, machine.gain), by


def _banner(
    plan: SearchPlan,
    machine: Machine,
    config: StudyConfig,
    slots: SlotTable,
    created: bool,
    freed: list[int],
    candidates: Sequence[str],
    expected: str,
) -> None:
    from study.machine.hardware import n_devices
    from study.storage.commands import dashboard_command
    from study.storage.database import hide_password

    jobs, hardware = machine.jobs, machine.calibration.hardware
    rate = machine.rates[jobs] if jobs in machine.rates and n_devices(machine.place.device) == 1 else None
    limits = {name: value for name, value in config.limits.settings().items() if value is not None}
    finished = f"{counted(slots.n_finished(), 'trial')} finished"
    lines = {
        "study": f"{plan.name} ({'new' if created else f'resumed, {finished}'})",
        "data": config.data + ("" if config.mirrored else "; its classes are characters or signs: never mirrored"),
        "space": f"{config.space} (version {config.space_version})",
        "limits": ", ".join(f"{name} {shown_value(value)}" for name, value in limits.items()),
        "trial": f"{counted(config.epochs, 'epoch')} of {config.train_images:,} images, validated on "
        f"{config.val_images:,}, {config.precision}",
        "search": f"{config.sampler} sampler, {config.pruner} pruner, seed {config.seed}",
        "device": f"{hardware.get('gpu', hardware['cpu'])}, {counted(hardware['n_cores'], 'core')}, "
        f"{counted(jobs, 'trial')} at once" + ("" if rate is None else f" ({rate:,.0f} images/s)"),
        "storage": hide_password(plan.url),
        "expected": expected,
        "watch": dashboard_command(plan.url, plan.artifacts),
    }
    if candidates:
        lines["candidates"] = "; ".join(candidates)
    if freed:
        named = ", ".join(map(str, freed))
        lines["recovered"] = f"{counted(len(freed), 'slot', 'are')} run again, of an interrupted run: {named}"
    for name, value in lines.items():
        print(f"{name:>10}  {printable(value)}")
    sys.stdout.flush()


def _finish(plan: SearchPlan, study: optuna.Study, storage: optuna.storages.RDBStorage, whole: bool = False) -> None:
    """Writes the report and says what is next; of a `whole` study also what came out of it."""
    from study.reporting.dashboard import publish_report, restore
    from study.search.progress import outcome
    from study.storage.database import checkpoint_sqlite

    restore(study, plan.artifacts)
    found = outcome(study)
    for line in found if whole else ():
        print(printable(line))
    page = report(study, plan.out)
    if page is not None and found:
        publish_report(study, plan.artifacts, page)
    checkpoint_sqlite(storage)
    for number, command in enumerate(plan.next_commands if found else ()):
        print(f"{'Then' if number else 'Next'}:   {printable(command)}", flush=True)


def _say_stopped(plan: SearchPlan, study: optuna.Study, storage: optuna.storages.RDBStorage, slots: SlotTable) -> None:
    """The same of one that is interrupted, which ends as such whatever cannot be written."""
    from study.storage.patience import STORAGE_ERRORS

    try:
        _finish(plan, study, storage)
        finished = counted(slots.n_finished(), "trial", "are")
        print(f"Stopped. {finished} finished; the same command goes on.", flush=True)
    except (UserError, StudyFailed, *STORAGE_ERRORS) as error:
        print(printable(f"Stopped. {as_told(error)}"), file=sys.stderr, flush=True)


def _learn(machine: Machine, config: StudyConfig, study: optuna.Study, told: Collection[int], elapsed_s: float) -> None:
    """Keeps what the trials `told` took, all of this machine, for what is expected of later runs here."""
    from study.calibration.experience import experience, keep
    from study.storage.database import candidate_of, finished_trials, stored

    if config.precision != machine.calibration.precision:
        return  # prices are of another one: what trials took says nothing of them
    epochs_s = predicted_s = 0.0
    ours = [trial for trial in finished_trials(study) if trial.number in told]
    for trial in ours:
        curve = stored(trial, "curve") or []
        candidate, sizes = candidate_of(trial), (config.train_images, config.val_images)
        an_epoch_s = machine.calibration.cost.candidate_seconds(candidate, *sizes)
        epochs_s += sum(epoch["wall_s"] for epoch in curve)
        predicted_s += len(curve) * an_epoch_s * machine.jobs / machine.gain
    if predicted_s > 0:
        hardware = machine.calibration.hardware
        found = experience(hardware, machine.jobs)
        found = found.after(len(ours), elapsed_s, epochs_s, predicted_s, machine.jobs)
        keep(hardware, machine.jobs, found)
