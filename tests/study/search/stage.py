"""A study whose candidates are not trained: an executor that follows a script, and what surrounds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search_spaces.cost import CostModel
from search_spaces.dilated import DilatedSpace
from study.command_line.own import OwnLimits
from study.executors.messages import Died, Ended, EpochEnded, Failed, Message, Work
from study.search.asking import Asked, Asker
from study.search.plan import Given, SearchPlan
from study.search.supervisor import Supervisor
from study.storage.config import StudyConfig
from study.storage.database import open_storage
from study.storage.known import KnownTrials
from study.storage.slots import Claim, SlotTable
from study.training.records import EpochRecord, TrainingConfig

COST = CostModel(
    dense_mac_s=1e-9,
    depthwise_mac_s=1e-8,
    depthwise_other_mac_s=1e-8,
    activation_s=1e-8,
    image_s=1e-5,
    operation_s=1e-5,
    device="cpu",
)

CONFIG = StudyConfig(
    space="dilated",
    space_version=DilatedSpace.version,
    epochs=2,
    train_images=100,
    val_images=100,
    seed=0,
    pruner="percentile",
    sampler="random",
    precision="float32",
)


def record(epoch: int, accuracy: float = 0.5) -> EpochRecord:
    return EpochRecord(epoch, 1.0, accuracy, 1.0, accuracy, 0.1, 1.0, 0.0)


class Strict(optuna.pruners.BasePruner):
    """Prunes whatever it is asked about."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return True


class ScriptedExecutor:
    """Plays the next outcome of the script for every piece of work.

    Outcomes: complete, pruned, failed, dies, loses its machine, crashes (a bug), hangs (after an epoch), starts
    (nothing is heard of it), ends late (its result is heard only while workers are stopped).
    """

    def __init__(self, script: Sequence[str], jobs: int) -> None:
        self.script, self.jobs = list(script), jobs
        self.works: list[Work] = []
        self.busy: set[int] = set()
        self.most_at_once = 0
        self.answers: list[bool] = []
        self.withdrawn: list[int] = []
        self._said: list[Message] = []
        self._late: list[Message] = []

    def prepare(self, n: int) -> None:
        assert n <= self.jobs

    def submit(self, work: Work) -> None:
        assert self.script, "the supervisor ran more than the script"
        outcome, key = self.script.pop(0), work.key
        self.works.append(work)
        self.busy.add(key)
        self.most_at_once = max(self.most_at_once, len(self.busy))
        epochs = [EpochEnded(key, record(epoch), False) for epoch in range(work.config.epochs)]
        ended = Ended(key, False, 1.0, {"rss_mib": 100.0}, {"curve.png": b"picture"})
        self._said += {
            "complete": [*epochs, ended],
            "pruned": [EpochEnded(key, record(0), True)],
            "failed": [Failed(key, "failed", 1.0)],
            "dies": [epochs[0], Died(key, "the worker was killed by SIGKILL")],
            "loses its machine": [epochs[0], Died(key, "the worker is lost", machine_lost=True)],
            "crashes": [Died(key, "IndexError: a bug", "Traceback of a worker\nIndexError: a bug")],
            "hangs": epochs[:1],
            "ends late": epochs[:1],
            "starts": [],
        }[outcome]
        if outcome == "ends late":
            self._late = [*epochs[1:], ended]

    def answer(self, key: int, go_on: bool) -> None:
        self.answers.append(go_on)
        self._said.append(Ended(key, not go_on, 1.0))

    def wait(self, timeout_s: float) -> list[Message]:
        if not timeout_s:
            return []  # trials take a while
        said, self._said = self._said, []
        self.busy -= {message.key for message in said if not isinstance(message, EpochEnded)}
        return said

    def withdraw(self, key: int) -> None:
        self.withdrawn.append(key)
        self.busy.discard(key)

    def close(self) -> list[Message]:
        return self._late


class Stage:
    """A study in a file, and supervisors that follow scripts on it."""

    def __init__(self, file: Path, config: StudyConfig = CONFIG, given: Sequence[Given] | None = None) -> None:
        self.out, self.config, self.given = file.parent, config, given
        self.storage = open_storage(f"sqlite:///{file}")
        self.study = optuna.load_study(study_name="stage", storage=self.storage)
        self.slots = SlotTable(self.study, self.storage, None if given is None else len(given))
        self.known = KnownTrials(self.study, self.storage, self.slots)
        self.n_anchors = len(self.asker()._anchors)
        self.asked: list[Asked] = []

    def asker(self, own: OwnLimits | None = None) -> Asker:
        return Asker(self.study, self.known, self.config, self.out / "artifacts", self.given, own)

    def supervisor(self, script: Sequence[str], trials: int, jobs: int = 1, timeout: float | None = None) -> Supervisor:
        self.study.pruner = Strict()
        self.executor = ScriptedExecutor(script, jobs)
        plan = SearchPlan("sqlite://", "stage", self.out, "dilated", [], trials=trials, jobs=jobs, timeout_s=timeout)
        asker = self.asker()
        self.asked = []
        ask = asker.ask

        def ask_and_note(claim: Claim) -> Asked:
            self.asked.append(ask(claim))
            return self.asked[-1]

        asker.ask = ask_and_note  # type: ignore[method-assign]
        return Supervisor(
            plan, self.study, self.known, self.config, asker, self.executor,
            lambda seed: TrainingConfig(epochs=self.config.epochs, seed=seed), None,
        )  # fmt: skip

    def play(self, script: Sequence[str], trials: int, jobs: int = 1, timeout: float | None = None) -> str:
        return self.supervisor(script, trials, jobs, timeout).run()

    def skip_anchors(self) -> None:
        """As if they had been run: their slots are finished."""
        self.play(["complete"] * self.n_anchors, self.n_anchors)

    def trials(self) -> list[FrozenTrial]:
        """Those after the anchors, if they were skipped."""
        return self.study.get_trials(deepcopy=False)

    def attributes(self, name: str) -> list[Any]:
        return [trial.user_attrs.get(name) for trial in self.trials()]
