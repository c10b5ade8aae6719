"""How long a network takes for one image here."""

from __future__ import annotations

import time

import torch

from search_spaces.architecture import Architecture
from study.model.network import build, folded

N_WARM_UP, N_TIMED, TIMED_S = 3, 60, 1.0
"""Images that are not counted, then so many, or as many as are done in this time."""


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
            for _ in range(N_WARM_UP):
                network(image)
            deadline, seconds = time.perf_counter() + TIMED_S, list[float]()
            while not seconds or (len(seconds) < N_TIMED and time.perf_counter() < deadline):
                started = time.perf_counter()
                network(image)
                seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(n_threads)
    return 1_000 * min(seconds)
