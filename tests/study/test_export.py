"""`study.export`: other formats give the network's answers, and say what is asked for in one line."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import study
from search_spaces.architecture import Architecture, Conv, Residual
from search_spaces.candidate import Candidate
from study import export
from study.bundle import programs
from study.bundle.preprocessing import CIFAR_10
from study.data.cifar10 import CIFAR10, Images
from study.errors import StudyFailed, UserError
from study.machine.paths import REPOSITORY
from study.model.network import build

CANDIDATE = Candidate(
    Architecture((Conv(8, stride=2), Residual((Conv(8, dilation=2), Conv(8, separable=True, activation=False)))))
)
OWN = dataclasses.replace(CIFAR_10, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), data="own")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its norms have seen images, so that folding them changes something."""
    folder = tmp_path_factory.mktemp("best")
    network = build(CANDIDATE.architecture, seed=3).train()
    with torch.no_grad():
        network(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    (folder / "candidate.json").write_text(json.dumps(CANDIDATE.to_json()))
    (folder / "metrics.json").write_text("{}")
    (folder / "config.json").write_text(OWN.to_text())
    torch.save(network.state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, making: Callable[..., Images]) -> None:
    """Latencies of one run, and made images for the data set's."""
    monkeypatch.setattr(export, "_SECONDS", 0.0)
    monkeypatch.setattr(export, "load_test", lambda _: making(60, noise=30, seed=1))
    monkeypatch.setattr("study.data.opening.open_data", lambda _: CIFAR10)
    monkeypatch.setattr(export, "load_train", lambda _: making(200, noise=30, seed=0))


@pytest.fixture
def onnxruntime() -> ModuleType:
    """CI installs it with the other extras; a checkout may have none."""
    return pytest.importorskip("onnxruntime")  # type: ignore[no-any-return]


@pytest.mark.usefixtures("quick")
def test_onnx_answers_as_the_network_for_any_batch(
    onnxruntime: Any, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "model.onnx"
    assert export.main([str(bundle), "--format", "onnx", "--out", str(file), "--images", "50"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert len(re.findall(r"^(the bundle itself|onnx) .* 50 of 50 ", out, re.MULTILINE)) == 2
    session, model = onnxruntime.InferenceSession(file), study.load(bundle)
    for n_images in (1, 2, 7, 33):
        images = torch.rand(n_images, 3, 32, 32)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        np.testing.assert_allclose(found, model(images).numpy(), rtol=1e-4, atol=1e-4)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == list(OWN.classes)
    assert (json.loads(told["mean"]), json.loads(told["std"])) == (list(OWN.mean), list(OWN.std))
    assert told["data"] == "own"
    assert str(REPOSITORY).encode() not in file.read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_few_images_are_of_all_classes(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, making: Callable[..., Images]
) -> None:
    """Those of a folder with a test part lie class by class."""
    made, seen = making(60, noise=30, seed=1), list[Images]()
    monkeypatch.setattr(export, "load_test", lambda _: made.take(np.argsort(made.labels, kind="stable")))
    measure = export._measure

    def spy(exports: Any, network: Any, images: Images, tested: bool) -> Any:
        seen.append(images)
        return measure(exports, network, images, tested)

    monkeypatch.setattr(export, "_measure", spy)
    assert export.main([str(bundle), "--format", "safetensors", "--images", "20"]) == 0
    assert np.bincount(seen[0].labels, minlength=10).tolist() == [2] * 10


@pytest.mark.usefixtures("quick")
def test_a_network_of_another_size_is_compared_on_random_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = Candidate(dataclasses.replace(CANDIDATE.architecture, image_size=64))
    (tmp_path / "candidate.json").write_text(json.dumps(candidate.to_json()))
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "config.json").write_text(dataclasses.replace(OWN, image_size=64).to_text())
    torch.save(build(candidate.architecture, seed=3).state_dict(), tmp_path / "weights.pt")
    assert export.main([str(tmp_path), "--format", "torch-export", "--images", "0"]) == 0
    assert "256 of 256" in capsys.readouterr().out
    with pytest.raises(UserError, match="takes images of 64 pixels, and ours have 32"):
        export.main([str(tmp_path), "--format", "torch-export"])


@pytest.mark.usefixtures("quick")
def test_all_formats_are_measured_and_recorded(
    onnxruntime: Any, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(bundle), "--format", "all", "--out", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    record = json.loads((tmp_path / "exports.json").read_text())
    names = ["safetensors", "torch-export", "onnx", "onnx int8"]
    assert [each["format"] for each in record["formats"]] == names
    assert [line.split("  ")[0] for line in out.splitlines() if "KiB" in line] == names
    assert record["test_images"] == 60
    assert record["calibration_images"] == len(export.load_train("")) < export.N_CALIBRATION
    for each in record["formats"]:
        assert (tmp_path / each["file"]).stat().st_size == each["size_bytes"]
        assert min(each["latency_ms"].values()) > 0
        assert 0 <= each["accuracy"] <= 1
        assert each["same"] == 60 or each["format"] == "onnx int8"
    small = record["formats"][-1]
    assert small["same"] >= 50
    assert 0 < small["difference"] < 1
    session = onnxruntime.InferenceSession(tmp_path / "model.int8.onnx")
    assert session.run(["logits"], {"images": np.zeros((3, 3, 32, 32), np.float32)})[0].shape == (3, 10)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(OWN.classes)
    assert set(load_file(tmp_path / "weights.safetensors")) == set(build(CANDIDATE.architecture).state_dict())


@pytest.mark.usefixtures("quick")
def test_without_a_data_set(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "load_test", lambda _: pytest.fail("none is needed"))
    file = tmp_path / "model.pt2"
    assert export.main([str(bundle), "--format", "torch-export", "--images", "0", "--out", str(file)]) == 0
    assert "256 random images, so that no accuracy is known" in capsys.readouterr().out
    images = torch.rand(3, 3, 32, 32)
    found = torch.export.load(file).module()(images)
    torch.testing.assert_close(found, study.load(bundle)(images), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("quick")
def test_other_answers_are_not_written(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = programs.torch_program

    def wrong(*each: Any) -> Any:
        content, loaded = made(*each)
        return content, lambda images: 2 * loaded(images)

    monkeypatch.setattr(programs, "torch_program", wrong)
    monkeypatch.setattr(programs, "run_by_torch", lambda module: lambda x: module(torch.from_numpy(x)).detach().numpy())
    with pytest.raises(StudyFailed, match="torch-export gives other answers than the network"):
        export.main([str(bundle), "--format", "torch-export", "--out", str(tmp_path / "model.pt2")])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_what_is_written_is_what_was_compared(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = export.numbers_as_bytes
    monkeypatch.setattr(export, "numbers_as_bytes", lambda state: save({n: 1.01 * t for n, t in state.items()}))
    with pytest.raises(StudyFailed, match="safetensors gives other answers than the network"):
        export.main([str(bundle), "--format", "safetensors", "--out", str(tmp_path / "numbers")])
    assert not (tmp_path / "numbers").exists()


def test_an_older_bundle_gets_its_card(bundle: Path, tmp_path: Path) -> None:
    for name in ("candidate.json", "metrics.json", "weights.pt"):
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    assert export.main([str(tmp_path), "--format", "card"]) == 0
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(CIFAR_10.to_text())
    assert "Not measured." in (tmp_path / "README.md").read_text()
    (tmp_path / "confusion.csv").write_text("true,a\na,1\n")
    with pytest.raises(UserError, match=r"confusion.csv' cannot be read: its classes are not those of config.json"):
        export.main([str(tmp_path), "--format", "card"])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("options", [["--format", "safetensors"], ["--format", "onnx", "--int8", "--images", "0"]])
def test_images_of_other_classes_are_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    shutil.copytree(bundle, tmp_path / "own")
    letters = dataclasses.replace(OWN, classes=tuple("abcdefghij"), data="letters")
    (tmp_path / "own" / "config.json").write_text(letters.to_text())
    monkeypatch.setattr(export, "_EXTRA", ())
    with pytest.raises(UserError, match=r"for other classes \(a, b, .*\) than those of CIFAR-10"):
        export.main([str(tmp_path / "own"), *options])
    if "onnx" not in options:
        assert export.main([str(tmp_path / "own"), *options, "--images", "0"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: --format"),
        (["--format", "tflite"], "invalid choice: 'tflite'"),
        (["--format", "safetensors", "--int8"], "--int8 is a variant of --format onnx, not of safetensors"),
        (["--format", "card", "--out", "x"], "--format card takes no --out. Leave it out."),
        (["--format", "card", "--data", "x"], "--format card takes no --data. Leave it out."),
        (["--format", "card", "--images", "5"], "--format card takes no --images. Leave it out."),
        (["--format", "onnx", "--images", "-1"], "--images must not be negative"),
        (["--format", "safetensors", "--out", "."], "--out must be a file: '.' is a folder"),
        (["--format", "onnx", "--out", ""], "--out must be a file: ''"),
        (["--format", "safetensors", "--images", "0", "--data", "x"], "without 8 bits takes no --data"),
        (["--format", "all", "--out", __file__], "--out must be a folder: .* is a file"),
    ],
)
def test_what_cannot_be_meant_is_refused(bundle: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        export.main([str(bundle), *arguments])


def test_a_missing_extra_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    find = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(UserError, match=r"needs onnxruntime, not installed here: pip install -e '\.\[onnx\]'$"):
        export.main(["nowhere", "--format", "onnx"])
