"""Where the time of an epoch goes: the three largest costs, and on a GPU the share of time that it is busy."""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.record import write
from study.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=12_800, help="of the profiled epoch (default: 12,800)")
    parser.add_argument(
        "--augment", action="store_true", help="with affine and dropout; without, nothing can make the device wait"
    )


def run(options: argparse.Namespace) -> int:
    if options.images < 128:
        raise UserError(f"--images must be at least 128: {options.images}.")
    import dataclasses

    import numpy as np
    import torch
    from torch.profiler import ProfilerActivity, profile

    from search_spaces.candidate import Augmentation
    from search_spaces.reference import REFERENCE
    from study.calibration.prices import calibrate
    from study.data.cifar10 import load_train
    from study.machine.hardware import n_cores, n_loaders
    from study.training.loop import Training
    from study.training.records import TrainingConfig

    device = options.device
    torch.set_num_threads(n_cores())
    images = load_train(options.data).take(np.arange(options.images))
    augmentation = REFERENCE.augmentation if options.augment else Augmentation(flip_p=0.5, crop_padding=4)
    candidate = dataclasses.replace(REFERENCE, augmentation=augmentation)
    config = TrainingConfig(2, 0, device, calibrate(device).precision, n_loaders(device, 1))
    training = Training(candidate, images, config, None)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities):  # the first one is slow to start, and loaders would get ahead meanwhile
        torch.zeros(1, device=device).add_(1)
    profiler = profile(activities=activities, acc_events=True)
    clock = {"started": 0.0, "seconds": 0.0}

    def between(record: Any) -> None:
        if record.epoch == 0:  # it warmed up; the second one is profiled
            profiler.start()
            clock["started"] = time.perf_counter()
        else:
            clock["seconds"] = time.perf_counter() - clock["started"]
            profiler.stop()

    training.run(between, None, None)
    on_device = device == "cuda"
    averages = profiler.key_averages()
    costs = sorted(
        ((e.key, (e.self_device_time_total if on_device else e.self_cpu_time_total) / 1e6) for e in averages),
        key=lambda cost: -cost[1],
    )
    total = sum(seconds for _, seconds in costs)
    largest = [{"name": name, "s": seconds, "share": seconds / total} for name, seconds in costs[:3]]
    more: dict[str, Any] = {"largest": largest, "epoch_s": clock["seconds"], "augmented": options.augment}
    for cost in largest:
        print(f"{cost['share']:.0%}  {cost['s']:.3f} s  {cost['name'][:100]}")
    if on_device:
        ours, unit, title = (
            [_busy_seconds(profiler) / clock["seconds"]],
            "share",
            "share of an epoch that the GPU works",
        )
    else:
        ours, unit, title = [clock["seconds"]], "s", "a profiled epoch"
    name = f"busy{'-augmented' if options.augment else ''}-{device}"
    write(options, name, title, device, unit, ours, goal="at least 0.9" if on_device else None, more=more)
    return 0


def _busy_seconds(profiler: Any) -> float:
    """Length of the union of all intervals in which something ran on the GPU."""
    import torch

    cuda = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    spans = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type == cuda)
    busy, reached = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / 1e6
