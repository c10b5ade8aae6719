"""Training one candidate. Knows no Optuna: a callback sees every epoch and may stop it by raising."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from search_spaces.candidate import Candidate, Optimisation
from study.augmentation import AugmentedBatches, BatchSpec, EpochOrder
from study.data import MEAN, STD, Images
from study.errors import TrialFailed
from study.model import Network, build

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class TrainingConfig:
    """How a candidate is trained, beside what the candidate says itself.

    Attributes:
        epochs: Passes over the training images; the schedule spans all of them.
        seed: Seeds the initial weights, the order of images and every augmentation.
        device: "cpu" or "cuda".
        precision: "bfloat16" (autocast; depthwise convolutions in float32 on a CPU) or "float32".
        n_loaders: Processes that augment; 0 augments in this one.
        n_snapshots: EMA states kept, evenly spread over the epochs and always the last one.
    """

    epochs: int
    seed: int
    device: str = "cpu"
    precision: str = "bfloat16"
    n_loaders: int = 1
    n_snapshots: int = 0

    @property
    def ema_half_life(self) -> float:
        """Half-life of the averaged weights in epochs: short trials must not be ranked on stale ones."""
        return min(2.0, max(0.1, 0.03 * self.epochs))

    def keeps_snapshot(self, epoch: int) -> bool:
        """Whether the EMA state after `epoch` (from zero) belongs to the kept ones."""
        kept = min(self.n_snapshots, self.epochs)
        return (epoch + 1) * kept // self.epochs != epoch * kept // self.epochs


@dataclass(frozen=True)
class EpochRecord:
    """What is known after one epoch. Accuracies are fractions.

    Attributes:
        epoch: From zero.
        train_loss, train_accuracy: Running means over the epoch's augmented batches.
        val_loss, val_accuracy: Of the EMA weights; None where nothing is validated on.
        lr: Learning rate of the epoch's last step.
        wall_s: Seconds the epoch took, validation included.
        wait_frac: Share of them in which training waited for augmented batches.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    lr: float
    wall_s: float
    wait_frac: float


@dataclass
class Progress:
    """All state of a training between two steps; what a checkpoint holds.

    Attributes:
        epoch, batch: The next step's position.
        network, ema, optimizer: State dicts (tensors).
        sums: Loss sum, correct and seen images of the running epoch; its seconds and waited seconds.
        records: The finished epochs.
        snapshots: EMA states by epoch.
    """

    epoch: int = 0
    batch: int = 0
    network: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    records: list[EpochRecord] = field(default_factory=list)
    snapshots: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, so that `torch.load(weights_only=True)` reads them back."""
        return {**self.__dict__, "records": [asdict(record) for record in self.records]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Progress:
        return cls(**{**data, "records": [EpochRecord(**record) for record in data["records"]]})


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        ema: The averaged network, the one to use, in evaluation mode.
        records: One per epoch.
        snapshots: EMA state dicts by epoch.
    """

    ema: Network
    records: list[EpochRecord]
    snapshots: dict[int, dict[str, torch.Tensor]]


def train(
    candidate: Candidate,
    images: Images,
    config: TrainingConfig,
    validation: Images | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    resume: Progress | None = None,
    on_checkpoint: Callable[[Callable[[], Progress]], None] | None = None,
) -> Trained:
    """Trains `candidate` on `images`.

    Args:
        candidate: Network, augmentation and optimisation.
        images: What to train on.
        config: Length, seed and place.
        validation: Evaluated after every epoch with the EMA weights, if given.
        on_epoch: Called after every epoch; whatever it raises ends the training.
        resume: Where an interrupted training of the same arguments stood. It then goes on exactly.
        on_checkpoint: Called after every step with a function that captures the progress; decides itself
            when to call it.

    Raises:
        TrialFailed: The loss became NaN or infinite, or memory ran out.
    """
    try:
        return _Training(candidate, images, config, validation).run(on_epoch, resume, on_checkpoint)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrialFailed(f"out of memory: {str(error).splitlines()[0] if str(error) else 'MemoryError'}") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "DataLoader worker" in str(error):
            raise TrialFailed(f"out of memory or killed: {str(error).splitlines()[0]}") from error
        raise


def evaluate(network: nn.Module, images: Images, device: str, precision: str = "float32") -> tuple[float, np.ndarray]:
    """Mean cross-entropy and logits float32 [N, n_classes] of `network` (in evaluation mode) on `images`.

    float32 is the precision of every reported test figure, so that devices agree.
    """
    network = network.to(memory_format=torch.channels_last)
    logits = []
    with torch.inference_mode(), autocast(device, precision):
        for start in range(0, len(images), EVALUATION_BATCH):
            batch = torch.from_numpy(np.array(images.pixels[start : start + EVALUATION_BATCH]))
            logits.append(network(normalise(batch.to(device))).float().cpu())
    found = torch.cat(logits)
    loss = F.cross_entropy(found, torch.from_numpy(np.array(images.labels)))
    return float(loss), found.numpy()


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is the label's."""
    return float((logits.argmax(1) == labels).mean())


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> standardised float32 [N, 3, H, W] in channels_last memory."""
    mean = torch.tensor([255 * value for value in MEAN], device=pixels.device)
    scale = torch.tensor([1 / (255 * value) for value in STD], device=pixels.device)
    return ((pixels.float() - mean) * scale).permute(0, 3, 1, 2)


def learning_rate(optimisation: Optimisation, step: int, n_steps: int) -> float:
    """One cycle: linear from 0 to the peak over `warmup_frac`, then half a cosine down to 0.

    Smith and Topin 2019, without the momentum cycle.
    """
    peak = optimisation.lr * optimisation.batch_size / 128
    warmup = max(1.0, optimisation.warmup_frac * n_steps)
    if step + 1 <= warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / max(1.0, n_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Ema:
    """Exponential moving average of weights and of the floating buffers of norms.

    The decay per step is 0.5 ** (1 / half_life), but never more than (1 + t) / (10 + t): early
    averages must forget the initial weights.
    """

    def __init__(self, network: Network, half_life_steps: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = 0.5 ** (1 / max(half_life_steps, 1e-9))
        live, kept = network.state_dict(keep_vars=True), self.network.state_dict(keep_vars=True)
        names = [name for name, tensor in kept.items() if tensor.is_floating_point()]
        self._live = [live[name].detach() for name in names]
        self._kept = [kept[name].detach() for name in names]

    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._kept, self._live, 1 - decay)


class _Training:
    def __init__(self, candidate: Candidate, images: Images, config: TrainingConfig, validation: Images | None) -> None:
        self.candidate, self.images, self.config, self.validation = candidate, images, config, validation
        self.network = (
            build(candidate.architecture, config.seed).to(config.device).to(memory_format=torch.channels_last)
        )
        o = candidate.optimisation
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=0.0,
            momentum=o.momentum,
            nesterov=o.momentum > 0,
            fused=True,
        )
        self.steps_per_epoch = len(EpochOrder(len(images), o.batch_size, config.seed, 0))
        self.n_steps = self.steps_per_epoch * config.epochs
        self.ema = Ema(self.network, config.ema_half_life * self.steps_per_epoch)
        self.progress = Progress()

    def run(
        self,
        on_epoch: Callable[[EpochRecord], None] | None,
        resume: Progress | None,
        on_checkpoint: Callable[[Callable[[], Progress]], None] | None,
    ) -> Trained:
        if resume is not None:
            self._restore(resume)
        for epoch in range(self.progress.epoch, self.config.epochs):
            record = self._epoch(epoch, on_checkpoint)
            self.progress.records.append(record)
            if self.config.keeps_snapshot(epoch):
                self.progress.snapshots[epoch] = _to_cpu(self.ema.network.state_dict())
            self.progress.epoch, self.progress.batch, self.progress.sums = epoch + 1, 0, {}
            if on_epoch is not None:
                on_epoch(record)
            if on_checkpoint is not None:
                on_checkpoint(self._capture)
        return Trained(self.ema.network, self.progress.records, self.progress.snapshots)

    def _epoch(self, epoch: int, on_checkpoint: Callable[[Callable[[], Progress]], None] | None) -> EpochRecord:
        config, o, progress = self.config, self.candidate.optimisation, self.progress
        started, waited = time.perf_counter(), 0.0
        before = progress.sums or {"loss": 0.0, "correct": 0.0, "seen": 0.0, "wall_s": 0.0, "wait_s": 0.0}
        # Sums stay on the device: reading them every step would make the CPU wait for a GPU.
        loss_sum = torch.tensor(before["loss"], device=config.device, dtype=torch.float64)
        correct = torch.tensor(before["correct"], device=config.device, dtype=torch.float64)
        seen, lr = before["seen"], 0.0
        self.network.train()
        batches = iter(self._loader(epoch, progress.batch))
        for batch in range(progress.batch, self.steps_per_epoch):
            asked = time.perf_counter()
            pixels, labels = next(batches)
            waited += time.perf_counter() - asked
            step = epoch * self.steps_per_epoch + batch
            lr = learning_rate(o, step, self.n_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            pixels = pixels.to(config.device, non_blocking=True)
            labels = labels.to(config.device, non_blocking=True)
            with autocast(config.device, config.precision):
                logits = self.network(normalise(pixels)).float()
            loss = F.cross_entropy(logits, labels, label_smoothing=o.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.ema.update(step)
            loss_sum += loss.detach().double() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            if on_checkpoint is not None and batch + 1 < self.steps_per_epoch:
                progress.batch = batch + 1
                progress.sums = {
                    "loss": loss_sum,  # type: ignore[dict-item]  # read by _capture, when it is called at all
                    "correct": correct,  # type: ignore[dict-item]
                    "seen": seen,
                    "wall_s": before["wall_s"] + time.perf_counter() - started,
                    "wait_s": before["wait_s"] + waited,
                }
                on_checkpoint(self._capture)
        mean_loss = float(loss_sum) / seen
        if not math.isfinite(mean_loss):
            raise TrialFailed(f"diverged: the training loss became {mean_loss} in epoch {epoch} (lr={o.lr:.4g})")
        val_loss = val_accuracy = None
        if self.validation is not None:
            val_loss, found = evaluate(self.ema.network, self.validation, config.device, config.precision)
            val_accuracy = accuracy(found, self.validation.labels)
            if not np.isfinite(found).all():
                raise TrialFailed(f"diverged: the averaged network gives NaN after epoch {epoch} (lr={o.lr:.4g})")
        wall = before["wall_s"] + time.perf_counter() - started
        wait = (before["wait_s"] + waited) / wall
        return EpochRecord(epoch, mean_loss, float(correct) / seen, val_loss, val_accuracy, lr, wall, wait)

    def _loader(self, epoch: int, first_batch: int) -> Any:
        config = self.config
        batches = AugmentedBatches(self.images, self.candidate.augmentation, config.seed)
        order = EpochOrder(len(self.images), self.candidate.optimisation.batch_size, config.seed, epoch, first_batch)
        if config.n_loaders == 0:
            return (_tensors(batches[spec]) for spec in order)
        return torch.utils.data.DataLoader(
            _TensorBatches(batches),  # type: ignore[arg-type]
            batch_size=None,
            sampler=order,  # type: ignore[arg-type]
            num_workers=config.n_loaders,
            prefetch_factor=8,
            pin_memory=config.device == "cuda",
            # Forked: the arrays and imports are shared, so a loader starts within milliseconds.
            multiprocessing_context="fork",
            worker_init_fn=_loader_starts,
        )

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
        )

    def _restore(self, progress: Progress) -> None:
        self.progress = progress = copy.deepcopy(progress)  # training goes on in place
        self.network.load_state_dict(progress.network)
        self.ema.network.load_state_dict(progress.ema)
        self.optimizer.load_state_dict(progress.optimizer)


class _TensorBatches:
    """`AugmentedBatches` as tensors, which the loader's processes hand over in shared memory."""

    def __init__(self, batches: AugmentedBatches) -> None:
        self.batches = batches

    def __getitem__(self, spec: BatchSpec) -> tuple[torch.Tensor, torch.Tensor]:
        return _tensors(self.batches[spec])


def _tensors(batch: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(batch[0]), torch.from_numpy(np.ascontiguousarray(batch[1]))


def _loader_starts(_: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains
    torch.set_num_threads(1)


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def _to_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
