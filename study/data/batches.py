"""Where augmented batches come from while a network trains.

Beside a GPU, processes prepare them ahead of the steps. On a CPU all cores are the training's own: there
the processes augment while this one does, one round of batches at a time, and sleep while it trains.
Two kinds of work on the same cores at once would make every barrier of the training's threads wait.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection

import numpy as np
import torch

from search_spaces.candidate import Augmentation
from study.data.augmentation import AugmentedBatches, BatchSpec, compose, needs_albumentations
from study.data.cifar10 import CIFAR10, Images
from study.data.dataset import Colours, DataSet
from study.errors import TrialFailed

AHEAD = 8
"""Batches that each process has in hand beside a GPU."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Images uint8 [N, H, W, 3] (or their rows, int64 [N], where all images are on the device), labels
int64 [N], moves int64 [N, 3] as `place` takes them."""


def batches(source: AugmentedBatches, order: Iterable[BatchSpec], device: str, n_loaders: int) -> Generator[Batch]:
    """The batches of `order`, the same whatever `n_loaders`. Close the iterator to end its processes.

    Raises:
        TrialFailed: A process that augments died.
    """
    if not needs_albumentations(source.augmentation):
        return _alone(source, order, rows_only=device == "cuda")
    if n_loaders == 0 or sys.platform != "linux":  # where processes are not forked
        return _alone(source, order)
    return _ahead(source, order, n_loaders) if device == "cuda" else _in_rounds(source, order, n_loaders)


def place(images: torch.Tensor, rows: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
    """The images `rows` of `images`, moved: shifted with mirrored borders, then flipped.

    Args:
        images: uint8 [M, S, S, 3].
        rows: int64 [N], which of them.
        moves: int64 [N, 3]: pixels down, pixels right, whether to flip horizontally.

    Returns:
        uint8 [N, S, S, 3].
    """
    side = images.shape[1]
    grid = torch.arange(side, device=images.device)
    columns = torch.where(moves[:, 2:] > 0, side - 1 - grid, grid)
    y, x = _mirrored(grid + moves[:, :1], side), _mirrored(columns + moves[:, 1:2], side)
    pixel = (rows[:, None, None] * side + y[:, :, None]) * side + x[:, None, :]
    # One flat gather of whole pixels: several times as fast as indexing with three tensors.
    return images.view(-1, 3).index_select(0, pixel.view(-1)).view(len(rows), side, side, 3)


def _mirrored(index: torch.Tensor, side: int) -> torch.Tensor:
    last = side - 1
    return last - (last - index.abs()).abs()


def augmented_views(images: Images, augmentation: Augmentation, n: int) -> np.ndarray:
    """Each of a few images as it is and `n` times as a training sees it: uint8 [N, 1 + n, S, S, 3]."""
    source, rows = AugmentedBatches(images, augmentation, seed=0), np.arange(len(images))
    views = [images.pixels]
    for epoch in range(n):
        pixels, _, moves = (torch.from_numpy(each) for each in source[BatchSpec(epoch, 0, rows)])
        views.append(place(pixels, torch.from_numpy(rows), moves).numpy())
    return np.stack(views, axis=1)


def normalise(pixels: torch.Tensor, of: DataSet = CIFAR10) -> torch.Tensor:
    """uint8 [N, H, W, 3] of that data set -> standardised float32 [N, 3, H, W] in channels_last memory."""
    mean, scale = _mean_and_scale(str(pixels.device), of.mean, of.std)
    return ((pixels.float() - mean) * scale).permute(0, 3, 1, 2)


@functools.cache
def _mean_and_scale(device: str, mean_of: Colours, std_of: Colours) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept on the device: a copy from the host cannot be part of a CUDA graph."""
    with torch.inference_mode(False):
        mean = torch.tensor([255 * value for value in mean_of], device=device)
        scale = torch.tensor([1 / (255 * value) for value in std_of], device=device)
    return mean, scale


def _alone(source: AugmentedBatches, order: Iterable[BatchSpec], rows_only: bool = False) -> Generator[Batch]:
    for spec in order:
        yield _batch(source, spec, spec.indices if rows_only else source.pixels(spec), pins=rows_only)


def _ahead(source: AugmentedBatches, order: Iterable[BatchSpec], n_loaders: int) -> Generator[Batch]:
    """The helpers take turns, each with as many batches in hand as its memory has room for."""
    compose(source.augmentation)  # imports albumentations, once, for all processes to come
    asked: deque[tuple[_Helper, BatchSpec]] = deque()
    with _helpers(source, order, n_loaders, AHEAD) as (specs, helpers):

        def ask(helper: _Helper) -> None:
            for spec in itertools.islice(specs, 1):
                helper.ask(spec)
                asked.append((helper, spec))

        for _ in range(AHEAD):
            for helper in helpers:
                ask(helper)
        while asked:
            helper, spec = asked.popleft()
            batch = _batch(source, spec, helper.answer(spec), pins=True)  # a copy: the helper's memory is free again
            ask(helper)
            yield batch


def _in_rounds(source: AugmentedBatches, order: Iterable[BatchSpec], n_helpers: int) -> Generator[Batch]:
    """This process augments the first batch of each round, each helper one of the others."""
    with _helpers(source, order, n_helpers) as (specs, helpers):
        while round_ := list(itertools.islice(specs, 1 + len(helpers))):
            for helper, spec in zip(helpers, round_[1:], strict=False):
                helper.ask(spec)
            yield _batch(source, round_[0], source.pixels(round_[0]))
            for helper, spec in zip(helpers, round_[1:], strict=False):
                yield _batch(source, spec, helper.answer(spec).copy())


@contextlib.contextmanager
def _helpers(
    source: AugmentedBatches, order: Iterable[BatchSpec], n: int, ahead: int = 1
) -> Iterator[tuple[Iterator[BatchSpec], list[_Helper]]]:
    """The batches of `order`, and `n` helpers with memory for `ahead` of them each."""
    specs = iter(order)
    first = list(itertools.islice(specs, 1))  # as large as any
    n_bytes = source.images.pixels[:1].nbytes * max((len(spec.indices) for spec in first), default=1)
    with contextlib.ExitStack() as stack:
        helpers = [stack.enter_context(contextlib.closing(_Helper(source, n_bytes, ahead))) for _ in range(n)]
        yield itertools.chain(first, specs), helpers


class _Helper:
    """A process that augments batches when asked to, into memory that it shares with this one.

    The memory has no name, so a small /dev/shm, as containers have it, does not matter.

    Args:
        source: What it augments.
        n_bytes: Of a batch.
        ahead: Batches that may be asked for before the first of them is taken.
    """

    def __init__(self, source: AugmentedBatches, n_bytes: int, ahead: int = 1) -> None:
        self._shape = source.images.pixels.shape[1:]
        try:
            places = [np.frombuffer(mmap.mmap(-1, n_bytes), np.uint8) for _ in range(ahead)]
        except OSError as error:
            raise TrialFailed(
                f"no memory for batches to augment ahead: {ahead} x {n_bytes:,} bytes ({error})"
            ) from error
        self._places = itertools.cycle(places)
        # Forked: the arrays and imports are shared, so a helper starts within milliseconds.
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_help, args=(theirs, self._connection, source, places), name="augmentation", daemon=True
        )
        self._process.start()
        theirs.close()

    def close(self) -> None:
        self._connection.close()
        self._process.kill()  # it holds nothing that could be lost
        self._process.join()

    def ask(self, spec: BatchSpec) -> None:
        with self._died_if(OSError):
            self._connection.send(spec)

    def answer(self, spec: BatchSpec) -> np.ndarray:
        """The images of the batch that was asked for first, where they lie until another one is asked for."""
        with self._died_if(EOFError, OSError):
            self._connection.recv()
        return _view(next(self._places), len(spec.indices), self._shape)

    @contextlib.contextmanager
    def _died_if(self, *errors: type[BaseException]) -> Iterator[None]:
        try:
            yield
        except errors as error:
            self._process.join()
            raise TrialFailed(f"a process that augments died (exit code {self._process.exitcode})") from error


def _help(
    connection: Connection, other_end: Connection, source: AugmentedBatches, places: Sequence[np.ndarray]
) -> None:
    other_end.close()  # inherited; while it is open here, the end of the parent would go unnoticed
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C and a lost terminal are for the process that trains
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    shape = source.images.pixels.shape[1:]
    for place, spec in zip(itertools.cycle(places), _asked(connection), strict=False):
        source.augment(spec, _view(place, len(spec.indices), shape))
        with contextlib.suppress(ConnectionError):  # the parent is gone: nothing more will be asked
            connection.send(True)


def _asked(connection: Connection) -> Iterator[BatchSpec]:
    """Until the parent is done with this process, or gone."""
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            yield connection.recv()


def _view(memory: np.ndarray, n: int, shape: tuple[int, ...]) -> np.ndarray:
    return memory[: n * int(np.prod(shape))].reshape(n, *shape)


def _batch(source: AugmentedBatches, spec: BatchSpec, images: np.ndarray, pins: bool = False) -> Batch:
    """Labels and moves are drawn here: cheaper than to hand them over.

    Args:
        source: What the batch is of.
        spec: Which batch.
        images: Its images or rows.
        pins: Whether it goes to a GPU; then it is a copy, and from memory that is not pinned the next one, to the GPU,
            would wait for the step before.
    """
    parts = (images, source.labels(spec), source.moves(spec))
    first, labels, moves = (_pinned(each) if pins else torch.from_numpy(each) for each in parts)
    return first, labels, moves


def _pinned(array: np.ndarray) -> torch.Tensor:
    """A copy, by this thread alone: torch's threads would have to meet while the helpers keep all cores busy, which
    takes longer than to augment the batch."""
    copied = torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, pin_memory=torch.cuda.is_available())
    np.copyto(copied.numpy(), array)
    return copied
