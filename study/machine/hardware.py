"""What this machine has: cores, GPUs, memory, versions."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from study.errors import UserError

INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""By the flag of a processor, widest first."""


def n_cores() -> int:
    """Cores this process may use: by its affinity, and by the quota of the container that it is in."""
    import joblib  # a third of a second that not every command needs

    return int(joblib.cpu_count())


def use_no_more_threads() -> None:
    """Keeps torch, which counts the machine's cores, to those that this process may use."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), n_cores()))


def warn_of_jobs(jobs: int | None) -> None:
    """Says so where more trainings at once are asked for than there are cores."""
    if jobs is not None and jobs > n_cores():
        here = f"{n_cores()} core{'s' * (n_cores() > 1)} here"
        slow = f"--jobs {jobs} is more than the {here}, so that they slow each other down"
        print(f"warning: {slow}.", file=sys.stderr, flush=True)


def n_loaders(device: str, cores: int) -> int:
    """Augmenting processes of a training that has so many cores.

    On a CPU they and the training itself use the same ones, but never at once (`study.data.batches`).
    """
    return max(0, cores - 1) if device == "cpu" else max(1, cores - 1)


def resolve_device(asked: str) -> str:
    """ "cuda" or "cpu".

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    if asked == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise UserError("--device cuda needs a CUDA device, and torch finds none. Use --device cpu or auto.")
    return "cpu"


def gpus(device: str) -> list[str]:
    """The visible GPUs as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    if device != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def n_devices(device: str) -> int:
    """Between how many the trainings on `device` are shared: GPUs, or the one CPU."""
    return max(1, len(gpus(device)))


def hardware(device: str) -> dict[str, Any]:
    """Names for reports."""
    found: dict[str, Any] = {"device": device, "cpu": cpu_name(), "n_cores": n_cores()}
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    names = ("torch", "torchvision", "albumentations", "optuna", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def memory(device: str) -> dict[str, float]:
    """MiB that this process holds now: `rss_mib` of main memory, on a GPU `device_mib` allocated there."""
    found = {}
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["rss_mib"] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError):  # not Linux
        pass
    if device == "cuda":
        import torch

        found["device_mib"] = torch.cuda.memory_allocated() / 2**20
    return found


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and its widest instructions: rented machines hide several behind one name."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = about.get("flags", "").split()
    instructions = next((f" ({name})" for flag, name in INSTRUCTIONS.items() if flag in flags), "")
    return (about.get("model name") or platform.processor() or platform.machine()) + instructions
