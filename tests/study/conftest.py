"""Made data in CIFAR-10's place, for tests that run whole commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search_spaces.cost import CostModel
from study.calibration.prices import Calibration, name_of
from study.data.cifar10 import FOLDER, Images, load_test, load_train
from study.machine import cache
from study.machine.hardware import hardware

N_TRAIN, N_TEST = 6_000, 300
"""Enough for the fixed 5,000 to validate on and 1,000 to train on."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, which logs what it says and asks for."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its chromedriver installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="session")
def _made_cifar10(
    tmp_path_factory: pytest.TempPathFactory,
    decoding: Callable[[pytest.MonkeyPatch], None],
    making: Callable[..., Images],
) -> dict[str, str]:
    """Environment in which every process finds made images where the data set would be, and a made calibration.

    The original files' checksums cannot be met by made ones, so the images are put where a real data set
    would be found decoded: in the user's cache.
    """
    root = tmp_path_factory.mktemp("made")
    folder = root / "data" / FOLDER
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(b"made")
    environment = {"STUDY_DATA": str(root / "data"), "XDG_CACHE_HOME": str(root / "cache")}

    def made(root: str, train: bool) -> SimpleNamespace:
        images = making(N_TRAIN if train else N_TEST, noise=30, seed=int(train))
        return SimpleNamespace(data=images.pixels, targets=images.labels)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr("torchvision.datasets.CIFAR10", made)
        decoding(patch)
        assert len(load_train()) == N_TRAIN
        assert len(load_test()) == N_TEST
        cost = CostModel(1e-11, 1e-10, 5e-10, 2e-9, 3e-5, 0.0, "cpu")
        known = hardware("cpu")
        cache.keep(name_of(known), Calibration("cpu", known, "float32", cost, 0.1).to_json())
    return environment


@pytest.fixture
def made_cifar10(_made_cifar10: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the made data set; this process and those it starts use it."""
    for name, value in _made_cifar10.items():
        monkeypatch.setenv(name, value)
    return Path(_made_cifar10["STUDY_DATA"])


@pytest.fixture(scope="session")
def made_study(_made_cifar10: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished study of three trials on the made data, with its best trial retrained."""
    from study import retrain, run

    out = tmp_path_factory.mktemp("study")
    before = dict(os.environ)
    os.environ.update(_made_cifar10)
    try:
        assert run.main(["--trials", "3", "--jobs", "1", *TINY, "--out", str(out)]) == 0
        assert retrain.main(["--epochs", "2", "--train-images", "300", "--out", str(out)]) == 0
        yield out
    finally:
        os.environ.clear()
        os.environ.update(before)


TINY: list[Any] = ["--train-images", "200", "--val-images", "100", "--epochs", "1", "--device", "cpu"]
"""Options of a study that takes seconds."""
