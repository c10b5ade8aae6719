"""Disks that are really full: a line with the cause, nothing finished is lost, and the same command goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Candidate
from search_spaces.cost import CostModel
from study import report, retrain, run
from study.bundle.files import load_bundle, write_bundle
from study.calibration.prices import Calibration
from study.command_line.parser import run_command
from study.data.cifar10 import Images
from study.errors import StudyFailed
from study.machine import cache
from study.machine.hardware import hardware
from study.model.network import build
from study.storage.database import finished_trials, open_study
from study.training.checkpoints import load_progress, save_progress
from study.training.records import Progress

NO_SPACE = "No space left on device"
Disk = Callable[[int], Path]
Fill = Callable[[Path], Path]
TINY = ["--train-images", 200, "--val-images", 100, "--epochs", 1, "--device", "cpu"]


def code_of(main: Callable[[list[str]], int], arguments: list[Any]) -> int:
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: main([str(each) for each in arguments]))
    return int(str(caught.value.code))


def test_a_checkpoint(small_disk: Disk, filling: Fill) -> None:
    file = small_disk(128) / "a.pt"
    progress = Progress(ema={"weight": torch.zeros(4_096)})
    save_progress(progress, file)
    filler = filling(file.parent)
    with pytest.raises(StudyFailed, match=f"{NO_SPACE}.* The one before is kept"):
        save_progress(Progress(ema={"weight": torch.ones(4_096)}), file)
    found = load_progress(file)
    assert found is not None
    assert not found.ema["weight"].any()
    assert sorted(each.name for each in file.parent.iterdir()) == ["a.pt", "filler"]
    filler.unlink()
    save_progress(progress, file)


def test_what_was_measured(
    small_disk: Disk, filling: Fill, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk(16)
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
    cache.complain.cache_clear()
    cache.keep("what", {"a": 1})
    filling(disk)
    cache.keep("what", {"a": "x" * 10_000})
    assert cache.recall("what", dict) == {"a": 1}
    (said,) = capsys.readouterr().err.splitlines()
    assert NO_SPACE in said


def test_a_bundle(small_disk: Disk, filling: Fill) -> None:
    candidate = Candidate(Architecture((Conv(4, stride=4),)))
    images = Images(np.zeros((20, 32, 32, 3), np.uint8), np.arange(20) % 10)

    def write(lr: float) -> None:
        network = build(candidate.architecture, seed=0)
        write_bundle(folder, candidate, network, {"wall_s": lr}, [], images, np.eye(20, 10))

    folder = small_disk(4_096) / "best"
    write(1.0)
    filler = filling(folder.parent)
    for spare in (0, 60):  # KiB: the disk is full at one file after the other
        with filler.open("r+b") as stream:
            stream.truncate(filler.stat().st_size - spare * 1024)
        with pytest.raises(StudyFailed, match=f"The bundle .*{NO_SPACE}. Make room and run the same command again"):
            write(2.0)
        assert load_bundle(folder).metrics == {"wall_s": 1.0}
        assert sorted(each.name for each in folder.parent.iterdir()) == ["best", "filler"]
        filler.unlink()
        filler = filling(folder.parent)
    filler.unlink()
    write(2.0)
    assert load_bundle(folder).metrics == {"wall_s": 2.0}


@pytest.mark.slow
def test_a_study_and_its_retrain(
    small_disk: Disk,
    filling: Fill,
    made_cifar10: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Full before the study, between its trials, while a seed trains, and when its bundle is written."""
    cost = CostModel(1e-9, 1e-8, 1e-8, 1e-8, 1e-5, 1e-4, "cpu")
    calibration = Calibration("cpu", hardware("cpu"), "float32", cost, 0.1)
    monkeypatch.setattr("study.calibration.prices.calibrate", lambda device: calibration)
    monkeypatch.setattr("study.storage.patience.OUTAGE_S", 1.0)
    disk = small_disk(40_000)
    out, url = disk / "out", f"sqlite:///{disk / 'out' / 'study.db'}"
    search = [*TINY, "--jobs", "1", "--checkpoint-every", "0.01", "--out", out]

    def fails(main: Callable[[list[str]], int], arguments: list[Any]) -> str:
        assert code_of(main, arguments) == 1
        said = capfd.readouterr().err
        assert "Traceback" not in said
        assert NO_SPACE in said or "database or disk is full" in said or "disk I/O error" in said
        return said

    filler = filling(disk)
    fails(run.main, [*search, "--trials", 1])
    filler.unlink()
    assert code_of(run.main, [*search, "--trials", 1]) == 0
    (trial,) = finished_trials(open_study(url, "dilated"))

    filler = filling(disk)
    fails(run.main, [*search, "--trials", 2])
    fails(report.main, ["--out", out])
    filler.unlink()
    assert finished_trials(open_study(url, "dilated")) == [trial]

    again = ["--epochs", 2, "--train-images", 300, "--device", "cpu", "--out", out]
    filler = filling(disk)
    assert "the checkpoint " in fails(retrain.main, again)
    filler.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("study.retraining.retraining.write_bundle", lambda *each: (filling(disk), write_bundle(*each)))
        assert "The bundle " in fails(retrain.main, again)
    filler.unlink()
    capfd.readouterr()
    assert code_of(retrain.main, again) == 0
    assert "epoch 1/2" not in capfd.readouterr().out  # its training was over
    assert load_bundle(out / "best").metrics["test_accuracy"]
