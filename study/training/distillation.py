"""Learning from a larger network's outputs (Hinton et al. 2015)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

WEIGHT = 0.9
TEMPERATURE = 4.0


def distilled(loss: torch.Tensor, logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """(1 - w) * `loss` + w * T^2 * KL(teacher || student), both softened by the temperature T; a scalar.

    Args:
        loss: Of the labels, a scalar.
        logits: Of the student, float32 [N, n_classes].
        teacher_logits: Of the teacher on the same images, likewise.
    """
    soft = F.kl_div(
        F.log_softmax(logits / TEMPERATURE, dim=1),
        F.log_softmax(teacher_logits / TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    # Gradients of the soft part shrink with the square of the temperature.
    return (1 - WEIGHT) * loss + WEIGHT * TEMPERATURE**2 * soft
