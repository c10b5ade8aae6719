"""Batches are the same whoever makes them, and no process that makes them outlives its use."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from search_spaces.candidate import Augmentation
from study.data.augmentation import AugmentedBatches, training_order
from study.data.batches import AHEAD, Batch, augmented_views, batches, place
from study.data.cifar10 import Images
from study.errors import TrialFailed
from study.machine.paths import REPOSITORY

ALL = Augmentation(0.5, 4, 0.5, 0.1, 0.1, 10.0, 0.5, 8)
ORDER = (112, 16, 11, 2)
"""Images, batch size, seed, epochs."""

DEVICES = pytest.mark.parametrize("device", ["cpu", "cuda"])
"""In rounds, and ahead as beside a GPU, which the loaders do not need for it."""


@pytest.fixture
def source(tiny_images: Images) -> AugmentedBatches:
    return AugmentedBatches(tiny_images.take(np.arange(ORDER[0])), ALL, seed=11)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Neither running nor dead and not yet buried."""
    before = _children()
    yield
    assert _children() <= before


def _children() -> set[int]:
    """Of this process, zombies too."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def _all(source: AugmentedBatches, device: str, n_loaders: int, epoch: int = 0, batch: int = 0) -> list[list[bytes]]:
    with contextlib.closing(batches(source, training_order(*ORDER, epoch, batch), device, n_loaders)) as found:
        return [[tensor.numpy().tobytes() for tensor in given] for given in found]


@pytest.mark.parametrize(("device", "n_loaders"), [("cpu", 1), ("cpu", 2), ("cpu", 20), ("cuda", 0), ("cuda", 2)])
def test_batches_are_the_same_whoever_makes_them(source: AugmentedBatches, device: str, n_loaders: int) -> None:
    alone = _all(source, "cpu", 0)
    assert len(alone) == 14
    assert len({pixels for pixels, *_ in alone}) == 14
    assert _all(source, device, n_loaders) == alone
    assert _all(source, device, n_loaders, 1, 3) == alone[10:]


@DEVICES
def test_no_batch_at_all_needs_no_process(source: AugmentedBatches, device: str) -> None:
    assert list(batches(source, [], device, 2)) == []


@pytest.mark.parametrize("n_loaders", [0, 2])
def test_a_gpu_holds_images_that_only_move(tiny_images: Images, n_loaders: int) -> None:
    """It is given their rows, and makes the same images of them."""
    source = AugmentedBatches(tiny_images.take(np.arange(ORDER[0])), Augmentation(flip_p=0.5, crop_padding=4), seed=11)
    images = torch.from_numpy(source.images.pixels)
    rows, pixels = (batches(source, training_order(*ORDER), device, n_loaders) for device in ("cuda", "cpu"))
    for (given, labels, moves), (made, *rest) in zip(rows, pixels, strict=True):
        assert given.dtype == torch.int64
        assert all(torch.equal(a, b) for a, b in zip((labels, moves), rest, strict=True))
        assert torch.equal(place(images, given, moves), place(made, torch.arange(16), moves))


@DEVICES
def test_batches_are_kept_apart(source: AugmentedBatches, device: str) -> None:
    """Many more than the helpers have in hand, kept by whoever takes them."""
    order = list(training_order(112, 4, 2, 1))
    assert len(order) > 3 * AHEAD
    kept = list(batches(source, order, device, 2))
    for given, spec in zip(kept, order, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(given, source[spec], strict=True))


def _begun(source: AugmentedBatches, device: str) -> tuple[Iterator[Batch], list[multiprocessing.Process]]:
    """Batches of which one is taken, and the two processes that make the others."""
    before = set(multiprocessing.active_children())
    found = batches(source, training_order(*ORDER), device, 2)
    next(found)
    helpers = [child for child in multiprocessing.active_children() if child not in before]
    assert len(helpers) == 2
    return found, helpers  # type: ignore[return-value]


@DEVICES
def test_closing_ends_the_processes(source: AugmentedBatches, device: str) -> None:
    found, helpers = _begun(source, device)
    found.close()  # type: ignore[attr-defined]
    assert not any(helper.is_alive() for helper in helpers)


@DEVICES
def test_a_helper_that_dies_fails_the_trial(source: AugmentedBatches, device: str) -> None:
    found, helpers = _begun(source, device)
    for helper in helpers:
        helper.kill()
    with pytest.raises(TrialFailed, match=r"a process that augments died \(exit code -9\)"):
        list(found)


@DEVICES
def test_what_interrupts_a_training_leaves_its_helpers_at_work(source: AugmentedBatches, device: str) -> None:
    """Ctrl-C and a lost terminal reach every process; the training still has a checkpoint to reach."""
    found, helpers = _begun(source, device)
    next(found), next(found)  # both of them are at work
    for helper in helpers:
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(helper.pid or 0, number)
    assert len(list(found)) == 11


def test_no_memory_to_share_fails_the_trial(source: AugmentedBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr("study.data.batches.mmap.mmap", refuse)
    with pytest.raises(TrialFailed, match="no memory for batches to augment ahead: 8 x 49,152 bytes"):
        list(batches(source, training_order(*ORDER), "cuda", 2))


ORPHANS = """
import multiprocessing, os, signal
import numpy as np
from search_spaces.candidate import Augmentation
from study.data.augmentation import AugmentedBatches, training_order
from study.data.batches import batches
from study.data.cifar10 import Images
images = Images(np.zeros((64, 32, 32, 3), np.uint8), np.zeros(64, np.int64))
given = batches(AugmentedBatches(images, Augmentation(dropout_p=0.5), 0), training_order(64, 16, 0, 2), "cuda", 2)
next(given)
assert len(multiprocessing.active_children()) == 2
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_helpers_end_with_a_killed_training() -> None:
    """They hold its standard output, which is read to its end."""
    done = subprocess.run([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, cwd=REPOSITORY, timeout=60)
    assert done.returncode == -signal.SIGKILL


SMALL_SHM = """
import numpy as np, os
from search_spaces.candidate import Augmentation
from study.data.augmentation import AugmentedBatches, training_order
from study.data.batches import batches
from study.data.cifar10 import Images
free = os.statvfs("/dev/shm")
assert free.f_bavail * free.f_frsize <= 2**20
images = Images(np.zeros((4096, 32, 32, 3), np.uint8), np.zeros(4096, np.int64))
source = AugmentedBatches(images, Augmentation(dropout_p=0.5), 0)
print(sum(len(labels) for _, labels, _ in batches(source, training_order(4096, 256, 0, 2), "cuda", 3)))
"""


def test_a_small_dev_shm_is_enough() -> None:
    """Containers have 64 MiB of it by default; here it is one, in a mount namespace of its own."""
    command = "mount -t tmpfs -o size=1m tmpfs /dev/shm && exec " + shlex.join([sys.executable, "-c", SMALL_SHM])
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may make no mount namespace")
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8192"]


def test_views_show_an_image_and_what_a_training_sees_of_it(tiny_images: Images) -> None:
    few = tiny_images.take(np.arange(3))
    found = augmented_views(few, ALL, 4)
    assert (found.shape, found.dtype) == ((3, 5, 32, 32, 3), np.uint8)
    assert np.array_equal(found[:, 0], few.pixels)
    assert len({view.tobytes() for view in found[0]}) == 5
    still = augmented_views(few, Augmentation(flip_p=0.0, crop_padding=0), 2)
    assert np.array_equal(still, few.pixels[:, None].repeat(3, axis=1))
