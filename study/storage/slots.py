"""Trial slots: `--trials N` means exactly N finished trials, whoever works on them and however often.

A study is N slots, 0 to N - 1. A slot is claimed in one transaction in a table beside Optuna's, run
by one worker at a time, and finished once. What became of a run decides what follows:

    finished     COMPLETE or PRUNED; never run again
    interrupted  run again with its stored parameters and seed
    failed       run again once with the same parameters, then with a new sample
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from study.storage.database import FINISHED

_metadata = sa.MetaData()
_slots = sa.Table(
    "small_cnn_study_slots",
    _metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),  # running, open, finished
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.Column("trial_number", sa.Integer),  # whose parameters to use again
    sa.Column("owner", sa.String(255)),
)


@dataclass(frozen=True)
class Claim:
    """A slot that is now ours to run.

    Attributes:
        slot: Its index.
        attempt: How often its parameters were sampled anew before.
        trial_number: The trial whose parameters to use again, if any.
    """

    slot: int
    attempt: int
    trial_number: int | None


def process_owner(pid: int | None = None) -> str:
    """Names a process so that a later one with the same number is not taken for it."""
    pid = os.getpid() if pid is None else pid
    return f"{socket.gethostname()}/{_boot_id()}/{pid}/{_started(pid)}"


class SlotTable:
    """The slots of one study."""

    def __init__(self, study: optuna.Study, storage: optuna.storages.RDBStorage) -> None:
        self._study = study
        self._study_id = study._study_id
        self._engine = storage.engine
        _metadata.create_all(self._engine, checkfirst=True)
        self._owner = process_owner()

    def claim(self, n_slots: int) -> Claim | None:
        """Takes the lowest slot below `n_slots` that nobody runs and that is not finished."""
        while True:
            rows = self._rows()
            waiting = [row for row in rows.values() if row.state == "open" and row.slot < n_slots]
            try:
                with self._engine.begin() as connection:
                    if waiting:
                        row = min(waiting, key=lambda row: row.slot)
                        taken = connection.execute(
                            self._where(row.slot)
                            .where(_slots.c.state == "open")
                            .values(state="running", owner=self._owner)
                        )
                        if taken.rowcount == 1:
                            return Claim(row.slot, row.attempt, row.trial_number)
                        continue
                    free = max(rows, default=-1) + 1
                    if free >= n_slots:
                        return None
                    connection.execute(
                        _slots.insert().values(
                            study_id=self._study_id,
                            slot=free,
                            state="running",
                            attempt=0,
                            failures=0,
                            owner=self._owner,
                        )
                    )
                    return Claim(free, 0, None)
            except sa.exc.IntegrityError:  # another process took the free slot first
                continue

    def finish(self, slot: int) -> None:
        """The slot has its COMPLETE or PRUNED trial."""
        self._set(slot, state="finished", owner=None)

    def interrupted(self, slot: int, trial_number: int | None) -> None:
        """The slot is to be run again as it was."""
        self._set(slot, state="open", owner=None, trial_number=trial_number)

    def failed(self, slot: int, trial_number: int | None) -> None:
        """The slot is to be run again: once as it was, then with a new sample."""
        row = self._rows()[slot]
        if row.failures == 0 and trial_number is not None:
            self._set(slot, state="open", owner=None, trial_number=trial_number, failures=1)
        else:
            self._set(slot, state="open", owner=None, trial_number=None, failures=0, attempt=row.attempt + 1)

    def n_finished(self, n_slots: int | None = None) -> int:
        """Finished slots, of the first `n_slots` if given."""
        counted = (
            sa.select(sa.func.count())
            .select_from(_slots)
            .where(_slots.c.study_id == self._study_id, _slots.c.state == "finished")
        )
        if n_slots is not None:
            counted = counted.where(_slots.c.slot < n_slots)
        with self._engine.connect() as connection:
            return int(connection.execute(counted).scalar_one())

    def recover(self) -> list[int]:
        """Frees the slots of processes that are gone and fails the trials they left running.

        Processes of this machine are looked up; those of others are gone when their trial's
        heartbeat is stale. Returns the freed slots.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        trials = self._study.get_trials(deepcopy=False)
        freed = []
        for row in self._rows().values():
            if row.state != "running" or row.owner == self._owner:
                continue
            mine = [
                trial
                for trial in trials
                if trial.user_attrs.get("slot") == row.slot
                and trial.user_attrs.get("attempt", row.attempt) == row.attempt
            ]
            last = mine[-1] if mine else None
            if last is not None and last.state in FINISHED:
                self.finish(row.slot)
                continue
            if self._is_local(row.owner):
                gone = not _alive(row.owner)
            else:
                # The failed trial that the slot is to repeat says nothing about who repeats it.
                gone = last is not None and last.state == TrialState.FAIL and last.number != row.trial_number
            if gone:
                if last is not None and last.state == TrialState.RUNNING:
                    fail_trial(self._study, last, "interrupted: its process is gone")
                reusable = self.reusable(last)
                self.interrupted(row.slot, row.trial_number if reusable is None else reusable)
                freed.append(row.slot)
        return freed

    def reusable(self, trial: FrozenTrial | None) -> int | None:
        """The number of `trial` if all its parameters were sampled, so that it can be run again."""
        return trial.number if trial is not None and "candidate" in trial.user_attrs else None

    def _is_local(self, owner: str) -> bool:
        return owner.split("/")[0] == self._owner.split("/")[0]

    def _rows(self) -> dict[int, Any]:
        """The slots that are not finished, and the last one, after which the next free one comes.

        Slots are taken from the lowest on and never given back, so that there is no gap before the last
        one. Thousands of finished ones are not read.
        """
        last = sa.select(sa.func.max(_slots.c.slot)).where(_slots.c.study_id == self._study_id).scalar_subquery()
        wanted = sa.select(_slots).where(
            _slots.c.study_id == self._study_id, sa.or_(_slots.c.state != "finished", _slots.c.slot == last)
        )
        with self._engine.connect() as connection:
            found: Sequence[Any] = connection.execute(wanted).all()
        return {row.slot: row for row in found}

    def _where(self, slot: int) -> Any:
        return _slots.update().where(_slots.c.study_id == self._study_id, _slots.c.slot == slot)

    def _set(self, slot: int, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(self._where(slot).values(**values))


def fail_trial(study: optuna.Study, trial: FrozenTrial, reason: str) -> None:
    """Ends a trial that nobody works on any more, with the reason."""
    study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
    study.tell(trial.number, state=TrialState.FAIL)


def _alive(owner: str) -> bool:
    """Whether a process of this machine is still the one that `owner` names."""
    pid = int(owner.split("/")[2])
    if not Path("/proc/self").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return process_owner(pid) == owner


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "-"


def _started(pid: int) -> str:
    """The process's start time in clock ticks since boot; empty if it is gone or cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
