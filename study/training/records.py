"""How a training is described, what it leaves, and where it stands. Imports no torch: plans are made without it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from search_spaces.fields import check_fields, from_fields

if TYPE_CHECKING:
    import torch

    from study.model.layers import DepthwiseClass
    from study.model.network import Network


PRECISIONS = ("bfloat16", "float32")


@dataclass(frozen=True)
class TrainingConfig:
    """How a candidate is trained, beside what the candidate says itself.

    Attributes:
        epochs: Passes over the training images; the schedule spans all of them.
        seed: Seeds the initial weights, the order of images and every augmentation.
        device: "cpu" or "cuda".
        precision: "bfloat16" (autocast; depthwise convolutions in float32 on a CPU) or "float32".
        n_loaders: Processes that augment: ahead of the steps beside a GPU; together with this one,
            between the steps, on a CPU. 0 augments in this one alone.
        n_snapshots: EMA states kept, evenly spread over the epochs and always the last one.
        capture: Whether a GPU runs the step as one CUDA graph.
        compiled: Whether the network may run compiled, where that pays back its cost (`study.training.compiling`).
        native_depthwise: Classes of depthwise convolutions that a GPU runs by torch's own kernels instead of cuDNN's
            (`study.model.layers.DepthwiseConv2d`); measured by `study.calibration.prices`.
        whole_validations: Epochs (from zero) that are validated on all images; the others on every fifth, enough
            for a curve. None: all of them are.
    """

    epochs: int
    seed: int
    device: str = "cpu"
    precision: str = "bfloat16"
    n_loaders: int = 0
    n_snapshots: int = 0
    capture: bool = True
    compiled: bool = False
    native_depthwise: frozenset[DepthwiseClass] = frozenset()
    whole_validations: tuple[int, ...] | None = None

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
        wait_frac: Share of them in which training waited for augmented batches (on a CPU, made them).
        val_frac: Share of them in which it validated.
        n_val: Images validated on.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    lr: float
    wall_s: float
    wait_frac: float
    val_frac: float = 0.0
    n_val: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class Progress:
    """All state of a training between two steps; what a checkpoint holds.

    Attributes:
        epoch, batch: The next step's position.
        network, ema, optimizer: State dicts (tensors).
        sums: Loss sum, correct and seen images of the running epoch; its seconds and waited seconds.
        records: The finished epochs.
        snapshots: EMA states by epoch.
        compiled: Whether the network runs compiled; None while that is not decided.
    """

    epoch: int = 0
    batch: int = 0
    network: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    records: list[EpochRecord] = field(default_factory=list)
    snapshots: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    compiled: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, so that `torch.load(weights_only=True)` reads them back."""
        return {**self.__dict__, "records": [asdict(record) for record in self.records]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Progress:
        """Reads what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is of another version, or its parts contradict each other.
        """
        progress = cls(**{**data, "records": [from_fields(EpochRecord, record) for record in data["records"]]})
        if [record.epoch for record in progress.records] != list(range(progress.epoch)):
            raise ValueError(f"it stands at epoch {progress.epoch} and has {len(progress.records)} records")
        if progress.batch != abs(int(progress.batch)) or not set(progress.snapshots) <= set(range(progress.epoch)):
            raise ValueError("there is no such step or snapshot")
        if not all(isinstance(value, (int, float)) for value in progress.sums.values()):
            raise ValueError("its sums are no numbers")
        return progress


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        ema: The averaged network, the one to use, in evaluation mode.
        records: One per epoch.
        snapshots: EMA state dicts by epoch.
        compiled: Whether the network ran compiled.
    """

    ema: Network
    records: list[EpochRecord]
    snapshots: dict[int, dict[str, torch.Tensor]]
    compiled: bool = False

    def progress(self) -> Progress:
        """What is kept of it."""
        return Progress(
            epoch=len(self.records),
            ema=self.ema.state_dict(),
            records=self.records,
            snapshots=self.snapshots,
            compiled=self.compiled,
        )
