"""The scripts' own modules are found as the scripts find them: beside themselves.

Also made data in CIFAR-10's place, for benchmarks that run whole commands.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from search_spaces.cost import CostModel
from study.calibration import prices as calibration
from study.data import cifar10 as data
from study.machine.hardware import hardware
from study.machine.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))

N_TRAIN = 5_300
"""The fixed 5,000 to validate on and 300 to train on."""

MADE_CIFAR10 = f"""
import numpy as np

class MadeCifar10:
    def __init__(self, root, train):
        assert train, "a benchmark asked for the test images"
        self.targets = [index % 10 for index in range({N_TRAIN})]
        self.data = np.random.default_rng(0).integers(0, 256, ({N_TRAIN}, 32, 32, 3), dtype=np.uint8)

    def __getitem__(self, index):
        return self.data[index], self.targets[index]
"""
"""Source of what stands in for torchvision's class, here and in processes that read the data set themselves."""


@pytest.fixture(scope="session")
def _made_cifar10(
    tmp_path_factory: pytest.TempPathFactory, decoding: Callable[[pytest.MonkeyPatch], None]
) -> dict[str, str]:
    """Environment in which every process finds made images, decoded, and a made calibration."""
    root = tmp_path_factory.mktemp("made")
    folder = root / "data" / data.FOLDER
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"made")
    environment = {"STUDY_DATA": str(root / "data"), "XDG_CACHE_HOME": str(root / "cache")}
    cost = CostModel(
        dense_mac_s=1e-9, depthwise_mac_s=1e-8, depthwise_other_mac_s=1e-8, activation_s=1e-8, image_s=1e-5,
        operation_s=1e-5, device="cpu",
    )  # fmt: skip
    made = calibration.Calibration("cpu", hardware("cpu"), "float32", cost, 0.0)
    pool = SimpleNamespace(submit=lambda *_: SimpleNamespace(result=lambda: made))
    names: dict[str, type] = {}
    exec(MADE_CIFAR10, names)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr("torchvision.datasets.CIFAR10", names["MadeCifar10"])
        decoding(patch)
        patch.setattr(calibration, "ProcessPoolExecutor", lambda *_, **__: contextlib.nullcontext(pool))
        data.load_train()
        calibration.calibrate("cpu")
    return environment


@pytest.fixture
def made_cifar10(_made_cifar10: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the made data set; this process and those it starts use it, on one thread."""
    for name, value in {**_made_cifar10, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    return Path(_made_cifar10["STUDY_DATA"])


@pytest.fixture(scope="session")
def made_cifar10_source() -> str:
    return MADE_CIFAR10


@pytest.fixture
def benchmark_options(made_cifar10: Path, tmp_path: Path) -> Callable[..., argparse.Namespace]:
    """The options of a benchmark's module, as the command hands them over, on the made data."""

    def options(module: object, *words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        module.add_options(parser)  # type: ignore[attr-defined]
        found = parser.parse_args(words)
        found.device, found.data, found.out, found.command = "cpu", str(made_cifar10), tmp_path / "out", "the command"
        return found

    return options
