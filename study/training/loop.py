"""Training one candidate. Knows no Optuna: a callback sees every epoch and may stop it by raising."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch
from torch.nn import functional as F

from search_spaces.candidate import Candidate, Optimisation
from study.data.augmentation import AugmentedBatches, EpochOrder, mixing_weight, needs_albumentations, training_order
from study.data.batches import Batch, batches
from study.data.cifar10 import Images
from study.errors import TrialFailed
from study.machine import heap
from study.model.network import Network, build, folded, use_native_depthwise
from study.training.compiling import fastest
from study.training.evaluation import accuracy, logits_of
from study.training.optimizers import make_optimizer
from study.training.records import EpochRecord, Progress, Trained, TrainingConfig
from study.training.step import Ema, Step, StepSettings, step_seconds

GLANCE = 5
"""Where nothing depends on an epoch's validation, one of so many images is enough."""


def train(
    candidate: Candidate,
    images: Images,
    config: TrainingConfig,
    validation: Images | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    resume: Progress | None = None,
    on_checkpoint: Callable[[Callable[[], Progress]], None] | None = None,
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
    try:
        return Training(candidate, images, config, validation, teacher).run(on_epoch, resume, on_checkpoint)
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
    def __init__(
        self,
        candidate: Candidate,
        images: Images,
        config: TrainingConfig,
        validation: Images | None,
        teacher: Network | None = None,
    ) -> None:
        self.candidate, self.images, self.config, self.validation = candidate, images, config, validation
        if config.device == "cpu":
            heap.keep()
        network = use_native_depthwise(build(candidate.architecture, config.seed), config.native_depthwise)
        self.network = network.to(config.device).to(memory_format=torch.channels_last)
        o = candidate.optimisation
        self.optimizer = make_optimizer(self.network, o)
        self.steps_per_epoch = len(EpochOrder(len(images), o.batch_size, config.seed, 0))
        self.n_steps = self.steps_per_epoch * config.epochs
        self.ema = Ema(self.network, config.ema_half_life * self.steps_per_epoch)
        on_gpu = config.device == "cuda"
        resident = on_gpu and not needs_albumentations(candidate.augmentation)
        if teacher is not None:
            teacher = teacher.to(config.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.step = Step(
            self.network,
            self.ema,
            self.optimizer,
            StepSettings(config.device, config.precision, o.label_smoothing, candidate.augmentation.mixup > 0),
            _pixels(images).to(config.device) if resident else None,
            teacher,
        )
        self.train_on: Callable[..., None] = self.step
        self.val_pixels = None if validation is None else _pixels(validation).to(config.device)
        self.progress = Progress()

    def run(
        self,
        on_epoch: Callable[[EpochRecord], None] | None,
        resume: Progress | None,
        on_checkpoint: Callable[[Callable[[], Progress]], None] | None,
    ) -> Trained:
        if resume is not None:
            self._restore(resume)
        self.prepare()  # before the loaders start: they must not disturb it
        progress = self.progress
        with contextlib.closing(self.batches(progress.epoch, progress.batch)) as source:
            for epoch in range(progress.epoch, self.config.epochs):
                record = self._epoch(epoch, source, on_checkpoint)
                progress.records.append(record)
                if self.config.keeps_snapshot(epoch):
                    progress.snapshots[epoch] = _to_cpu(self.ema.network.state_dict())
                progress.epoch, progress.batch, progress.sums = epoch + 1, 0, {}
                if on_epoch is not None:
                    on_epoch(record)
                if on_checkpoint is not None:
                    on_checkpoint(self._capture)
        return Trained(self.ema.network, progress.records, progress.snapshots, bool(progress.compiled))

    def prepare(self) -> None:
        """Makes the step as fast as it gets: on a GPU one graph, and compiled where the steps left pay for that."""
        config, progress = self.config, self.progress
        on_gpu = config.device == "cuda"
        if not (config.capture if on_gpu else config.compiled):
            return
        self.network.train()
        left = self.n_steps - progress.epoch * self.steps_per_epoch - progress.batch
        decided = None if on_gpu else progress.compiled
        self.train_on, progress.compiled = fastest(
            self.step,
            self.example(),
            left if config.compiled else 0,
            self.candidate.architecture.architecture_id,
            decided,
        )

    def seconds_a_step(self) -> float:
        """Of the step as `prepare` left it, on a batch of zeros; leaves no trace."""
        example = tuple(tensor.to(self.config.device) for tensor in self.example())
        return step_seconds(self.step, lambda: self.train_on(example, 0.01, 0.5))

    def _epoch(
        self, epoch: int, source: Iterator[Batch], on_checkpoint: Callable[[Callable[[], Progress]], None] | None
    ) -> EpochRecord:
        o, progress, step = self.candidate.optimisation, self.progress, self.step
        started, waited = time.perf_counter(), 0.0
        before = progress.sums or {"loss": 0.0, "correct": 0.0, "seen": 0.0, "wall_s": 0.0, "wait_s": 0.0}
        step.sums.copy_(torch.tensor([before["loss"], before["correct"]], dtype=torch.float64))
        seen, lr = before["seen"], 0.0
        self.network.train()
        for number in range(progress.batch, self.steps_per_epoch):
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            position = epoch * self.steps_per_epoch + number
            lr = learning_rate(o, position, self.n_steps)
            mix = mixing_weight(self.candidate.augmentation, self.config.seed, position, self.n_steps)
            self.train_on(batch, lr, self.ema.weight(position), mix)
            seen += len(batch[1])
            if on_checkpoint is not None and number + 1 < self.steps_per_epoch:
                progress.batch = number + 1
                progress.sums = {
                    # On the device until _capture reads them, if it is called at all.
                    "loss": step.sums[0],  # type: ignore[dict-item]
                    "correct": step.sums[1],  # type: ignore[dict-item]
                    "seen": seen,
                    "wall_s": before["wall_s"] + time.perf_counter() - started,
                    "wait_s": before["wait_s"] + waited,
                }
                on_checkpoint(self._capture)
        loss_sum, n_correct = step.sums.tolist()
        if not math.isfinite(loss_sum):
            raise TrialFailed(f"diverged: the training loss became {loss_sum} in epoch {epoch} (lr={o.lr:.4g})")
        val_loss, val_accuracy, n_val = None, None, 0
        trained = time.perf_counter()
        if self.validation is not None:
            whole = self.config.whole_validations is None or epoch in self.config.whole_validations
            val_loss, val_accuracy, n_val = self._validate(epoch, 1 if whole else GLANCE)
        wall = before["wall_s"] + time.perf_counter() - started
        return EpochRecord(
            epoch=epoch,
            train_loss=loss_sum / seen,
            train_accuracy=n_correct / seen,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=lr,
            wall_s=wall,
            wait_frac=(before["wait_s"] + waited) / wall,
            val_frac=(time.perf_counter() - trained) / wall,
            n_val=n_val,
        )

    def _validate(self, epoch: int, every: int) -> tuple[float, float, int]:
        """Mean loss and accuracy of the averaged weights on one of `every` images, and the number of these."""
        assert self.validation is not None
        assert self.val_pixels is not None
        pixels, labels = self.val_pixels[::every], np.array(self.validation.labels[::every])
        found = logits_of(folded(self.ema.network), pixels, self.config.device, self.config.precision)
        if not bool(torch.isfinite(found).all()):
            lr = self.candidate.optimisation.lr
            raise TrialFailed(f"diverged: the averaged network gives NaN after epoch {epoch} (lr={lr:.4g})")
        loss = F.cross_entropy(found, torch.from_numpy(labels))
        return float(loss), accuracy(found.numpy(), labels), len(labels)

    def batches(self, first_epoch: int, first_batch: int = 0) -> Generator[Batch]:
        """All batches from there to the end of the training: an epoch's first ones are made during validation."""
        config, size = self.config, self.candidate.optimisation.batch_size
        source = AugmentedBatches(self.images, self.candidate.augmentation, config.seed)
        order = training_order(len(self.images), size, config.seed, config.epochs, first_epoch, first_batch)
        return batches(source, order, config.device, config.n_loaders)

    def example(self) -> Batch:
        """Zeros, shaped like every batch."""
        n = min(self.candidate.optimisation.batch_size, len(self.images))
        labels, moves = torch.zeros(n, dtype=torch.int64), torch.zeros(n, 3, dtype=torch.int64)
        if self.step.resident is not None:
            return labels.clone(), labels, moves
        return torch.zeros((n, *self.images.pixels.shape[1:]), dtype=torch.uint8), labels, moves

    def _capture(self) -> Progress:
        progress = self.progress
        return Progress(
            epoch=progress.epoch,
            batch=progress.batch,
            network=_to_cpu(self.network.state_dict()),
            ema=_to_cpu(self.ema.network.state_dict()),
            optimizer=copy.deepcopy(self.optimizer.state_dict()),
            sums={name: float(value) for name, value in progress.sums.items()},
            records=list(progress.records),
            snapshots=dict(progress.snapshots),
            compiled=progress.compiled,
        )

    def _restore(self, progress: Progress) -> None:
        self.progress = progress = copy.deepcopy(progress)  # training goes on in place
        self.network.load_state_dict(progress.network)
        self.ema.network.load_state_dict(progress.ema)
        self.optimizer.load_state_dict(progress.optimizer)
        for group in self.optimizer.param_groups:
            if "capturable" in group:  # stored as it was where the training began
                group["capturable"] = self.config.device == "cuda"


def _pixels(images: Images) -> torch.Tensor:
    return torch.from_numpy(np.array(images.pixels))


def _to_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
