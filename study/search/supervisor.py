"""Keeps workers busy until every slot of a study is finished: claims, retries and counting are done here alone."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection as mp_connection
from typing import TYPE_CHECKING, Any

from search_spaces.cost import CostModel
from search_spaces.space import Params, SearchSpace
from study.errors import StudyFailed, UserError
from study.search.creation import anchors
from study.search.plan import Given, SearchPlan
from study.search.progress import Progress

if TYPE_CHECKING:
    import optuna

    from study.search.workers import Ended, Worker, WorkerSetup
    from study.storage.config import StudyConfig
    from study.storage.slots import SlotTable


MAX_FAILURES_IN_A_ROW = 5
MAX_INFEASIBLE_IN_A_ROW = 100


class Supervisor:
    """Keeps workers busy until every slot is finished."""

    def __init__(
        self,
        plan: SearchPlan,
        config: StudyConfig,
        study: optuna.Study,
        slots: SlotTable,
        setup: WorkerSetup,
        gpus: Sequence[str] = (),
        given: Sequence[Given] | None = None,
    ) -> None:
        self.plan, self.config, self.study, self.slots, self.setup = plan, config, study, slots, setup
        self.gpus, self.given = gpus, given
        from study.storage.config import open_space

        cost = CostModel.from_json(study.user_attrs["cost_model"])
        self.anchors = anchors(open_space(config.space), config, cost)
        self.workers: list[Worker] = []
        self.failures_in_a_row = 0
        self.infeasible_in_a_row = 0
        self.progress = Progress(study, plan.trials, slots.n_finished())

    def run(self) -> str:
        """Returns "done", "timeout" or "interrupted".

        Raises:
            StudyFailed: Several trials failed in a row.
        """
        deadline = time.monotonic() + self.plan.timeout_s if self.plan.timeout_s else None
        with _interruptible():
            try:
                while True:
                    late = deadline is not None and time.monotonic() > deadline
                    if not late:
                        self._assign()
                    busy = [worker for worker in self.workers if worker.slot is not None]
                    if not busy:
                        return "timeout" if late and self.slots.n_finished() < self.plan.trials else "done"
                    self._wait(busy)
            except KeyboardInterrupt:
                return "interrupted"
            finally:
                with _uninterruptible():
                    self._shut_down()

    def _assign(self) -> None:
        n_busy = sum(worker.slot is not None for worker in self.workers)
        while n_busy < (self.plan.jobs or 1):
            # Others may work on the same study: no more than N finished, whoever finishes them.
            if self.slots.n_finished() >= self.plan.trials:
                return
            claim = self.slots.claim(self.plan.trials)
            if claim is None:
                return
            for worker in [worker for worker in self.workers if worker.slot is None and not worker.process.is_alive()]:
                self.workers.remove(worker)  # it died without work, so nothing is lost
                worker.stop()
            idle = next((worker for worker in self.workers if worker.slot is None), None)
            if idle is None:
                from study.search.workers import Worker

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
        from study.search.objective import Slot
        from study.search.sampling import is_neighbour, neighbour, sampler_seed, training_seed
        from study.storage.config import open_space

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
        from study.search.sampling import N_STARTUP_TRIALS
        from study.storage.database import best_trial

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
        from study.search.workers import Crashed, Ended, Epoch, Started

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
        from study.storage.slots import fail_trial

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
        from study.storage.slots import fail_trial

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
