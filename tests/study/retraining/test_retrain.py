"""Retraining: resumed exactly, tested after the last step, told honestly."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from search_spaces import get_space
from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Candidate, Optimisation
from search_spaces.constraints import Limits
from search_spaces.reference import REFERENCE
from search_spaces.training_dimensions import SMALL_IMAGES, lengthened, with_small_images
from study import retrain
from study.calibration.prices import calibrate
from study.command_line.wording import duration
from study.data import cifar10 as data
from study.errors import CaptureFailed, StudyFailed, UserError
from study.executors import local, worker
from study.executors.local import ThisMachine
from study.executors.messages import Died, EpochEnded, Message, Work, WorkerSetup
from study.machine import hardware
from study.machine.interrupts import InterruptFlag
from study.machine.paths import REPOSITORY
from study.retraining import retraining, seeds
from study.retraining.seeds import Seed
from study.retraining.teacher import teacher_of
from study.training.checkpoints import finished, load_progress
from study.training.optimizers import Muon
from study.training.records import EpochRecord, TrainingConfig

SMALL = ["--reference", "--epochs", "2", "--train-images", "256", "--device", "cpu"]


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_best_trial_has_a_whole_bundle(made_study: Path, made_cifar10: Path, capsys: pytest.CaptureFixture[str]):
    from study.bundle.files import FILES

    found = metrics(made_study / "best")
    assert {file.name for file in (made_study / "best").iterdir()} == set(FILES)
    keys = (
        "candidate_id params receptive_field macs epochs seeds test_accuracy test_accuracy_mean test_accuracy_std "
        "shipped_seed test_accuracy_shipped train_accuracy target_accuracy target_met device wall_s versions commit"
    )
    assert set(keys.split()) <= set(found)
    assert found["test_accuracy"] == [found["test_accuracy_shipped"]]
    assert found["target_met"] == (found["test_accuracy_mean"] > found["target_accuracy"])
    assert found["params"] < 200_000
    assert found["receptive_field"] > 44

    assert retrain.main(["--evaluate", str(made_study / "best"), "--device", "cpu"]) == 0
    assert "The same" in capsys.readouterr().out


def test_evaluate_notices_other_weights(made_study: Path, made_cifar10: Path, tmp_path: Path):
    folder = tmp_path / "bundle"
    shutil.copytree(made_study / "best", folder)
    record = metrics(folder)
    record["test_accuracy_shipped"] += 0.01
    (folder / "metrics.json").write_text(json.dumps(record))
    assert retrain.main(["--evaluate", str(folder), "--device", "cpu"]) == 1


class Killed(Exception):
    """Stands for the end of a worker."""


class Here:
    """An executor without processes: trains in this one, when it is waited for."""

    fail: Callable[[Work], None] = staticmethod(lambda work: None)

    def __init__(self, setup: WorkerSetup, gpus: Sequence[str] = ()) -> None:
        self.setup, self.given = setup, list[Work]()
        self.images, _ = worker.images_of(setup)

    def prepare(self, n: int) -> None:
        assert n >= 1

    def submit(self, work: Work) -> None:
        self.given.append(work)

    def wait(self, timeout_s: float) -> list[Message]:
        work, said = self.given.pop(0), list[Message]()

        def tell(record: EpochRecord) -> bool:
            said.append(EpochEnded(work.key, record, False))
            return True

        try:
            self.fail(work)
            said.append(worker.run(work, self.images, None, tell, self.setup.checkpoint_s))
        except Killed as error:
            said.append(Died(work.key, str(error)))
        except Exception as error:
            said.append(worker.died(work.key, error))
        return said

    def close(self) -> list[Message]:
        return []


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[Here]:
    """Seeds are trained in this process, where their steps can be watched."""
    monkeypatch.setattr(local, "LocalExecutor", Here)
    monkeypatch.setattr(Here, "fail", staticmethod(lambda work: None))
    return Here


def test_it_is_trained_as_is_fastest_where_it_is(
    here: type[Here], made_study: Path, made_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The machine that searched may have been another one."""
    shutil.copytree(made_study, tmp_path / "study")
    of_here = dataclasses.replace(calibrate("cpu"), precision="bfloat16")
    monkeypatch.setattr(retraining, "calibrate", lambda device: of_here)
    again = ["--trial", "1", "--epochs", "1", "--train-images", "64", "--device", "cpu", "--jobs", "1"]
    assert retrain.main([*again, "--out", str(tmp_path / "study")]) == 0
    assert metrics(tmp_path / "study" / "trial-1")["precision"] == "float32"  # here: it may have been chosen
    of_here = dataclasses.replace(of_here, hardware={**of_here.hardware, "cpu": "another"})
    command = ["--trial", "0", "--epochs", "1", "--train-images", "64", "--device", "cpu", "--jobs", "1"]
    assert retrain.main([*command, "--out", str(tmp_path / "study")]) == 0
    assert metrics(tmp_path / "study" / "best")["precision"] == "float32"
    assert metrics(tmp_path / "study" / "trial-0")["precision"] == "bfloat16"
    # What was begun goes on as it was: a close call may be decided otherwise on a busy machine.
    monkeypatch.setattr(retraining, "calibrate", lambda device: dataclasses.replace(of_here, precision="float32"))
    shutil.rmtree(tmp_path / "study" / "trial-0")
    assert retrain.main([*command, "--out", str(tmp_path / "study")]) == 0
    assert metrics(tmp_path / "study" / "trial-0")["precision"] == "bfloat16"


def test_one_whose_teacher_was_begun_goes_on_as_it_was(tmp_path: Path):
    alone = Seed(REFERENCE, TrainingConfig(2, 0, precision="float32"), "", 64, tmp_path, 1)
    ways = [alone.changed(precision=each) for each in ("float32", "bfloat16")]
    taught = [dataclasses.replace(way, teacher=teacher_of(way, 3, 1)) for way in ways]
    assert retraining.as_begun(ways) is ways[0]
    assert taught[1].teacher is not None
    taught[1].teacher.file.touch()
    assert retraining.as_begun(taught) is taught[1]
    assert retraining.as_begun(ways) is ways[0]  # which has none
    taught[0].file.touch()
    assert retraining.as_begun(taught) is taught[0]


def test_no_test_image_before_the_last_step(
    here: type[Here], made_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events = []
    step, load = Muon.step, data.load_test

    def noted_step(self, *args, **kwargs):
        events.append("step")
        return step(self, *args, **kwargs)

    def noted_load(*args):
        events.append("test")
        return load(*args)

    monkeypatch.setattr(Muon, "step", noted_step)
    for module in (data, retraining):
        monkeypatch.setattr(module, "load_test", noted_load)
    retrain.main([*SMALL, "--seeds", "2", "--jobs", "1", "--out", str(tmp_path)])
    assert events.count("test") == 1
    assert events.index("test") == len(events) - 1
    assert events.count("step") == 2 * 2 * (256 // 128)


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(made_cifar10: Path, tmp_path: Path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ["--reference", "--epochs", "3", "--train-images", "640", "--device", "cpu"]
    retrain.main([*arguments, "--out", str(whole)])

    command = [sys.executable, "-m", "study.retrain", *arguments, "--out", str(stopped)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 1/3" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait() == 130
    assert "goes on" in rest
    saved = list((stopped / "checkpoints").glob("*.pt"))
    assert len(saved) == 1
    assert not (stopped / "reference").exists()

    assert retrain.main([*arguments, "--out", str(stopped)]) == 0
    one, other = (torch.load(f / "reference" / "weights.pt", weights_only=True) for f in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert metrics(whole / "reference")["test_accuracy"] == metrics(stopped / "reference")["test_accuracy"]


class Deaf(io.StringIO):
    """Output whose reader goes away after the first epoch."""

    def write(self, text: str) -> int:
        if "epoch 1/2" in self.getvalue():
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_output_that_nobody_reads_stops_it_where_it_can_go_on(made_cifar10: Path, tmp_path: Path):
    arguments = [*SMALL, "--out", str(tmp_path)]
    with contextlib.redirect_stdout(Deaf()), pytest.raises(BrokenPipeError):
        retrain.main(arguments)
    (file,) = (tmp_path / "checkpoints").glob("*.pt")
    assert load_progress(file).epoch >= 1
    assert not (tmp_path / "reference").exists()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert retrain.main(arguments) == 0
    assert "Bundle:" in printed.getvalue()


@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        pytest.param(signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, True, marks=pytest.mark.heavy),  # it ends as the others do
    ],
    ids=["ctrl-c", "kill", "lost terminal"],
)
def test_seeds_at_once_are_stopped_and_resumed(number: int, to_all: bool, made_cifar10: Path, tmp_path: Path, capfd):
    arguments = ["--reference", "--epochs", "8", "--train-images", "640", "--device", "cpu"]
    arguments += ["--seeds", "2", "--jobs", "2", "--out", str(tmp_path)]
    command = [sys.executable, "-u", "-m", "study.retrain", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    begun: set[str] = set()
    for line in process.stdout:
        begun |= {seed for seed in ("seed 0", "seed 1") if line.startswith(f"{seed} epoch")}
        if len(begun) == 2:
            break
    if to_all:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 128 + number, rest
    assert rest.count("stopped; the same command goes on") == 2
    states = [load_progress(file) for file in (tmp_path / "checkpoints").glob("*.pt")]
    assert len(states) == 2
    assert all(state is not None and 1 <= state.epoch < 8 for state in states)
    assert not list((tmp_path / "checkpoints").rglob("*.tmp"))

    assert retrain.main(arguments) == 0
    assert capfd.readouterr().out.count(": goes on at epoch") == 2
    assert len(metrics(tmp_path / "reference")["test_accuracy"]) == 2


def test_the_reference_too_is_augmented_for_its_length(
    here: type[Here],
    made_cifar10: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(retraining, "lengthened", lambda augmentation, n: lengthened(augmentation, 10**5 * n))
    used = {}
    for given in ("lengthened", "stored"):
        assert retrain.main([*SMALL, "--augmentation", given, "--out", str(tmp_path / given)]) == 0
        assert ("raised   " in capsys.readouterr().out) == (given == "lengthened")
        described = json.loads((tmp_path / given / "reference" / "candidate.json").read_text())
        used[given] = Candidate.from_json(described).augmentation
    assert used["stored"] == REFERENCE.augmentation
    assert used["lengthened"] == lengthened(REFERENCE.augmentation, 10**10) != used["stored"]
    assert retrain.main([*SMALL, "--out", str(tmp_path / "lengthened")]) == 0  # the default: nothing left to train
    assert "raised   " in capsys.readouterr().out


def test_repeated_command_neither_trains_nor_tests_again(
    here: type[Here], made_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    retrain.main([*SMALL, "--out", str(tmp_path)])
    first = metrics(tmp_path / "reference")
    from study.training import evaluation

    def never(*args, **kwargs):
        raise AssertionError("tested twice")

    monkeypatch.setattr(evaluation, "evaluate", never)
    retrain.main([*SMALL, "--out", str(tmp_path)])
    assert metrics(tmp_path / "reference")["test_accuracy"] == first["test_accuracy"]


@pytest.mark.slow
def test_seeds_in_parallel_equal_seeds_in_turn(made_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = calibrate("cpu")  # once: which precision is the faster one may be a close call
    monkeypatch.setattr(retraining, "calibrate", lambda device: measured)
    for jobs in (1, 2):
        for module in (hardware, local):  # one thread for each seed
            monkeypatch.setattr(module, "n_cores", lambda jobs=jobs: jobs)
        retrain.main([*SMALL, "--seeds", "2", "--jobs", str(jobs), "--out", str(tmp_path / str(jobs))])
    one, two = metrics(tmp_path / "1" / "reference"), metrics(tmp_path / "2" / "reference")
    assert one["seeds"] == two["seeds"] == [0, 1]
    assert one["test_accuracy_std"] is not None
    assert one["test_accuracy"] == two["test_accuracy"]


@pytest.mark.parametrize(
    ("measured", "n_seeds", "jobs", "gain"),
    [
        ({1: 100.0, 2: 120.0}, 2, 2, 1.2),
        ({1: 100.0, 2: 120.0}, 3, 1, 1.0),  # two rounds of two, the second half empty: 3 of 4 times 1.2
        ({1: 100.0, 2: 180.0, 4: 220.0, 8: 230.0}, 5, 2, 1.5),
        ({1: 100.0, 2: 180.0, 4: 350.0, 8: 230.0}, 5, 4, 5 / 8 * 3.5),
        ({1: 100.0, 2: 180.0}, 1, 1, 1.0),
    ],
)
def test_seeds_at_once_are_those_that_finish_first(
    monkeypatch: pytest.MonkeyPatch, measured: dict[int, float], n_seeds: int, jobs: int, gain: float
):
    monkeypatch.setattr(seeds, "rates", lambda candidate, how: measured)
    monkeypatch.setattr(seeds, "n_devices", lambda device: 1)
    monkeypatch.setattr(seeds, "n_cores", lambda: 16)
    how = TrainingConfig(1, 0, "cuda", "bfloat16")
    assert seeds.seeds_at_once(None, n_seeds, ThisMachine("cuda"), REFERENCE, how) == (jobs, pytest.approx(gain))


@pytest.mark.parametrize(
    ("n_gpus", "n_seeds", "jobs", "gain"), [(8, 5, 5, 5.0), (2, 5, 2, 5 / 6 * 2), (2, 4, 4, 2.4), (4, 4, 4, 4.0)]
)
def test_seeds_have_gpus_of_their_own(
    monkeypatch: pytest.MonkeyPatch, n_gpus: int, n_seeds: int, jobs: int, gain: float
):
    monkeypatch.setattr(seeds, "rates", lambda candidate, how: {1: 100.0, 2: 120.0, 4: 130.0})
    monkeypatch.setattr(seeds, "n_devices", lambda device: n_gpus)
    monkeypatch.setattr(seeds, "n_cores", lambda: 16)
    how = TrainingConfig(1, 0, "cuda", "bfloat16")
    assert seeds.seeds_at_once(None, n_seeds, ThisMachine("cuda"), REFERENCE, how) == (jobs, pytest.approx(gain))


def test_seeds_at_once_that_were_not_measured_gain_nothing_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    known: dict[int, float] = {}
    monkeypatch.setattr(seeds, "known_rates", lambda candidate, how: known)
    monkeypatch.setattr(seeds, "n_devices", lambda device: 1)
    on_cpu, on_gpu = (TrainingConfig(1, 0, device, "float32") for device in ("cpu", "cuda"))
    assert seeds.seeds_at_once(2, 4, ThisMachine("cpu"), REFERENCE, on_cpu) == (2, 1.0)
    assert seeds.seeds_at_once(8, 3, ThisMachine("cuda"), REFERENCE, on_gpu) == (3, 1.0)
    known |= {1: 100.0, 2: 125.0, 4: 130.0}
    assert seeds.seeds_at_once(3, 5, ThisMachine("cuda"), REFERENCE, on_gpu) == (3, pytest.approx(5 / 6 * 1.25))


def test_more_seeds_at_once_than_cores_are_warned_of(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(seeds, "known_rates", lambda candidate, how: {})
    monkeypatch.setattr(hardware, "n_cores", lambda: 2)
    how = TrainingConfig(1, 0, "cpu", "float32")
    assert seeds.seeds_at_once(2, 5, ThisMachine("cpu"), REFERENCE, how)[0] == 2
    assert capsys.readouterr().err == ""
    assert seeds.seeds_at_once(4, 5, ThisMachine("cpu"), REFERENCE, how)[0] == 4
    assert capsys.readouterr().err.startswith("warning: --jobs 4 is more than the 2 cores here")


def test_damaged_checkpoint_starts_the_seed_anew(here: type[Here], made_cifar10: Path, tmp_path: Path, capsys):
    retrain.main([*SMALL, "--out", str(tmp_path)])
    (file,) = (tmp_path / "checkpoints").glob("*.pt")
    file.write_bytes(file.read_bytes()[:1000])
    assert retrain.main([*SMALL, "--out", str(tmp_path)]) == 0
    assert "starts anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], "--epochs must be at least 1: 0"),
        (["--target-accuracy", "85"], "For 85% write 0.85"),
        (["--train-images", "0"], "--train-images must be at least 1: 0"),
        (["--out", "nowhere"], "There is no study"),
        (["--evaluate", "nowhere"], "nowhere"),
        (["--evaluate", "nowhere", "--seeds", "3"], "--evaluate takes no --seeds. Leave it out."),
        (["--evaluate", "nowhere", "--train-images", "500"], "--evaluate takes no --train-images."),
        (["--evaluate", "nowhere", "--out", "elsewhere"], "--evaluate takes no --out."),
        (["--evaluate", "nowhere", "--cluster"], "--evaluate takes no --cluster."),
        (["--evaluate", "nowhere", "--teacher"], "--evaluate takes no --teacher."),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        retrain.main(arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_trial_that_is_not_there(made_study: Path, made_cifar10: Path):
    with pytest.raises(UserError, match="--trial must be between 0 and 2"):
        retrain.main(["--trial", "9", "--out", str(made_study)])


def test_exit_code_of_a_mistake(tmp_path: Path):
    command = [sys.executable, "-m", "study.retrain", "--out", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no study")
    assert done.stderr.count("\n") == 1


def test_the_yardstick_has_the_best_trials_recipe(
    here: type[Here], made_study: Path, made_cifar10: Path, tmp_path: Path
):
    out = tmp_path / "study"
    shutil.copytree(made_study, out)
    arguments = ["--yardstick", "--epochs", "1", "--train-images", "128", "--device", "cpu", "--out", str(out)]
    assert retrain.main(arguments) == 0
    found = metrics(out / "yardstick")
    assert (found["params"], found["receptive_field"], found["broken_limits"]) == (97_530, 186, ["pooling"])
    best = json.loads((out / "best" / "candidate.json").read_text())
    assert json.loads((out / "yardstick" / "candidate.json").read_text())["optimisation"] == best["optimisation"]
    assert found["recipe_of_trial"] == metrics(out / "best")["trial"]


@pytest.mark.parametrize("n_failing", [1, 2])
def test_a_capture_that_fails_is_tried_with_less_elsewhere(
    here: type[Here],
    made_cifar10: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    n_failing: int,
) -> None:
    """Without compiling, then without a graph."""
    tried: list[tuple[bool, bool]] = []

    def fail(work: Work) -> None:
        tried.append((work.config.compiled, work.config.capture))
        if len(tried) <= n_failing:
            raise CaptureFailed("RuntimeError: operation not permitted")

    monkeypatch.setattr(here, "fail", staticmethod(fail))
    monkeypatch.setattr("study.training.loop.fastest", lambda step, *args, **kwargs: (step, False))
    seed = Seed(REFERENCE, TrainingConfig(1, 0, compiled=True), str(made_cifar10), 100, tmp_path, 1)
    seeds.train_all([seed], ThisMachine("cpu"), 1)
    assert tried == [(True, True), (False, True), (False, False)][: n_failing + 1]
    said = capsys.readouterr().out
    assert said.count("could not be captured (RuntimeError: operation not permitted)") == n_failing


@pytest.mark.parametrize("n_lost", [2, 3])
def test_a_seed_whose_workers_are_lost_is_given_to_others(
    here: type[Here], made_cifar10: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, n_lost: int
) -> None:
    n_tried = 0

    def fail(work: Work) -> None:
        nonlocal n_tried
        n_tried += 1
        if n_tried <= n_lost:
            raise Killed("the worker was killed by SIGKILL")

    monkeypatch.setattr(here, "fail", staticmethod(fail))
    seed = Seed(REFERENCE, TrainingConfig(1, 0), str(made_cifar10), 100, tmp_path, 1)
    if n_lost == seeds.MAX_LOSSES_IN_A_ROW:
        with pytest.raises(StudyFailed, match=r"killed by SIGKILL\. The same command goes on"):
            seeds.train_all([seed], ThisMachine("cpu"), 1)
    else:
        seeds.train_all([seed], ThisMachine("cpu"), 1)
        assert finished(seed.file, seed.candidate, seed.config).epoch == 1
    assert n_tried == min(n_lost + 1, 3)


def test_a_bundle_says_whether_it_was_compiled(made_study: Path) -> None:
    assert metrics(made_study / "best")["compiled"] is False


def test_small_images_follow_the_recipe_and_the_device() -> None:
    space = get_space("dilated")
    default = space.decode(space.anchors(Limits())["default"], Limits()).candidate

    def share(recipe_of: Candidate, device: str) -> float:
        return retraining._for_length(default, recipe_of, 10**6, device).optimisation.small_images

    assert share(default, "cpu") == SMALL_IMAGES
    assert share(REFERENCE, "cpu") == 0  # as the yardstick of a winner that sees whole images
    assert share(default, "cuda") == 0
    small = with_small_images(default)
    assert retraining._small(small, 150) == "images of 20x20 up to epoch 60, images of 26x26 up to epoch 105"
    assert retraining._small(small, 2) == "images of 26x26 up to epoch 1"
    assert retraining._small(small, 1) == retraining._small(default, 150) == ""


def test_what_is_left_counts_how_large_images_will_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = Candidate(Architecture((Conv(8, stride=2),)), optimisation=Optimisation(small_images=0.7))
    training = seeds._Training(seeds.Seed(small, TrainingConfig(10, 0), "", 10, tmp_path, 1))
    training.hear(EpochEnded(0, EpochRecord(3, 1.0, 0.5, None, None, 0.1, 100.0, 0.0), False), InterruptFlag())
    seconds = 100 * (3 * 26**2 + 3 * 32**2) / 20**2
    assert f"100 s; {duration(seconds)} left" in capsys.readouterr().out
