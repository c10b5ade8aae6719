"""Keeps workers busy until every slot of a study is finished. All that is stored is stored on its behalf."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable

import optuna

from study.command_line.wording import counted
from study.errors import StudyFailed
from study.executors.messages import Died, Ended, EpochEnded, Executor, Failed, Message, Work
from study.machine.interrupts import InterruptFlag
from study.reporting.optional import LiveReport
from study.search.asking import Asked, Asker
from study.search.plan import SearchPlan
from study.search.progress import Progress
from study.search.pruning import Judge, compared_epochs
from study.search.telling import Running, Teller
from study.storage.config import StudyConfig
from study.storage.database import best_of
from study.storage.known import KnownTrials
from study.storage.patience import STORAGE_ERRORS, Patience
from study.storage.slots import Claim
from study.training.checkpoints import checkpoint_name
from study.training.records import TrainingConfig

MAX_FAILURES_IN_A_ROW = 5
MAX_FAILURES_OF_A_CANDIDATE = 2
"""Of one that a re-ranking was given: there is nothing to draw in its place."""
MAX_INFEASIBLE_IN_A_ROW = 100
TICK_S = 0.5
WORKERS_AN_AHEAD = 6
"""For so many one trial is made ahead: of a hundred, ten end within a trial's making now and then."""
RENEW_S = 15.0
"""Much less than what a lease and an outage leave between them."""
OTHERS_S = 5.0
"""Between two looks at what others still run, when nothing else is left to do."""


class Supervisor:
    """Keeps an executor's workers busy until every slot is finished.

    Args:
        plan: What is wanted; its `jobs` is a number.
        study, known: Where trials are written; the study has its pruner.
        config: Of the study.
        asker: Makes trials of claims.
        executor: Trains them.
        training: How every candidate is trained, given its seed.
        predicted_s: Seconds from one trial's end to the next one's. None: unknown.

    Attributes:
        interrupted: Why it was, if it was.
        told: Numbers of the trials that it finished.
        waited_s: Seconds in which only others had something to do.
        left_out: Slots whose candidates were given and could not be trained: which, and why.
    """

    def __init__(
        self,
        plan: SearchPlan,
        study: optuna.Study,
        known: KnownTrials,
        config: StudyConfig,
        asker: Asker,
        executor: Executor,
        training: Callable[[int], TrainingConfig],
        predicted_s: float | None,
    ) -> None:
        self._plan, self._slots, self._known, self._config = plan, known.slots, known, config
        self._asker, self._executor, self._training = asker, executor, training
        self._jobs = plan.jobs or 1
        # Ahead of a sole worker it would be asked for without the one result that there is to come.
        self._ahead = math.ceil(self._jobs / WORKERS_AN_AHEAD) if self._jobs > 1 else 0
        self._running: dict[int, Running] = {}
        self._ready: list[Running] = []
        self._failures_in_a_row = self._infeasible_in_a_row = 0
        self._failures_of: Counter[int] = Counter()
        self.told: list[int] = []
        self.waited_s = 0.0
        self.left_out: dict[int, str] = {}
        self._deadline = math.inf
        self._renewed = time.monotonic()
        self.interrupted = InterruptFlag()
        self._progress = Progress(
            study, plan.trials, self._slots.n_finished(), config.epochs, self.interrupted, predicted_s
        )
        self._patiently = Patience(self._progress.write, lambda: self.interrupted.raised, self._slots.refuse_deleted)
        self._judge = Judge(study, known)
        self._teller = Teller(study, known, plan.artifacts, self._patiently)
        self._report = LiveReport(study, plan.out, self._progress.write)
        self._checkpoints = plan.out.resolve() / "checkpoints" / "trials"

    def run(self) -> str:
        """Returns "done", "timeout" or "interrupted".

        Raises:
            StudyFailed: Several trials failed in a row, or the study was deleted.
        """
        if self._plan.timeout_s:
            self._deadline = time.monotonic() + self._plan.timeout_s
        with self.interrupted:
            try:
                self._executor.prepare(min(self._jobs, self._n_left()))
                while not self.interrupted.raised:
                    self._hear(self._executor.wait(0))
                    late = self._is_late()
                    if not late and self._fill():
                        self._renew()
                        continue  # one step at a time: a worker may have a question
                    if self._running:
                        self._hear(self._executor.wait(TICK_S))
                        self._progress.tick()
                        self._renew()
                    elif late or not (self._reconcile() or self._wait_for_others()):
                        return self._over(late)
                return "interrupted"
            finally:
                self._shut_down()

    def _wait_for_others(self) -> bool:
        """Waits a while if they run what is missing: it may be left to this one yet. False: nobody does."""
        if self._n_left() <= 0:
            return False
        left = self._patiently(self._slots.unfinished)
        wanted = {slot: state for slot, state in left.items() if slot not in self.left_out and self._slots.counts(slot)}
        n_theirs = sum(state == "running" for state in wanted.values())
        if not n_theirs:  # one of them may have been left open this moment
            return any(slot < self._plan.trials for slot in wanted)
        if not self.waited_s:
            self._progress.write(f"waiting for {counted(n_theirs, 'trial')} of other processes; Ctrl-C ends that")
        started = time.monotonic()
        while time.monotonic() < started + OTHERS_S and not self.interrupted.raised and not self._is_late():
            time.sleep(0.1)
        self.waited_s += time.monotonic() - started
        return True

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _over(self, late: bool) -> str:
        left = self._n_left()
        unfinished = self._patiently(self._slots.unfinished)
        self.left_out = {slot: what for slot, what in self.left_out.items() if unfinished.get(slot) == "open"}
        if left <= 0 and not unfinished:  # more slots than are asked for now may have been cut off
            shutil.rmtree(self._checkpoints, ignore_errors=True)  # of slots that were drawn anew
        return "timeout" if late and left > 0 else "done"

    def _n_left(self) -> int:
        return self._plan.trials - int(self._patiently(self._slots.n_finished))

    def _fill(self) -> bool:
        """Does one thing that keeps workers busy, if there is one to do."""
        if self._ready and len(self._running) < self._jobs:
            self._submit()
            return True
        if len(self._running) + len(self._ready) >= self._jobs + self._ahead:
            return False
        return self._patiently(self._ask)

    def _submit(self) -> None:
        running = self._ready.pop(0)
        self._running[running.work.key] = running
        self._executor.submit(running.work)

    def _ask(self) -> bool:
        """Claims a slot and makes its trial. False: there is nothing left to claim."""
        claim = self._claim()
        if claim is None:
            return False
        try:
            asked = self._asker.ask(claim)
        except (*STORAGE_ERRORS, optuna.exceptions.UpdateFinishedTrialError) as error:
            self._reconcile()  # frees the claim; its trial may have been made
            if isinstance(error, STORAGE_ERRORS):
                raise
            return True  # somebody else ended it
        if asked.candidate is None:
            self._infeasible(asked)
        else:
            self._ready.append(Running(asked, self._work(asked)))
        return True

    def _claim(self) -> Claim | None:
        n_slots = self._plan.trials
        # Others may work on the same study, or slots from N on be finished: no more than N, whoever finishes which.
        if self._slots.n_taken() >= n_slots:
            return None
        queued = self._slots.claim(n_slots, queued=True) if self._asker.has_queued() else None
        return queued or self._slots.claim(n_slots, but=self.left_out)

    def _work(self, asked: Asked) -> Work:
        assert asked.candidate is not None
        study, config = self._config, self._training(asked.seed)
        asks_after: set[int] = set()
        if asked.anchor is None:  # what others are measured by is measured whole
            compared = compared_epochs(study.pruner, config.epochs)
            asks_after = set(range(config.epochs) if compared is None else compared) - {config.epochs - 1}
        name = checkpoint_name(asked.candidate, config, study.train_images, str(study.val_images), study.pruner)
        return Work(
            key=asked.trial.number,
            candidate=asked.candidate,
            config=config,
            asks_after=frozenset(asks_after),
            checkpoint=self._checkpoints / f"{name}.pt",
            title=f"Trial {asked.trial.number}",
        )

    def _hear(self, messages: list[Message]) -> None:
        for message in sorted(messages, key=lambda message: not isinstance(message, EpochEnded)):
            running = self._running.get(message.key)
            if running is None:
                continue  # it was withdrawn
            if isinstance(message, Died) and not message.traceback and self.interrupted.raised:
                continue  # it was told to end as this process was: no failure
            try:
                if isinstance(message, EpochEnded):
                    self._epoch_ended(running, message)
                    continue
                del self._running[message.key]
                if self._ready and not self._is_late():  # its worker need not wait until all is written
                    self._submit()
                if isinstance(message, Ended):
                    self._ended(running, message)
                else:
                    self._failed(running, message)
            except optuna.exceptions.UpdateFinishedTrialError:
                self._lost(running)

    def _epoch_ended(self, running: Running, message: EpochEnded) -> None:
        self._teller.report(running, message.record)
        if message.asks:
            stops = self._patiently(lambda: self._judge(message.key))
            self._executor.answer(message.key, not stops)
        self._progress.epoch(running.asked.claim.slot, message.record.epoch, running.accuracy)

    def _ended(self, running: Running, message: Ended) -> None:
        if not self._teller.ended(running, message):
            self._lost(running)
            return
        self._failures_in_a_row = self._infeasible_in_a_row = 0
        reason = self._teller.reason(running) if message.stopped else ""
        slot, number = running.asked.claim.slot, running.asked.trial.number
        self.told.append(number)
        n_finished = self._patiently(self._slots.n_finished)
        best = best_of(self._patiently(self._known.finished))
        value = best.value if best else None
        self._progress.finished(n_finished, slot, number, running.accuracy, reason, message.wall_s, value)
        self._report.trial_finished()

    def _failed(self, running: Running, message: Failed | Died) -> None:
        if isinstance(message, Died) and message.machine_lost:
            self._teller.interrupted(running)
            self._progress.write(f"slot {running.asked.claim.slot}: its machine is gone; it goes on elsewhere")
            return
        if isinstance(message, Died) and message.for_all:
            self._teller.interrupted(running)
            raise StudyFailed(message.reason)
        if isinstance(message, Died) and message.traceback:
            self._progress.write(message.traceback)
        self._teller.failed(running, message.reason, message if isinstance(message, Failed) else None)
        self._progress.failed(running.asked.claim.slot, message.reason)
        self._leave_out(running.asked, message.reason)
        self._failures_in_a_row += not running.asked.given  # of which there are only so many
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise StudyFailed(f"{self._failures_in_a_row} trials failed in a row; the last: {message.reason}")

    def _infeasible(self, asked: Asked) -> None:
        self._teller.infeasible(asked)
        self._progress.failed(asked.claim.slot, asked.reason)
        self._leave_out(asked, asked.reason)
        self._infeasible_in_a_row += 1
        if self._infeasible_in_a_row >= MAX_INFEASIBLE_IN_A_ROW:
            raise StudyFailed(f"{self._infeasible_in_a_row} samples in a row broke a limit; the last: {asked.reason}")

    def _leave_out(self, asked: Asked, reason: str) -> None:
        """Does not try a given candidate for ever. The next call tries it again."""
        slot = asked.claim.slot
        self._failures_of[slot] += 1
        if asked.given and self._failures_of[slot] >= MAX_FAILURES_OF_A_CANDIDATE:
            self.left_out[slot] = f"{asked.anchor}: {reason}"

    def _lost(self, running: Running) -> None:
        """Somebody else has the slot now, or ended the trial: what was done for it here does not count."""
        self._running.pop(running.work.key, None)
        self._executor.withdraw(running.work.key)
        slot = running.asked.claim.slot
        self._progress.write(f"slot {slot}: another process took it over while this one was away; nothing is stored")

    def _renew(self) -> None:
        """Now and then: prolongs the leases, and takes over what others left."""
        if time.monotonic() - self._renewed < RENEW_S:
            return
        held = self._held()
        for claim in self._patiently(lambda: self._slots.renew(held)):
            self._ready = [each for each in self._ready if each is not held[claim]]
            self._lost(held[claim])
        if self._patiently(lambda: self._slots.others_work(held)):
            self._reconcile()
        self._renewed = time.monotonic()

    def _reconcile(self) -> bool:
        """Whether there is a slot to claim again."""
        return bool(self._patiently(lambda: self._slots.reconcile(self._held())))

    def _held(self) -> dict[Claim, Running]:
        return {running.asked.claim: running for running in [*self._running.values(), *self._ready]}

    def _shut_down(self) -> None:
        """Lets workers save their progress; what they ran is gone on with by the next call."""
        # What a storage does not take now, or a second Ctrl-C cuts short, the next call finds out.
        try:
            with contextlib.suppress(*STORAGE_ERRORS):
                for message in self._executor.close():
                    running = self._running.get(message.key)
                    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # somebody else ended it
                        if running is not None and isinstance(message, EpochEnded):
                            self._teller.report(running, message.record)
                        elif running is not None and isinstance(message, Ended):
                            self._ended(self._running.pop(message.key), message)
                for running in self._held().values():
                    self._teller.interrupted(running)
        finally:
            self._progress.close()
