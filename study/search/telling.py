"""What is written of a running trial, from its first epoch to its end. Everything may be written twice."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.trial import TrialState

from study.executors.messages import Ended, Failed, Work
from study.reporting.dashboard import attach
from study.search.asking import Asked
from study.storage.database import first_step
from study.storage.known import KnownTrials
from study.storage.outcome import Outcome
from study.storage.slots import fail_trial
from study.training.records import EpochRecord

T = TypeVar("T")


@dataclass
class Running:
    """A trial that a worker has, or will have next.

    Attributes:
        asked: The trial.
        work: What its worker is told.
        curve: Its epochs so far.
    """

    asked: Asked
    work: Work
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """On the validation images, after the last epoch."""
        return float(self.curve[-1]["val_accuracy"])


class Teller:
    """Writes down what becomes of trials.

    Args:
        study, known: Where.
        artifacts: Folder of the dashboard's files.
        patiently: Does an operation, again while the storage does not answer.
    """

    def __init__(
        self,
        study: optuna.Study,
        known: KnownTrials,
        artifacts: Path,
        patiently: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._study, self._slots, self._known = study, known.slots, known
        self._artifacts, self._patiently = artifacts, patiently
        self._first_step = first_step(study)

    def report(self, running: Running, record: EpochRecord) -> None:
        """An epoch ended.

        Raises:
            UpdateFinishedTrialError: Somebody else ended the trial.
        """
        assert record.val_accuracy is not None
        trial, value = running.asked.trial, record.val_accuracy
        running.curve[record.epoch :] = [asdict(record)]

        def write() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # it was reported before the storage failed
                trial.report(value, self._first_step + record.epoch)
            self._known.hide(trial.number, "curve", running.curve)

        self._patiently(write)

    def ended(self, running: Running, message: Ended) -> bool:
        """The trial is complete, or was pruned; whether that counts: False if somebody else had ended it.

        Raises:
            UpdateFinishedTrialError: As above.
        """
        trial, number = running.asked.trial, running.asked.trial.number
        outcome = {"outcome": Outcome.PRUNED if message.stopped else Outcome.COMPLETE}
        reason = {"reason": self.reason(running)} if message.stopped else {}
        self._patiently(lambda: self._set(trial, {**message.memory, "wall_s": message.wall_s, **outcome, **reason}))
        self._patiently(lambda: attach(trial, self._artifacts, message.pictures))
        if self._patiently(lambda: self._slots.renew([running.asked.claim])):
            return False
        result: dict[str, Any] = {"state": TrialState.PRUNED} if message.stopped else {"values": running.accuracy}
        self._patiently(lambda: self._study.tell(number, **result, skip_if_finished=True))
        self._patiently(lambda: self._slots.finish(running.asked.claim))
        self.forget(running)
        return bool(self._patiently(lambda: self._known.read(number)).state != TrialState.FAIL)

    def failed(self, running: Running, reason: str, message: Failed | None) -> None:
        """The trial gave no value; `message` is there unless its worker died.

        Raises:
            UpdateFinishedTrialError: As above.
        """
        if message is not None:
            facts = {**message.memory, "wall_s": message.wall_s}
            self._patiently(lambda: self._set(running.asked.trial, facts))
            self.forget(running)  # it would fail again from there
        self._fail(running.asked, reason, Outcome.FAILED)
        self._patiently(lambda: self._slots.failed(running.asked.claim, running.asked.trial.number))

    def infeasible(self, asked: Asked) -> None:
        """What was drawn breaks a limit."""
        self._fail(asked, asked.reason, Outcome.INFEASIBLE)
        self._patiently(lambda: self._slots.failed(asked.claim, None))

    def interrupted(self, running: Running) -> None:
        """Its slot's next trial goes on where it stood."""
        self._fail(running.asked, "interrupted", Outcome.INTERRUPTED)
        self._patiently(lambda: self._slots.interrupted(running.asked.claim, running.asked.trial.number))

    def reason(self, running: Running) -> str:
        """Of a pruned trial."""
        return f"pruned after epoch {len(running.curve)} of {running.work.config.epochs}"

    def forget(self, running: Running) -> None:
        """Removes the trial's checkpoint."""
        with contextlib.suppress(OSError):
            running.work.checkpoint.unlink(missing_ok=True)

    def _fail(self, asked: Asked, reason: str, outcome: Outcome) -> None:
        number = asked.trial.number
        self._patiently(lambda: fail_trial(self._study, number, reason, outcome))
        self._patiently(lambda: self._known.read(number))  # on rungs it does not count any more

    @staticmethod
    def _set(trial: optuna.Trial, attributes: dict[str, Any]) -> None:
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
