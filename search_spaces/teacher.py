"""A larger network that a retrain may learn from: outside the limits, never searched, never shipped.

Three stages of three residual pairs, the widths of a ResNet-20 doubled: 1,258,656 parameters. Its checkpoint with
averages and optimizer stays below 16 MiB, so that it can be carried from machine to machine.
"""

from __future__ import annotations

from search_spaces.architecture import Architecture, Conv, Layer, Residual
from search_spaces.candidate import Augmentation, Candidate, Optimisation

WIDTHS = (32, 64, 128)
N_PAIRS = 3


def _architecture() -> Architecture:
    layers: list[Layer] = []
    for width in WIDTHS:
        layers.append(Conv(width, stride=2 if layers else 1))
        layers += [Residual((Conv(width), Conv(width, activation=False)))] * N_PAIRS
    return Architecture(tuple(layers))


TEACHER = Candidate(_architecture(), Augmentation(), Optimisation(lr=0.1, batch_size=128, weight_decay=5e-4))
"""Without label smoothing, which makes a worse teacher (Mueller et al. 2019)."""
