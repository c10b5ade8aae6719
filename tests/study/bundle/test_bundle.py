"""The bundle: what is written can be used, what is damaged is named, nothing is left half written."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import study
from search_spaces.architecture import Architecture, Conv, Residual
from search_spaces.candidate import Candidate
from search_spaces.layer_table import layer_table
from search_spaces.reference import REFERENCE_ARCHITECTURE
from study.bundle import figures as bundle_figures
from study.bundle.files import FILES, load_bundle, load_candidate, write_bundle
from study.bundle.preprocessing import CIFAR_10
from study.bundle.summary import USE_WITH_PROJECT, USE_WITH_TORCH
from study.data.cifar10 import CLASSES, Images
from study.errors import UserError
from study.machine.paths import REPOSITORY
from study.model.network import Deployable, Network, build
from study.training.evaluation import evaluate

TINY = Candidate(
    Architecture(
        (
            Conv(4, stride=2),
            Residual((Conv(4, dilation=2), Conv(4, separable=True, bias=True, activation=False))),
            Conv(8, stride=2),
        )
    )
)
METRICS: dict[str, Any] = {
    "candidate_id": TINY.candidate_id,
    "seeds": [0, 1],
    "epochs": 2,
    "test_accuracy": [0.125, 0.25],
    "test_accuracy_mean": 0.1875,
    "test_accuracy_std": 0.0625,
    "shipped_seed": 0,
    "test_accuracy_shipped": 0.125,
    "train_accuracy": 0.5,
    "target_accuracy": 0.85,
    "target_met": False,
    "device": "cpu",
    "wall_s": 12.5,
}
CURVES: list[dict[str, Any]] = [
    {"epoch": 0, "train_loss": 2.3, "train_accuracy": 0.1, "test_loss": None, "test_accuracy": None},
    {"epoch": 1, "train_loss": 2.1, "train_accuracy": 0.5, "test_loss": 2.2, "test_accuracy": 0.125},
]


def make_images(n_images: int = 40) -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n_images, 32, 32, 3), dtype=np.uint8)
    return Images(pixels, np.arange(n_images) % len(CLASSES))


def make_network(candidate: Candidate = TINY) -> Network:
    """Random weights whose norms have seen images, so that no buffer is at its initial value."""
    network = build(candidate.architecture, seed=1)
    network.train()
    with torch.no_grad():
        network(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return network.eval()


def write(folder: Path, candidate: Candidate = TINY, metrics: dict[str, Any] | None = None) -> Network:
    network, images = make_network(candidate), make_images()
    write_bundle(
        folder,
        candidate,
        network,
        METRICS if metrics is None else metrics,
        CURVES,
        images,
        evaluate(network, images, "cpu")[1],
    )
    return network


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Network]:
    folder = tmp_path_factory.mktemp("bundle") / "deep" / "best"
    return folder, write(folder)


@pytest.fixture
def copy(written: tuple[Path, Network], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[0], tmp_path / "best"))


def test_holds_every_file_and_nothing_beside_it(written: tuple[Path, Network]) -> None:
    folder, _ = written
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert os.listdir(folder.parent) == ["best"]


def test_round_trip(written: tuple[Path, Network]) -> None:
    folder, network = written
    bundle = load_bundle(folder)
    assert (bundle.folder, bundle.candidate, bundle.metrics) == (folder, TINY, METRICS)
    assert not bundle.network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(bundle.network.state_dict()[name], tensor), name
    assert load_candidate(folder) == TINY


def test_another_data_set_reaches_everything(tmp_path: Path) -> None:
    """Its classes, its normalisation; and what is not this bundle's is refused."""
    folder, names = tmp_path / "best", ("a, b", "ünder", "3")
    own = dataclasses.replace(CIFAR_10, classes=names, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), data="my pictures")
    candidate = Candidate(dataclasses.replace(TINY.architecture, n_classes=3))
    network, images = make_network(candidate), Images(make_images().pixels, np.arange(40) % 3)
    write_bundle(folder, candidate, network, METRICS, CURVES, images, np.eye(3)[images.labels], own)
    bundle = load_bundle(folder)
    assert bundle.preprocessing == own
    model, x = study.load(folder), torch.rand(2, 3, 32, 32)
    assert model.classes == names
    normalised = (x - torch.tensor(own.mean).view(3, 1, 1)) / torch.tensor(own.std).view(3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), network(normalised), rtol=1e-4, atol=1e-5)
        told: dict[str, str] = {"config.json": ""}
        program = torch.export.load(folder / "model.pt2", extra_files=told).module()
        torch.testing.assert_close(program(x), network(normalised), rtol=1e-4, atol=1e-5)
    assert told["config.json"] == (folder / "config.json").read_text()
    with (folder / "confusion.csv").open(encoding="utf-8", newline="") as stream:
        assert tuple(next(csv.reader(stream))[1:]) == names
    (folder / "config.json").unlink()  # then it is CIFAR-10's
    with pytest.raises(UserError, match=r"to 3 classes; .* only one from 3 of 32 to 10 can be used"):
        load_bundle(folder)


def test_the_caller_s_network_is_left_alone(tmp_path: Path) -> None:
    network = make_network().to(memory_format=torch.channels_last)
    images = make_images()
    network.train()
    write_bundle(tmp_path / "best", TINY, network, METRICS, CURVES, images, np.zeros((len(images), 10)))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not load_bundle(tmp_path / "best").network.training


@pytest.mark.parametrize("n_images", [1, 2, 7, 33])
def test_exported_program_takes_any_batch(written: tuple[Path, Network], n_images: int) -> None:
    folder, network = written
    images = torch.rand(n_images, 3, 32, 32)
    with torch.inference_mode():
        found = torch.export.load(folder / "model.pt2").module()(images)
        torch.testing.assert_close(found, Deployable(network)(images), rtol=1e-4, atol=1e-4)


def test_exported_program_agrees_with_evaluation(written: tuple[Path, Network]) -> None:
    folder, network = written
    images = make_images()
    batch = torch.from_numpy(images.pixels).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        found = torch.export.load(folder / "model.pt2").module()(batch).numpy()
    np.testing.assert_allclose(found, evaluate(network, images, "cpu")[1], rtol=1e-3, atol=1e-4)


def test_writing_says_what_it_does_and_no_more(tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: Any) -> None:
    write(tmp_path / "best")
    said, warned = capfd.readouterr()
    assert [line.split(":")[0] for line in said.splitlines()] == ["Exporting", "Drawing"]
    assert warned == ""
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("code", [USE_WITH_TORCH, USE_WITH_PROJECT])
@pytest.mark.parametrize("file", ["summary.txt", "README.md"])
def test_the_code_that_is_shown_runs(
    written: tuple[Path, Network], copy: Path, code: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (copy / file).read_text()
    assert all(line in text for line in code.splitlines())
    assert len(code.splitlines()) <= 5
    Image.fromarray(make_images(1).pixels[0]).save(copy / "photo.jpg")
    monkeypatch.chdir(copy)
    exec(code, {})


def test_summary_shows_table_and_metrics(written: tuple[Path, Network]) -> None:
    text = (written[0] / "summary.txt").read_text()
    assert layer_table(TINY.architecture) in text
    assert "18.75 ± 6.25 % (mean and standard deviation of 2 seeds)" in text
    assert "12.50 % (seed 0)" in text
    assert "85.00 %, missed" in text
    assert "12 s, summed over 2 seeds" in text


def test_metrics_may_lack_everything(tmp_path: Path) -> None:
    write(tmp_path / "best", metrics={})
    assert load_bundle(tmp_path / "best").metrics == {}


def test_figures_are_pictures_and_confusion_counts_every_image(written: tuple[Path, Network]) -> None:
    folder, network = written
    for name in ("curves.png", "misses.png", "confusion.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 300
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, f"{name} is empty"
    images = make_images()
    predicted = evaluate(network, images, "cpu")[1].argmax(1)
    with (folder / "confusion.csv").open(newline="") as stream:
        head, *rows = csv.reader(stream)
    assert tuple(head[1:]) == CLASSES
    assert tuple(row[0] for row in rows) == CLASSES
    for label, row in enumerate(rows):
        for guess, count in enumerate(row[1:]):
            assert int(count) == int(((images.labels == label) & (predicted == guess)).sum())


def test_misses_come_most_confident_first_and_pixels_stay_sharp(tmp_path: Path) -> None:
    images = make_images(4)
    logits = np.zeros((4, 10))
    logits[0, 0] = 5  # right
    logits[1, 2] = 1  # wrong, unsure
    logits[2, 3] = 9  # wrong, sure
    logits[3, 3] = 9  # right
    assert bundle_figures.confident_misses(images.labels, logits).tolist() == [2, 1]
    bundle_figures.draw_misses(images, logits, tmp_path / "misses.png")
    with Image.open(tmp_path / "misses.png") as sheet:
        shown = np.asarray(sheet.convert("RGB"))
    sharp = np.kron(images.pixels[2], np.ones((5, 5, 1), dtype=np.uint8))
    corner = sharp[0, 0]
    assert any(
        np.array_equal(shown[top : top + 160, left : left + 160], sharp)
        for top, left in np.argwhere((shown == corner).all(2))
    )


@pytest.mark.parametrize("n_epochs", [0, 1, 50])
def test_curves_of_any_length(tmp_path: Path, n_epochs: int) -> None:
    curves = [{**CURVES[0], "epoch": epoch} for epoch in range(n_epochs)]
    unknown = [{name: None if "_" in name else value for name, value in epoch.items()} for epoch in curves]
    for name, rows in (("curves", curves), ("empty", unknown)):
        bundle_figures.draw_curves(rows, tmp_path / f"{name}.png")
    drawn, empty = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("curves", "empty"))
    assert (drawn.shape != empty.shape or bool((drawn != empty).any())) == (n_epochs > 0)


def test_classes_may_be_called_what_would_be_mathematics(tmp_path: Path) -> None:
    classes = ("$", "$$", "$_$")
    bundle_figures.draw_confusion(np.eye(3, dtype=int), tmp_path / "confusion.png", classes)
    images = make_images(3)
    logits = np.roll(np.eye(3), 1, axis=0)
    bundle_figures.draw_misses(images, logits, tmp_path / "misses.png", classes)
    assert (tmp_path / "misses.png").stat().st_size > 1000


def test_no_misses_is_a_figure_too(tmp_path: Path) -> None:
    images = make_images(10)
    bundle_figures.draw_misses(images, np.eye(10), tmp_path / "misses.png")
    assert (tmp_path / "misses.png").stat().st_size > 1000


def test_replaces_an_old_bundle_and_keeps_other_files(copy: Path) -> None:
    (copy / "notes.md").write_text("mine")
    (copy / "weights.pt").write_bytes(b"old")
    (copy / "model.onnx").write_bytes(b"of the old weights")
    other = Candidate(Architecture((Conv(6, stride=4),)))
    write(copy, other)
    assert load_bundle(copy).candidate == other
    assert (copy / "notes.md").read_text() == "mine"
    assert not (copy / "model.onnx").exists()
    assert os.listdir(copy.parent) == ["best"]


@pytest.mark.parametrize("failing", ["draw_misses", "draw_curves"])
def test_a_failed_write_leaves_the_old_bundle(copy: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    before = {name: (copy / name).read_bytes() for name in FILES}

    def fail(*_: Any) -> None:
        raise RuntimeError("full")

    monkeypatch.setattr(bundle_figures, failing, fail)
    with pytest.raises(RuntimeError, match="full"):
        write(copy, Candidate(Architecture((Conv(6, stride=4),))))
    assert {name: (copy / name).read_bytes() for name in os.listdir(copy)} == before
    assert os.listdir(copy.parent) == ["best"]


@pytest.mark.parametrize(
    ("error", "told"), [(OSError("no space"), UserError), (KeyboardInterrupt("stopped"), KeyboardInterrupt)]
)
def test_a_failed_swap_puts_the_old_bundle_back(
    error: BaseException, told: type[BaseException], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(told, match=str(error)):
        write(copy, Candidate(Architecture((Conv(6, stride=4),))))
    assert load_bundle(copy).candidate == TINY
    assert os.listdir(copy.parent) == ["best"]


def test_what_a_killed_process_left_goes(copy: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, at_work = (copy.with_name(f".best.{pid}.new") for pid in (ended.pid, os.getppid()))
    for folder in (left, at_work):
        folder.mkdir()
    write(copy)
    assert sorted(os.listdir(copy.parent)) == sorted([at_work.name, "best"])


def test_a_file_in_the_way_is_the_user_s_mistake(tmp_path: Path) -> None:
    (tmp_path / "best").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "best")
    assert (tmp_path / "best").read_text() == "mine"


def test_logits_must_belong_to_the_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="One row of logits"):
        write_bundle(tmp_path / "best", TINY, make_network(), METRICS, CURVES, make_images(), np.zeros((3, 10)))
    assert not (tmp_path / "best").exists()


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _older(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    """`change` of a bundle that was written before there was weights.safetensors."""

    def edit(folder: Path) -> None:
        (folder / "weights.safetensors").unlink()
        change(folder)

    return edit


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def _flip_a_weight(folder: Path) -> None:
    state = torch.load(folder / "weights.pt", weights_only=True)
    stored = state["classifier.weight"].numpy().tobytes()
    data = (folder / "weights.pt").read_bytes()
    assert stored in data
    (folder / "weights.pt").write_bytes(data.replace(stored, bytes([stored[0] ^ 1]) + stored[1:]))


def _edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def _other_weights(folder: Path) -> None:
    torch.save(build(REFERENCE_ARCHITECTURE, 0).state_dict(), folder / "weights.pt")


def _nan_weights(folder: Path) -> None:
    state = torch.load(folder / "weights.pt", weights_only=True)
    state["classifier.weight"].fill_(math.nan)
    torch.save(state, folder / "weights.pt")


def _link_for_numbers(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to("/dev/zero")


def _file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def _layer(**change: Any) -> Callable[[Path], None]:
    return lambda f: _edit(f / "candidate.json", lambda d: d["architecture"]["layers"][0].update(change))


def _architecture(**change: Any) -> Callable[[Path], None]:
    return lambda f: _edit(f / "candidate.json", lambda d: d["architecture"].update(change))


def _metric(**change: Any) -> Callable[[Path], None]:
    return lambda f: _edit(f / "metrics.json", lambda d: d.update(change))


def _config(**change: Any) -> Callable[[Path], None]:
    return lambda f: _edit(f / "config.json", lambda d: d.update(change))


def _older_weight(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    @_older
    def edit(folder: Path) -> None:
        state = torch.load(folder / "weights.pt", weights_only=True)
        state["classifier.weight"] = change(state["classifier.weight"])
        torch.save(state, folder / "weights.pt")

    return edit


def _packed(folder: Path) -> None:
    """As much as a file may hold, in one that is a thousandth of it."""
    with zipfile.ZipFile(folder / "weights.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "does not exist"),
    "a file": (_file_instead, "is a file"),
    "no candidate": (lambda f: (f / "candidate.json").unlink(), "must hold candidate.json"),
    "no metrics": (lambda f: (f / "metrics.json").unlink(), "must hold metrics.json"),
    "no weights": (_older(lambda f: (f / "weights.pt").unlink()), "must hold weights.pt"),
    "half a candidate": (lambda f: _truncate(f / "candidate.json"), "candidate.json' cannot be read"),
    "binary candidate": (lambda f: (f / "candidate.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "deep candidate": (lambda f: (f / "candidate.json").write_text("[" * 200_000), "cannot be read"),
    "candidate is a list": (lambda f: (f / "candidate.json").write_text("[]"), "JSON object"),
    "empty candidate": (lambda f: (f / "candidate.json").write_text("{}"), "holds no candidate"),
    "text for an architecture": (
        lambda f: _edit(f / "candidate.json", lambda d: d.update(architecture="x")),
        "holds no candidate",
    ),
    "text for a layer": (
        lambda f: _edit(f / "candidate.json", lambda d: d["architecture"].update(layers=["x"])),
        "holds no candidate",
    ),
    "another format": (
        lambda f: _edit(f / "candidate.json", lambda d: d["architecture"].update(version=99)),
        "version=99",
    ),
    "vanishing map": (
        lambda f: _edit(
            f / "candidate.json", lambda d: d["architecture"]["layers"][0].update(dilation=40, padded=False)
        ),
        "below 1 pixel",
    ),
    "half the metrics": (lambda f: _truncate(f / "metrics.json"), "metrics.json' cannot be read"),
    "half the weights": (_older(lambda f: _truncate(f / "weights.pt")), "damaged"),
    "empty weights": (_older(lambda f: (f / "weights.pt").write_bytes(b"")), "damaged"),
    "text for weights": (_older(lambda f: (f / "weights.pt").write_text("hello")), "damaged"),
    "one bit of one weight": (_older(_flip_a_weight), "damaged"),
    "a list for weights": (_older(lambda f: torch.save([1], f / "weights.pt")), "state dict"),
    "another network's weights": (_older(_other_weights), "another network"),
    "NaN weights": (_older(_nan_weights), "NaN"),
    "half the numbers": (lambda f: _truncate(f / "weights.safetensors"), "weights.safetensors' is damaged"),
    "text for numbers": (lambda f: (f / "weights.safetensors").write_text("hello"), "damaged"),
    "a header without end": (lambda f: (f / "weights.safetensors").write_bytes(b"\xff" * 64), "damaged"),
    "a link for numbers": (_link_for_numbers, "must hold weights.safetensors"),
    "another network's numbers": (
        lambda f: save_file(build(REFERENCE_ARCHITECTURE, 0).state_dict(), f / "weights.safetensors"),
        "weights.safetensors' belongs to another network",
    ),
    "no numbers at all": (lambda f: save_file({}, f / "weights.safetensors"), "state dict"),
    "negative channels": (_layer(out_channels=-5), "out_channels must be between 1 and 65536: -5"),
    "channels beyond a machine": (_layer(out_channels=1e308), "out_channels must be a whole number: 1e+308"),
    "a number of 4,000 digits": (_layer(out_channels=10**4000), "a number of more than 20 digits"),
    "true for a number": (_layer(kernel=True), "kernel must be a whole number: True"),
    "NaN for a number": (_layer(stride=math.nan), "stride must be a whole number: nan"),
    "text for a number": (_layer(dilation="2"), "dilation must be a whole number: '2'"),
    "a number for a truth": (_layer(padded=1), "padded must be true or false: 1"),
    "a list for a name": (_layer(norm_type=["batch"]), "norm_type must be text: list"),
    "an unknown field": (_layer(width=3), "Conv has no field 'width'"),
    "a map of a terabyte": (_layer(out_channels=60_000), "maps of 1,048,576 values"),
    "an image of a terabyte": (_architecture(image_size=10**6), "image_size must be between 1 and 512"),
    "no layers": (_architecture(layers=[]), "the number of layers must be between 1 and 1000: 0"),
    "layers without end": (_architecture(layers=[{"kind": "conv", "out_channels": 4}] * 5_000), "1 and 1000: 5000"),
    "a million runs": (
        _architecture(layers=[{"kind": "residual", "body": [{"kind": "conv", "out_channels": 3}] * 99, "times": 999}]),
        "20,000 operations",
    ),
    "other classes": (_architecture(n_classes=12), "to 12 classes"),
    "other channels": (_architecture(in_channels=1), "from 1 channels"),
    "NaN for a strength": (
        lambda f: _edit(f / "candidate.json", lambda d: d["augmentation"].update(mixup=math.nan)),
        "mixup must be between 0 and 100: nan",
    ),
    "text for an accuracy": (_metric(test_accuracy_shipped="0.9"), "test_accuracy_shipped must be a number or null"),
    "per cent for an accuracy": (_metric(test_accuracy=[0.9, 91.0]), "each of test_accuracy must be between 0 and 1"),
    "a word for a list": (_metric(seeds="all"), "seeds must be tuple or null"),
    "half a config": (lambda f: _truncate(f / "config.json"), "config.json' cannot be read"),
    "a config that lacks something": (lambda f: _edit(f / "config.json", lambda d: d.pop("std")), "it lacks 'std'"),
    "a deviation of zero": (_config(std=[0.2, 0, 0.2]), "each of std must be between 1e-06 and 1: 0"),
    "two means": (_config(mean=[0.2, 0.2]), "the number of mean must be between 3 and 3: 2"),
    "a number for a class": (_config(classes=[1] * 10), "each of classes must be text: 1"),
    "fewer classes": (_config(classes=["a", "b"]), "only one from 3 of 32 to 2 can be used"),
    "another size": (_config(image_size=64), "only one from 3 of 64 to 10 can be used"),
    "other shapes": (_older_weight(lambda w: w[:-1]), "another network"),
    "other numbers": (_older_weight(lambda w: w.double()), "another network"),
    "sparse weights": (_older_weight(lambda w: w.to_sparse()), "another network"),
    "packed weights": (_older(_packed), "damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_in_one_line(copy: Path, case: str) -> None:
    damage, expected = DAMAGE[case]
    damage(copy)
    with pytest.raises(UserError) as caught:
        load_bundle(copy)
    message = str(caught.value)
    assert expected in message
    assert str(copy) in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize("form", ["archive", "pickle"])
def test_weights_run_no_code(copy: Path, tmp_path: Path, form: str) -> None:
    trace = tmp_path / "trace"
    (copy / "weights.safetensors").unlink()
    if form == "archive":
        torch.save({"classifier.weight": Bomb(trace)}, copy / "weights.pt")
        torch.load(copy / "weights.pt", weights_only=False)
    else:
        (copy / "weights.pt").write_bytes(pickle.dumps(Bomb(trace)))
        pickle.loads((copy / "weights.pt").read_bytes())
    assert trace.exists()  # it is one
    trace.unlink()
    with pytest.raises(UserError, match="damaged or no file of weights"):
        load_bundle(copy)
    assert not trace.exists()


def test_older_bundles_load_and_the_safe_form_comes_first(written: tuple[Path, Network], copy: Path) -> None:
    (copy / "weights.pt").write_text("not looked at")
    load_bundle(copy)
    shutil.copy(written[0] / "weights.pt", copy / "weights.pt")
    (copy / "weights.safetensors").unlink()
    for name, tensor in load_bundle(copy).network.state_dict().items():
        assert torch.equal(written[1].state_dict()[name], tensor), name


def test_nothing_of_ours_opens_the_program_of_a_stranger() -> None:
    """Torch warns of its format. What `write_bundle` checks is what it has just made, in memory."""
    calls = sorted(
        (file.name, line.strip())
        for folder in ("study", "scripts", "search_spaces")
        for file in (REPOSITORY / folder).rglob("*.py")
        for line in file.read_text().splitlines()
        if "export.load(" in line
    )
    assert calls == [
        ("programs.py", "loaded = torch.export.load(content).module()"),
        ("summary.py", 'model = torch.export.load("model.pt2").module()'),  # for people
    ]


def test_a_state_dict_s_own_methods_are_not_called(written: tuple[Path, Network], copy: Path) -> None:
    """A file may give it values in their place."""
    (copy / "weights.safetensors").unlink()
    state = torch.load(copy / "weights.pt", weights_only=True)
    theirs = dict.fromkeys(("keys", "values", "items", "copy"), 1)

    class Disguised:
        def __reduce__(self) -> tuple[Any, ...]:
            return (OrderedDict, (), theirs, None, iter(state.items()))

    torch.save(Disguised(), copy / "weights.pt")
    assert set(load_bundle(copy).network.state_dict()) == set(written[1].state_dict())
