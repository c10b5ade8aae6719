"""How long a network takes for one image here."""

from __future__ import annotations

import torch

from search_spaces.architecture import Architecture
from study.machine.timing import timed
from study.model.network import build, folded

N_TIMED, TIMED_S = 60, 1.0
"""So many images, or as many as are done in this time."""


def latency_ms(architecture: Architecture) -> float:
    """Milliseconds for one image on one core of this machine's CPU, in float32, norms folded: the fastest of many.

    The fastest, since whatever else the machine does only slows an image down.
    """
    n_threads = torch.get_num_threads()
    network = folded(build(architecture, seed=0))
    shape = (1, architecture.in_channels, architecture.image_size, architecture.image_size)
    image = torch.zeros(shape).to(memory_format=torch.channels_last)
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            seconds = timed(lambda: network(image), TIMED_S, at_least=1, at_most=N_TIMED)
    finally:
        torch.set_num_threads(n_threads)
    return 1_000 * min(seconds)
