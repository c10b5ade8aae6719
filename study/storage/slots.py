"""Trial slots: `--trials N` means exactly N finished trials, whoever works on them and however often.

A study is N slots, 0 to N - 1, in a table beside Optuna's. A slot is claimed in one transaction, worked on by one
supervisor at a time, and finished once. What became of it decides what follows:

    finished     COMPLETE or PRUNED; never run again
    interrupted  run again with its stored parameters and seed
    failed       run again once with the same parameters, then with a new sample

A claim is a lease: it ends unless it is renewed, and a number that grows with every claim of a slot (its fence)
keeps a supervisor that was away for too long from writing over the one that took its place (Kleppmann 2016, "How to do
distributed locking").
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from study.errors import StudyDeleted, shortened
from study.machine.processes import lives
from study.storage.database import HIDDEN, MOST_SHOWN, has_result, is_ours, storage_of, stored
from study.storage.outcome import Outcome
from study.storage.patience import OUTAGE_S, make_tables

LEASE_S = OUTAGE_S + 60.0
"""Longer than an outage of the storage that must be survived."""

_metadata = sa.MetaData()
_slots = sa.Table(
    "small_cnn_study_slots",
    _metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),  # running, open, finished
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
    sa.Column("trial_number", sa.Integer),  # whose parameters to use again
    sa.Column("owner", sa.String(255)),
    sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
    sa.Column("expires", sa.Double),  # seconds since 1970 by the database's clock
    sa.Column("queued", sa.Integer, nullable=False, server_default="0"),  # a waiting trial of the user's
)
_ANEW = {"attempt": 0, "failures": 0}
"""Tables of older versions have no defaults for these."""

_OURS = frozenset(
    {"slot", "fence", "attempt", "sampler_seed", "training_seed", "versions", "queued", "reason", "outcome"}
)
"""Attributes that a trial has before it has a candidate."""


@dataclass(frozen=True)
class Claim:
    """A slot that is ours to run.

    Attributes:
        slot: Its index.
        fence: Grows with every claim of the slot.
        attempt: How often its parameters were sampled anew before.
        repeats: The trial whose parameters to use again, if any.
        queued: It is for a trial that the user put into Optuna's queue.
        ordinal: Its index among the slots that are not for such trials.
    """

    slot: int
    fence: int
    attempt: int = 0
    repeats: int | None = None
    queued: bool = False
    ordinal: int = 0


def process_owner(pid: int | None = None) -> str:
    """Names a process so that no other one with the same number is taken for it: a later one, or one of a container."""
    pid = os.getpid() if pid is None else pid
    return f"{socket.gethostname()}/{_boot_id()}/{_pid_namespace()}/{pid}/{_started(pid)}"


class SlotTable:
    """The slots of one study.

    Args:
        study, storage: Whose.
        n_counted: Those from here on are not counted, as in a re-ranking, where each slot is a candidate's; None: all
            are, since any N of a search are its N trials.
    """

    def __init__(self, study: optuna.Study, storage: optuna.storages.RDBStorage, n_counted: int | None = None) -> None:
        self._study, self._storage, self._engine = study, storage, storage.engine
        self._n_counted = n_counted
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._made = self._identity()
        _make_table(self._engine)
        self._owner = process_owner()

    def refuse_deleted(self) -> None:
        """Refuses to go on once somebody deleted the study: the next one gets its numbers, and those of its trials.

        Raises:
            StudyDeleted: It is gone, or another one is in its place.
        """
        if self._identity() != self._made:
            raise StudyDeleted(
                f"the study {self._study.study_name!r} was deleted while it ran. Nothing more is written; the same "
                "command starts anew in another --out."
            )

    def _identity(self) -> Any:
        query = sa.text(
            "SELECT study_name, value_json FROM studies LEFT JOIN study_user_attributes "
            "ON study_user_attributes.study_id = studies.study_id AND study_user_attributes.key = 'created' "
            "WHERE studies.study_id = :study_id"
        )
        with self._engine.connect() as connection:
            return connection.execute(query, {"study_id": self._study_id}).one_or_none()

    def claim(self, n_slots: int, queued: bool = False, but: Collection[int] = ()) -> Claim | None:
        """Takes the lowest slot below `n_slots` that nobody runs and that is not finished.

        Args:
            n_slots: Slots of the study.
            queued: Take one that was never claimed, for a trial from Optuna's queue.
            but: Slots to leave as they are.
        """
        while True:
            rows = self._rows()
            left = () if queued else rows.values()
            waiting = [row for row in left if row.state == "open" and row.slot < n_slots and row.slot not in but]
            lease = {"state": "running", "owner": self._owner, "expires": self._expiry()}
            try:
                with self._engine.begin() as connection:
                    if waiting:
                        row = min(waiting, key=lambda row: row.slot)
                        unchanged = self._where(row.slot, row.fence).where(_slots.c.state == "open")
                        if connection.execute(unchanged.values(**lease, fence=row.fence + 1)).rowcount != 1:
                            continue
                        claim = Claim(row.slot, row.fence + 1, row.attempt, row.trial_number, bool(row.queued))
                    else:
                        free = max(rows, default=-1) + 1
                        if free >= n_slots:
                            return None
                        new = {"study_id": self._study_id, "slot": free, "fence": 1, "queued": int(queued), **_ANEW}
                        connection.execute(_slots.insert().values(**new, **lease))
                        claim = Claim(free, 1, queued=queued)
                    return self._with_ordinal(connection, claim)
            except sa.exc.IntegrityError:
                if max(self._rows(), default=-1) == max(rows, default=-1):
                    raise
                continue  # another process took the free slot first

    def set_queued(self, claim: Claim, queued: bool) -> Claim:
        """The claim, now for a trial from Optuna's queue, or no longer."""
        with self._engine.begin() as connection:
            connection.execute(self._where(claim.slot, claim.fence).values(queued=int(queued)))
            return self._with_ordinal(connection, dataclasses.replace(claim, queued=queued))

    def finish(self, claim: Claim) -> bool:
        """The slot has its COMPLETE or PRUNED trial. False, here and below: it is no longer ours; nothing is done."""
        return self._leave(claim, state="finished")

    def interrupted(self, claim: Claim, trial_number: int | None) -> bool:
        """The slot is to be run again as it was."""
        return self._leave(claim, state="open", trial_number=trial_number)

    def failed(self, claim: Claim, trial_number: int | None) -> bool:
        """The slot is to be run again: once as it was, then with a new sample."""
        row = self._rows().get(claim.slot)
        if row is not None and row.failures == 0 and trial_number is not None:
            return self._leave(claim, state="open", trial_number=trial_number, failures=1)
        anew = {"trial_number": None, "failures": 0, "attempt": claim.attempt + 1}
        return self._leave(claim, state="open", **anew)

    def renew(self, claims: Iterable[Claim]) -> list[Claim]:
        """Prolongs our leases; returns those of `claims` that are no longer ours."""
        mine = sa.and_(_slots.c.study_id == self._study_id, _slots.c.owner == self._owner, _slots.c.state == "running")
        with self._engine.begin() as connection:
            connection.execute(_slots.update().where(mine).values(expires=self._expiry()))
            held = {tuple(row) for row in connection.execute(sa.select(_slots.c.slot, _slots.c.fence).where(mine))}
        return [claim for claim in claims if (claim.slot, claim.fence) not in held]

    def counts(self, slot: int) -> bool:
        """Whether it is counted."""
        return self._n_counted is None or slot < self._n_counted

    def n_finished(self) -> int:
        """Finished slots."""
        return self._count("finished")

    def n_taken(self) -> int:
        """Slots that are finished, or claimed by whomever."""
        return self._count("finished", "running")

    def unfinished(self) -> dict[int, str]:
        """Slots that were begun and are not finished, those that do not count among them: "open", left or failed, or
        "running", claimed by whomever."""
        wanted = sa.select(_slots.c.slot, _slots.c.state).where(
            _slots.c.study_id == self._study_id, _slots.c.state.in_(("open", "running"))
        )
        with self._engine.connect() as connection:
            return {row.slot: row.state for row in connection.execute(wanted)}

    def _count(self, *states: str) -> int:
        which = [_slots.c.study_id == self._study_id, _slots.c.state.in_(states)]
        if self._n_counted is not None:
            which.append(_slots.c.slot < self._n_counted)
        with self._engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(_slots).where(*which)).scalar_one())

    def others_work(self, held: Collection[Claim]) -> bool:
        """Whether a slot is claimed, by whomever, but not among `held`."""
        running = sa.select(_slots.c.slot, _slots.c.fence).where(
            _slots.c.study_id == self._study_id, _slots.c.state == "running"
        )
        with self._engine.connect() as connection:
            return bool({tuple(row) for row in connection.execute(running)} - _names(held))

    def reconcile(self, held: Collection[Claim] = ()) -> list[int]:
        """Makes slots and trials agree, whatever happened to either, and frees the slots of those who are gone.

        A process of this machine is gone when it does not exist, another when its lease has ended. Trials may have
        been deleted with their study, copied from another one, or left running by a kill; slots may be those of a
        study that was deleted and whose id was given out again.

        Args:
            held: Our claims; another one of this process is one whose answer was lost.

        Returns:
            The freed slots.
        """
        rows, now = self._all_rows()
        trials = self._study.get_trials(deepcopy=False)  # after the rows: a finished slot's trial is among them
        of_slot: dict[int, list[FrozenTrial]] = defaultdict(list)
        for trial in trials:
            if is_ours(trial):
                of_slot[trial.user_attrs["slot"]].append(trial)
        alive = self._alive(rows, now, held)
        freed = []
        for slot in range(max([*rows, *of_slot], default=-1) + 1):
            row, tried = rows.get(slot), of_slot[slot]
            if slot in alive:
                continue
            done = any(has_result(trial) for trial in tried)
            if row is not None and row.state == ("finished" if done else "open"):
                known = row.trial_number is None or row.trial_number in [trial.number for trial in tried]
                if done or known:
                    continue
            again = next((trial.number for trial in reversed(tried) if stored(trial, "candidate") is not None), None)
            if row is not None and row.state == "running" and not done:
                freed.append(slot)
                if tried and not self._began(row, tried):
                    again = row.trial_number  # what it was to run stays as it was
            state = {"state": "finished" if done else "open", "owner": None, "trial_number": None if done else again}
            if not tried:
                state |= {**_ANEW, "queued": 0}
            self._put(slot, row, state)
        self._fail_orphans(trials, held)
        return freed

    @staticmethod
    def _began(row: Any, tried: Sequence[FrozenTrial]) -> bool:
        """Whether the last claim of the slot got as far as a trial with all its parameters."""
        last = tried[-1]
        return stored(last, "candidate") is not None and last.user_attrs.get("attempt", row.attempt) == row.attempt

    def _put(self, slot: int, row: Any, values: dict[str, Any]) -> None:
        with contextlib.suppress(sa.exc.IntegrityError), self._engine.begin() as connection:
            if row is None:
                connection.execute(_slots.insert().values(study_id=self._study_id, slot=slot, **_ANEW | values))
            else:  # unless somebody else was faster
                unchanged = self._where(slot, row.fence).where(_slots.c.state == row.state)
                connection.execute(unchanged.values(**values, fence=row.fence + 1))

    def _fail_orphans(self, trials: Sequence[FrozenTrial], held: Collection[Claim]) -> None:
        """Fails the running trials that nobody works on."""
        rows, now = self._all_rows()  # after the trials: the claim of every trial among them
        alive = self._alive(rows, now, held)
        others = any(rows[slot].owner != self._owner for slot in alive)
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            slot = trial.user_attrs.get("slot")
            if slot is None and others:
                continue  # one of them may be about to say whose it is
            if slot in alive and trial.user_attrs.get("fence", rows[slot].fence) == rows[slot].fence:
                continue
            reason, attributes = "interrupted: its process is gone", trial.user_attrs
            ended = fail_trial(self._study, trial.number, reason, Outcome.INTERRUPTED)
            if ended and "fixed_params" in trial.system_attrs and stored(trial, "candidate") is None:
                # It came out of the queue, and nobody got as far as to keep it.
                theirs = {name: value for name, value in attributes.items() if name not in _OURS}
                self._study.enqueue_trial(trial.system_attrs["fixed_params"], user_attrs=theirs)

    def _alive(self, rows: Mapping[int, Any], now: float, held: Collection[Claim]) -> set[int]:
        """The slots that somebody works on."""
        ours, (host, boot, namespace, *_) = _names(held), self._owner.split("/")
        # A file is on this machine, which was booted again since; of a server's clients several may have one name.
        on_file = self._engine.dialect.name == "sqlite"

        def lives(row: Any) -> bool:
            if row.owner == self._owner:
                return (row.slot, row.fence) in ours
            theirs = (row.owner or "").split("/")
            if theirs[:3] == [host, boot, namespace]:
                return _process_lives(row.owner)
            if on_file and theirs[0] == host and boot not in theirs[1:2]:
                return False
            return row.expires is not None and row.expires > now

        return {slot for slot, row in rows.items() if row.state == "running" and lives(row)}

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
            return {row.slot: row for row in connection.execute(wanted)}

    def _all_rows(self) -> tuple[dict[int, Any], float]:
        """All slots, and the time by the database's clock."""
        with self._engine.connect() as connection:
            found = connection.execute(sa.select(_slots).where(_slots.c.study_id == self._study_id)).all()
            return {row.slot: row for row in found}, float(connection.execute(sa.select(self._now())).scalar_one())

    def _now(self) -> sa.ColumnElement[float]:
        """Now, by the clock that all supervisors share: the server's, or this machine's for a file."""
        dialect = self._engine.dialect.name
        if dialect == "postgresql":
            return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
        if dialect in ("mysql", "mariadb"):
            return sa.cast(sa.func.unix_timestamp(sa.func.now(6)), sa.Double)
        return sa.literal(time.time(), sa.Double)

    def _expiry(self) -> sa.ColumnElement[float]:
        return self._now() + LEASE_S

    def _where(self, slot: int, fence: int) -> Any:
        return _slots.update().where(
            _slots.c.study_id == self._study_id, _slots.c.slot == slot, _slots.c.fence == fence
        )

    def _with_ordinal(self, connection: sa.Connection, claim: Claim) -> Claim:
        before = sa.select(sa.func.count()).where(
            _slots.c.study_id == self._study_id, _slots.c.slot < claim.slot, _slots.c.queued == 1
        )
        return dataclasses.replace(claim, ordinal=claim.slot - int(connection.execute(before).scalar_one()))

    def _leave(self, claim: Claim, **values: Any) -> bool:
        with self._engine.begin() as connection:
            mine = self._where(claim.slot, claim.fence).where(_slots.c.state == "running")
            return bool(connection.execute(mine.values(owner=None, **values)).rowcount == 1)


def _names(claims: Iterable[Claim]) -> set[tuple[int, int]]:
    return {(claim.slot, claim.fence) for claim in claims}


def fail_trial(study: optuna.Study, number: int, reason: str, outcome: Outcome) -> bool:
    """Ends a trial that nobody works on any more, with the reason. False: it has ended, and nothing is done."""
    storage = storage_of(study)
    study_id = storage.get_study_id_from_name(study.study_name)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
        if len(reason) > MOST_SHOWN:
            storage.set_trial_system_attr(trial_id, HIDDEN + "reason", reason)
        storage.set_trial_user_attr(trial_id, "reason", shortened(reason, MOST_SHOWN))
        storage.set_trial_user_attr(trial_id, "outcome", outcome)
        return bool(storage.set_trial_state_values(trial_id, TrialState.FAIL))
    return False


def _make_table(engine: sa.Engine) -> None:
    """Makes the table, or adds the columns that an older one lacks."""
    make_tables(lambda: _metadata.create_all(engine, checkfirst=True))
    known = {column["name"] for column in sa.inspect(engine).get_columns(_slots.name)}
    for column in _slots.columns:
        if column.name not in known:
            definition = sa.schema.CreateColumn(column).compile(dialect=engine.dialect)
            # Another process may be faster by a moment.
            with contextlib.suppress(sa.exc.OperationalError, sa.exc.ProgrammingError), engine.begin() as connection:
                connection.exec_driver_sql(f"ALTER TABLE {_slots.name} ADD COLUMN {definition}")


def _process_lives(owner: str) -> bool:
    """Whether a process of this machine is still the one that `owner` names."""
    pid = owner.split("/")[3]
    return process_owner(int(pid)) == owner if Path("/proc/self").exists() else lives(pid)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "-"


def _pid_namespace() -> str:
    """Containers of one machine, which may even share its name, have their own numbers of processes."""
    try:
        return os.readlink("/proc/self/ns/pid").removeprefix("pid:").strip("[]")
    except OSError:
        return "-"


def _started(pid: int) -> str:
    """The process's start time in clock ticks since boot; empty if it is gone or cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
