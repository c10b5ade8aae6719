"""Storage and sampler overhead of a trial at 50, 500 and 5,000 recorded ones.

Ours is what a run does beside the training: the supervisor's slot table and a trial worker in a process of its
own, whose training is replaced by its reports. The peer is the usual script: `study.optimize` in one go on plain
SQLite with Optuna's defaults, over the same dimensions and with as many reports. Both storages hold the same
recorded trials, and the two take turns trial by trial.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from benchmarks.record import write
from search_spaces import DEFAULT_SPACE, SearchSpace
from search_spaces.cost import CostModel
from study.errors import UserError
from study.storage.config import StudyConfig, open_space

TRIAL_S = 20.0
N_EPOCHS = 6
PRUNED_FRAC = 2 / 3
POOL = 50
"""Candidates that the recorded trials share: decoding thousands would take minutes and change nothing here."""
STUDY = "overhead"
PARTS = {
    "claim": "claim a slot",
    "sampler": "Optuna's sampler",
    "sample": "begin the trial, store parameters",
    "candidate": "decode, certify, build",
    "attributes": "attributes and constraints",
    "report": "report and prune",
    "finish": "finish",
    "collect": "garbage collection",
    "other": "other",
    "publish": "publish on the dashboard",
}
"""Where our time goes; `publish` is not part of the overhead that is compared."""

_CONTEXT = multiprocessing.get_context("spawn")


def add_options(parser: argparse.ArgumentParser) -> None:
    sizes = (50, 500, 5000)
    parser.add_argument(
        "--recorded", type=int, nargs="+", default=sizes, metavar="N", help="trials (default: 50 500 5000)"
    )
    parser.add_argument("--samples", type=int, default=11, help="trials of each side at each N (default: 11)")


def run(options: argparse.Namespace) -> int:
    if options.samples < 1 or min(options.recorded) < 20:
        raise UserError(
            "--samples must be at least 1, and --recorded at least 20, from where on the sampler learns: "
            f"{options.samples}, {min(options.recorded)}."
        )
    files = []
    for n_recorded in sorted(set(options.recorded)):
        with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
            ours, peer = measure(n_recorded, options.samples, options.device, Path(folder))
        files.append(_write(options, n_recorded, ours, peer))
    figure = options.out / f"overhead-{options.device}.png"
    draw([json.loads(file.read_text()) for file in files], figure)
    print(f"figure -> {figure}", flush=True)
    return 0


Times = dict[str, float]
"""Milliseconds by part."""


def measure(n_recorded: int, samples: int, device: str, folder: Path) -> tuple[list[Times], list[Times]]:
    """The times of `samples` trials of ours and of the peer's, after a first one, which comes first in each list."""
    url, peer_url = f"sqlite:///{folder / 'ours.db'}", f"sqlite:///{folder / 'peer.db'}"
    slots = fill(url, peer_url, n_recorded, device)
    sides = [_Ours(url, slots, n_recorded, samples + 1, folder), _Peer(peer_url, samples + 1)]
    try:
        times: list[list[Times]] = [[], []]
        for _ in range(samples + 1):
            for side, found in zip(sides, times, strict=True):
                found.append(side.trial())
        return times[0], times[1]
    finally:
        for side in sides:
            side.stop()


def total(times: Mapping[str, float]) -> float:
    """What counts as overhead: everything but the dashboard's notes and pictures."""
    return sum(ms for part, ms in times.items() if part != "publish")


def _write(options: argparse.Namespace, n_recorded: int, ours: Sequence[Times], peer: Sequence[Times]) -> Path:
    (first, *ours), (peer_first, *peer) = ours, peer
    totals = [total(times) for times in ours]
    share = statistics.median(totals) / (1000 * TRIAL_S)
    file = write(
        options,
        f"overhead-{options.device}-{n_recorded}",
        f"overhead of a trial beside its training at {n_recorded:,} recorded trials; "
        "peer: Optuna defaults on plain SQLite, sampling and reporting only",
        options.device,
        "ms/trial",
        totals,
        [total(times) for times in peer],
        f"<= {TRIAL_S * 10:.0f} ms, 1% of a {TRIAL_S:.0f} s trial",
        higher_is_better=False,
        more={
            "n_recorded": n_recorded,
            "n_epochs": N_EPOCHS,
            "breakdown_ms": _medians(ours),
            "peer_breakdown_ms": _medians(peer),
            "first_trial_ms": {"ours": total(first), "peer": total(peer_first)},
            "share_of_a_20_s_trial": share,
            "goal_met": share <= 0.01,
        },
    )
    parts = ", ".join(f"{part} {ms:.0f}" for part, ms in _medians(ours).items())
    print(f"  {n_recorded} recorded, ms: {parts}; first {total(first):.0f}, peer's {total(peer_first):.0f}", flush=True)
    return file


def _medians(trials: Sequence[Times]) -> Times:
    return {
        part: statistics.median(times.get(part, 0.0) for times in trials)
        for part in PARTS
        if any(part in times for times in trials)
    }


# Recorded trials


def fill(url: str, peer_url: str, n_recorded: int, device: str) -> Any:
    """Makes both storages with the same `n_recorded` finished trials; returns our slot table.

    Ours holds all that a run stores with them, the peer's what a plain script does.
    """
    import sqlalchemy as sa

    from study.machine.hardware import hardware, versions
    from study.reporting.dashboard import publish_study
    from study.search.plan import DEFAULT_PRUNER
    from study.storage.database import open_storage
    from study.storage.slots import SlotTable, _slots

    space = open_space(DEFAULT_SPACE)
    config = StudyConfig(space.name, space.version, N_EPOCHS, 15_000, 5_000, 0, DEFAULT_PRUNER, "tpe", "bfloat16")
    cost = cost_model()
    storage = open_storage(url)
    study = optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")
    for name, value in {
        "cost_model": cost.to_json(),
        "hardware": hardware(device),
        "versions": versions(),
        "target_accuracy": 0.85,
        "config": config.to_json(),
    }.items():
        study.set_user_attr(name, value)
    publish_study(study)
    trials = recorded_trials(n_recorded, space, config, cost)
    with storage.engine.begin() as connection:
        _insert(connection, study._study_id, trials)
        _insert_published(connection, study, trials)
    slots = SlotTable(study, storage)
    with storage.engine.begin() as connection:
        rows = [
            {"study_id": study._study_id, "slot": slot, "state": "finished", "attempt": 0, "failures": 0}
            for slot in range(n_recorded)
        ]
        connection.execute(sa.insert(_slots), rows)

    peer = optuna.create_study(study_name=STUDY, storage=peer_url, direction="maximize")
    plain = [_plain(trial) for trial in trials]
    with peer._storage._backend.engine.begin() as connection:
        _insert(connection, peer._study_id, plain)
    return slots


def cost_model() -> CostModel:
    """As calibration makes them; nothing is trained here, so its figures do not matter."""
    return CostModel(3.6e-12, 2.7e-10, 4.6e-10, 2.1e-9, 2.2e-5, 0.0, "cpu")


def recorded_trials(n_recorded: int, space: SearchSpace, config: StudyConfig, cost: CostModel) -> list[FrozenTrial]:
    """Finished trials as a run records them, about two thirds of them pruned, with made curves."""
    from optuna.trial import create_trial

    from search_spaces.constraints import Clock, certify
    from study.machine.hardware import versions
    from study.search.pruning import make_pruner
    from study.search.sampling import suggest

    rng = random.Random(0)
    pruner = make_pruner(config.pruner, config.epochs)
    rungs: list[int] = []  # epochs after which successive halving compares a trial, and notes its value
    if isinstance(pruner, optuna.pruners.SuccessiveHalvingPruner):
        assert pruner._min_resource is not None
        steps = (pruner._min_resource * pruner._reduction_factor**rung for rung in itertools.count())
        rungs = list(itertools.takewhile(lambda step: step < config.epochs, steps))
    clock = Clock(cost, config.train_images, config.val_images)
    pool = []
    for _ in range(min(POOL, n_recorded)):
        decoded = space.decode(space.sample(rng), config.limits, clock)
        architecture = decoded.candidate.architecture
        attributes = {
            "params": architecture.params,
            "receptive_field": architecture.receptive_field,
            "receptive_field_with_pool": architecture.receptive_field_with_pool,
            "macs": architecture.macs,
            "n_dilated_reductions": architecture.n_dilated_reductions,
            "candidate": decoded.candidate.to_json(),
            "candidate_id": decoded.candidate.candidate_id,
            "architecture_id": architecture.architecture_id,
            "repairs": list(decoded.repairs),
            "predicted_s": config.epochs * clock.epoch_s(architecture),
        }
        limits = {f"constraints:{each.name}": each.value for each in certify(architecture, config.limits, clock)}
        pool.append((attributes, limits))
    started = datetime(2025, 1, 1)
    trials = []
    for number in range(n_recorded):
        params = space.sample(rng)
        asked = optuna.trial.FixedTrial(params)
        suggest(asked, space)  # type: ignore[arg-type]
        attributes, limits = pool[number % len(pool)]
        pruned = rng.random() < PRUNED_FRAC
        n_epochs = rng.randrange(config.epochs // 3 + 1, config.epochs) if pruned else config.epochs
        ceiling = rng.uniform(0.2, 0.4) if pruned else rng.uniform(0.4, 0.7)
        curve = [_epoch(epoch, ceiling + 0.02 * epoch) for epoch in range(n_epochs)]
        trial = create_trial(
            state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
            value=None if pruned else curve[-1]["val_accuracy"],
            params=params,
            distributions=asked.distributions,
            user_attrs={
                "slot": number,
                "attempt": 0,
                "sampler_seed": rng.getrandbits(32),
                "training_seed": rng.getrandbits(31),
                "versions": versions() if number == 0 else trials[0].user_attrs["versions"],
                **attributes,
                "curve": curve,
                "wall_s": TRIAL_S,
                **({"reason": f"pruned after epoch {n_epochs} of {config.epochs}"} if pruned else {}),
            },
            system_attrs={
                "tpe:relative_params:0": json.dumps(params),
                **limits,
                **{
                    f"completed_rung_{i}": curve[step]["val_accuracy"]
                    for i, step in enumerate(rungs)
                    if step < n_epochs
                },
            },
            intermediate_values={epoch["epoch"]: epoch["val_accuracy"] for epoch in curve},
        )
        trial.number, trial._trial_id = number, number + 1
        trial.datetime_start = started + timedelta(seconds=TRIAL_S * number)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=TRIAL_S)
        trials.append(trial)
    return trials


def _epoch(epoch: int, val_accuracy: float) -> dict[str, Any]:
    """An entry of the attribute `curve`."""
    return {
        "epoch": epoch,
        "train_loss": 2.0 - val_accuracy,
        "train_accuracy": 0.9 * val_accuracy,
        "val_loss": 1.9 - val_accuracy,
        "val_accuracy": val_accuracy,
        "lr": 0.1 / (1 + epoch),
        "wall_s": TRIAL_S / N_EPOCHS,
        "wait_frac": 0.01234567,
    }


def _plain(trial: FrozenTrial) -> FrozenTrial:
    """The trial without what only this program stores."""
    copied = optuna.trial.create_trial(
        state=trial.state,
        value=trial.value,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs={"tpe:relative_params:0": trial.system_attrs["tpe:relative_params:0"]},
        intermediate_values=trial.intermediate_values,
    )
    copied.number, copied._trial_id = trial.number, trial._trial_id
    copied.datetime_start, copied.datetime_complete = trial.datetime_start, trial.datetime_complete
    return copied


def _insert(connection: Any, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    """Writes finished trials to empty tables at once: one by one, thousands would take half an hour."""
    import sqlalchemy as sa
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models

    rows: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for trial in trials:
        key = {"trial_id": trial._trial_id}
        rows[models.TrialModel].append(
            {
                **key,
                "study_id": study_id,
                "number": trial.number,
                "state": trial.state,
                "datetime_start": trial.datetime_start,
                "datetime_complete": trial.datetime_complete,
            }
        )
        if trial.value is not None:
            value, kind = models.TrialValueModel.value_to_stored_repr(trial.value)
            rows[models.TrialValueModel].append({**key, "objective": 0, "value": value, "value_type": kind})
        rows[models.TrialParamModel] += [
            {
                **key,
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ]
        for model, attributes in (
            (models.TrialUserAttributeModel, trial.user_attrs),
            (models.TrialSystemAttributeModel, trial.system_attrs),
        ):
            rows[model] += [{**key, "key": name, "value_json": json.dumps(value)} for name, value in attributes.items()]
        for step, value in trial.intermediate_values.items():
            stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
            rows[models.TrialIntermediateValueModel].append(
                {**key, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
            )
    for model, found in rows.items():
        if found:  # a plain script has no user attributes
            connection.execute(sa.insert(model.__table__), found)


def _insert_published(connection: Any, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    """Writes what publishing stores of every trial: its heartbeat, its note and the entries of its two files."""
    import sqlalchemy as sa
    from optuna.storages._rdb import models

    from study.reporting import dashboard

    notes: dict[str, str] = {}
    rows = []
    for trial in trials:
        candidate = trial.user_attrs["candidate_id"]
        if candidate not in notes:
            notes[candidate] = dashboard.trial_note(study, trial)
        prefix = f"dashboard:{trial._trial_id}:"
        parts = [notes[candidate][start : start + 2045] for start in range(0, len(notes[candidate]), 2045)]
        entries: dict[str, Any] = {f"{prefix}note_ver": 1}
        entries |= {f"{prefix}note_str:{index}": part for index, part in enumerate(parts)}
        for filename in (dashboard.LAYERS, dashboard.CURVE):
            artifact_id = f"{trial.number:08d}-{filename}".ljust(36, "-")
            meta = {"artifact_id": artifact_id, "filename": filename, "mimetype": "text/csv", "encoding": None}
            entries[dashboard._ARTIFACT_KEY.format(trial_id=trial._trial_id, artifact_id=artifact_id)] = json.dumps(
                meta
            )
        rows += [
            {"study_id": study._study_id, "key": key, "value_json": json.dumps(value)} for key, value in entries.items()
        ]
    connection.execute(sa.insert(models.StudySystemAttributeModel.__table__), rows)
    beats = [{"trial_id": trial._trial_id, "heartbeat": trial.datetime_complete} for trial in trials]
    connection.execute(sa.insert(models.TrialHeartbeatModel.__table__), beats)


# The two sides


class Clock:
    """Milliseconds by part: every moment belongs to the innermost part that runs."""

    def __init__(self) -> None:
        self._spent: Times = defaultdict(float)
        self._running = ["other"]
        self._last = time.perf_counter()

    def _switch(self) -> None:
        now = time.perf_counter()
        self._spent[self._running[-1]] += 1000 * (now - self._last)
        self._last = now

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time belongs to `part`."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._running.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._running.pop()

        return timed

    def watch(self, owner: Any, names: Sequence[str], part: str) -> None:
        """Has the time of these functions of `owner` belong to `part` from now on."""
        for name in names:
            setattr(owner, name, self.around(part, getattr(owner, name)))

    def reset(self) -> None:
        self._spent.clear()
        self._last = time.perf_counter()

    def read(self) -> Times:
        """Since the last reset."""
        self._switch()
        return dict(self._spent)


def _watch_optuna(clock: Clock) -> None:
    from optuna.study import _optimize

    clock.watch(optuna.Study, ("ask",), "sample")
    clock.watch(optuna.samplers.TPESampler, ("infer_relative_search_space", "sample_relative"), "sampler")
    clock.watch(optuna.Trial, ("set_user_attr", "set_constraint"), "attributes")
    clock.watch(optuna.Trial, ("report", "should_prune"), "report")
    clock.watch(_optimize, ("_tell_with_warning",), "finish")


class _Ours:
    """The supervisor's part of a run, and its worker in a process of its own."""

    def __init__(self, url: str, slots: Any, n_recorded: int, n_trials: int, folder: Path) -> None:
        from study.search.workers import WorkerSetup

        setup = WorkerSetup(url, STUDY, str(folder), "cpu", 1, 0, str(folder / "artifacts"))
        self.slots, self.n_slots = slots, n_recorded + n_trials
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_work, args=(theirs, setup), daemon=True)
        self.process.start()
        theirs.close()

    def trial(self) -> Times:
        """Runs the next slot as `study.run` does."""
        from study.search.objective import Slot
        from study.search.sampling import sampler_seed, training_seed

        clock = Clock()
        n_finished, claim, finish = (
            clock.around("claim", self.slots.n_finished),
            clock.around("claim", self.slots.claim),
            clock.around("finish", self.slots.finish),
        )
        assert n_finished() < self.n_slots
        claimed = claim(self.n_slots)
        slot = Slot(
            claimed.slot,
            claimed.attempt,
            sampler_seed(0, claimed.slot, claimed.attempt),
            training_seed(0, claimed.slot),
        )
        wait = clock.around("waited", self._wait)
        worked = wait(slot)
        finish(claimed.slot)
        times = clock.read()
        times["other"] += times.pop("waited") - sum(worked.values())  # the way through the pipe
        for part, ms in worked.items():
            times[part] = times.get(part, 0.0) + ms
        return times

    def _wait(self, slot: Any) -> Times:
        self.connection.send(slot)
        while True:
            message = self.connection.recv()
            if isinstance(message, dict):
                return message
            if type(message).__name__ == "Crashed":
                raise RuntimeError(message.traceback)
            if type(message).__name__ == "Ended" and message.state != "COMPLETE":
                raise RuntimeError(f"trial {message.trial_number} ended as {message.state}: {message.reason}")

    def stop(self) -> None:
        self.connection.close()
        self.process.join(10)
        self.process.kill()


class _Timed:
    """A worker's connection that also tells the supervisor where a trial's time went."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection, self._clock = connection, clock
        self._opening: Times | None = None

    def recv(self) -> Any:
        if self._opening is None:
            self._opening = self._clock.read()
        slot = self._connection.recv()
        self._clock.reset()
        return slot

    def send(self, message: Any) -> None:
        self._connection.send(message)
        if type(message).__name__ == "Ended":
            times = self._clock.read()
            assert self._opening is not None
            times["sample"] += self._opening.pop("open", 0.0)  # opening the study belongs to the first trial
            self._connection.send(times)


def _work(connection: Connection, setup: Any) -> None:
    """A trial worker that trains nothing: every part beside the training is the real one."""
    import gc

    import numpy as np
    from optuna.study import _optimize

    from study.data import cifar10 as data
    from study.reporting import dashboard
    from study.search import objective, workers
    from study.storage import database as storage
    from study.training.records import EpochRecord, Trained

    def reports(candidate: Any, images: Any, config: Any, validation: Any, on_epoch: Any) -> Trained:
        records = [EpochRecord(**_epoch(epoch, 0.8 + 0.02 * epoch)) for epoch in range(config.epochs)]
        for record in records:
            on_epoch(record)
        return Trained(None, records, {})  # type: ignore[arg-type]

    nothing = data.Images(np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.int64))
    data.load_train = lambda folder: nothing  # type: ignore[assignment]
    data.search_split = lambda labels, n_train, n_val: (labels, labels)  # type: ignore[assignment]
    objective.train = reports  # type: ignore[assignment]

    clock = Clock()
    _watch_optuna(clock)
    clock.watch(storage, ("open_study",), "open")
    clock.watch(objective, ("suggest",), "sample")
    clock.watch(objective, ("versions",), "attributes")
    clock.watch(objective, ("certify", "build", "certify_module"), "candidate")
    clock.watch(type(open_space(DEFAULT_SPACE)), ("decode",), "candidate")
    clock.watch(optuna.Study, ("optimize",), "finish")
    clock.watch(_optimize.gc, ("collect",), "collect")
    clock.watch(dashboard, ("publish_trial",), "publish")
    objective.Objective.__call__ = clock.around("other", objective.Objective.__call__)  # type: ignore[method-assign]
    gc.collect()
    try:
        workers._serve(_Timed(connection, clock), setup)  # type: ignore[arg-type]
    except (EOFError, BrokenPipeError):
        pass  # measured
    except Exception:
        import traceback

        connection.send(workers.Crashed(traceback.format_exc()))


class _Peer:
    """The usual script in a process of its own."""

    def __init__(self, url: str, n_trials: int) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_usual_script, args=(theirs, url, n_trials), daemon=True)
        self.process.start()
        theirs.close()

    def trial(self) -> Times:
        """Lets it run one trial more."""
        self.connection.send(None)
        times: Times = self.connection.recv()
        return times

    def stop(self) -> None:
        self.connection.close()
        self.process.join(10)
        self.process.kill()


def _usual_script(connection: Connection, url: str, n_trials: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Optuna logs every trial by default: done, but not shown
    from study.search.sampling import suggest

    space = open_space(DEFAULT_SPACE)

    def objective(trial: optuna.Trial) -> float:
        suggest(trial, space)
        for epoch in range(N_EPOCHS):
            trial.report(0.8 + 0.02 * epoch, epoch)
            if epoch + 1 < N_EPOCHS and trial.should_prune():
                raise optuna.TrialPruned
        return 0.8 + 0.02 * (N_EPOCHS - 1)

    clock = Clock()
    _watch_optuna(clock)
    ask = optuna.Study.ask
    n_asked = 0

    def ask_in_turn(study: optuna.Study, *args: Any, **kwargs: Any) -> optuna.Trial:
        nonlocal n_asked
        if n_asked:
            connection.send(clock.read())
            connection.recv()
            clock.reset()
        n_asked += 1
        return ask(study, *args, **kwargs)

    optuna.Study.ask = ask_in_turn  # type: ignore[method-assign]
    connection.recv()
    clock.reset()
    study = optuna.load_study(study_name=STUDY, storage=url)
    study.optimize(clock.around("sample", objective), n_trials=n_trials)
    connection.send(clock.read())


# The figure


def draw(records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Growth over recorded trials: both sides' totals on the left, our parts on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    growth, parts = figure.subplots(1, 2)
    sizes = [record["n_recorded"] for record in records]
    for side, label, colour in (("ours", "ours", "#0072B2"), ("peer", "Optuna defaults, plain SQLite", "#D55E00")):
        median = [record[side]["median"] for record in records]
        low = [record[side]["median"] - record[side]["min"] for record in records]
        high = [record[side]["max"] - record[side]["median"] for record in records]
        growth.errorbar(sizes, median, (low, high), color=colour, label=label, marker="o", capsize=3)
    goal = 10 * TRIAL_S
    growth.axhline(goal, color="#666666", linestyle="--", linewidth=1)
    growth.annotate(
        f"goal: 1% of a {TRIAL_S:.0f} s trial",
        (0, goal),
        xycoords=("axes fraction", "data"),
        xytext=(4, 4),
        textcoords="offset points",
        ha="left",
        color="#666666",
    )
    growth.set_xscale("log")
    growth.set_xticks(sizes, [f"{size:,}" for size in sizes])
    growth.minorticks_off()
    highest = max(record[side]["max"] for record in records for side in ("ours", "peer"))
    growth.set_ylim(0, 1.3 * max(highest, goal))  # room for the legend
    growth.set_xlabel("recorded trials")
    growth.set_ylabel("ms a trial (median, range)")
    growth.set_title("Storage and sampler overhead")
    growth.legend(frameon=False, loc="upper left")

    positions = range(len(records))
    bottom = [0.0] * len(records)
    colours = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#D55E00", "#CC79A7", "#8c6bb1", "#999999")
    shown = [part for part in PARTS if part != "publish"]
    for part, colour in zip(shown, colours, strict=True):
        heights = [record["breakdown_ms"].get(part, 0.0) for record in records]
        parts.bar(positions, heights, 0.6, bottom=bottom, color=colour, label=PARTS[part])
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    parts.set_xticks(positions, [f"{size:,}" for size in sizes])
    parts.set_xlabel("recorded trials")
    parts.set_title("Where our time goes (medians)")
    handles, labels = parts.get_legend_handles_labels()
    parts.legend(handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for axis in (growth, parts):
        axis.grid(axis="y", color="#e4e8ec")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Software": None})
