"""What a test gave is kept, and tested again where that was damaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Candidate
from study.bundle.files import Bundle
from study.data.cifar10 import Images
from study.errors import StudyFailed
from study.model.layers import DepthwiseConv2d
from study.model.network import build, use_native_depthwise
from study.retraining import testing
from study.retraining.seeds import Seed
from study.training.checkpoints import save_progress
from study.training.evaluation import accuracy, evaluate
from study.training.records import EpochRecord, Progress, TrainingConfig

CANDIDATE = Candidate(Architecture((Conv(4, stride=4),)))


def finished(folder: Path) -> Seed:
    """A seed whose training is over."""
    seed = Seed(CANDIDATE, TrainingConfig(2, 0, n_snapshots=2), "", 10, folder, 1)
    state = build(CANDIDATE.architecture, seed=1).state_dict()
    records = [EpochRecord(epoch, 1.0, 0.5, None, None, 0.1, 1.0, 0.0) for epoch in range(2)]
    save_progress(Progress(epoch=2, ema=state, records=records, snapshots={0: state, 1: state}), seed.file)
    return seed


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _one_array(file: Path) -> None:
    with file.open("wb") as stream:
        np.save(stream, np.zeros(3))


def _with(**change: Any) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with np.load(file) as arrays:
            content = {**arrays, **change}
        np.savez(file, **content)

    return write


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": _cut,
    "one bit": _flip,
    "text": lambda file: file.write_text("no archive"),
    "empty": lambda file: file.write_bytes(b""),
    "one array": _one_array,
    "fewer arrays": lambda file: np.savez(file, epochs=np.array([0, 1])),
    "packed": lambda file: np.savez_compressed(file, epochs=np.zeros(10**6)),
    "fewer images": _with(logits=np.zeros((3, 10), np.float32)),
    "of every epoch": _with(logits=np.zeros((2, 200, 10), np.float32)),
    "of other images": _with(images=np.array("0" * 64)),
    "other epochs": _with(epochs=np.array([0, 3])),
    "other numbers": _with(logits=np.zeros((200, 10), np.complex64)),
    "objects, which need code": _with(losses=np.array([1, None], dtype=object)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_tested_again(
    damage: str,
    tmp_path: Path,
    tiny_images: Images,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = finished(tmp_path)
    first = testing.test_seed(seed, tiny_images)
    DAMAGE[damage](seed.tested)
    again = testing.test_seed(seed, tiny_images)
    assert np.array_equal(first.logits, again.logits)
    assert first.curve == again.curve
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"{seed.tested.name} cannot be read (")
    assert said.endswith("): this seed is tested again")
    monkeypatch.setattr("study.training.evaluation.evaluate", None)
    assert np.array_equal(testing.test_seed(seed, tiny_images).logits, first.logits)  # it was kept


def test_labels_that_were_put_right_are_tested_again(tmp_path: Path, tiny_images: Images) -> None:
    seed = finished(tmp_path)
    before = testing.test_seed(seed, tiny_images)
    order = np.arange(len(tiny_images))[::-1]
    after = testing.test_seed(seed, tiny_images.take(order))  # as many images of the same classes, elsewhere
    assert np.array_equal(after.logits, before.logits[order])
    assert after.accuracy == before.accuracy


def test_a_bundle_is_evaluated_by_its_own_figures(
    tmp_path: Path, tiny_images: Images, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training images that came since change those of the data set."""
    network = build(CANDIDATE.architecture, seed=1).eval()
    answers = evaluate(network, tiny_images, "cpu")[1].argmax(1)  # so that it is always right
    bundle = Bundle(tmp_path, CANDIDATE, {"test_accuracy_shipped": 1.0}, network)
    changed = dataclasses.replace(tiny_images.of, mean=(0.9, 0.1, 0.9), std=(0.9, 0.01, 0.9))
    elsewhere = Images(tiny_images.pixels, answers, changed)
    assert accuracy(evaluate(network, elsewhere, "cpu")[1], answers) < 1
    monkeypatch.setattr(testing, "load_bundle", lambda _: bundle)
    monkeypatch.setattr(testing, "open_data_of", lambda *_: changed)
    monkeypatch.setattr(testing, "load_test", lambda _: elsewhere)
    assert testing.evaluate_bundle(tmp_path, None, "cpu") == 0
    assert "other images" not in capsys.readouterr().out
    bundle.metrics["test_digest"] = "of others"
    assert testing.evaluate_bundle(tmp_path, None, "cpu") == 0
    assert "These are other images than it was tested on." in capsys.readouterr().out


def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(
    tiny_images: Images, small_disk: Callable[[int], Path], filling: Callable[[Path], Path]
) -> None:
    disk = small_disk(128)
    seed = finished(disk)
    before = {file.name for file in disk.iterdir()}
    filler = filling(disk)
    with pytest.raises(StudyFailed, match=r"No space left on device\. Make room and run the same command again"):
        testing.test_seed(seed, tiny_images)
    filler.unlink()
    assert {file.name for file in disk.iterdir()} == before
    assert len(testing.test_seed(seed, tiny_images).curve) == 2
    with pytest.raises(StudyFailed, match="does not hold a finished training"):
        testing.test_seed(dataclasses.replace(seed, checkpoints=disk / "other"), tiny_images)


def test_latencies_are_of_the_network_as_a_bundle_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the kernels that a GPU chose while it trained."""
    seen: set[frozenset[Any]] = set()
    forward = DepthwiseConv2d.forward

    def watched(module: DepthwiseConv2d, x: torch.Tensor) -> torch.Tensor:
        seen.add(module.native)
        return forward(module, x)

    monkeypatch.setattr(DepthwiseConv2d, "forward", watched)
    monkeypatch.setattr(testing, "_LATENCY_S", 0.01)
    candidate = Candidate(Architecture((Conv(4, stride=4), Conv(4, kernel=3, separable=True))))
    network = use_native_depthwise(build(candidate.architecture), frozenset({(3, False, 8)})).eval()
    found = testing.latencies(network, Seed(candidate, TrainingConfig(1, 0), "", 10, tmp_path, 1))
    assert min(found["cpu"].values()) > 0
    assert seen == {frozenset()}
    assert all(each.native for each in network.modules() if isinstance(each, DepthwiseConv2d))
