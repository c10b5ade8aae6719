"""Predicted training time. Multiply-accumulates alone do not predict it: on a CPU a depthwise one
costs more than ten dense ones, so every class of operation has its own measured price."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from search_spaces.architecture import Architecture
from search_spaces.candidate import Candidate
from search_spaces.fields import Amount, check_fields, from_fields


@dataclass(frozen=True)
class Work:
    """What training on one image consists of, by class of operation.

    Attributes:
        dense_macs: Multiply-accumulates of dense (and pointwise) convolutions.
        depthwise_macs: Multiply-accumulates of 3x3 depthwise convolutions without dilation.
        depthwise_other_macs: Of larger or dilated depthwise ones and of grouped ones, which other kernels serve.
        activations: Elements written by everything but convolutions: norms, activations, gates, additions.
        n_operations: Operations, each of which has a fixed price per batch.
    """

    dense_macs: int
    depthwise_macs: int
    depthwise_other_macs: int
    activations: int
    n_operations: int

    @classmethod
    def of(cls, architecture: Architecture) -> Work:
        dense = depthwise = other = activations = 0
        for op in architecture.operations:
            if op.name != "Conv2d":
                activations += op.out_shape[0] * op.out_shape[1] * op.out_shape[2]
            elif op.groups == 1:
                dense += op.macs
            elif op.is_depthwise and op.kernel <= 3 and op.dilation == 1:
                depthwise += op.macs
            else:
                other += op.macs
        return cls(dense, depthwise, other, activations, len(architecture.operations))


@dataclass(frozen=True)
class CostModel:
    """Seconds of training per unit of `Work`, calibrated once on a machine (`study.calibration.prices`).

    Attributes:
        dense_mac_s, depthwise_mac_s, depthwise_other_mac_s, activation_s: Seconds per unit, forward and backward.
        image_s: Seconds per image whatever the network: augmentation and transfer.
        operation_s: Seconds per operation and batch.
        device: Device on which it was measured.
    """

    dense_mac_s: Amount
    depthwise_mac_s: Amount
    depthwise_other_mac_s: Amount
    activation_s: Amount
    image_s: Amount
    operation_s: Amount
    device: str

    EVALUATION_SHARE = 0.3
    """An evaluated image costs about this share of a trained one: forward only, not augmented."""

    def __post_init__(self) -> None:
        check_fields(self)

    def image_seconds(self, architecture: Architecture, batch_size: int = 128) -> float:
        """Seconds to train on one image."""
        work = Work.of(architecture)
        return (
            work.dense_macs * self.dense_mac_s
            + work.depthwise_macs * self.depthwise_mac_s
            + work.depthwise_other_macs * self.depthwise_other_mac_s
            + work.activations * self.activation_s
            + self.image_s
            + work.n_operations * self.operation_s / batch_size
        )

    def epoch_seconds(self, architecture: Architecture, n_train: int, n_val: int = 0, batch_size: int = 128) -> float:
        """Seconds for one epoch: training on `n_train` images and evaluating `n_val`."""
        seconds = self.image_seconds(architecture, batch_size)
        return n_train * seconds + n_val * (seconds - self.image_s) * self.EVALUATION_SHARE

    def candidate_seconds(self, candidate: Candidate, n_train: int, n_val: int = 0) -> float:
        """The same for a candidate, in batches of its own size: the mean of all epochs, some on smaller images."""
        whole, optimisation = candidate.architecture, candidate.optimisation
        seconds, begun = self.epoch_seconds(whole, 0, n_val, optimisation.batch_size), 0.0
        for end, side in optimisation.phases(whole.image_size):
            seen = whole if side == whole.image_size else dataclasses.replace(whole, image_size=side)
            seconds += (end - begun) * n_train * self.image_seconds(seen, optimisation.batch_size)
            begun = end
        return seconds

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> CostModel:
        return from_fields(cls, data)
