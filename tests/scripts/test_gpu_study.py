"""The driver of everything on a GPU: what fits a budget, what is skipped, cut off, gone on with and carried."""

from __future__ import annotations

import json
import random
import re
import shutil
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gpu_study
from gpu import packing
from study.data.cifar10 import FOLDER
from study.errors import UserError
from study.machine.paths import REPOSITORY

FAKE = """#!/usr/bin/env bash
# Stands in for python: notes what it is asked for, fails or hangs where told to, leaves what the smoke test would.
echo "$*" >> "$CALLS"
echo "$XDG_CACHE_HOME" > "$CALLS.cache"
case "$*" in *"$FAILS"*) exit 3 ;; esac
case "$*" in *"$HANGS"*) exec sleep 60 ;; esac
case "$*" in *smoke.py*)
  echo "{\\"machine\\": {\\"gpu\\": \\"A card (9)\\"}, \\"rate best\\": {\\"images_s\\": $RATE}}" > "$2" ;; esac
"""


class Driver:
    """Calls the driver with a stand-in for Python."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._calls, self._patch = root / "folder", root / "calls", patch
        fake = root / "python"
        fake.write_text(FAKE)
        fake.chmod(0o755)
        self.carried = False
        patch.setattr(sys, "executable", str(fake))
        patch.setattr(gpu_study, "GRACE_S", 1.0)
        patch.setattr(gpu_study, "LEAST_S", 2.0)
        patch.setattr(gpu_study.signal, "signal", lambda *args: None)

    def __call__(self, *words: str, fails: str = "nothing", hangs: str = "nothing", rate: float = 40_000.0) -> int:
        for name, value in {"CALLS": self._calls, "FAILS": fails, "HANGS": hangs, "RATE": rate}.items():
            self._patch.setenv(name, str(value))
        where = ["--folder", str(self.folder), *([] if self.carried else ["--results", str(self.folder / "out")])]
        return gpu_study.main(["run", *where, *words])

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()

    @property
    def names(self) -> list[str]:
        """What was run, in order."""
        known = (
            "smoke.py",
            "study.run",
            "study.rerank",
            "study.retrain",
            "throughput",
            "publish.py",
            "epoch",
            "pytest",
        )
        return [next((name for name in known if name in line), line) for line in self.calls]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path, monkeypatch)


# What fits


@pytest.mark.parametrize(
    ("rate", "seconds", "fidelity"),
    [
        (300_000, 190, (16, 45_000)),
        (40_000, 190, (8, 15_000)),
        (12_000, 190, (4, 10_000)),
        (1_000, 190, (4, 10_000)),
        (200_000, 20, (4, 10_000)),
    ],
)
def test_trials_are_as_long_as_the_study_can_afford(rate: float, seconds: float, fidelity: tuple[int, int]) -> None:
    assert gpu_study.trial_fidelity(rate, seconds) == fidelity


def test_a_study_that_can_afford_it_is_done_in_time() -> None:
    rng = random.Random(0)
    for _ in range(200):
        rate, seconds = rng.uniform(1e4, 3e5), rng.uniform(100, 400)
        epochs, images = gpu_study.trial_fidelity(rate, seconds)
        needs = gpu_study.N_TRIALS * (gpu_study.EPOCHS_RUN * epochs * images / rate + gpu_study.TRIAL_S)
        assert needs <= seconds or (epochs, images) == gpu_study.FIDELITIES[0]


@pytest.mark.parametrize(
    ("rate", "seconds", "length"),
    [
        (40_000, 400, (288, 1)),  # as long as fits
        (50_000, 400, (300, 1)),
        (100_000, 400, (300, 2)),  # then more seeds
        (1_000_000, 1_000, (300, 5)),
        (10_000, 167, (30, 1)),
    ],
)
def test_one_seed_as_long_as_fits_then_more(rate: float, seconds: float, length: tuple[int, int]) -> None:
    assert gpu_study.retrain_length(rate, seconds) == length
    with pytest.raises(gpu_study.NoTimeError):
        gpu_study.retrain_length(rate, 29.9 * gpu_study.N_TRAINING / gpu_study.CERTAIN / rate)


def test_the_slower_of_step_and_loaders_is_counted_on() -> None:
    assert gpu_study.measured_rate({"rate best": {"images_s": 5.0}, "loaded best": {"images_s": 3.0}}) == 3.0
    assert gpu_study.measured_rate({"rate best": {"images_s": 5.0}, "loaded best": {"failed": "x"}}) == 5.0
    assert gpu_study.measured_rate({"rate best": {"failed": "x"}}) == gpu_study.ASSUMED_RATE
    assert gpu_study.measured_rate({}) == gpu_study.ASSUMED_RATE


# What is run


def test_without_a_budget_everything_has_the_programs_own_length(driver: Driver) -> None:
    assert driver() == 0
    assert driver.names == ["smoke.py", "study.run", "study.rerank", "study.retrain", "throughput", "publish.py"]
    study, retrain = driver.calls[1], driver.calls[3]
    where = f"--study-name best --out {driver.folder}/runs/best"
    assert study == f"-m study.run --space best --trials 50 --device cuda {where}"
    assert retrain == f"-m study.retrain --device cuda {where}"
    assert driver.calls[-1] == f"scripts/publish.py {where} --results {driver.folder}/out"
    record = json.loads((driver.folder / "out" / "gpu" / "a-card-9.json").read_text())
    assert record["rate best"] == {"images_s": 40_000.0}


def test_with_a_budget_lengths_follow_from_the_smoke_test(driver: Driver) -> None:
    assert driver("--budget-s", "900") == 0
    assert driver.names == ["smoke.py", "study.run", "smoke.py", "study.retrain", "throughput", "publish.py"]
    study, pace, retrain = driver.calls[1:4]
    assert "--epochs 8 --train-images 15000" in study
    timeout = float(re.search(r"--timeout (\d+)", study)[1])  # type: ignore[index]
    assert timeout == pytest.approx(gpu_study.STUDY_SHARE * 900 - gpu_study.STUDY_FIXED_S, abs=3)
    assert f"--winner-of {driver.folder}/runs/best" in pace
    assert re.search(r"--epochs 300 --seeds 1 --jobs 1", retrain)


def test_a_dry_run_is_tiny_whatever_fits(driver: Driver) -> None:
    """Of an option given twice the last one counts."""
    assert driver("--dry-run", "--budget-s", "400") == 0
    for command, sizes in (("study.run", gpu_study.TINY.study), ("study.retrain", gpu_study.TINY.retrain)):
        [line] = [line for line in driver.calls if command in line]
        assert line.endswith(sizes)


def test_a_dry_run_and_a_real_one_share_no_folder(driver: Driver) -> None:
    """What one did the other would take for done."""
    assert driver("--dry-run") == 0
    state = json.loads((driver.folder / "state.json").read_text())
    for known in (state, {name: value for name, value in state.items() if name != "dry"}):  # the latter of before
        (driver.folder / "state.json").write_text(json.dumps(known))
        with pytest.raises(UserError, match="holds a dry run, which another cannot go on from"):
            driver()
    assert driver("--dry-run") == 0


def test_a_retrain_waits_for_time_that_is_worth_it(driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    """Its length is decided once: of what is left of a short call it would be one epoch, for good."""
    assert driver("--budget-s", "150") == 1
    [missing] = re.findall(r"retrain: (\d+) s too few are left", capsys.readouterr().out)
    least = gpu_study.LEAST_EPOCHS * gpu_study.N_TRAINING / (gpu_study.CERTAIN * 40_000)
    kept = gpu_study.RETRAIN_FIXED_S + gpu_study.PUBLISH_S + gpu_study.GRACE_S
    assert int(missing) == pytest.approx(least - (150 - kept), abs=5)
    assert "study.retrain" not in driver.names
    assert driver("--budget-s", "900") == 0
    assert "--epochs 300 --seeds 1" in next(line for line in driver.calls if "study.retrain" in line)
    also = ("--budget-s", "150", "--also", "reference")
    assert driver(*also) == 1
    assert re.search(r"reference: \d+ s too few are left", capsys.readouterr().out)


def test_what_an_interrupted_step_spent_is_counted(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    run = gpu_study.subprocess.Popen.wait

    def interrupted(process: gpu_study.subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if "study.run" in process.args and timeout != gpu_study.GRACE_S:
            time.sleep(0.3)
            raise KeyboardInterrupt
        return run(process, timeout)

    monkeypatch.setattr(gpu_study.subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        driver("--budget-s", "900", hangs="study.run")
    state = json.loads((driver.folder / "state.json").read_text())
    assert state["spent"]["study"] >= 0.3
    assert "study" not in state["done"]


def test_what_is_done_is_skipped_and_lengths_stay(driver: Driver) -> None:
    """Over several calls, the budget of all of them known from the first."""
    assert driver("--budget-s", "60", "--total-s", "400", fails="study.retrain") == 1
    assert driver("--budget-s", "60", "--total-s", "400", rate=999_999.0) == 0
    first, again = [line for line in driver.calls if "study.retrain" in line]
    assert first == again
    epochs, seeds = map(int, re.search(r"--epochs (\d+) --seeds (\d)", first).groups())  # type: ignore[union-attr]
    assert seeds == 1
    kept = gpu_study.RETRAIN_FIXED_S + gpu_study.PUBLISH_S + gpu_study.GRACE_S
    assert 0.9 < epochs / gpu_study.retrain_length(40_000, 400 - kept)[0] <= 1
    assert [line for line in driver.names if line == "study.run"] == ["study.run"]
    assert driver("--budget-s", "60", "--total-s", "400") == 0
    assert len(driver.calls) == 6 + 2  # retrain and publish ran twice, nothing else


def test_a_failed_step_does_not_stop_the_others_and_is_tried_again(
    driver: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    also = ("--also", "study-100k", "retrain-100k", "epoch")
    assert driver(*also, fails="--max-params") == 1
    said = capsys.readouterr().out
    assert "study-100k: FAILED with exit code 3" in said
    assert "retrain-100k: waits for study-100k" in said
    assert driver.names[-3:] == ["study.run", "epoch", "publish.py"]
    n_before = len(driver.calls)
    assert driver(*also) == 0
    assert driver.names[n_before:] == ["study.run", "study.retrain", "publish.py"]


def test_what_finished_of_a_study_that_failed_is_retrained(driver: Driver) -> None:
    """Five trials in a row may fail after forty good ones; a retrain without any says so itself."""
    assert driver("--budget-s", "400", fails="study.run") == 1
    assert driver.names == ["smoke.py", "study.run", "smoke.py", "study.retrain", "throughput", "publish.py"]


def test_a_long_step_is_cut_off_in_time_and_goes_on(driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert driver("--budget-s", "32", hangs="study.run") == 1
    assert time.monotonic() - started < 32
    said = capsys.readouterr().out
    assert re.search(r"study: cut off after \d+ s; the same command goes on", said)
    assert "study.retrain" not in driver.names
    assert "publish: done" in said  # what there is of the study is kept
    assert driver("--budget-s", "400") == 0
    assert driver.names.count("study.run") == 2
    assert "study.retrain" in driver.names


def test_a_study_that_used_up_its_share_is_retrained_as_it_is(driver: Driver) -> None:
    assert driver("--budget-s", "400", fails="study.retrain") == 1
    state = json.loads((driver.folder / "state.json").read_text())
    del state["done"]["study"]
    state["spent"]["study"] = state["plan"]["study_s"]
    (driver.folder / "state.json").write_text(json.dumps(state))
    assert driver("--budget-s", "400") == 0
    assert driver.names.count("study.run") == 1
    assert driver.names.count("study.retrain") == 2


def test_a_budget_may_come_when_the_study_is_done(driver: Driver) -> None:
    assert driver(fails="study.retrain") == 1
    assert driver("--budget-s", "400") == 0
    assert driver.names.count("study.run") == 1
    assert "--epochs" in [line for line in driver.calls if "study.retrain" in line][-1]


def test_a_call_without_time_says_so(driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver("--budget-s", "1") == 1
    assert "smoke: no time left" in capsys.readouterr().out


def test_more_is_run_where_it_is_asked_for(driver: Driver) -> None:
    assert driver("--also", "all") == 0
    text = "\n".join(driver.calls)
    for word in ("--reference", "--yardstick", "--teacher", "--max-params 100000", "--before cpu", "trials-per-hour"):
        assert word in text
    assert len(driver.calls) == 6 + len(gpu_study.MORE)


# What is carried


def batch(n: int, seed: int) -> bytes:
    """A file with `n` images in it, laid out as in CIFAR-10's pickles."""
    rng = np.random.default_rng(seed)
    smooth = np.clip(rng.normal(128, 20, (n, 3, 32, 32)) / 2 * [1, 0.9, 0.8][seed % 3], 0, 255).astype(np.uint8)
    # A "T" that begins no pixels, before and behind.
    return b"before T\x00\x01" + b"T" + struct.pack("<I", n * 3072) + smooth.tobytes() + b"labels T and names"


@pytest.fixture
def made_data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / FOLDER
    folder.mkdir(parents=True)
    for number, n in enumerate((1_000, 1_500)):
        (folder / f"data_batch_{number}").write_bytes(batch(n, number))
    (folder / "batches.meta").write_bytes(b"T names")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_data_comes_back_byte_for_byte_and_smaller(made_data: Path, tmp_path: Path) -> None:
    packing.pack_cifar10(made_data, tmp_path / "cifar10.pack")
    assert (tmp_path / "cifar10.pack").stat().st_size < 0.9 * sum(map(len, contents(made_data).values()))
    packing.unpack_cifar10((tmp_path / "cifar10.pack").open("rb"), tmp_path / "there")
    assert contents(tmp_path / "there") == contents(made_data)
    assert not (tmp_path / "cifar10.pack").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_data_leaves_no_folder(made_data: Path, tmp_path: Path, damage: str) -> None:
    """A folder that is there is taken for the whole data set."""
    packing.pack_cifar10(made_data, tmp_path / "cifar10.pack")
    raw = bytearray((tmp_path / "cifar10.pack").read_bytes())
    if damage == "cut":
        del raw[len(raw) // 2 :]
    else:
        raw[-20] ^= 255
    (tmp_path / "cifar10.pack").write_bytes(raw)
    with pytest.raises(packing.IncompleteError):
        packing.unpack_cifar10((tmp_path / "cifar10.pack").open("rb"), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_pieces_arrive_in_any_order_and_say_what_is_missing(tmp_path: Path) -> None:
    whole = bytes(range(256)) * 100
    payload = tmp_path / "x.pack"
    payload.write_bytes(whole)
    room = iter([(tmp_path / "1", 0), (tmp_path / "1", 9_000), (tmp_path / "2", 9_000), (tmp_path / "3", 9_000)])
    pieces = packing.cut(payload, room)
    assert [piece.parent.name for piece in pieces] == ["1", "2", "3"]
    there = tmp_path / "there"
    packing.receive([tmp_path / "3", tmp_path / "1"], there)
    assert packing.missing(there, "x.pack") == 1
    with pytest.raises(packing.IncompleteError, match=r"1 pieces of x.pack are missing"):
        packing.joined(there, "x.pack")
    packing.receive([tmp_path / "2"], there)
    with packing.joined(there, "x.pack") as found:
        assert found.read() == whole
    assert packing.missing(there, "y.pack") == 1


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(random.Random(0).randbytes(5_000))
    packing.pack_folder(tmp_path / "source", tmp_path / "a.tar.xz")
    raw = bytearray((tmp_path / "a.tar.xz").read_bytes())
    raw[2_000] ^= 255
    (tmp_path / "a.tar.xz").write_bytes(raw)
    with pytest.raises(packing.IncompleteError, match="is damaged"):
        packing.unpack_folder((tmp_path / "a.tar.xz").open("rb"), tmp_path / "there")


def test_every_part_fits_beside_the_tree(made_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = packing.tracked_bytes(REPOSITORY) / packing.MIB
    parts, limit = tmp_path / "parts", tree + 1.2
    words = ["prepare", str(parts), "--data", str(made_data.parent), "--no-packages", "--part-mib", str(limit)]
    assert gpu_study.main(words) == 0
    folders = sorted(parts.iterdir())
    assert len(folders) > 2
    for folder in folders:
        assert sum(map(len, contents(folder).values())) <= 1.2 * packing.MIB + 1
    assert capsys.readouterr().out.count("MiB (cifar10.pack.0") == len(folders)
    with pytest.raises(UserError, match="PARTS must be a new or an empty folder"):
        gpu_study.main(words)


def test_a_machine_without_a_network_needs_these_packages() -> None:
    found = packing.needed_packages("small-cnn-study", gpu_study.THERE.split())
    assert {"albumentations", "albucore", "optuna", "optuna-dashboard", "sqlalchemy", "plotly", "pydantic"} <= set(
        found
    )
    assert not {"torch", "numpy", "opencv-python-headless", "pytest", "psycopg", "small-cnn-study"} & set(found)
    assert found["albumentations"] == "2.0.8"


def test_what_was_packed_anew_is_unpacked_again(made_data: Path, tmp_path: Path) -> None:
    folder, parts = tmp_path / "folder", tmp_path / "parts"
    for content in (b"one", b"two"):
        (made_data / "batches.meta").write_bytes(content)
        packing.pack_cifar10(made_data, tmp_path / "cifar10.pack")
        packing.cut(tmp_path / "cifar10.pack", iter([(parts, 2**40)]))
        assert packing.unpack_all([parts], folder)
        assert (folder / "data" / FOLDER / "batches.meta").read_bytes() == content
    shutil.rmtree(folder / "data")
    assert packing.unpack_all([parts], folder)
    assert (folder / "data" / FOLDER / "batches.meta").exists()


def test_the_smoke_test_runs_until_the_data_is_there(
    driver: Driver, made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STUDY_DATA", raising=False)
    limit = packing.tracked_bytes(REPOSITORY) / packing.MIB + 1.2
    words = ("--data", str(made_data.parent), "--no-packages", "--part-mib", str(limit))
    gpu_study.main(["prepare", str(tmp_path / "parts"), *words])
    driver.carried = True
    first, *others = sorted(map(str, (tmp_path / "parts").iterdir()))
    assert driver("--parts", first) == 1
    assert driver.names == ["smoke.py"]
    assert driver("--parts", *others) == 0
    assert driver.names[1:3] == ["study.run", "study.rerank"]
    assert contents(driver.folder / "data" / FOLDER) == contents(made_data)
    # The same call again unpacks nothing again.
    monkeypatch.setattr(packing, "unpack_cifar10", lambda *_: pytest.fail("unpacked again"))
    assert driver("--parts", first, *others) == 0
    assert list((driver.folder / "carried").iterdir()) == []
    # A later call, without parts, works where the earlier ones did.
    assert driver("--also", "epoch") == 0
    assert driver.names[-2:] == ["epoch", "publish.py"]
    assert driver.calls[-1].endswith(f"--results {driver.folder}/published")
    assert (tmp_path / "calls.cache").read_text().strip() == str(driver.folder / "cache")


def test_only_what_cannot_be_made_again_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    kept = [
        "state.json",
        "runs/best/study.db",
        "runs/best/checkpoints/b.snapshots/epoch-0001.pt",
        "cache/small-cnn-study/jobs-1.json",
    ]
    left = ["data/x", "site/x", "carried/x", "cache/small-cnn-study/study/decode/x.pkl", "cache/inductor/ab/x"]
    pages = ["runs/best/report.html", "runs/best/artifacts/d16820d5"]
    left += pages
    done = ["runs/best/checkpoints/a.npz", "runs/best/checkpoints/a.snapshots/epoch-0001.pt"]
    for name in (*kept, *left, *done):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("<!DOCTYPE html>..." if name in pages else name)
    packing.pack_results(folder, tmp_path / "out", 15)
    assert sorted(contents(folder)) == sorted((*kept, *left, *done))  # as it was
    packing.receive([tmp_path / "out"], tmp_path / "there")
    packing.unpack_folder(packing.joined(tmp_path / "there", "results.tar"), tmp_path / "there")
    assert sorted(contents(tmp_path / "there")) == sorted((*kept, done[0]))


def test_what_came_back_in_pieces_goes_on_elsewhere(driver: Driver, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert driver("--pack-to", str(out), "--pack-mib", "0.0005", fails="study.retrain") == 1
    assert len(list(out.iterdir())) > 1
    assert all(file.stat().st_size <= 0.0005 * packing.MIB for file in out.iterdir())
    before, driver.folder = contents(driver.folder), tmp_path / "elsewhere"
    assert driver("--parts", str(out)) == 0
    assert driver.names.count("study.run") == 1
    assert contents(driver.folder)["logs/study.log"] == before["logs/study.log"]
    assert driver.names[-2:] == ["study.retrain", "publish.py"]


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget-s", "0"], "--budget-s must be above 0"),
        (["--dry-run", "--also", "epoch", "reference"], "which these have not: epoch. Leave them out of --also."),
        (["--total-s", "9"], "--total-s, of all calls together, needs --budget-s"),
        (["--also", "nonsense"], "argument --also: invalid choice: 'nonsense'"),
        (["--parts", "/nowhere"], "--parts must name folders"),
        (["--pack-mib", "3"], "--pack-mib and --pack-to go together"),
        (["--folder", "/dev/null/x"], "--folder '/dev/null/x' cannot be used"),
        (["nonsense"], "unrecognized arguments: nonsense"),
    ],
)
def test_mistakes_get_a_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        gpu_study.main(["run", *words])
    assert len(str(caught.value).splitlines()) == 1


def test_a_tree_that_leaves_no_room_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--part-mib must leave a MiB"):
        gpu_study.main(["prepare", str(tmp_path / "parts"), "--part-mib", "1"])


# All of it


@pytest.mark.heavy
@pytest.mark.cifar10
def test_a_dry_run_of_everything(cifar10_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two calls, as on a machine that is lent for a while: the second has nothing left to do but what was cut."""
    monkeypatch.setenv("STUDY_DATA", cifar10_folder)
    folder, out = tmp_path / "folder", tmp_path / "out"
    words = [
        "run",
        "--dry-run",
        "--folder",
        str(folder),
        "--budget-s",
        "300",
        "--pack-to",
        str(out),
        "--pack-mib",
        "15",
    ]
    codes = [gpu_study.main(words) for _ in range(2)]
    assert codes[-1] == 0
    smoke = json.loads((folder / "smoke.json").read_text())
    assert not [name for name, found in smoke.items() if "failed" in found]
    assert {"machine", "calibrate", "twenty", "rate best", "loaded best", "profile best"} <= set(smoke)
    state = json.loads((folder / "state.json").read_text())
    assert {"smoke", "study", "pace", "retrain", "throughput", "publish"} == set(state["done"])
    published = folder / "published"
    metrics = json.loads((published / "best" / "best" / "metrics.json").read_text())
    assert len(metrics["test_accuracy"]) == 1
    record = json.loads((published / "best" / "study.json").read_text())
    assert sum(trial["state"] in ("COMPLETE", "PRUNED") for trial in record["trials"]) == 3
    assert list((published / "benchmarks").glob("throughput-*.json"))
    assert [file.name for file in out.iterdir()] == ["results.tar.000-of-001"]
