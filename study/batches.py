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
from collections.abc import Generator, Iterable, Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
import torch

from study.augmentation import AugmentedBatches, BatchSpec, compose, needs_albumentations
from study.data import MEAN, STD
from study.errors import TrialFailed

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
    if n_loaders == 0:
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


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> standardised float32 [N, 3, H, W] in channels_last memory."""
    mean, scale = _mean_and_scale(str(pixels.device))
    return ((pixels.float() - mean) * scale).permute(0, 3, 1, 2)


@functools.cache
def _mean_and_scale(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept on the device: a copy from the host cannot be part of a CUDA graph."""
    with torch.inference_mode(False):
        mean = torch.tensor([255 * value for value in MEAN], device=device)
        scale = torch.tensor([1 / (255 * value) for value in STD], device=device)
    return mean, scale


def _alone(source: AugmentedBatches, order: Iterable[BatchSpec], rows_only: bool = False) -> Generator[Batch]:
    pins = rows_only and torch.cuda.is_available()
    for spec in order:
        if rows_only:
            batch = _tensors(spec.indices, source.labels(spec), source.moves(spec))
            # From memory that is not pinned, a copy to the device would wait for the step before.
            yield tuple(tensor.pin_memory() for tensor in batch) if pins else batch  # type: ignore[misc]
        else:
            yield _tensors(*source[spec])


def _ahead(source: AugmentedBatches, order: Iterable[BatchSpec], n_loaders: int) -> Generator[Batch]:
    compose(source.augmentation)  # imports albumentations, once, for all processes to come
    loader: Any = torch.utils.data.DataLoader(
        _TensorBatches(source),  # type: ignore[arg-type]
        batch_size=None,
        sampler=order,  # type: ignore[arg-type]
        num_workers=n_loaders,
        prefetch_factor=8,
        pin_memory=torch.cuda.is_available(),
        # Forked: the arrays and imports are shared, so a loader starts within milliseconds.
        multiprocessing_context="fork",
        worker_init_fn=_starts,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise TrialFailed(f"a process that augments died: {str(error).splitlines()[0]}") from error
        raise


class _TensorBatches:
    """`AugmentedBatches` as tensors, which the loader's processes hand over in shared memory."""

    def __init__(self, source: AugmentedBatches) -> None:
        self.source = source

    def __getitem__(self, spec: BatchSpec) -> Batch:
        return _tensors(*self.source[spec])


def _in_rounds(source: AugmentedBatches, order: Iterable[BatchSpec], n_helpers: int) -> Generator[Batch]:
    """This process augments the first batch of each round, each helper one of the others."""
    specs = iter(order)
    first = next(specs, None)
    if first is None:
        return
    specs = itertools.chain([first], specs)
    n_bytes = source.images.pixels[:1].nbytes * len(first.indices)
    with contextlib.ExitStack() as stack:
        helpers = [stack.enter_context(_Helper(source, n_bytes)) for _ in range(n_helpers if _can_fork() else 0)]
        while round_ := list(itertools.islice(specs, 1 + len(helpers))):
            for helper, spec in zip(helpers, round_[1:], strict=False):
                helper.ask(spec)
            yield _tensors(*source[round_[0]])
            for helper, spec in zip(helpers, round_[1:], strict=False):
                yield _tensors(helper.answer(spec), source.labels(spec), source.moves(spec))


class _Helper:
    """A process that augments a batch when asked to, into memory that it shares with this one."""

    def __init__(self, source: AugmentedBatches, n_bytes: int) -> None:
        self._shape = source.images.pixels.shape[1:]
        self._memory = np.frombuffer(mmap.mmap(-1, n_bytes), np.uint8)
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_help, args=(theirs, self._connection, source, self._memory), name="augmentation", daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Helper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: TracebackType | None) -> None:
        self._connection.close()
        self._process.kill()  # it holds nothing that could be lost
        self._process.join()

    def ask(self, spec: BatchSpec) -> None:
        with self._died_if(OSError):
            self._connection.send(spec)

    def answer(self, spec: BatchSpec) -> np.ndarray:
        with self._died_if(EOFError, OSError):
            self._connection.recv()
        return _view(self._memory, len(spec.indices), self._shape).copy()

    @contextlib.contextmanager
    def _died_if(self, *errors: type[BaseException]) -> Iterator[None]:
        try:
            yield
        except errors as error:
            self._process.join()
            raise TrialFailed(f"a process that augments died (exit code {self._process.exitcode})") from error


def _help(connection: Connection, other_end: Connection, source: AugmentedBatches, memory: np.ndarray) -> None:
    other_end.close()  # inherited; while it is open here, the end of the parent would go unnoticed
    _starts(0)
    shape = source.images.pixels.shape[1:]
    with contextlib.suppress(EOFError, OSError):  # the parent is done with it, or gone
        while True:
            spec = connection.recv()
            source.augment(spec, _view(memory, len(spec.indices), shape))
            connection.send(True)


def _view(memory: np.ndarray, n: int, shape: tuple[int, ...]) -> np.ndarray:
    return memory[: n * int(np.prod(shape))].reshape(n, *shape)


def _starts(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def _can_fork() -> bool:
    return sys.platform == "linux"


def _tensors(images: np.ndarray, labels: np.ndarray, moves: np.ndarray) -> Batch:
    return torch.from_numpy(images), torch.from_numpy(np.ascontiguousarray(labels)), torch.from_numpy(moves)
