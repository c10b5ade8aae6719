"""A study's trials as its supervisor knows them."""

from __future__ import annotations

import bisect
import copy
import time
from collections.abc import Container
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from study.storage.database import HIDDEN, has_result, storage_of
from study.storage.slots import SlotTable

REFRESH_S = 1.0
"""Between two readings of everything, while others work on the study."""


class KnownTrials:
    """The trials of a study, to ask without reading all of them.

    Optuna reads every unfinished trial anew whenever it is asked for trials. With a hundred workers that takes longer
    than everything else, and most of it is known: what is written here. So a trial is read again when something was
    written of it, and all are when somebody else finished one.
    """

    def __init__(self, study: optuna.Study, storage: optuna.storages.RDBStorage, slots: SlotTable) -> None:
        self._study, self.slots, self._storage, self._database = study, slots, storage_of(study), storage
        self._study_id = self._storage.get_study_id_from_name(study.study_name)
        self._trials: dict[int, FrozenTrial] = {}
        self._finished: list[FrozenTrial] = []
        self._read_at = -REFRESH_S

    def create(self, template: FrozenTrial) -> optuna.Trial:
        """A new trial like `template`, in one transaction; it never meets Optuna's queue, as what is asked for does."""
        return optuna.Trial(self._study, self._storage.create_new_trial(self._study_id, template))

    def hide(self, number: int, name: str, value: Any) -> None:
        """Keeps `value` with the running trial `number` as its `name` (see `stored`)."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        self._storage.set_trial_system_attr(trial_id, HIDDEN + name, value)

    def n_waiting(self) -> int:
        """Trials in Optuna's queue."""
        return len(self._database.get_all_trials(self._study_id, deepcopy=False, states=(TrialState.WAITING,)))

    def read(self, number: int) -> FrozenTrial:
        """Trial `number` as it is now."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        trial = self._storage.get_trial(trial_id)
        self._note(trial)
        return trial

    def finished(self) -> list[FrozenTrial]:
        """Our complete and pruned ones, by number."""
        self._catch_up()
        return self._finished

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """As of `optuna.Study`."""
        self._catch_up()
        found = [self._trials[number] for number in sorted(self._trials)]
        found = [trial for trial in found if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _catch_up(self) -> None:
        now = time.monotonic()
        if now - self._read_at < REFRESH_S or self.slots.n_finished() == len(self._finished):
            return
        for trial in self._study.get_trials(deepcopy=False):
            self._note(trial)
        self._read_at = time.monotonic()

    def _note(self, trial: FrozenTrial) -> None:
        before = self._trials.get(trial.number)
        self._trials[trial.number] = trial
        if has_result(trial) and not (before is not None and has_result(before)):
            bisect.insort(self._finished, trial, key=lambda trial: trial.number)
