"""What all tests share: fixed seeds, one thread, tiny made data."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
import torch

from study.data import cifar10
from study.data.cifar10 import FOLDER, Images
from study.training.step import N_WARM_UP

STUDY_DATA = os.environ.get("STUDY_DATA")
"""Read before any test points it at made data."""
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
"""Of this machine, where they can be chosen."""


def pytest_configure() -> None:
    """With `-n`, gives every worker, and all that it starts, a core of its own: with all cores two slow each other
    several-fold."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and CORES:
        os.sched_setaffinity(0, {sorted(CORES)[int(worker.removeprefix("gw")) % len(CORES)]})


@pytest.fixture
def all_cores() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Within it what depends on how many there are runs as for a user: slowly, where another worker is busy."""
    return _all_cores


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    own = os.sched_getaffinity(0) if CORES else set()
    if CORES:
        os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        if CORES:
            os.sched_setaffinity(0, own)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heard() -> None:
    """Of a suite that runs under nohup or in the background: what ignores a signal here, programs that it starts would
    ignore too, and be interrupted in vain."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def decode_anew(patch: pytest.MonkeyPatch) -> None:
    """Lets joblib meet `decode` for the first time. It marks a cache as valid for other processes only then, and every
    folder of made data has a cache of its own."""
    old = cifar10.decode
    new = FunctionType(old.__code__, old.__globals__, old.__name__, old.__defaults__, old.__closure__)
    new.__module__, new.__qualname__, new.__annotations__ = old.__module__, old.__qualname__, old.__annotations__
    patch.setattr(cifar10, "decode", new)


@pytest.fixture(scope="session")
def decoding() -> Callable[[pytest.MonkeyPatch], None]:
    """`decode_anew`, for fixtures of other folders."""
    return decode_anew


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user, so that no test reads or writes the real one."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


@pytest.fixture
def made_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of CUDA graphs ones that run their function again, so that what surrounds them runs on a CPU."""

    def graph_of(run: Callable[[], None], after_warm_up: Callable[[], None] = lambda: None) -> SimpleNamespace:
        for _ in range(N_WARM_UP):
            run()
        after_warm_up()
        return SimpleNamespace(replay=run)

    monkeypatch.setattr("study.training.step.graph_of", graph_of)


def made_images(n: int, noise: float = 15.0, seed: int = 0) -> Images:
    """`n` images of 10 classes that colour alone tells apart, the same colours whatever the `seed` of the noise."""
    colours = np.random.default_rng(0).permutation(
        [[r, g, b] for r in (40, 128, 215) for g in (40, 215) for b in (40, 215)]
    )
    labels = np.arange(n) % 10
    pixels = colours[labels][:, None, None, :] + np.random.default_rng(seed).normal(0, noise, (n, 32, 32, 3))
    return Images(np.clip(pixels, 0, 255).astype(np.uint8), labels.astype(np.int64))


@pytest.fixture(scope="session")
def making() -> Callable[..., Images]:
    """`made_images`, for fixtures of other folders."""
    return made_images


@pytest.fixture(scope="session")
def tiny_images() -> Images:
    """200 of them: uint8 [200, 32, 32, 3]."""
    return made_images(200)


@pytest.fixture(scope="session")
def cifar10_folder() -> str:
    """The folder with the real data set, from $STUDY_DATA; nothing is downloaded for a test."""
    folder = STUDY_DATA
    if not folder or not (Path(folder) / FOLDER).is_dir():
        pytest.skip(f"$STUDY_DATA names no folder that contains {FOLDER}")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many KiB; nobody writes to one of none, not even root."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k" if kib else "ro", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("only root mounts a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def filling() -> Callable[[Path], Path]:
    """Fills what is left of the file system of a folder; removing the file that it returns frees it again."""

    def fill(folder: Path) -> Path:
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            while stream.write(bytes(4096)):
                pass
        return filler

    return fill
