"""`study.run` from its command line to what it leaves behind: exactly N, whatever ends a run.

The runs here train for real, on a few made images that stand in the user's cache as CIFAR-10 does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from stage import COST

from study.calibration import prices as calibration
from study.calibration.prices import Calibration
from study.command_line.parser import run_command
from study.data import cifar10 as data
from study.data.cifar10 import FOLDER
from study.errors import Interrupted
from study.machine.hardware import hardware
from study.machine.paths import REPOSITORY
from study.run import main
from study.search import searching
from study.search.sampling import training_seed
from study.search.supervisor import Supervisor
from study.storage.database import FINISHED, open_storage, storage_of, stored

EPOCHS = 3
TINY = (
    "--device", "cpu", "--precision", "float32", "--epochs", str(EPOCHS), "--train-images", "40",
    "--val-images", "20", "--study-name", "tiny", "--jobs", "1", "--pruner", "percentile",
)  # fmt: skip
PATIENCE_S = 600  # a cap for busy machines; nothing waits that long otherwise


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
            briefly.setattr(calibration, "BUSY", math.inf)
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
    """A study that was asked for 3 trials, for the same 3 again, then for 5 and with another target."""

    out: Path
    codes: list[int]
    trials: list[list[FrozenTrial]]
    output: list[str]


@pytest.fixture(scope="module")
def story(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    out = tmp_path_factory.mktemp("story")
    codes, trials, output = [], [], []
    for n_trials, more in ((3, ()), (3, ()), (5, ("--target-accuracy", "0.5"))):
        log = out / "log"
        with log.open("w") as stream, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            codes.append(main([*TINY, "--trials", str(n_trials), "--out", str(out), *more]))
        trials.append(trials_of(out))
        output.append(log.read_text())
    return Story(out, codes, trials, output)


def test_trials_n_means_exactly_n_finished_trials(story: Story) -> None:
    assert story.codes == [0, 0, 0]
    assert [len(trials) for trials in story.trials] == [3, 3, 5]
    assert all(trial.state in FINISHED for trial in story.trials[-1])
    assert sorted(finished_of(story.out)) == list(range(5))


def test_a_study_that_another_process_made_meanwhile_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, asked = searching.get_ready, [*TINY, "--out", str(tmp_path), "--trials"]

    def get_ready_late(*arguments: Any, **more: Any) -> searching.Machine:
        monkeypatch.undo()
        assert main([*asked, "1"]) == 0
        return ready(*arguments, **more)

    monkeypatch.setattr(searching, "get_ready", get_ready_late)
    assert main([*asked, "2"]) == 0
    assert sorted(finished_of(tmp_path)) == [0, 1]
    assert len(trials_of(tmp_path)) == 2


def test_an_interruption_while_the_storage_is_waited_for_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(supervisor: Supervisor) -> str:
        with supervisor.interrupted:
            signal.raise_signal(signal.SIGTERM)
        raise sa.exc.OperationalError("COMMIT", {}, Exception("the server is away"))

    monkeypatch.setattr(Supervisor, "run", run)
    with pytest.raises(Interrupted) as caught:
        main([*TINY, "--trials", "1", "--out", str(tmp_path)])
    assert caught.value.signum == signal.SIGTERM


def test_a_finished_study_is_not_touched_by_asking_again(story: Story) -> None:
    assert story.trials[1] == story.trials[0]
    assert [result(trial) for trial in story.trials[2][:3]] == [result(trial) for trial in story.trials[0]]


def test_a_run_says_what_it_resumes(story: Story) -> None:
    assert "tiny (new)" in story.output[0]
    assert "tiny (resumed, 3 trials finished)" in story.output[1]
    assert "nothing to run" in story.output[1]
    assert "[5/5] slot 4" in story.output[2]
    assert all("optuna-dashboard" in output for output in story.output)


def test_another_target_is_noted(story: Story) -> None:
    study = optuna.load_study(study_name="tiny", storage=open_storage(url_of(story.out)))
    assert study.user_attrs["target_accuracy"] == 0.5
    storage = storage_of(study)
    kept = storage.get_study_system_attrs(storage.get_study_id_from_name("tiny"))
    notes = [value for name, value in kept.items() if name.startswith("dashboard:note_str")]
    assert "50.0%" in "".join(notes)


def test_a_trial_says_how_it_went_and_what_made_it(story: Story) -> None:
    for slot, trial in enumerate(story.trials[-1]):
        attrs = trial.user_attrs
        assert (attrs["slot"], attrs["attempt"], attrs["outcome"]) == (slot, 0, "complete")
        assert attrs["training_seed"] == training_seed(0, slot)
        assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1))
        assert trial.value == trial.intermediate_values[EPOCHS] == stored(trial, "curve")[-1]["val_accuracy"]
        assert {"wall_s", "rss_mib", "candidate_id"} <= set(attrs)
        assert stored(trial, "candidate")
        assert stored(trial, "versions")["torch"]
    assert [trial.user_attrs.get("anchor") for trial in story.trials[-1]][:3] == ["reference", "default", None]
    study = optuna.load_study(study_name="tiny", storage=open_storage(url_of(story.out)))
    typed = shlex.join(["python", "-m", "study.run", *TINY, "--trials", "3", "--out", str(story.out)])
    more = shlex.join(["python", "-m", "study.run", *TINY, "--trials", "5", "--out", str(story.out)])
    assert study.user_attrs["commands"] == [typed, f"{more} --target-accuracy 0.5"]


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
        (["--timeout", "0"], "--timeout must be above 0"),
        (["--checkpoint-every", "-5"], "--checkpoint-every must be above 0 seconds: -5"),
        (["--target-accuracy", "85"], "For 85% write 0.85"),
        (["--train-images", "9"], "--train-images must be between 10"),
        (["--sampler", "gp", "--pruner", "median"], "--sampler gp"),
        (["--max-params", "9" * 20], "max_params must be between 0 and 1e+18: 99999999999999999999."),
        (["--max-epoch-s", "inf"], "max_epoch_s must be between 0 and 1e+300: inf."),
        (["--seed", "9" * 20], "seed must be between"),
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
    monkeypatch.setattr("study.executors.local._Worker", None)  # no process may be started
    assert exit_code(*TINY, "--out", str(tmp_path), *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    if (tmp_path / "study.db").exists():
        assert open_storage(url_of(tmp_path)).get_all_studies() == []


@pytest.mark.slow
def test_an_interrupted_and_resumed_study_equals_an_uninterrupted_one(story: Story, tmp_path: Path) -> None:
    with command(tmp_path, "--trials", "4") as process:
        freeze_in_the_middle(process, tmp_path, slot=2)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to the whole group
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(2)  # the supervisor asks its worker to leave before that can end its trial
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
    again = finished_of(tmp_path)[2]
    assert again.params == stopped.params
    told = stored(stopped, "curve")
    assert stored(again, "curve")[: len(told)] == told  # seconds too: they were not run again
    assert len(trials_of(tmp_path)) == 5


@pytest.mark.slow
def test_a_reader_that_has_enough_interrupts_a_run(tmp_path: Path) -> None:
    arguments = shlex.join([*TINY, "--trials", "3", "--out", str(tmp_path)])
    line = f"{sys.executable} -m study.run {arguments} | grep -m 1 '^.1/3'; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 141
    assert done.stderr.endswith(
        "nobody reads the output any more; what was done is saved, and the same command goes on\n"
    )
    assert "Traceback" not in done.stderr
    assert 1 <= len(finished_of(tmp_path)) < 3
    assert not [trial for trial in trials_of(tmp_path) if not trial.state.is_finished()]
    assert main([*TINY, "--trials", "3", "--out", str(tmp_path)]) == 0
    assert sorted(finished_of(tmp_path)) == list(range(3))


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path: Path) -> None:
    with command(tmp_path, "--trials", "1") as process:
        freeze_in_the_middle(process, tmp_path, slot=0)
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGCONT)  # its worker stays frozen, and saves nothing
        time.sleep(2)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=5) == 130
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        wait_until(lambda: group_is_gone(process.pid), "all processes are gone")
    assert main([*TINY, "--trials", "1", "--out", str(tmp_path)]) == 0
    assert sorted(finished_of(tmp_path)) == list(range(1))


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
    assert "Next:   python -m study.rerank" in done.stdout
    assert "Then:   python -m study.retrain" in done.stdout
    assert "no curves (ImportError: no matplotlib on this machine)" in done.stderr
    finished = finished_of(tmp_path / "out")
    assert sorted(finished) == [0, 1]
    assert all(trial.value is not None for trial in finished.values() if trial.state == TrialState.COMPLETE)
