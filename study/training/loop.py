"""Training one candidate. Knows no Optuna: a callback sees every epoch and may stop it by raising."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import torch

from search_spaces.candidate import Candidate, Optimisation
from study.data.augmentation import AugmentedBatches, EpochOrder, mixing_weight, needs_albumentations, training_order
from study.data.batches import Batch, batches
from study.data.cifar10 import Images
from study.errors import TrialFailed
from study.machine import heap
from study.model.network import Network
from study.training.compiling import fastest
from study.training.evaluation import Validation, tensor_of
from study.training.records import EpochRecord, Progress, Trained, TrainingConfig
from study.training.state import TrainState, to_cpu
from study.training.step import AnyStep, Step, StepSettings, step_seconds

OnEpoch = Callable[[EpochRecord], None]
OnCheckpoint = Callable[[Callable[[], Progress]], None]


def train(
    candidate: Candidate,
    images: Images,
    config: TrainingConfig,
    validation: Images | None = None,
    on_epoch: OnEpoch | None = None,
    resume: Progress | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    teacher: Network | None = None,
) -> Trained:
    """Trains `candidate` on `images`.

    Args:
        candidate: Network, augmentation and optimisation.
        images: What to train on.
        config: Length, seed and place.
        validation: Evaluated after every epoch with the EMA weights, if given; where
            `config.whole_validations` says that nothing depends on it, only every fifth image of it.
        on_epoch: Called after every epoch; whatever it raises ends the training.
        resume: Where an interrupted training of the same arguments stood. It then goes on exactly.
        on_checkpoint: Called after every step with a function that captures the progress; decides itself
            when to call it.
        teacher: A trained network to learn from besides the labels, if given; it stays as it is.

    Raises:
        TrialFailed: The loss became NaN or infinite, memory ran out, or cuDNN has no kernel for the network.
    """
    with failures_said():
        return Training(candidate, images, config, validation, teacher).run(on_epoch, resume, on_checkpoint)


@contextlib.contextmanager
def failures_said() -> Iterator[None]:
    """Tells what a network or a machine cannot do from bugs.

    Raises:
        TrialFailed: Memory ran out, or cuDNN has no kernel for the network.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrialFailed(f"out of memory: {str(error).splitlines()[0] if str(error) else 'MemoryError'}") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "out of memory" in str(error):
            raise TrialFailed(f"out of memory or killed: {str(error).splitlines()[0]}") from error
        if "unable to find an engine" in str(error).lower():  # cuDNN's, for a shape or for want of memory
            raise TrialFailed(f"no kernel runs this network: {str(error).splitlines()[0]}") from error
        raise


def learning_rate(optimisation: Optimisation, step: int, n_steps: int) -> float:
    """One cycle: linear from 0 to the peak over `warmup_frac`, then half a cosine down to 0.

    Smith and Topin 2019, without the momentum cycle.
    """
    peak = optimisation.peak_lr
    warmup = max(1.0, optimisation.warmup_frac * n_steps)
    if step + 1 <= warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / max(1.0, n_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Training:
    """One candidate's training: its state, its step, and where it stands.

    Attributes:
        step: The plain one.
        train_on: What trains on a batch: `step`, or what `prepare` made of it.
    """

    def __init__(
        self,
        candidate: Candidate,
        images: Images,
        config: TrainingConfig,
        validation: Images | None = None,
        teacher: Network | None = None,
    ) -> None:
        self.candidate, self.images, self.config = candidate, images, config
        if config.device == "cpu":
            heap.keep()
        optimisation, augmentation = candidate.optimisation, candidate.augmentation
        self.steps_per_epoch = len(EpochOrder(len(images), optimisation.batch_size, config.seed, 0))
        self.n_steps = self.steps_per_epoch * config.epochs
        self.state = TrainState.initial(candidate, config, self.steps_per_epoch)
        self.network, self.ema = self.state.network, self.state.ema
        resident = config.device == "cuda" and not needs_albumentations(augmentation)
        if teacher is not None:
            teacher = teacher.to(config.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.step = Step(
            self.state,
            StepSettings(
                config.device, config.precision, optimisation.label_smoothing, augmentation.mixup > 0, images.of
            ),
            self.network,
            tensor_of(images).to(config.device) if resident else None,
            teacher,
        )
        self.train_on: AnyStep = self.step
        self.validation = None if validation is None else Validation(validation, config, optimisation.lr)
        self.progress = Progress()

    def run(
        self,
        on_epoch: OnEpoch | None = None,
        resume: Progress | None = None,
        on_checkpoint: OnCheckpoint | None = None,
    ) -> Trained:
        """See `train`."""
        if resume is not None:
            self.go_on_from(resume)
        progress = self.progress
        self.resize(progress.epoch)
        self.prepare()  # before the loaders start: beside a GPU they would disturb it
        with contextlib.closing(self.batches(progress.epoch, progress.batch)) as source:
            for epoch in range(progress.epoch, self.config.epochs):
                if self.resize(epoch):
                    self.prepare()
                record = self._epoch(epoch, source, on_checkpoint)
                progress.records.append(record)
                if self.config.keeps_snapshot(epoch):
                    progress.snapshots[epoch] = to_cpu(self.ema.network.state_dict())
                progress.epoch, progress.batch, progress.sums = epoch + 1, 0, {}
                if on_epoch is not None:
                    on_epoch(record)
                if on_checkpoint is not None:
                    on_checkpoint(self.checkpoint)
        return Trained(self.ema.network, progress.records, progress.snapshots, bool(progress.compiled))

    def resize(self, epoch: int) -> bool:
        """Gets the step ready for images as large as those of `epoch`, from zero. False: nothing changes."""
        whole = self.images.pixels.shape[1]
        found = self.candidate.optimisation.side_in(epoch, self.config.epochs, whole)
        side = None if found == whole else found
        if side == self.step.settings.side:
            return False
        self.step = dataclasses.replace(self.step, settings=dataclasses.replace(self.step.settings, side=side))
        self.train_on = self.step
        return True

    def prepare(self) -> None:
        """Makes the step as fast as it gets: on a GPU one graph, and compiled where the steps left pay for that; for
        smaller images, which are soon over, never."""
        config, progress = self.config, self.progress
        on_gpu, compiles = config.device == "cuda", config.compiled and self.step.settings.side is None
        if not (config.capture if on_gpu else compiles):
            return
        self.network.train()
        left = self.n_steps - progress.epoch * self.steps_per_epoch - progress.batch
        self.train_on, progress.compiled = fastest(
            self.step,
            self.example(),
            left if compiles else 0,
            self.candidate.architecture.architecture_id,
            decided=None if on_gpu else progress.compiled,
        )

    def seconds_a_step(self) -> float:
        """Of the step as `prepare` left it, on a batch of zeros; leaves no trace."""
        return step_seconds(self.train_on, self.example())

    def _epoch(self, epoch: int, source: Iterator[Batch], on_checkpoint: OnCheckpoint | None) -> EpochRecord:
        progress, sums = self.progress, self.state.sums
        optimisation = dataclasses.replace(self.candidate.optimisation, batch_size=self.batch_size)
        begun = progress.sums
        watch = _Watch(begun)
        sums.copy_(torch.tensor([begun.get("loss", 0.0), begun.get("correct", 0.0)], dtype=torch.float64))
        seen, lr = begun.get("seen", 0.0), 0.0
        self.network.train()
        for number in range(progress.batch, self.steps_per_epoch):
            with watch.waiting():
                batch = next(source)
            position = epoch * self.steps_per_epoch + number
            lr = learning_rate(optimisation, position, self.n_steps)
            mix = mixing_weight(self.candidate.augmentation, self.config.seed, position, self.n_steps)
            self.train_on(batch, lr, self.ema.weight(position), mix)
            seen += len(batch[1])
            if on_checkpoint is not None and number + 1 < self.steps_per_epoch:
                progress.batch = number + 1
                # Tensors on the device until `checkpoint` reads them, if it is called at all.
                on_device: Any = {"loss": sums[0], "correct": sums[1]}
                progress.sums = {**on_device, "seen": seen, "wall_s": watch.wall_s, "wait_s": watch.wait_s}
                on_checkpoint(self.checkpoint)
        loss_sum, n_correct = sums.tolist()
        if not math.isfinite(loss_sum):
            lr_told = f"lr={optimisation.lr:.4g}"
            raise TrialFailed(f"diverged: the training loss became {loss_sum} in epoch {epoch} ({lr_told})")
        trained_s = watch.wall_s
        validated = (None, None, 0) if self.validation is None else self.validation(self.ema.network, epoch)
        val_loss, val_accuracy, n_val = validated
        wall_s = watch.wall_s
        return EpochRecord(
            epoch=epoch,
            train_loss=loss_sum / seen,
            train_accuracy=n_correct / seen,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=lr,
            wall_s=wall_s,
            wait_frac=watch.wait_s / wall_s,
            val_frac=(wall_s - trained_s) / wall_s,
            n_val=n_val,
        )

    def batches(self, first_epoch: int, first_batch: int = 0) -> Generator[Batch]:
        """All batches from there to the end of the training: an epoch's first ones are made during validation."""
        config, size = self.config, self.candidate.optimisation.batch_size
        source = AugmentedBatches(self.images, self.candidate.augmentation, config.seed)
        order = training_order(len(self.images), size, config.seed, config.epochs, first_epoch, first_batch)
        return batches(source, order, config.device, config.n_loaders)

    @property
    def batch_size(self) -> int:
        """Of the batches that there are: few images are one, and the learning rate is for that."""
        return min(self.candidate.optimisation.batch_size, len(self.images))

    def example(self) -> Batch:
        """Zeros, shaped like every batch."""
        n = self.batch_size
        labels, moves = torch.zeros(n, dtype=torch.int64), torch.zeros(n, 3, dtype=torch.int64)
        if self.step.resident is not None:
            return labels.clone(), labels, moves
        return torch.zeros((n, *self.images.pixels.shape[1:]), dtype=torch.uint8), labels, moves

    def checkpoint(self) -> Progress:
        """Where the training stands, as a copy that it leaves alone."""
        progress = dataclasses.replace(
            self.progress,
            sums={name: float(value) for name, value in self.progress.sums.items()},
            records=list(self.progress.records),
            snapshots=dict(self.progress.snapshots),
        )
        self.state.copy_to(progress)
        return progress

    def go_on_from(self, progress: Progress) -> None:
        """Stands where `checkpoint` was called."""
        self.progress = copy.deepcopy(progress)  # training goes on in place
        self.state.load(self.progress)


class _Watch:
    """Seconds of an epoch, and those in which it waited for batches; goes on from where the epoch was interrupted."""

    def __init__(self, begun: Mapping[str, float]) -> None:
        self._started = time.perf_counter() - begun.get("wall_s", 0.0)
        self.wait_s = begun.get("wait_s", 0.0)

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self._started

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.wait_s += time.perf_counter() - started
