"""Checkpoints: what is saved is read back, what is damaged starts anew, and a full disk costs the newest one alone."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import OPTIMIZERS, Candidate, Optimisation
from search_spaces.reference import REFERENCE
from study.errors import StudyFailed
from study.training.checkpoints import checkpoint_name, forget_snapshots, load_progress, save_progress
from study.training.records import EpochRecord, Progress, TrainingConfig
from study.training.state import TrainState

SMALL = Architecture((Conv(8, stride=4), Conv(8)))

RECORDS = [EpochRecord(epoch, 1.5 - epoch, 0.25, None, None, 0.1, 2.0, 0.125) for epoch in range(2)]


def progress(n_epochs: int = 2) -> Progress:
    """After so many epochs, each with its snapshot."""
    return Progress(
        epoch=n_epochs,
        batch=3,
        network={"weight": torch.arange(6.0).view(2, 3), "n": torch.tensor(7)},
        ema={"weight": torch.full((2, 3), 0.5)},
        optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        sums={"loss": 1.25, "seen": 96.0},
        records=RECORDS[:n_epochs],
        snapshots={epoch: {"weight": torch.full((4096,), float(epoch))} for epoch in range(n_epochs)},
        compiled=False,
    )


def same(a: Any, b: Any) -> bool:
    """Tensor by tensor."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    return bool(a == b)


def loaded(file: Path) -> Progress:
    found = load_progress(file)
    assert found is not None
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "a.pt"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), OSError(errno.EMFILE, ""), MemoryError()])
def test_what_cannot_be_read_now_is_not_taken_for_damaged(
    error: Exception, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_progress(progress(), file)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as failing:
        failing.setattr("zipfile.ZipFile.testzip", fail)
        with pytest.raises(StudyFailed, match="cannot be read now"):
            load_progress(file)
    assert loaded(file).epoch == 2


def test_what_is_not_even_told_of_is_not_taken_for_damaged(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_progress(progress(), file)
    stat = os.stat

    def stale(path: Any, *each: Any, **more: Any) -> os.stat_result:
        if str(path) == str(file):
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, *each, **more)

    with monkeypatch.context() as failing:
        failing.setattr("os.stat", stale)
        with pytest.raises(StudyFailed, match=r"cannot be read now \(it cannot be opened \(Stale file handle\)\)"):
            load_progress(file)
    assert loaded(file).epoch == 2


def files(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


WHOLE = ["a.pt", "a.snapshots/epoch-0000.pt", "a.snapshots/epoch-0001.pt"]


def test_what_is_saved_is_read_back(file: Path) -> None:
    assert load_progress(file) is None
    save_progress(progress(), file)
    assert same(vars(loaded(file)), vars(progress()))
    assert files(file.parent) == WHOLE


def test_snapshots_are_written_once(file: Path) -> None:
    save_progress(progress(1), file)
    (first,) = file.with_suffix(".snapshots").iterdir()
    inode, small = first.stat().st_ino, file.stat().st_size
    save_progress(progress(2), file)
    assert first.stat().st_ino == inode
    assert file.stat().st_size < small + first.stat().st_size / 2  # they are not in it
    assert sorted(loaded(file).snapshots) == [0, 1]


def test_snapshots_of_another_training_are_forgotten(file: Path) -> None:
    save_progress(progress(2), file)
    forget_snapshots(file, progress(1))
    assert files(file.parent) == WHOLE[:2]
    forget_snapshots(file, None)
    assert files(file.parent) == WHOLE[:1]
    forget_snapshots(file.with_name("never-saved.pt"), None)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(progress().ema["weight"].numpy().tobytes())] ^= 1
    file.write_bytes(content)


def _of_another_version(file: Path) -> None:
    data = torch.load(file, weights_only=True)
    torch.save({**data, "unknown": 1}, file)


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _flip,
        _of_another_version,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("no archive"),
        lambda file: torch.save({"epoch": 1}, file),
        lambda file: torch.save([1, 2], file),
        lambda file: torch.save({"snapshots": [0], "records": [RECORDS[0]]}, file),  # needs code to be read
        lambda file: _cut(file.with_suffix(".snapshots") / "epoch-0001.pt"),
        lambda file: (file.with_suffix(".snapshots") / "epoch-0000.pt").unlink(),
    ],
    ids=["cut", "flipped bit", "version", "empty", "text", "fields", "list", "code", "snapshot cut", "snapshot gone"],
)
def test_damage_starts_the_training_anew(damage: Any, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_progress(progress(), file)
    damage(file)
    assert load_progress(file) is None
    said = capsys.readouterr().out
    assert said.startswith("a.pt cannot be read (")
    assert said.endswith("): this training starts anew\n")
    assert said.count("\n") == 1


def _after_a_step(optimizer: str) -> tuple[Candidate, TrainingConfig, dict[str, Any]]:
    """A training and its checkpoint, as plain containers."""
    candidate = Candidate(SMALL, optimisation=Optimisation(optimizer=optimizer))
    config = TrainingConfig(3, 0)
    state = TrainState.initial(candidate, config, 10)
    for parameter in state.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    found = Progress(epoch=1, batch=2, sums={"loss": 1.0}, records=RECORDS[:1])
    state.copy_to(found)
    return candidate, config, found.to_dict() | {"snapshots": []}


def _momenta(data: dict[str, Any]) -> dict[str, Any]:
    optimizer = data["optimizer"]
    return next(iter(optimizer.get("optimizers", [optimizer])[0]["state"].values()))


MISFITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "shapes": lambda data: data["network"].update({"classifier.weight": torch.zeros(10, 3, 1, 1)}),
    "numbers": lambda data: data["ema"].update({"classifier.weight": torch.zeros(10, 8, 1, 1).double()}),
    "no averages": lambda data: data.update(ema={}),
    "text for a weight": lambda data: data["ema"].update({"classifier.weight": "heavy"}),
    "a list for weights": lambda data: data.update(network=[1]),
    "momenta": lambda data: _momenta(data).update(momentum_buffer=torch.zeros(7), exp_avg=torch.zeros(7)),
    "an optimizer": lambda data: data.update(optimizer={"state": 1}),
    "epochs": lambda data: data.update(epoch=2),
    "steps": lambda data: data.update(batch=-1),
    "text for a sum": lambda data: data.update(sums={"loss": "much"}),
    "text for a loss": lambda data: data["records"][0].update(train_loss="low"),
    "snapshots of epochs to come": lambda data: data.update(snapshots=[7]),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("misfit", MISFITS)
def test_what_is_of_another_training_starts_anew(
    misfit: str, optimizer: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate, config, data = _after_a_step(optimizer)
    file.parent.mkdir()
    torch.save(data, file)
    assert load_progress(file, (candidate, config)) is not None
    assert capsys.readouterr().out == ""
    MISFITS[misfit](data)
    torch.save(data, file)
    assert load_progress(file, (candidate, config)) is None
    (said,) = capsys.readouterr().out.splitlines()
    assert said.endswith("): this training starts anew")


@pytest.mark.parametrize("after", [0, 1], ids=["snapshot", "checkpoint"])
def test_a_full_disk_leaves_the_checkpoint_before(after: int, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is full in the middle of the new snapshot, or of what is written after it."""
    save_progress(progress(1), file)
    write, written = Path.write_bytes, []

    def fill(to: Path, content: bytes) -> None:
        if len(written) == after:
            write(to, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(to)
        write(to, content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(StudyFailed, match=r"cannot be written: .*No space left on device. The one before is kept\."):
        save_progress(progress(2), file)
    assert same(vars(loaded(file)), vars(progress(1)))
    assert files(file.parent) == WHOLE[: 2 + after]


def test_a_checkpoint_runs_no_code(file: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "trace",))

    save_progress(progress(), file)
    torch.save({**torch.load(file, weights_only=True), "ema": Bomb()}, file)
    assert load_progress(file) is None
    assert not (tmp_path / "trace").exists()


def test_a_name_tells_what_a_training_depends_on() -> None:
    """These two are of files that lie on people's disks."""
    config = TrainingConfig(5, 1)
    assert checkpoint_name(REFERENCE, config, 100) == "89a80fcd619f-seed1-dafd9f6ec4e8"
    kept = dataclasses.replace(config, n_snapshots=3)
    assert checkpoint_name(REFERENCE, kept, 100, "teacher-abc") == "89a80fcd619f-seed1-2229bbe354cc"
    different = [dataclasses.replace(config, **change) for change in ({"epochs": 6}, {"seed": 2}, {"precision": "x"})]
    names = {checkpoint_name(REFERENCE, each, 100) for each in (config, kept, *different)}
    assert len(names | {checkpoint_name(REFERENCE, config, 101), checkpoint_name(REFERENCE, config, 100, "a")}) == 7
    # The same training elsewhere.
    assert checkpoint_name(REFERENCE, dataclasses.replace(config, device="cuda", n_loaders=3), 100) in names
