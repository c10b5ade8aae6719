"""What a network answers, and how often it is right."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from study.data.batches import normalise
from study.data.cifar10 import Images
from study.training.step import autocast

EVALUATION_BATCH = 500


def evaluate(network: nn.Module, images: Images, device: str, precision: str = "float32") -> tuple[float, np.ndarray]:
    """Mean cross-entropy and logits float32 [N, n_classes] of `network` (in evaluation mode) on `images`.

    float32 is the precision of every reported test figure, and not the shorter one that a GPU would take for its
    convolutions, so that devices agree.
    """
    network = network.to(memory_format=torch.channels_last)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = logits_of(network, torch.from_numpy(np.array(images.pixels)), device, precision)
    loss = F.cross_entropy(found, torch.from_numpy(np.array(images.labels)))
    return float(loss), found.numpy()


def logits_of(network: nn.Module, pixels: torch.Tensor, device: str, precision: str) -> torch.Tensor:
    """Logits float32 [N, n_classes], on the CPU, of uint8 `pixels` [N, H, W, 3] wherever they are."""
    found = []
    with torch.inference_mode(), autocast(device, precision):
        for start in range(0, len(pixels), EVALUATION_BATCH):
            batch = pixels[start : start + EVALUATION_BATCH].to(device)
            found.append(network(normalise(batch)).float())
    return torch.cat(found).cpu()  # once: every copy makes the host wait for a GPU


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is the label's."""
    return float((logits.argmax(1) == labels).mean())
