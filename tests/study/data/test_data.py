"""The split, and what a user reads when the data set is not there."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from study.data import cifar10 as data
from study.data.cifar10 import (
    FILES,
    FOLDER,
    MEAN,
    N_SEARCH,
    N_VALIDATION,
    STD,
    Images,
    check_sizes,
    find_folder,
    load_test,
    load_train,
    search_split,
)
from study.data.opening import open_data_of
from study.errors import UserError

LABELS = np.random.default_rng(9).permutation(np.arange(50_000) % 10)


def test_the_split_is_stratified_and_disjoint_and_uses_every_image() -> None:
    train, val = search_split(LABELS)
    assert (len(train), len(val)) == (45_000, 5_000)
    assert np.array_equal(np.union1d(train, val), np.arange(50_000))
    assert np.bincount(LABELS[train]).tolist() == [4_500] * 10
    assert np.bincount(LABELS[val]).tolist() == [500] * 10


def test_the_split_is_the_same_every_time_but_not_in_file_order() -> None:
    first, second = search_split(LABELS), search_split(LABELS.copy())
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[1].max() > 45_000
    assert not np.array_equal(first[1], np.arange(5_000))


@pytest.mark.parametrize(("n_train", "n_val"), [(10, 10), (1_000, 500), (20_000, 5_000), (45_000, 1_000)])
def test_smaller_studies_use_subsets_of_larger_ones(n_train: int, n_val: int) -> None:
    train, val = search_split(LABELS, n_train, n_val)
    largest_train, largest_val = search_split(LABELS)
    assert (len(train), len(val)) == (n_train, n_val)
    assert np.isin(train, largest_train).all()
    assert np.isin(val, largest_val).all()  # so no training image of any study validates another
    assert np.bincount(LABELS[train]).tolist() == [n_train // 10] * 10
    assert np.bincount(LABELS[val]).tolist() == [n_val // 10] * 10


@pytest.mark.parametrize(
    ("n_train", "n_val", "words"),
    [
        (45_001, 100, "--train-images must be between 10 .* 45,000 .*: 45,001"),
        (9, 100, "--train-images"),
        (100, 5_001, r"--val-images .* 5,000 \(of the 50,000 .* a tenth, at most 5,000, is kept .*\): 5,001\. Name "),
        (100, 0, "--val-images"),
    ],
)
def test_impossible_sizes_are_refused(n_train: int, n_val: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_sizes(n_train, n_val)
    with pytest.raises(UserError):
        search_split(LABELS, n_train, n_val)
    check_sizes(N_SEARCH, N_VALIDATION)


def test_the_option_goes_before_the_variable_goes_before_the_cache(
    tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option, variable = tmp_path / "option", tmp_path / "variable"
    for folder in (option, variable, user_cache / "small-cnn-study" / "data"):
        (folder / FOLDER).mkdir(parents=True)
    for name in FILES:
        (user_cache / "small-cnn-study" / "data" / FOLDER / name).touch()
    monkeypatch.setenv("STUDY_DATA", str(variable))
    assert find_folder(str(option)) == option
    assert find_folder() == variable
    monkeypatch.delenv("STUDY_DATA")
    assert find_folder() == user_cache / "small-cnn-study" / "data"


@pytest.mark.parametrize("origin", ["--data", "$STUDY_DATA"])
def test_a_folder_without_the_data_set_is_named(origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDY_DATA", raising=False)
    if origin == "$STUDY_DATA":
        monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    with pytest.raises(UserError) as caught:
        find_folder(str(tmp_path) if origin == "--data" else None)
    message = str(caught.value)
    assert message.startswith(origin)
    assert FOLDER in message
    assert str(tmp_path) in message
    assert "\n" not in message


def test_a_failed_download_is_one_line_with_the_way_out(user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.delenv("STUDY_DATA", raising=False)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    with pytest.raises(UserError, match=r"network is unreachable.*--data or \$STUDY_DATA"):
        find_folder()


@pytest.mark.parametrize("load", [load_train, load_test])
def test_damaged_files_are_refused(load: object, tmp_path: Path, user_cache: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        content = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
        (tmp_path / FOLDER / name).write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="incomplete or damaged") as caught:
        load(str(tmp_path))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path: Path, user_cache: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(UserError, match="incomplete or damaged"):
        load_train(str(tmp_path))


def test_decoded_arrays_are_kept_and_read_as_a_map(
    tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    class Made:
        def __init__(self, folder: str, train: bool) -> None:
            decoded.append((folder, train))
            n = 20 if train else 10
            self.data = np.full((n, 32, 32, 3), n, np.uint8)
            self.targets = [i % 10 for i in range(n)]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Made)
    folder = tmp_path / "made"
    (folder / FOLDER).mkdir(parents=True)
    (folder / FOLDER / "data_batch_1").write_bytes(b"one")
    (folder / FOLDER / "test_batch").write_bytes(b"test")
    for _ in range(2):
        images = load_train(str(folder))
        assert isinstance(images.pixels, np.memmap)
        assert not images.pixels.flags.writeable
        assert images.pixels.shape == (20, 32, 32, 3)
        assert images.labels.dtype == np.int64
    assert decoded == [(str(folder.resolve()), True)]
    assert load_test(str(folder)).pixels[0, 0, 0, 0] == 10  # the test file has its own entry
    (folder / FOLDER / "data_batch_1").write_bytes(b"another")  # a changed file is decoded again
    load_train(str(folder))
    assert [train for _, train in decoded] == [True, False, True]
    assert list(user_cache.rglob("*")), "the decoded copy belongs in the user's cache"


def test_take_keeps_rows_together() -> None:
    images = Images(np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8), np.arange(5))
    taken = images.take(np.array([3, 1]))
    assert len(taken) == 2
    assert taken.labels.tolist() == [3, 1]
    assert taken.pixels[:, 0, 0, 0].tolist() == [3, 1]


@pytest.mark.cifar10
def test_the_real_data_set(cifar10_folder: str, user_cache: Path) -> None:
    train, test = load_train(cifar10_folder), load_test(cifar10_folder)
    assert (len(train), len(test)) == (50_000, 10_000)
    assert np.bincount(train.labels).tolist() == [5_000] * 10
    sample = train.pixels[::10].astype(np.float64) / 255
    assert sample.mean((0, 1, 2)) == pytest.approx(MEAN, abs=0.005)
    assert sample.std((0, 1, 2)) == pytest.approx(STD, abs=0.005)
    indices, held_out = search_split(np.asarray(train.labels))
    assert np.bincount(train.labels[indices]).tolist() == [4_500] * 10
    assert np.bincount(train.labels[held_out]).tolist() == [500] * 10
    assert data.CLASSES[int(train.labels[0])] == "frog"  # the first image of data_batch_1


def test_the_data_set_is_not_downloaded_to_be_refused(user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDY_DATA", raising=False)
    monkeypatch.setattr(data, "_download", lambda folder: pytest.fail("downloads"))
    with pytest.raises(UserError, match=r"for other classes \(cat, dog\) than those of CIFAR-10"):
        open_data_of(("cat", "dog"), 32, None)
    with pytest.raises(UserError, match="takes images of 64 pixels, and ours have 32"):
        open_data_of(data.CLASSES, 64, None)
