"""Folders of images by class, and torchvision's other data sets, in CIFAR-10's place."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces.candidate import Augmentation
from study.data.augmentation import AugmentedBatches, BatchSpec
from study.data.batches import normalise
from study.data.cifar10 import CIFAR10, CLASSES, Images, check_sizes, in_turns, search_split
from study.data.dataset import DataSet
from study.data.folders import listing
from study.data.opening import is_cifar10, load_test, load_train, open_data, refuse_changed
from study.errors import StudyFailed, UserError
from study.storage.config import StudyConfig, refuse_cifar10

MODES = ("RGB", "L", "RGBA", "P", "1")


def write(folder: Path, n: int, level: int, start: int = 0) -> None:
    """`n` images of odd sizes and various modes, all of about one grey `level`."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + n):
        size = (20 + 7 * index % 31, 17 + 5 * index % 41)
        Image.new("L", size, level).convert(MODES[index % len(MODES)]).save(folder / f"{index}.png")


@pytest.fixture
def folder(tmp_path: Path, user_cache: Path) -> Path:
    """30 dark and 60 light images, without a test part."""
    write(tmp_path / "shades" / "train" / "light", 60, 255)
    write(tmp_path / "shades" / "train" / "dark", 30, 0)
    return tmp_path / "shades"


def test_a_folder_is_split_stratified_and_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = open_data(str(folder))
    assert (data.name, data.classes, data.n_train, data.n_test) == ("shades", ("dark", "light"), 75, 15)
    assert (data.n_validation, data.n_search, data.mirrored) == (7, 68, True)
    assert f"75 images to train on from {folder}, once, resized to 32x32" in capsys.readouterr().out
    train, test = load_train(data.source), load_test(data.source)
    assert "Reading 15 images to test on" in capsys.readouterr().out
    assert [np.bincount(part.labels).tolist() for part in (train, test)] == [[25, 50], [5, 10]]
    assert np.bincount(train.labels[:12]).min() > 0  # any beginning of them has all classes
    assert train.pixels.shape == (75, 32, 32, 3)
    assert isinstance(train.pixels, np.memmap)
    for label, level in enumerate((0, 255)):
        assert (train.pixels[train.labels == label] == level).all()
    assert data.mean == pytest.approx([2 / 3] * 3, abs=1e-4)
    assert data.std == pytest.approx([np.sqrt(2) / 3] * 3, abs=1e-4)
    assert train.of == test.of == data
    for_training, for_validation = search_split(np.asarray(train.labels), data.n_search, data.n_validation, data)
    assert not set(for_training) & set(for_validation)
    assert np.bincount(train.labels[for_validation]).tolist() == [3, 4]
    open_data(str(folder))
    assert capsys.readouterr().out == ""  # decoded once


def test_a_folder_with_a_test_part_keeps_it(folder: Path) -> None:
    write(folder / "test" / "light", 3, 255)
    write(folder / "test" / "dark", 2, 0)
    data = open_data(str(folder))
    assert (data.n_train, data.n_test) == (90, 5)
    assert np.bincount(load_test(str(folder)).labels).tolist() == [2, 3]


def test_names_of_another_encoding_are_names(folder: Path) -> None:
    file = folder / "train" / "dark" / "0.png"
    try:
        os.rename(file, os.fsencode(file.parent) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("the file system takes names of UTF-8 alone")
    assert open_data(str(folder)).n_train == 75
    os.rename(folder / "train" / "dark", os.fsencode(folder / "train") + b"/d\xe9")
    with pytest.raises(UserError, match="must be of printable characters"):
        open_data(str(folder))


def test_what_changes_a_folder_changes_its_fingerprint(folder: Path) -> None:
    first = open_data(str(folder))
    assert open_data(f"{folder}/").fingerprint == first.fingerprint
    assert first.fingerprint.startswith("shades: 2 classes, 75 + 15 images, ")
    write(folder / "train" / "dark", 1, 128, start=3)  # in the place of another one
    changed = open_data(str(folder))
    assert (changed.n_train, changed.n_test) == (75, 15)
    assert changed.fingerprint != first.fingerprint


@pytest.mark.parametrize("change", ["one more", "one less"])
def test_images_that_are_split_anew_are_refused(folder: Path, change: str) -> None:
    """Else some of those to test on would be among those that were trained on."""
    before = open_data(str(folder))
    refuse_changed(load_test(before.source), before.digest)
    if change == "one more":
        write(folder / "train" / "dark", 1, 128, start=100)
    else:
        (folder / "train" / "dark" / "3.png").unlink()
    with pytest.raises(StudyFailed, match="were changed while they were in use"):
        refuse_changed(load_test(before.source), before.digest)


@pytest.mark.parametrize("apart", [True, False], ids=["of its own", "kept"])
def test_a_damaged_image_to_test_on_is_found_before_anything_is_trained(folder: Path, apart: bool) -> None:
    if apart:
        write(folder / "test" / "light", 3, 255)
        write(folder / "test" / "dark", 2, 0)
    file, _ = listing(folder).test[-1]
    file.write_text("no image")
    with pytest.raises(UserError, match=f"must be an image, and '{file}' is none"):
        open_data(str(folder))


def test_copies_that_nobody_reads_go(folder: Path, user_cache: Path) -> None:
    def copies() -> list[Path]:
        return sorted(user_cache.rglob("output.pkl"))

    open_data(str(folder))
    first = copies()
    write(folder / "train" / "dark", 1, 128, start=3)
    open_data(str(folder))
    assert set(first) < set(copies())  # the older one may be in use elsewhere
    for file in first:
        for each in file.parent.iterdir():
            os.utime(each, (0, 0))
    open_data(str(folder))
    assert set(first) < set(copies())  # nothing was added
    write(folder / "train" / "dark", 1, 64, start=3)
    open_data(str(folder))
    assert len(copies()) == 2
    assert not set(first) & set(copies())


def test_cifar10_is_refused_before_it_is_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDY_DATA", raising=False)
    own = open_data(str(folder)).fingerprint
    stored = StudyConfig("dilated", 3, 6, 60, 7, 0, "none", "random", "float32", data=own)
    refuse_cifar10("mine", stored, str(folder))
    for named in (None, "CIFAR10", str(folder.parent)):
        with pytest.raises(UserError, match=r"was made with other images .*Name them by --data"):
            refuse_cifar10("mine", stored, named)
    refuse_cifar10("usual", dataclasses.replace(stored, data=CIFAR10.fingerprint), None)


def test_characters_are_not_mirrored(folder: Path) -> None:
    (folder / "train" / "dark").rename(folder / "train" / "0")
    (folder / "train" / "light").rename(folder / "train" / "12")
    assert not listing(folder).mirrored
    assert (folder / "train" / "12").rename(folder / "train" / "twelve")
    assert listing(folder).mirrored


def _too_few(folder: Path) -> None:
    write(folder / "train" / "grey", 11, 128)


def _broken(folder: Path) -> None:
    for number in range(30):
        (folder / "train" / "dark" / f"{number}.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_too_few, r"at least 10 training images beside the 16 that are kept for the test, and 'grey' has [89]"),
        (_broken, r"Every file of a class must be an image, and '.*/dark/\d+.png' is none"),
        (lambda folder: (folder / "train" / "empty").mkdir(), "must hold images, and '.*empty' is empty"),
        (lambda folder: (folder / "train" / "labels.csv").write_text("x"), "'labels.csv' is a file"),
        (lambda folder: (folder / "train" / "dark" / "more").mkdir(), "no further folders: '.*more'"),
        (lambda folder: write(folder / "test" / "other", 1, 0), "'dark' is in one of them only"),
        (lambda folder: (folder / "train" / "dark").rename(folder / "gone"), "two or more classes: 1"),
        (lambda folder: (folder / "test").write_text("x"), "must be a folder with one for each class"),
        (lambda folder: (folder / "train" / "dark" / "x.png").symlink_to("nowhere"), "x.png' is none: it"),
    ],
)
def test_mistakes_take_one_line(folder: Path, spoil: Callable[[Path], Any], words: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=words) as caught:
        open_data(str(folder))
    assert "\n" not in str(caught.value)


def test_what_systems_leave_behind_is_passed_over(folder: Path) -> None:
    for name in (".DS_Store", "Thumbs.db"):
        (folder / "train" / "dark" / name).write_text("x")
        (folder / "train" / name).write_text("x")
    assert open_data(str(folder)).n_train == 75


def test_images_are_normalised_and_filled_by_their_own_figures() -> None:
    of = DataSet("made", ("a", "b"), (0.25, 0.5, 0.75), (0.1, 0.2, 0.4), 100, 10, "0")
    pixels = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    assert normalise(pixels, of)[0, :, 0, 0].tolist() == pytest.approx([7.5, 2.5, 0.625], rel=1e-5)
    augmentation = Augmentation(dropout_p=1.0, crop_padding=0)
    images = Images(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64), of)
    filled = AugmentedBatches(images, augmentation, 0).pixels(BatchSpec(0, 0, np.zeros(1, np.int64)))
    assert {tuple(pixel) for pixel in filled.reshape(-1, 3).tolist()} == {(0, 0, 0), (64, 128, 191)}
    assert normalise(pixels)[0, 0, 0, 0].item() == pytest.approx((1 - CIFAR10.mean[0]) / CIFAR10.std[0])


def test_sizes_follow_the_data_set() -> None:
    small = DataSet("small", ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3, 20, 5, "0")  # type: ignore[arg-type]
    assert (small.n_validation, small.n_search) == (3, 17)
    check_sizes(17, 3, small)
    with pytest.raises(UserError, match=r"--train-images must be between 3 \(.*\) and 17 \(of the 20 .*\): 18"):
        check_sizes(18, 3, small)
    assert (CIFAR10.n_validation, CIFAR10.n_search, CIFAR10.fingerprint) == (5_000, 45_000, "CIFAR-10")


def test_classes_take_turns_by_their_size() -> None:
    labels = np.repeat([0, 1, 2], [100, 10, 1])
    order = labels[in_turns(labels, 3)]
    assert sorted(order[:3]) == [0, 1, 2]
    for beginning in (11, 33, 77):
        counts = np.bincount(order[:beginning], minlength=3)
        assert abs(counts[1] - counts[0] / 10) <= 1
    rng = np.random.default_rng(0)  # equal classes in the order that published studies have
    equal = np.arange(50) % 10
    rounds = [rng.permutation(np.flatnonzero(equal == label)) for label in range(10)]
    assert in_turns(equal, 10).tolist() == np.stack(rounds, axis=1).reshape(-1).tolist()


@pytest.mark.parametrize("counts", [(500, 100, 12), (1000, 10, 10), (60, 60, 60)])
def test_every_training_prefix_has_every_class(counts: tuple[int, ...]) -> None:
    labels, n = np.repeat([0, 1, 2], counts), sum(counts)
    of = DataSet("rare", ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3, n, 5, "0")  # type: ignore[arg-type]
    prefixes = [set(search_split(labels, n_train, 3, of)[0]) for n_train in (3, 10, of.n_search)]
    assert [{int(label) for label in labels[list(prefix)]} for prefix in prefixes] == [{0, 1, 2}] * 3
    assert prefixes[0] < prefixes[1] < prefixes[2]
    assert len(prefixes[2]) == of.n_search
    if len(set(counts)) == 1:  # published studies have equal classes: theirs stay what they were
        assert prefixes[1] == set(in_turns(labels, 3)[of.n_validation :][:10])


def test_torchvision_has_others(user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Made:
        """Six grey images of three digits."""

        def __init__(self, folder: str, download: bool, split: str) -> None:
            asked.append((folder, download, split))
            self.images = [(Image.new("L", (28, 28), 40 * n), n % 3) for n in range(6)]

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Any:
            return self.images[index]

    monkeypatch.setattr("torchvision.datasets.SVHN", Made)
    monkeypatch.setenv("STUDY_DATA", "SVHN")
    data = open_data()
    assert (data.name, data.classes, data.mirrored, data.source) == ("SVHN", ("0", "1", "2"), False, "SVHN")
    assert load_train("SVHN").pixels[2, 0, 0].tolist() == [80] * 3
    assert len(load_test("SVHN")) == data.n_test == 6
    assert asked[0] == (str(user_cache / "small-cnn-study" / "data"), True, "train")


def test_a_data_set_that_cannot_be_downloaded(user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("torchvision.datasets.KMNIST", offline)
    with pytest.raises(UserError, match=r"KMNIST could not be downloaded \(network is unreachable\)"):
        open_data("KMNIST")


@pytest.mark.parametrize(("typed", "meant"), [("CIFAR1000", "CIFAR100"), ("cifar-10", "CIFAR10"), ("svnh", "SVHN")])
def test_a_mistyped_name_gets_the_nearest(
    typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"must be a folder or .*: {typed!r} is neither. Did you mean {meant}\\?"):
        open_data(typed)
    with pytest.raises(UserError, match=r"must name a data set of torchvision's, .* does not exist"):
        open_data("my/cifar10")


def test_cifar10_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDY_DATA", raising=False)
    assert is_cifar10() and is_cifar10("CIFAR10") and is_cifar10(str(tmp_path)) and not is_cifar10("SVHN")  # noqa: PT018
    with pytest.raises(UserError, match="--data must name a data set of torchvision's"):
        open_data(str(tmp_path))
    assert CIFAR10.classes == CLASSES
