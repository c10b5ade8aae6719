"""How many workers supervisors keep busy: real studies whose trials are not trained but last as long as real ones.

    python scripts/experiments/scaling.py
    scripts/postgres_study.sh -- python scripts/experiments/scaling.py --supervisors 1 2 4 --workers 100 --recorded 1000

A synthetic trial lasts 20 s, 5 more or less, and asks twice whether to go on. Everything else is as in a real study:
slots, sampling, the making of the network, pruning, notes and pictures for optuna-dashboard. What a worker loses is the
time in which it waits for an answer or for its next trial, counted from its first trial on. The storage is SQLite on
this machine's disk, or what $STORAGE names.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from study.command_line.parser import run_command
from study.executors.messages import Ended, EpochEnded, Message, Work
from study.machine.paths import RESULTS

EPOCHS = 3
"""After each but the last the pruner is asked."""
TRIAL_S, SPREAD_S = 20.0, 5.0
NAME = "scaling"
GOAL = "less than 2% lost by 100 workers with 1,000 trials recorded, under one supervisor"
WAITS = ("answers", "handovers")
STORAGES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
HEAD = (
    "trials recorded", "workers", "supervisors", "storage", "a supervisor's ms per trial", "a supervisor is busy",
    "lost by a worker", "waits for an answer (median, 95%)", "waits for the next trial (median, 95%)",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = evidence.parser("experiments/scaling.py", __doc__)
    for option, default, what in (
        ("--recorded", (50, 500, 1000, 5000), "trials in the study when it begins"),
        ("--workers", (10, 100), "of all supervisors together"),
        ("--supervisors", (1,), "processes that share the study"),
    ):
        parser.add_argument(option, type=int, nargs="+", default=default, metavar="N", help=f"{what} ({default})")
    parser.add_argument("--seconds", type=int, default=90, help="that are watched each time (default: 90)")
    out = RESULTS / NAME
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help="(default: results/scaling)")
    options = parser.parse_args(words)
    url = os.environ.get("STORAGE")
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        rows = measured(options, url or f"sqlite:///{folder}/study.db", Path(folder))
    from study.machine.hardware import hardware, versions

    kind = "postgresql" if url else "sqlite"
    command = evidence.command_line("experiments/scaling.py", words)
    if url:
        command = f"scripts/postgres_study.sh -- {command}"
    machine = {"hardware": hardware("cpu"), "versions": versions()}
    evidence.write(options.out / f"{kind}.json", {"command": command, "storage": kind, "rows": rows, **machine})
    draw(evidence.records(options.out), options.out / "scaling.png")
    return 0


def block() -> str:
    """What results/README.md says of it."""
    found = evidence.records(RESULTS / NAME)
    rows = [
        (
            f"{row['recorded']:,}",
            f"{row['workers']}",
            f"{row['supervisors']}",
            STORAGES[record["storage"]],
            f"{row['ms_per_trial']:.0f}",
            f"{100 * row['busy_share']:.0f}%",
            f"{100 * row['lost_share']:.2f}%",
            *(f"{1000 * row[name]['median_s']:.0f} ms, {1000 * row[name]['p95_s']:.0f} ms" for name in WAITS),
        )
        for record in found.values()
        for row in record["rows"]
    ]
    if not rows:
        return evidence.NOTHING
    machines = {evidence.machine(record["hardware"]) for record in found.values()}
    commands = " and ".join(evidence.command_of(record) for record in found.values())
    return (
        f"{evidence.table(HEAD, rows)}\n\n{', '.join(sorted(machines))}. Goal: {GOAL}. Made by {commands} "
        f"([drawn](results/{NAME}/scaling.png))."
    )


def draw(found: dict[str, Any], file: Path) -> None:
    """A supervisor's share of busy time by its workers: measured, and beyond that in proportion."""
    drawn, [axes] = evidence.figure(8, 5.4)
    sole = [
        (record["storage"], row["recorded"], row["workers"], 100 * row["busy_share"])
        for record in found.values()
        for row in record["rows"]
        if row["supervisors"] == 1
    ]
    for storage, recorded in sorted({case[:2] for case in sole}, reverse=True):
        points = sorted(case[2:] for case in sole if case[:2] == (storage, recorded))
        workers, busy = points[-1]
        full = 100 * workers / busy
        label = f"{STORAGES[storage]}, {recorded:,} trials recorded: all of it by {full:.0f} workers"
        [line] = axes.plot(*zip(*points, strict=True), "o-", label=label)
        if full > workers:  # else it is saturated already
            axes.plot([workers, full], [busy, 100], ":", color=line.get_color())
    axes.set(
        xlabel=f"workers, each on trials of {TRIAL_S:.0f} s",
        ylabel="of its time one supervisor is busy (%)",
        ylim=(0, 110),
    )
    axes.set_title(
        "When to add a supervisor\npoints: measured; dotted: extrapolated until it is always busy", fontsize=11
    )
    evidence.legend(drawn, axes, columns=1)
    evidence.save(drawn, file)


def measured(options: Any, url: str, out: Path) -> list[dict[str, Any]]:
    """A row for every case, in one study that grows."""
    rows = []
    make_study(url)
    simulate(url, out, 5, 0.0, 20.0, seed=0)  # trials to copy
    for n_recorded in sorted(set(options.recorded)):
        fill(url, n_recorded)
        for n_workers, n_supervisors in itertools.product(options.workers, options.supervisors):
            each = n_workers // n_supervisors
            with ProcessPoolExecutor(n_supervisors, multiprocessing.get_context("spawn")) as pool:
                runs = [
                    pool.submit(simulate, url, out, each, TRIAL_S, float(options.seconds), 1 + i)
                    for i in range(n_supervisors)
                ]
                found = [run.result() for run in runs]
            rows.append(row(n_recorded, n_workers, found))
            print(rows[-1], flush=True)
    return rows


def row(n_recorded: int, n_workers: int, found: Sequence[Watched]) -> dict[str, Any]:
    import numpy as np

    def waits(name: str) -> dict[str, float]:
        all_of_them = [seconds for each in found for seconds in getattr(each, name)] or [0.0]
        median, high = np.percentile(all_of_them, (50, 95))
        return {"median_s": float(median), "p95_s": float(high)}

    n_trials = sum(each.n_trials for each in found)
    return {
        "recorded": n_recorded,
        "workers": n_workers,
        "supervisors": len(found),
        "trials": n_trials,
        "ms_per_trial": 1000 * sum(each.busy_s for each in found) / n_trials,
        "busy_share": sum(each.busy_s for each in found) / sum(each.watched_s for each in found),
        "lost_share": sum(each.lost_s for each in found) / sum(each.worker_s for each in found),
        "answers": waits("answers"),
        "handovers": waits("handovers"),
    }


# One supervisor


@dataclass
class Watched:
    """What one supervisor did once all its workers had a trial; seconds.

    Attributes:
        n_trials: That ended.
        watched_s: Of the clock.
        busy_s: In which the supervisor did not wait for its workers.
        worker_s: Of all workers.
        lost_s: In which they had nothing to do.
        answers, handovers: Each wait for an answer, and from the end of a trial to the next one.
    """

    n_trials: int
    watched_s: float
    busy_s: float
    worker_s: float
    lost_s: float
    answers: list[float]
    handovers: list[float]


class EnoughError(Exception):
    """The time that was to be watched is over."""


class Simulated:
    """An executor whose workers only let time pass. See `study.executors.messages.Executor`."""

    def __init__(self, n_workers: int, trial_s: float, seconds: float, seed: int) -> None:
        self._n, self._trial_s, self._seconds = n_workers, trial_s, seconds
        self._rng = random.Random(seed)
        self._due: list[tuple[float, int, EpochEnded | Ended]] = []  # a heap
        self._order = itertools.count()
        self._epoch_s: dict[int, float] = {}
        self._asked: dict[int, tuple[float, int]] = {}
        self._idle_since: list[float] = []
        self._picture = {"curve.png": random.Random(0).randbytes(20_000)}  # of the size of a real one
        self._started: float | None = None
        self._slept_s = 0.0
        self._n_given = 0
        self._ended: list[float] = []
        self._answers: list[tuple[float, float]] = []
        self._handovers: list[tuple[float, float]] = []

    def prepare(self, n: int) -> None:
        self._idle_since = []

    def submit(self, work: Work) -> None:
        now = time.perf_counter()
        self._n_given += 1
        if self._n_given > self._n:
            self._handovers.append((now, now - self._idle_since.pop(0)))
        elif self._n_given == self._n:
            self._started, self._slept_s = now, 0.0
        spread = SPREAD_S if self._trial_s > SPREAD_S else 0.0
        self._epoch_s[work.key] = (self._trial_s + self._rng.uniform(-spread, spread)) / EPOCHS
        self._epoch(work.key, 0, now)

    def answer(self, key: int, go_on: bool) -> None:
        now = time.perf_counter()
        since, epoch = self._asked.pop(key)
        self._answers.append((now, now - since))
        if go_on:
            self._epoch(key, epoch + 1, now)
        else:
            self._push(now, Ended(key, True, self._trial_s, {"rss_mib": 600.0}, self._picture))

    def wait(self, timeout_s: float) -> list[Message]:
        now = time.perf_counter()
        if self._started is not None and now > self._started + self._seconds:
            raise EnoughError
        if timeout_s:
            until = min(now + timeout_s, self._due[0][0] if self._due else now + timeout_s)
            time.sleep(max(0.0, until - now))
            self._slept_s += time.perf_counter() - now
        said: list[Message] = []
        now = time.perf_counter()
        while self._due and self._due[0][0] <= now:
            at, _, message = heapq.heappop(self._due)
            said.append(message)
            if isinstance(message, Ended):
                self._idle_since.append(at)
                self._ended.append(at)
            elif message.asks:
                self._asked[message.key] = (at, message.record.epoch)
        return said

    def withdraw(self, key: int) -> None:
        raise AssertionError("nobody takes anything over")

    def close(self) -> list[Message]:
        return []

    def watched(self) -> Watched:
        assert self._started is not None
        end = time.perf_counter()
        begin, last = self._started, self._started + self._seconds
        answers = [wait for at, wait in self._answers if at > begin]
        handovers = [wait for at, wait in self._handovers if at > begin]
        still = sum(last - since for since in self._idle_since if since < last)
        still += sum(last - since for since, _ in self._asked.values() if since < last)
        return Watched(
            n_trials=sum(at > begin for at in self._ended),
            watched_s=end - begin,
            busy_s=end - begin - self._slept_s,
            worker_s=self._n * self._seconds,
            lost_s=sum(answers) + sum(handovers) + still,
            answers=answers,
            handovers=handovers,
        )

    def _epoch(self, key: int, epoch: int, now: float) -> None:
        from study.training.records import EpochRecord

        # Ever better, so that hardly any is stopped: a trial of half the length would ask for two.
        accuracy = 0.5 + 0.3 * self._n_given / (self._n_given + 1000) + 0.1 * epoch
        at, last = now + self._epoch_s[key], epoch == EPOCHS - 1
        record = EpochRecord(epoch, 1.0, accuracy, 1.0, accuracy, 0.1, self._epoch_s[key], 0.0)
        self._push(at, EpochEnded(key, record, not last))
        if last:
            self._push(at, Ended(key, False, self._trial_s, {"rss_mib": 600.0}, self._picture))

    def _push(self, at: float, message: EpochEnded | Ended) -> None:
        heapq.heappush(self._due, (at, next(self._order), message))


def simulate(url: str, out: Path, n_workers: int, trial_s: float, seconds: float, seed: int) -> Watched:
    """Runs one supervisor of `n_workers` for so long."""
    import optuna

    from study.search.asking import Asker
    from study.search.plan import SearchPlan
    from study.search.pruning import make_pruner
    from study.search.supervisor import Supervisor
    from study.storage.database import config_of, first_step, open_storage
    from study.storage.known import KnownTrials
    from study.storage.slots import SlotTable
    from study.training.records import TrainingConfig

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(url)
    study = optuna.load_study(study_name=NAME, storage=storage)
    config, slots = config_of(study), SlotTable(study, storage)
    study.pruner = make_pruner(config.pruner, config.epochs, first_step(study))
    n_trials = slots.n_finished() + (1_000_000 if trial_s else 2 * n_workers)
    plan = SearchPlan(url, NAME, out, config.space, "", trials=n_trials, jobs=n_workers)
    executor = Simulated(n_workers, trial_s, seconds, seed)
    known = KnownTrials(study, storage, slots)
    asker = Asker(study, known, config, out / "artifacts")
    supervisor = Supervisor(
        plan, study, known, config, asker, executor,
        lambda seed: TrainingConfig(config.epochs, seed), None,
    )  # fmt: skip
    with contextlib.suppress(EnoughError):
        supervisor.run()
    return executor.watched()


# The study


def make_study(url: str) -> None:
    from search_spaces import DEFAULT_SPACE, get_space
    from search_spaces.constraints import Limits
    from search_spaces.cost import CostModel
    from study.calibration.prices import Calibration
    from study.machine.hardware import hardware
    from study.search.creation import new_study
    from study.storage.config import StudyConfig

    space = get_space(DEFAULT_SPACE)
    config = StudyConfig(
        space.name, space.version, EPOCHS, 15_000, 5_000, 0, "percentile", "anchored", "float32", Limits()
    )
    cost = CostModel(1e-12, 1e-12, 1e-12, 1e-12, 1e-6, 1e-5, "cpu")
    new_study(url, NAME, config, Calibration("cpu", hardware("cpu"), "float32", cost, 0.0), 0.85)


def fill(url: str, n: int) -> None:
    from benchmarks.overhead import fill as fill_storage
    from study.storage.database import open_storage

    fill_storage(open_storage(url), NAME, n)


if __name__ == "__main__":
    run_command(main)
