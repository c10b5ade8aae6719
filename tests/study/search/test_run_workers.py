"""`study.run` from its command line to what it leaves behind: exactly N, whatever ends a run.

The runs here train for real, on a few made images that stand in the user's cache as CIFAR-10 does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

from search_spaces import get_space
from search_spaces.constraints import Limits
from search_spaces.cost import CostModel
from search_spaces.dilated import DilatedSpace
from search_spaces.space import Decoded
from study.calibration import prices as calibration
from study.calibration.prices import Calibration
from study.command_line.parser import run_command
from study.data import cifar10 as data
from study.data.cifar10 import FOLDER, Images
from study.errors import CaptureFailed, StudyFailed, TrialFailed, UserError
from study.machine.hardware import hardware
from study.machine.paths import REPOSITORY
from study.run import main
from study.search import supervisor, workers
from study.search.creation import anchors, refuse_impossible
from study.search.objective import Objective, Slot
from study.search.plan import SearchPlan
from study.search.sampling import N_STARTUP_TRIALS, make_sampler, suggest, training_seed
from study.search.supervisor import MAX_FAILURES_IN_A_ROW, MAX_INFEASIBLE_IN_A_ROW, Supervisor
from study.search.workers import Crashed, Ended, Started, WorkerSetup
from study.storage.config import StudyConfig
from study.storage.database import FINISHED, checkpoint_sqlite, open_storage
from study.storage.slots import SlotTable
from study.training.loop import Training

EPOCHS = 3
TINY = (
    "--device", "cpu", "--precision", "float32", "--epochs", str(EPOCHS), "--train-images", "40",
    "--val-images", "20", "--study-name", "tiny", "--jobs", "1", "--pruner", "percentile",
)  # fmt: skip
PATIENCE_S = 600  # a cap for busy machines; nothing waits that long otherwise

COST = CostModel(
    dense_mac_s=1e-9,
    depthwise_mac_s=1e-8,
    depthwise_other_mac_s=1e-8,
    activation_s=1e-8,
    image_s=1e-5,
    operation_s=1e-5,
    device="cpu",
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, decoding: Callable[[pytest.MonkeyPatch], None]) -> Iterator[Path]:
    """A user's cache that holds 5,200 made training images, no test image, and a calibration.

    Written by the program's own code, so that the workers' processes find it there.
    """
    root = tmp_path_factory.mktemp("user")
    folder = root / "data" / FOLDER
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"made")
    rng = np.random.default_rng(0)
    labels = np.arange(5_200) % 10
    pixels = rng.integers(0, 100, (5_200, 32, 32, 3), dtype=np.uint8)
    pixels[..., 0] += (15 * labels[:, None, None]).astype(np.uint8)  # something to learn

    class MadeCifar10:
        def __init__(self, root: str, train: bool) -> None:
            assert train, "a run asked for the test images"
            self.data, self.targets = pixels, labels.tolist()

    class MadePool:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def __enter__(self) -> MadePool:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def submit(self, _: Callable[..., Any], device: str, spoiled: frozenset[str]) -> Future[Calibration]:
            done: Future[Calibration] = Future()
            done.set_result(Calibration(device, hardware(device), "float32", COST, 0.0))
            return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setenv("STUDY_DATA", str(folder.parent))
        with pytest.MonkeyPatch.context() as briefly:
            briefly.setattr("torchvision.datasets.CIFAR10", MadeCifar10)
            decoding(briefly)
            briefly.setattr(calibration, "ProcessPoolExecutor", MadePool)
            data.load_train()
            calibration.calibrate("cpu")
        yield root / "cache"


# What a study holds


def url_of(out: Path) -> str:
    return f"sqlite:///{out / 'study.db'}"


def trials_of(out: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="tiny", storage=open_storage(url_of(out))).get_trials()


def finished_of(out: Path) -> dict[int, FrozenTrial]:
    """The finished trials by slot; no slot may have two."""
    found: dict[int, FrozenTrial] = {}
    for trial in trials_of(out):
        if trial.state in FINISHED:
            assert trial.user_attrs["slot"] not in found, "a slot was finished twice"
            found[trial.user_attrs["slot"]] = trial
    return found


def result(trial: FrozenTrial) -> tuple[Any, ...]:
    """All of a trial that must not depend on how often its run was stopped."""
    attrs = trial.user_attrs
    return trial.params, trial.value, trial.intermediate_values, attrs["training_seed"], attrs["candidate_id"]


def results(out: Path, n_slots: int) -> list[tuple[Any, ...]]:
    finished = finished_of(out)
    assert sorted(finished) == list(range(n_slots))
    return [result(finished[slot]) for slot in range(n_slots)]


def dump(out: Path) -> list[str]:
    connection = sqlite3.connect(out / "study.db")
    lines = list(connection.iterdump())
    connection.close()
    return lines


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: main(arguments))
    return cast(int, caught.value.code)


@contextmanager
def command(out: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, as a terminal starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "study.run", *TINY, *arguments, "--out", str(out)],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if not group_is_gone(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


def in_the_middle_of(out: Path, slot: int) -> Callable[[], bool]:
    """Whether the slot's trial runs and has reported an epoch, but not its last but one."""
    query = """
        SELECT count(*) FROM trials JOIN trial_user_attributes USING (trial_id)
        JOIN trial_intermediate_values USING (trial_id)
        WHERE state = 'RUNNING' AND key = 'slot' AND value_json = ?
    """

    def look() -> bool:
        try:
            connection = sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True)
            try:
                return bool(0 < connection.execute(query, (str(slot),)).fetchone()[0] < EPOCHS)
            finally:
                connection.close()
        except sqlite3.OperationalError:  # not there yet
            return False

    return look


def freeze_in_the_middle(process: subprocess.Popen[str], out: Path, slot: int) -> None:
    """Stops the whole group while the slot trains: however slow this process is, the moment does not pass."""
    look = in_the_middle_of(out, slot)

    def caught() -> bool:
        assert process.poll() is None, "the run was over before it could be stopped"
        if not look():
            return False
        os.killpg(process.pid, signal.SIGSTOP)
        if look():
            return True
        os.killpg(process.pid, signal.SIGCONT)
        return False

    wait_until(caught, f"slot {slot} trains")


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


# Runs


@dataclasses.dataclass(frozen=True)
class Story:
    """A study that was asked for 3 trials, for the same 3 again, then for 5."""

    out: Path
    codes: list[int]
    trials: list[list[FrozenTrial]]
    output: list[str]


@pytest.fixture(scope="module")
def story(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    out = tmp_path_factory.mktemp("story")
    codes, trials, output = [], [], []
    for n_trials in (3, 3, 5):
        log = out / "log"
        with log.open("w") as stream, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            codes.append(main([*TINY, "--trials", str(n_trials), "--out", str(out)]))
        trials.append(trials_of(out))
        output.append(log.read_text())
    return Story(out, codes, trials, output)


def test_trials_n_means_exactly_n_finished_trials(story: Story) -> None:
    assert story.codes == [0, 0, 0]
    assert [len(trials) for trials in story.trials] == [3, 3, 5]
    assert all(trial.state in FINISHED for trial in story.trials[-1])
    assert sorted(finished_of(story.out)) == list(range(5))


def test_a_finished_study_is_not_touched_by_asking_again(story: Story) -> None:
    assert story.trials[1] == story.trials[0]
    assert [result(trial) for trial in story.trials[2][:3]] == [result(trial) for trial in story.trials[0]]


def test_a_run_says_what_it_resumes(story: Story) -> None:
    assert "tiny (new)" in story.output[0]
    assert "tiny (resumed, 3 trials finished)" in story.output[1]
    assert "for 0 more trials" in story.output[1]
    assert "[5/5] slot 4" in story.output[2]
    assert all("optuna-dashboard" in output for output in story.output)


def test_a_trial_stores_all_that_the_report_and_the_retrain_read(story: Story) -> None:
    for slot, trial in enumerate(story.trials[-1]):
        attrs = trial.user_attrs
        wanted = {
            "slot", "attempt", "params", "receptive_field", "receptive_field_with_pool", "macs",
            "n_dilated_reductions", "candidate", "candidate_id", "architecture_id", "repairs", "training_seed",
            "sampler_seed", "predicted_s", "wall_s", "versions", "curve",
        }  # fmt: skip
        assert wanted <= set(attrs)
        assert (attrs["slot"], attrs["attempt"]) == (slot, 0)
        assert attrs["training_seed"] == training_seed(0, slot)
        assert len(attrs["curve"]) == len(trial.intermediate_values) == EPOCHS
        assert trial.value == trial.intermediate_values[EPOCHS - 1] == attrs["curve"][-1]["val_accuracy"]
        assert trial.constraints
        assert all(value <= 0 for value in trial.constraints.values())
    assert [trial.user_attrs.get("anchor") for trial in story.trials[-1]][:3] == ["reference", "default", None]


def test_a_run_loads_no_test_image(story: Story, cache: Path) -> None:
    calls = [json.loads(file.read_text())["input_args"] for file in cache.rglob("metadata.json")]
    assert [call["train"] for call in calls] == ["True"]
    assert not (Path(os.environ["STUDY_DATA"]) / FOLDER / "test_batch").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "4"], "epochs: 3 -> 4"),
        (["--seed", "5"], "seed: 0 -> 5"),
        (["--max-params", "100000"], "max_params: 200000 -> 100000"),
        (["--sampler", "random", "--pruner", "none"], "pruner: percentile -> none; sampler: anchored -> random"),
        (["--space", "unknown"], "No search space is called 'unknown'"),
    ],
)
def test_a_mismatched_resume_is_refused_and_changes_nothing(
    options: list[str], words: str, story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dump(story.out)
    assert exit_code(*TINY, "--trials", "9", "--out", str(story.out), *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert dump(story.out) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trials", "0"], "--trials must be at least 1: 0"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--jobs", "100000"], "--jobs must not exceed the cores"),
        (["--timeout", "0"], "--timeout must be above 0"),
        (["--target-accuracy", "85"], "For 85% write 0.85"),
        (["--train-images", "9"], "--train-images must be between 10"),
        (["--sampler", "gp", "--pruner", "median"], "--sampler gp"),
        (["--max-params", "500"], "No candidate of the space 'dilated' can meet these limits"),
        (["--min-receptive-field", "100000"], "No candidate of the space 'dilated' can meet these limits"),
        (["--max-macs", "1000"], "No candidate of the space 'dilated' can meet these limits"),
        (["--max-epoch-s", "1e-9"], "No candidate of the space 'dilated' can meet these limits"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(
    options: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("study.search.workers.Worker", None)  # no process may be started
    assert exit_code(*TINY, "--out", str(tmp_path), *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    if (tmp_path / "study.db").exists():
        assert open_storage(url_of(tmp_path)).get_all_studies() == []


@pytest.mark.parametrize("max_params", [1_200, 1_500, 2_000, 3_000, 5_000])
def test_tight_limits_are_either_refused_or_leave_anchors(max_params: int) -> None:
    space, limits = get_space("dilated"), Limits(max_params=max_params)
    config = dataclasses.replace(CONFIG, limits=limits)
    try:
        refuse_impossible(space, config, COST)
    except UserError:
        return
    anchors(space, config, COST)


@pytest.mark.slow
@pytest.mark.slow
def test_an_interrupted_and_resumed_study_equals_an_uninterrupted_one(story: Story, tmp_path: Path) -> None:
    with command(tmp_path, "--trials", "4") as process:
        freeze_in_the_middle(process, tmp_path, slot=2)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to the whole group
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(2)  # the supervisor stops its worker before that can go on
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        output = process.communicate(timeout=PATIENCE_S)[0]
        assert process.returncode == 130, output
        assert "Stopped. 2 trials are finished; the same command goes on." in output
        assert "Traceback" not in output
        wait_until(lambda: group_is_gone(process.pid), "all processes are gone")
    [stopped] = [trial for trial in trials_of(tmp_path) if trial.state not in FINISHED]
    assert (stopped.state, stopped.user_attrs["reason"]) == (TrialState.FAIL, "interrupted")

    assert main([*TINY, "--trials", "4", "--out", str(tmp_path)]) == 0
    assert results(tmp_path, 4) == results(story.out, 5)[:4]
    assert finished_of(tmp_path)[2].params == stopped.params
    assert len(trials_of(tmp_path)) == 5


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("everything", [True, False], ids=["everything", "supervisor alone"])
def test_a_killed_run_is_completed_by_the_next_one(everything: bool, story: Story, tmp_path: Path) -> None:
    with command(tmp_path, "--trials", "4") as process:
        freeze_in_the_middle(process, tmp_path, slot=2)
        if everything:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        wait_until(lambda: group_is_gone(process.pid), "no worker outlives its supervisor")
    [left] = [trial for trial in trials_of(tmp_path) if trial.state not in FINISHED]
    assert (left.state, left.user_attrs["slot"]) == (TrialState.RUNNING, 2)

    assert main([*TINY, "--trials", "4", "--out", str(tmp_path)]) == 0
    assert results(tmp_path, 4) == results(story.out, 5)[:4]
    again = finished_of(tmp_path)[2]
    assert again.params == left.params
    assert again.user_attrs["training_seed"] == left.user_attrs["training_seed"]
    failed = trials_of(tmp_path)[left.number]
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["reason"] == "interrupted: its process is gone"
    assert len(trials_of(tmp_path)) == 5


@pytest.mark.slow
@pytest.mark.slow
def test_a_killed_worker_costs_one_trial_and_not_the_study(
    story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill() -> None:
        wait_until(in_the_middle_of(tmp_path, slot=2), "slot 2 trains")
        [worker] = [child for child in multiprocessing.active_children() if child.name == "trial-worker"]
        os.kill(cast(int, worker.pid), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main([*TINY, "--trials", "4", "--out", str(tmp_path)]) == 0
    killer.join()
    assert results(tmp_path, 4) == results(story.out, 5)[:4]
    [failed] = [trial for trial in trials_of(tmp_path) if trial.state == TrialState.FAIL]
    assert failed.user_attrs["reason"] == "the worker was killed by SIGKILL (is there enough memory?)"
    assert failed.params == finished_of(tmp_path)[2].params
    assert "slot 2: failed: the worker was killed by SIGKILL" in capsys.readouterr().err


@pytest.mark.cifar10
def test_a_run_on_the_real_images(cifar10_folder: str, tmp_path: Path) -> None:
    # $STUDY_DATA names the made images in this file; the fixture read it before.
    assert main([*TINY, "--trials", "2", "--out", str(tmp_path), "--data", cifar10_folder]) == 0
    assert sorted(finished_of(tmp_path)) == [0, 1]
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_what_only_shows_results_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No dashboard, no plotly, no matplotlib: neither here nor in the workers. The study is none the worse."""
    for name in ("optuna_dashboard", "plotly", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} on this machine')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-m", "study.run", *TINY, "--trials", "2", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "No report: ImportError: no plotly on this machine" in done.stdout
    assert "Next:   python -m study.retrain" in done.stdout
    assert "no notes (ImportError: no optuna_dashboard on this machine)" in done.stderr
    finished = finished_of(tmp_path / "out")
    assert sorted(finished) == [0, 1]
    assert all(trial.value is not None for trial in finished.values() if trial.state == TrialState.COMPLETE)


@pytest.mark.slow
def test_a_worker_whose_capture_fails_ends_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would leave torch's allocator counting; the supervisor takes the worker for dead and goes on."""
    assert main([*TINY, "--trials", "1", "--out", str(tmp_path)]) == 0

    def refuse(training: Training) -> None:
        raise CaptureFailed("RuntimeError: operation not permitted when stream is capturing")

    monkeypatch.setattr(Training, "prepare", refuse)
    monkeypatch.setattr(workers, "end_with_parent", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    ours, theirs = multiprocessing.Pipe()
    ours.send(Slot(1, 0, 1, 2))
    setup = WorkerSetup(url_of(tmp_path), "tiny", os.environ["STUDY_DATA"], "cpu", 1, 0, str(tmp_path / "artifacts"))
    with pytest.raises(SystemExit):
        workers._main(theirs, setup)
    started, crashed = ours.recv(), ours.recv()
    assert isinstance(started, Started)
    assert isinstance(crashed, Crashed)
    assert crashed.traceback == (
        "a CUDA graph could not be captured: RuntimeError: operation not permitted when stream is capturing"
    )
    trial = trials_of(tmp_path)[started.trial_number]
    assert trial.state == TrialState.FAIL
    assert "stream is capturing" in trial.user_attrs["reason"]
    assert "candidate" in trial.user_attrs  # so that its slot is run again with the same parameters
    monkeypatch.undo()
    assert main([*TINY, "--trials", "2", "--out", str(tmp_path)]) == 0
    assert sorted(finished_of(tmp_path)) == [0, 1]


# One trial


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


class HotSpace(DilatedSpace):
    """Every candidate learns far too fast."""

    def decode(self, *args: Any) -> Decoded:
        decoded = super().decode(*args)
        hot = dataclasses.replace(decoded.candidate.optimisation, lr=1e30)
        return dataclasses.replace(decoded, candidate=dataclasses.replace(decoded.candidate, optimisation=hot))


class WideSpace(DilatedSpace):
    """Every candidate breaks a limit that its decoder forgets."""

    def decode(self, params: Any, limits: Limits, clock: Any = None) -> Decoded:
        return super().decode(params, Limits(), clock)


def run_objective(
    tiny_images: Images,
    space: DilatedSpace | None = None,
    limits: Limits | None = None,
    anchor: str | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> FrozenTrial:
    slot = Slot(3, 0, 1, 2, fixed=dict(DilatedSpace().anchors(Limits())["default"]), anchor=anchor)
    half = np.arange(100)
    objective = Objective(
        slot,
        space or DilatedSpace(),
        dataclasses.replace(CONFIG, limits=limits or Limits()),
        COST,
        tiny_images.take(half),
        tiny_images.take(half + 100),
        device="cpu",
        n_loaders=0,
    )
    sampler = make_sampler("random", 1, slot.fixed)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner or optuna.pruners.NopPruner())
    study.optimize(objective, n_trials=1, catch=(TrialFailed,))
    return study.trials[0]


@pytest.mark.parametrize(("anchor", "state", "n_epochs"), [(None, "PRUNED", 1), ("default", "COMPLETE", 2)])
def test_anchors_are_never_pruned(tiny_images: Images, anchor: str | None, state: str, n_epochs: int) -> None:
    strict = optuna.pruners.ThresholdPruner(lower=1.1)  # no accuracy is enough
    trial = run_objective(tiny_images, anchor=anchor, pruner=strict)
    assert (trial.state.name, len(trial.intermediate_values)) == (state, n_epochs)


@pytest.mark.parametrize(("pruner", "validated_on"), [("halving", [20, 20, 100, 20, 20, 100]), ("none", [100] * 6)])
def test_halving_needs_all_validation_images_only_where_it_compares(
    tiny_images: Images, monkeypatch: pytest.MonkeyPatch, pruner: str, validated_on: list[int]
) -> None:
    monkeypatch.setitem(globals(), "CONFIG", dataclasses.replace(CONFIG, epochs=6, pruner=pruner))
    trial = run_objective(tiny_images)
    assert [epoch["n_val"] for epoch in trial.user_attrs["curve"]] == validated_on


def test_a_trial_never_loads_a_test_image(tiny_images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the objective asked for test images")

    monkeypatch.setattr(data, "load_test", refuse)
    monkeypatch.setattr(data, "_load", refuse)
    trial = run_objective(tiny_images)
    assert trial.state == TrialState.COMPLETE
    assert "test" not in json.dumps(trial.user_attrs)


def test_a_trial_that_diverges_fails_with_the_reason(tiny_images: Images) -> None:
    trial = run_objective(tiny_images, HotSpace())
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"].startswith("diverged: ")
    assert "lr=1e+30" in trial.user_attrs["reason"]
    assert trial.user_attrs["wall_s"] > 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory: "),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: "),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "no kernel runs this network: "),
    ],
)
def test_a_trial_without_memory_or_kernels_fails_with_the_reason(
    error: Exception, reason: str, tiny_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*args: Any) -> None:
        raise error

    monkeypatch.setattr(Training, "_epoch", run_out)
    trial = run_objective(tiny_images)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"].startswith(reason)
    assert "candidate" in trial.user_attrs  # so that its slot is run again with the same parameters


def test_an_infeasible_candidate_is_never_trained(tiny_images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.search.objective.train", None)
    trial = run_objective(tiny_images, WideSpace(), Limits(max_params=10_000))
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"].startswith("infeasible: ")
    assert trial.constraints["parameters"] > 0
    assert "candidate" not in trial.user_attrs


def test_a_bug_is_not_taken_for_a_failed_trial(tiny_images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: Any) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr(Training, "_epoch", bug)
    with pytest.raises(IndexError, match="a bug"):
        run_objective(tiny_images)


# The supervisor, with workers that follow a script


class ScriptedWorker:
    """Stands for `study.search.workers.Worker`: plays the next outcome of the script in this process.

    Outcomes: complete, pruned, failed, infeasible, dies, dies late (after its result is stored),
    crashes, hangs, dies early (before its trial begins), starts (no trial yet), leaves (completes, then dies idle).
    """

    script: ClassVar[list[str]] = []
    study: ClassVar[optuna.Study]
    made: ClassVar[list[ScriptedWorker]] = []
    slots: ClassVar[list[Slot]] = []

    def __init__(self, setup: WorkerSetup) -> None:
        self.connection, self.theirs = multiprocessing.Pipe()
        self.sentinel, self.alive_end = os.pipe()
        self.alive = True
        self.process = SimpleNamespace(sentinel=self.sentinel, is_alive=lambda: self.alive)
        self.slot: Slot | None = None
        self.trial_number: int | None = None
        self.gpu = setup.gpu
        self.made.append(self)

    def run(self, slot: Slot) -> None:
        if not self.alive:
            raise BrokenPipeError("an idle worker was gone")
        self.slot, self.trial_number = slot, None
        self.slots.append(slot)
        assert self.script, "the supervisor ran more than the script"
        outcome = self.script.pop(0)
        if outcome == "starts":
            return
        if outcome == "dies early":
            self.die()
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.study.sampler = make_sampler("random", slot.sampler_seed, slot.fixed)
            trial = self.study.ask()
        trial.set_user_attr("slot", slot.index)
        trial.set_user_attr("attempt", slot.attempt)
        self.theirs.send(Started(trial.number))
        suggest(trial, get_space("dilated"))
        if outcome != "infeasible":
            trial.set_user_attr("candidate", {})
        if outcome in ("complete", "leaves", "dies late"):
            self.study.tell(trial, 0.5)
        elif outcome == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
        elif outcome in ("failed", "infeasible"):
            trial.set_user_attr("reason", outcome)
            self.study.tell(trial, state=TrialState.FAIL)
        if outcome in ("complete", "leaves", "pruned", "failed", "infeasible"):
            state = self.study.trials[trial.number].state.name
            self.theirs.send(Ended(trial.number, state, 0.5, outcome, 1.0, outcome == "infeasible"))
        if outcome == "crashes":
            self.theirs.send(Crashed("Traceback of a worker\nIndexError: a bug"))
        if outcome in ("dies", "dies late", "crashes", "leaves"):
            self.die()

    def die(self) -> None:
        self.alive = False
        self.theirs.close()
        os.close(self.alive_end)

    def stop(self) -> None:
        if self.alive:
            self.die()
        if not self.connection.closed:
            self.connection.close()
            os.close(self.sentinel)

    def death(self) -> str:
        return "the worker was killed by SIGKILL"


class Stage:
    """A study, and supervisors that follow scripts on it."""

    def __init__(self, file: Path) -> None:
        self.storage = open_storage(f"sqlite:///{file}")
        self.study = optuna.load_study(study_name="stage", storage=self.storage)
        self.slots = SlotTable(self.study, self.storage)
        self.n_anchors = len(anchors(get_space("dilated"), CONFIG, COST))
        ScriptedWorker.study = self.study

    def play(
        self,
        script: Sequence[str],
        trials: int,
        jobs: int = 1,
        timeout: float | None = None,
        gpus: Sequence[str] = (),
    ) -> str:
        ScriptedWorker.script = list(script)
        ScriptedWorker.made, ScriptedWorker.slots = [], []
        plan = SearchPlan("sqlite://", "tiny", Path(), "dilated", "", trials=trials, jobs=jobs, timeout_s=timeout)
        setup = WorkerSetup("", "stage", "", "cpu", 1, 0, "")
        self.supervisor = Supervisor(plan, CONFIG, self.study, self.slots, setup, gpus)
        return self.supervisor.run()

    def skip_anchors(self) -> None:
        for _ in range(self.n_anchors):
            claim = self.slots.claim(self.n_anchors)
            assert claim is not None
            self.slots.finish(claim.slot)

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)


@pytest.fixture(scope="module")
def empty_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stage") / "study.db"
    storage = open_storage(f"sqlite:///{file}")
    study = optuna.create_study(study_name="stage", storage=storage, direction="maximize")
    study.set_user_attr("cost_model", COST.to_json())
    SlotTable(study, storage)
    checkpoint_sqlite(storage)
    storage.engine.dispose()
    return file


@pytest.fixture
def stage(empty_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr("study.search.workers.Worker", ScriptedWorker)
    found = Stage(Path(shutil.copy(empty_study, tmp_path)))
    yield found
    found.storage.engine.dispose()


def test_workers_spread_over_the_gpus(stage: Stage) -> None:
    assert stage.play(["complete"] * 4, trials=4, jobs=4, gpus=("2", "5")) == "done"
    assert [worker.gpu for worker in ScriptedWorker.made] == ["2", "5", "2", "5"]
    # Those that die leave their GPUs to the next.
    assert stage.play(["dies", "dies", "complete", "complete"], trials=6, jobs=2, gpus=("2", "5")) == "done"
    assert [worker.gpu for worker in ScriptedWorker.made[:2]] == ["2", "5"]
    assert sorted(str(worker.gpu) for worker in ScriptedWorker.made[2:]) == ["2", "5"]
    assert stage.play(["complete"], trials=7, jobs=1, gpus=("0",)) == "done"
    assert ScriptedWorker.made[0].gpu is None


def test_a_started_process_sees_its_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with workers._visible("1"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    with workers._visible(None):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with workers._visible("3"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_supervisor_stops_at_n(stage: Stage, jobs: int) -> None:
    assert stage.play(["complete", "pruned"] * 3 + ["complete"], trials=7, jobs=jobs) == "done"
    assert sorted(trial.user_attrs["slot"] for trial in stage.trials()) == list(range(7))
    assert len(ScriptedWorker.made) == jobs
    assert stage.slots.n_finished() == 7
    assert stage.play([], trials=7, jobs=jobs) == "done"
    assert ScriptedWorker.made == []


def test_the_anchors_come_first_and_are_run_as_they_are(stage: Stage) -> None:
    stage.play(["complete"] * 3, trials=3)
    anchors = dict(get_space("dilated").anchors(Limits()))
    assert [slot.anchor for slot in ScriptedWorker.slots] == [*anchors, None]
    assert [trial.params for trial in stage.trials()[:2]] == [dict(params) for params in anchors.values()]


def test_an_anchored_study_starts_near_the_default_and_returns_to_the_best(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "CONFIG", dataclasses.replace(CONFIG, sampler="anchored"))
    # The last neighbour of the default fails twice and is drawn anew, still near it.
    script = ["pruned"] * 3 + ["complete"] + ["pruned"] * (N_STARTUP_TRIALS - 5) + ["failed", "failed"] + ["pruned"] * 5
    assert stage.play(script, trials=N_STARTUP_TRIALS + 4) == "done"
    default = get_space("dilated").anchors(Limits())["default"]
    best = stage.trials()[3].params  # the only complete one
    slots = ScriptedWorker.slots

    def n_changed(slot: Slot, centre: Mapping[str, Any]) -> int:
        assert slot.fixed is not None
        assert slot.anchor is None
        return sum(slot.fixed[name] != centre[name] for name in centre)

    near = slots[stage.n_anchors : N_STARTUP_TRIALS + 2]
    assert near[-3].fixed == near[-2].fixed != near[-1].fixed
    assert all(1 <= n_changed(slot, default) <= len(default) / 2 for slot in near)
    after = slots[N_STARTUP_TRIALS + 2 :]
    assert [slot.index for slot in after] == [10, 11, 12, 13]
    assert [slot.fixed is None for slot in after] == [False, True, False, True]
    assert all(1 <= n_changed(slot, best) <= len(best) / 2 for slot in (after[0], after[2]))


def test_a_failed_slot_is_repeated_once_then_drawn_anew(stage: Stage) -> None:
    stage.skip_anchors()
    assert stage.play(["failed", "failed", "complete"], trials=stage.n_anchors + 1) == "done"
    first, second, third = ScriptedWorker.slots
    assert (first.attempt, second.attempt, third.attempt) == (0, 0, 1)
    params = [trial.params for trial in stage.trials()]
    assert params[0] == params[1] != params[2]
    assert first.training_seed == second.training_seed == third.training_seed
    assert third.fixed is None


def test_an_anchor_that_cannot_be_trained_is_replaced_and_does_not_end_the_study(stage: Stage) -> None:
    assert stage.play(["failed", "failed", "complete", "complete"], trials=2) == "done"
    assert [slot.anchor for slot in ScriptedWorker.slots] == ["reference", "reference", None, "default"]


def test_five_failures_in_a_row_end_the_run_with_the_cause(stage: Stage) -> None:
    with pytest.raises(StudyFailed, match=f"{MAX_FAILURES_IN_A_ROW} trials failed in a row; the last: failed"):
        stage.play(["complete", *["failed", "dies"] * 10], trials=20)
    assert len(stage.trials()) == 1 + MAX_FAILURES_IN_A_ROW
    assert stage.slots.n_finished() == 1


def test_a_success_forgives_the_failures_before_it(stage: Stage) -> None:
    stage.skip_anchors()
    script = [*["failed"] * (MAX_FAILURES_IN_A_ROW - 1), "complete"] * 2
    assert stage.play(script, trials=stage.n_anchors + 2) == "done"


def test_five_failures_exit_with_1(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: cast(int, stage.play(["failed"] * 9, trials=20)))
    assert caught.value.code == 1
    assert "failed: 5 trials failed in a row" in capsys.readouterr().err


def test_infeasible_samples_are_drawn_anew_but_not_for_ever(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_INFEASIBLE_IN_A_ROW > MAX_FAILURES_IN_A_ROW
    monkeypatch.setattr(supervisor, "MAX_INFEASIBLE_IN_A_ROW", 4)
    stage.skip_anchors()
    assert stage.play(["infeasible"] * 3 + ["complete"], trials=stage.n_anchors + 1) == "done"
    assert [slot.attempt for slot in ScriptedWorker.slots] == list(range(4))
    with pytest.raises(StudyFailed, match="4 samples in a row broke a limit; the last: infeasible"):
        stage.play(["infeasible"] * 5, trials=stage.n_anchors + 2)


@pytest.mark.parametrize(
    ("outcome", "reason"), [("dies", "the worker was killed by SIGKILL"), ("crashes", "IndexError: a bug")]
)
def test_a_dead_worker_is_replaced_and_its_trial_fails(stage: Stage, outcome: str, reason: str) -> None:
    stage.skip_anchors()
    assert stage.play([outcome, "complete"], trials=stage.n_anchors + 1) == "done"
    dead, again = stage.trials()
    assert (dead.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert dead.user_attrs["reason"] == reason
    assert dead.params == again.params
    assert len(ScriptedWorker.made) == 2


def test_a_worker_that_dies_after_its_result_loses_nothing(stage: Stage) -> None:
    assert stage.play(["dies late", "complete"], trials=2) == "done"
    assert [trial.state for trial in stage.trials()] == [TrialState.COMPLETE] * 2
    assert stage.slots.n_finished() == 2


def test_an_idle_worker_that_dies_is_replaced(stage: Stage) -> None:
    # Its result is heard in one look, its death only when it is needed again.
    assert stage.play(["leaves", "complete"], trials=2) == "done"
    assert stage.slots.n_finished() == 2


def interrupt_when_silent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Supervisor._wait

    def wait_or_interrupt(self: Any, busy: Any) -> None:
        if any(not worker.connection.poll() and worker.alive for worker in busy):
            raise KeyboardInterrupt
        wait(self, busy)

    monkeypatch.setattr(Supervisor, "_wait", wait_or_interrupt)


def test_ctrl_c_frees_the_slots_at_work_with_their_parameters(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_when_silent(stage, monkeypatch)
    stage.skip_anchors()
    n_trials = stage.n_anchors + 2
    assert stage.play(["hangs", "hangs"], trials=n_trials, jobs=2) == "interrupted"
    assert [trial.state for trial in stage.trials()] == [TrialState.FAIL] * 2
    assert {trial.user_attrs["reason"] for trial in stage.trials()} == {"interrupted"}
    assert stage.play(["complete", "complete"], trials=n_trials) == "done"
    params = [trial.params for trial in stage.trials()]
    assert params[:2] == params[2:]


def test_ctrl_c_before_a_trial_begins_keeps_what_was_to_be_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_when_silent(stage, monkeypatch)
    stage.skip_anchors()
    n_trials = stage.n_anchors + 1
    # Once as it was, then a new sample: the interruption must not bring the failed one back.
    for script, fixed, attempt in (
        (["starts"], False, 0),
        (["hangs"], False, 0),
        (["starts"], True, 0),
        (["failed", "starts"], True, 0),
        (["failed", "starts"], False, 1),
        (["starts"], False, 1),
    ):
        assert stage.play(script, trials=n_trials) == "interrupted"
        last = ScriptedWorker.slots[-1]
        assert (last.fixed is not None, last.attempt) == (fixed, attempt), script
    assert stage.play(["complete"], trials=n_trials) == "done"


def test_the_timeout_starts_no_more_trials(stage: Stage) -> None:
    assert stage.play([], trials=3, timeout=1e-9) == "timeout"
    assert stage.trials() == []
    assert stage.play(["complete"] * 3, trials=3, timeout=600) == "done"


def test_no_more_than_n_when_others_work_on_the_study(stage: Stage) -> None:
    for _ in range(3):
        stage.slots.claim(10)
    stage.slots.finish(1)
    assert stage.play(["complete"] * 2, trials=5) == "done"  # slots 0 and 2 are at work elsewhere
    assert sorted(trial.user_attrs["slot"] for trial in stage.trials()) == [3, 4]


def test_scripted_params_are_those_of_the_space() -> None:
    # The stand-in workers sample as the real ones do, so their parameters may be compared.
    params = get_space("dilated").sample(random.Random(0))
    study = optuna.create_study(sampler=make_sampler("random", 1, params))
    assert suggest(study.ask(), get_space("dilated")) == params
