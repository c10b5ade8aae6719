"""Keeps workers busy until every slot of a study is finished. All that is stored is stored from here."""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.trial import TrialState

from study.errors import StudyFailed
from study.executors.messages import Died, Ended, EpochEnded, Executor, Failed, Message, Work
from study.machine.interrupts import InterruptFlag
from study.reporting.dashboard import attach
from study.search.asking import Asked, Asker
from study.search.plan import SearchPlan
from study.search.progress import Progress
from study.search.pruning import compared_epochs
from study.storage.config import StudyConfig
from study.storage.outcome import Outcome
from study.storage.slots import LEASE_S, SlotTable, fail_trial
from study.training.checkpoints import checkpoint_name
from study.training.records import EpochRecord, TrainingConfig

MAX_FAILURES_IN_A_ROW = 5
MAX_INFEASIBLE_IN_A_ROW = 100
TICK_S = 0.5
RENEW_S = 15.0
OUTAGE_S = 120.0
"""So long a storage that does not answer is waited for."""
STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.OperationalError)
assert OUTAGE_S + 2 * RENEW_S < LEASE_S

T = TypeVar("T")


@dataclass
class _Running:
    """A trial that a worker has, or will have next."""

    asked: Asked
    work: Work
    curve: list[dict[str, Any]] = field(default_factory=list)


class Supervisor:
    """Keeps an executor's workers busy until every slot is finished.

    Args:
        plan: What is wanted; its `jobs` is a number.
        study, storage: Where trials are written; the study has its pruner.
        slots: Of the study.
        config: Of the study.
        asker: Makes trials of claims.
        executor: Trains them.
        training: How every candidate is trained, but for its seed.
    """

    def __init__(
        self,
        plan: SearchPlan,
        study: optuna.Study,
        storage: optuna.storages.BaseStorage,
        slots: SlotTable,
        config: StudyConfig,
        asker: Asker,
        executor: Executor,
        training: Callable[[int], TrainingConfig],
    ) -> None:
        self._plan, self._study, self._storage, self._slots = plan, study, storage, slots
        self._config, self._asker, self._executor, self._training = config, asker, executor, training
        self._checkpoints = plan.out.resolve() / "checkpoints" / "trials"
        self._jobs = plan.jobs or 1
        # Ahead of a sole worker it would be asked for without the one result that there is to come.
        self._ahead = 1 if self._jobs > 1 else 0
        self._running: dict[int, _Running] = {}
        self._ready: list[_Running] = []
        self._failures_in_a_row = self._infeasible_in_a_row = 0
        self._interrupted = InterruptFlag()
        self._renewed = time.monotonic()
        self._progress = Progress(study, plan.trials, slots.n_finished())

    def run(self) -> str:
        """Returns "done", "timeout" or "interrupted".

        Raises:
            StudyFailed: Several trials failed in a row.
        """
        deadline = time.monotonic() + self._plan.timeout_s if self._plan.timeout_s else None
        with self._interrupted:
            try:
                self._executor.prepare(min(self._jobs, self._plan.trials - self._slots.n_finished()))
                while not self._interrupted.raised:
                    self._hear(self._executor.wait(0))
                    late = deadline is not None and time.monotonic() > deadline
                    if not late and self._fill():
                        continue  # one step at a time: a worker may have a question
                    if not self._running:
                        if not late and self._reconcile():
                            continue
                        left = self._plan.trials - self._slots.n_finished()
                        if left <= 0:
                            shutil.rmtree(self._checkpoints, ignore_errors=True)  # of slots that were drawn anew
                        return "timeout" if late and left > 0 else "done"
                    self._hear(self._executor.wait(TICK_S))
                    self._tick()
                return "interrupted"
            finally:
                self._shut_down()

    def _fill(self) -> bool:
        """Does one thing that keeps workers busy, if there is one to do."""
        if self._ready and len(self._running) < self._jobs:
            self._submit(self._ready.pop(0))
            return True
        if len(self._running) + len(self._ready) >= self._jobs + self._ahead:
            return False
        return self._patiently(self._ask)

    def _submit(self, running: _Running) -> None:
        self._running[running.work.key] = running
        self._executor.submit(running.work)

    def _ask(self) -> bool:
        """Claims a slot and makes its trial. False: there is nothing left to claim."""
        trials = self._plan.trials
        # Others may work on the same study: no more than N finished, whoever finishes them.
        if self._slots.n_finished() >= trials:
            return False
        claim = self._slots.claim(trials, queued=True) if self._asker.has_queued() else None
        claim = claim or self._slots.claim(trials)
        if claim is None:
            return False
        try:
            asked = self._asker.ask(claim)
        except STORAGE_ERRORS:
            self._patiently(lambda: self._slots.interrupted(claim, claim.repeats))
            self._reconcile()  # its trial may have been made
            raise
        if asked.candidate is None:
            self._infeasible(asked)
            return True
        config, number = self._training(asked.seed), asked.trial.number
        prunable = asked.anchor is None  # what others are measured by is measured whole
        compared = compared_epochs(self._config.pruner, config.epochs)
        asks_after = range(config.epochs) if compared is None else compared
        c = self._config
        name = checkpoint_name(asked.candidate, config, c.train_images, str(c.val_images), c.pruner)
        work = Work(
            key=number,
            candidate=asked.candidate,
            config=config,
            asks_after=frozenset(epoch for epoch in asks_after if prunable and epoch < config.epochs - 1),
            checkpoint=self._checkpoints / f"{name}.pt",
            title=f"Trial {number}",
        )
        self._ready.append(_Running(asked, work))
        return True

    def _hear(self, messages: list[Message]) -> None:
        for message in sorted(messages, key=lambda message: not isinstance(message, EpochEnded)):
            running = self._running.get(message.key)
            if running is None:
                continue  # it was withdrawn
            if isinstance(message, EpochEnded):
                self._epoch_ended(running, message)
                continue
            del self._running[message.key]
            if self._ready:  # its worker need not wait until all is written
                self._submit(self._ready.pop(0))
            self._over(running, message)

    def _epoch_ended(self, running: _Running, message: EpochEnded) -> None:
        trial, epoch = running.asked.trial, message.record.epoch
        try:
            value = self._patiently(lambda: self._report(running, message.record))
            if message.asks:
                prune = self._patiently(trial.should_prune)
                self._executor.answer(message.key, not prune)
        except optuna.exceptions.UpdateFinishedTrialError:
            self._lost(running)
            return
        self._progress.epoch(running.asked.claim.slot, epoch, value)

    def _report(self, running: _Running, record: EpochRecord) -> float:
        assert record.val_accuracy is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it was reported before an error of the storage
            running.asked.trial.report(record.val_accuracy, record.epoch)
        running.curve[record.epoch :] = [asdict(record)]
        running.asked.trial.set_user_attr("curve", running.curve)
        return record.val_accuracy

    def _over(self, running: _Running, message: Ended | Failed | Died) -> None:
        """Writes how a trial ended. Every step may be done twice, after an error that left open whether it was done."""
        try:
            self._patiently(lambda: self._describe(running, message))
        except optuna.exceptions.UpdateFinishedTrialError:
            self._lost(running)
            return
        slot, number = running.asked.claim.slot, running.asked.trial.number
        if isinstance(message, Ended):
            value = running.curve[-1]["val_accuracy"]
            result: dict[str, Any] = {"state": TrialState.PRUNED} if message.stopped else {"values": value}
            self._patiently(lambda: self._study.tell(number, **result, skip_if_finished=True))
            self._patiently(lambda: self._slots.finish(running.asked.claim))
            self._forget(running.work)
            self._failures_in_a_row = self._infeasible_in_a_row = 0
            self._progress.finished(slot, number, value, self._reason(running) * message.stopped, message.wall_s)
            return
        if isinstance(message, Failed):
            self._forget(running.work)  # it would fail again from there
        elif message.traceback:
            self._progress.write(message.traceback)
        self._patiently(lambda: fail_trial(self._study, self._storage, number, message.reason, Outcome.FAILED))
        self._patiently(lambda: self._slots.failed(running.asked.claim, number))
        self._progress.failed(slot, message.reason)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise StudyFailed(f"{self._failures_in_a_row} trials failed in a row; the last: {message.reason}")

    def _describe(self, running: _Running, message: Ended | Failed | Died) -> None:
        if isinstance(message, Died):
            return
        trial = running.asked.trial
        for name, value in {**message.memory, "wall_s": message.wall_s}.items():
            trial.set_user_attr(name, value)
        if isinstance(message, Ended):
            trial.set_user_attr("outcome", Outcome.PRUNED if message.stopped else Outcome.COMPLETE)
            if message.stopped:
                trial.set_user_attr("reason", self._reason(running))
            attach(trial, self._plan.out / "artifacts", message.pictures)

    def _reason(self, running: _Running) -> str:
        return f"pruned after epoch {len(running.curve)} of {self._config.epochs}"

    def _infeasible(self, asked: Asked) -> None:
        fail_trial(self._study, self._storage, asked.trial.number, asked.reason, Outcome.INFEASIBLE)
        self._slots.failed(asked.claim, None)
        self._progress.failed(asked.claim.slot, asked.reason)
        self._infeasible_in_a_row += 1
        if self._infeasible_in_a_row >= MAX_INFEASIBLE_IN_A_ROW:
            raise StudyFailed(f"{self._infeasible_in_a_row} samples in a row broke a limit; the last: {asked.reason}")

    def _lost(self, running: _Running) -> None:
        """Somebody else has the slot now, or ended the trial: what was done for it here does not count."""
        self._running.pop(running.work.key, None)
        self._executor.withdraw(running.work.key)
        self._progress.write(
            f"slot {running.asked.claim.slot}: another process took it over while this one was away; nothing is stored"
        )

    def _tick(self) -> None:
        """Now and then: prolongs the leases, and takes over what others left."""
        self._progress.tick()
        if time.monotonic() - self._renewed < RENEW_S:
            return
        held = {each.asked.claim: each for each in [*self._running.values(), *self._ready]}
        for claim in self._patiently(lambda: self._slots.renew(held)):
            self._ready = [each for each in self._ready if each is not held[claim]]
            self._lost(held[claim])
        if self._patiently(lambda: self._slots.others_work(held)):
            self._reconcile()
        self._renewed = time.monotonic()

    def _reconcile(self) -> bool:
        """Whether there is a slot to claim again."""
        held = [each.asked.claim for each in [*self._running.values(), *self._ready]]
        return bool(self._patiently(lambda: self._slots.reconcile(held, self._asker.parked)))

    def _patiently(self, operation: Callable[[], T]) -> T:
        """Does `operation`, again and again while the storage does not answer; workers go on training meanwhile."""
        deadline, pause = time.monotonic() + OUTAGE_S, 0.5
        while True:
            try:
                return operation()
            except STORAGE_ERRORS as error:
                if time.monotonic() > deadline or self._interrupted.raised:
                    raise
                if pause == 0.5:
                    cause = str(error.__cause__ or error).splitlines()[0]
                    self._progress.write(f"the storage does not answer ({cause}): waiting for at most {OUTAGE_S:.0f} s")
            time.sleep(pause)
            pause = min(5.0, 2 * pause)

    def _forget(self, work: Work) -> None:
        with contextlib.suppress(OSError):
            work.checkpoint.unlink(missing_ok=True)

    def _shut_down(self) -> None:
        """Lets workers save their progress; what they ran is gone on with by the next call."""
        with self._interrupted.ignored():  # must not be cut short by a second Ctrl-C
            with contextlib.suppress(*STORAGE_ERRORS):  # then the next call finds out
                for message in self._executor.close():
                    running = self._running.get(message.key)
                    if running is not None and isinstance(message, Ended):
                        self._over(self._running.pop(message.key), message)
                    elif running is not None and isinstance(message, EpochEnded):
                        self._report(running, message.record)
                for running in [*self._running.values(), *self._ready]:
                    number = running.asked.trial.number
                    fail_trial(self._study, self._storage, number, "interrupted", Outcome.INTERRUPTED)
                    self._slots.interrupted(running.asked.claim, number)
                self._asker.put_back()
            self._progress.close()
