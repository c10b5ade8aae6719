"""What a network answers, and how often it is right."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from study.data.batches import normalise
from study.data.cifar10 import CIFAR10, Images
from study.data.dataset import DataSet
from study.errors import TrialFailed
from study.model.network import Network, folded
from study.training.records import TrainingConfig
from study.training.step import autocast

EVALUATION_BATCH = 500
GLANCE = 5
"""Where nothing depends on an epoch's validation, one of so many images is enough."""


class Validation:
    """What a training with the rate `lr` is validated on, kept on its device."""

    def __init__(self, images: Images, config: TrainingConfig, lr: float) -> None:
        self._config, self._labels, self._lr = config, images.labels, lr
        self._pixels, self._of = tensor_of(images).to(config.device), images.of

    def __call__(self, averaged: Network, epoch: int) -> tuple[float, float, int]:
        """Mean loss and accuracy of the averaged network after `epoch`, and the number of images they are of.

        Raises:
            TrialFailed: It gives NaN or infinity.
        """
        config = self._config
        whole = config.whole_validations is None or epoch in config.whole_validations
        every = 1 if whole else GLANCE
        labels = np.array(self._labels[::every])
        found = logits_of(folded(averaged), self._pixels[::every], config.device, config.precision, self._of)
        if not bool(torch.isfinite(found).all()):
            raise TrialFailed(f"diverged: the averaged network gives NaN after epoch {epoch} (lr={self._lr:.4g})")
        loss = F.cross_entropy(found, torch.from_numpy(labels))
        return float(loss), accuracy(found.numpy(), labels), len(labels)


def evaluate(network: nn.Module, images: Images, device: str, precision: str = "float32") -> tuple[float, np.ndarray]:
    """Mean cross-entropy and logits float32 [N, n_classes] of `network` (in evaluation mode) on `images`.

    float32 is the precision of every reported test figure, and not the shorter one that a GPU would take for its
    convolutions, so that devices agree.
    """
    network = network.to(memory_format=torch.channels_last)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = logits_of(network, tensor_of(images), device, precision, images.of)
    loss = F.cross_entropy(found, torch.from_numpy(np.array(images.labels)))
    return float(loss), found.numpy()


def logits_of(
    network: nn.Module, pixels: torch.Tensor, device: str, precision: str, of: DataSet = CIFAR10
) -> torch.Tensor:
    """Logits float32 [N, n_classes], on the CPU, of uint8 `pixels` [N, H, W, 3] of a data set, wherever they are."""
    found = []
    with torch.inference_mode(), autocast(device, precision):
        for start in range(0, len(pixels), EVALUATION_BATCH):
            batch = pixels[start : start + EVALUATION_BATCH].to(device)
            found.append(network(normalise(batch, of)).float())
    return torch.cat(found).cpu()  # once: every copy makes the host wait for a GPU


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is the label's."""
    return float((logits.argmax(1) == labels).mean())


def tensor_of(images: Images) -> torch.Tensor:
    """A copy of the pixels, uint8 [N, H, W, 3], which may be a read-only map."""
    return torch.from_numpy(np.array(images.pixels))
