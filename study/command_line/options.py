"""The options that every command of a study shares, with the same defaults. Light: no Optuna, no torch."""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces import DEFAULT_SPACE, GPU_SPACE, SPACES
from study.command_line.numbers import above, at_least, whole_or_auto
from study.command_line.own import SPACE_FORM, own_space
from study.errors import UserError, shortened
from study.machine.files import is_file, what_is
from study.machine.paths import REPOSITORY, default_storage, run_dir
from study.machine.sqlite import LockedError, open_read_only, sqlite_file

CHECKPOINT_S = 30.0
VALIDATION = "a tenth of the training images, at most 5,000"
MAX_NAME = 500
"""Characters of a study's name; that of its re-ranking is longer, and Optuna stores 512."""


@dataclass(frozen=True)
class ClusterOptions:
    """A Ray cluster to train on.

    Attributes:
        address: As Ray takes it.
        cpus, gpus: Of each worker; None: by its machines.
    """

    address: str
    cpus: int | None
    gpus: float | None


def add_study_options(parser: argparse.ArgumentParser, creates: bool = False) -> None:
    """`--space`, `--storage`, `--study-name`, `--out`: the same defaults for every command.

    Args:
        parser: Of the command.
        creates: Whether it makes studies; the others find that of either default space.
    """
    parser.set_defaults(creates=creates)
    group = parser.add_argument_group("study")
    group.add_argument(
        "--space",
        type=own_space,
        help=f"what is searched: one of {', '.join(sorted(SPACES))}, or {SPACE_FORM}, one of your own, whose file is "
        f"run; fixed when a study is created (default: {GPU_SPACE} on a GPU, {DEFAULT_SPACE} else)",
    )
    group.add_argument("--storage", metavar="URL", help="SQLAlchemy URL (default: sqlite in the study's folder)")
    group.add_argument(
        "--study-name",
        metavar="NAME",
        help=f"(default: the space's name; {GPU_SPACE} where there is a GPU, else {DEFAULT_SPACE})",
    )
    group.add_argument("--out", metavar="DIR", help="folder of the study (default: results/runs/<study-name>)")


def add_training_options(parser: argparse.ArgumentParser, what: str) -> None:
    """`--jobs`, `--device`, `--data`: where and from what `what` are trained."""
    parser.add_argument(
        "--jobs",
        type=whole_or_auto,
        action=at_least(1),
        help=f"{what} at once; auto measures once on this machine what is fastest, 1 makes it repeatable "
        "(default: auto)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument(
        "--data",
        help="a data set of torchvision's (CIFAR100, FashionMNIST, SVHN, ...), or a folder with train/<class>/ and the "
        "images of each class, of any size, with test/<class>/ beside it or not, or with cifar-10-batches-py (default: "
        "$STUDY_DATA, else CIFAR-10, downloaded)",
    )
    group = parser.add_argument_group("cluster (pip install -e '.[cluster]')")
    group.add_argument(
        "--cluster",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="train on a Ray cluster: the one that this machine or job is part of, or the one at ADDRESS; needs --out",
    )
    group.add_argument("--worker-cpus", type=int, action=at_least(1), help="cores of a worker (default: 1 on a CPU)")
    group.add_argument(
        "--worker-gpus",
        action=above(0, "GPUs"),
        help="GPUs of a worker; a fraction lets several share one (default: 1, if any)",
    )


def cluster_of(options: argparse.Namespace) -> ClusterOptions | None:
    """What the options `--cluster`, `--worker-cpus` and `--worker-gpus` mean.

    Raises:
        UserError: The study would lie in a folder that ends with the job.
    """
    if options.cluster is None:
        if options.worker_cpus or options.worker_gpus:
            raise UserError("--worker-cpus and --worker-gpus are of a cluster's workers: add --cluster.")
        return None
    # A job runs in a copy of the code, which is removed after it.
    out = Path(options.out) if options.out else None
    if out is None or not out.is_absolute() or out.resolve().is_relative_to(REPOSITORY):
        raise UserError(
            "--cluster needs an --out that outlives the job: an absolute path outside of the code's folder, not "
            f"{str(out) if out else 'the default'!r}."
        )
    return ClusterOptions(options.cluster, options.worker_cpus, options.worker_gpus)


def add_stopping_options(parser: argparse.ArgumentParser) -> None:
    """`--timeout`, `--checkpoint-every`: when trials stop, and what that costs."""
    parser.add_argument("--timeout", action=above(0), help="start nothing more after S seconds (default: none)")
    parser.add_argument(
        "--checkpoint-every",
        action=above(0),
        default=CHECKPOINT_S,
        help="an interrupted trial loses at most so many seconds of its training (default: %(default)g)",
    )


def add_fidelity_options(group: argparse._ActionsContainer, epochs: str, train_images: str, val_images: str) -> None:
    """`--epochs`, `--train-images`, `--val-images`, with what they are by default in words."""
    group.add_argument("--epochs", action=at_least(1), help=f"(default: {epochs})")
    group.add_argument("--train-images", type=int, metavar="N", help=f"(default: {train_images})")
    group.add_argument("--val-images", type=int, metavar="N", help=f"(default: {val_images})")


def by_device(cpu: int, cuda: int) -> str:
    """A default that depends on the device, for help."""
    return f"{cpu:,} on a CPU, {cuda:,} on a GPU"


@dataclass(frozen=True)
class Place:
    """A study: the URL of its storage, its name there, and its folder."""

    url: str
    name: str
    out: Path


def place_of(options: argparse.Namespace) -> Place:
    """The study that the options of `add_study_options` mean.

    Raises:
        UserError: Its folder cannot be one.
    """
    name = study_name(options)
    out = run_dir(name, options.out)
    standing = what_is(out)
    if standing not in ("is a folder", "does not exist"):
        raise UserError(f"--out must be a folder: {str(out)!r} {standing}. Name another.")
    url = default_storage(name, options.out) if options.storage is None else options.storage
    return Place(url, name, out)


def study_name(options: argparse.Namespace) -> str:
    """The study name that the options mean; the space is its default.

    Where no space is named, commands that make no study find that of either default, whichever device it was made for.
    """
    if options.study_name is not None:
        return _checked_name(options.study_name)
    name = space_name(options)
    if options.creates or options.space is not None:
        return name
    for each in (name, *({DEFAULT_SPACE, GPU_SPACE} - {name})):
        url = default_storage(each, options.out) if options.storage is None else options.storage
        if each in _names_in(url):
            return each
    return name


def _checked_name(name: str) -> str:
    if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
        raise UserError(f"--study-name must be 1 to {MAX_NAME} printable characters: {shortened(name)!r}.")
    return name


def _names_in(url: str) -> list[str]:
    """Names of the studies in a SQLite file, read without Optuna, which takes a while to load; none elsewhere."""
    file = sqlite_file(url)
    if file is None or not is_file(file):
        return []
    try:
        with contextlib.closing(open_read_only(file)) as connection:
            return [name for (name,) in connection.execute("SELECT study_name FROM studies")]
    except LockedError:
        raise
    except sqlite3.Error:  # no database, or none of Optuna's: who opens it in earnest will say so
        return []


def space_name(options: argparse.Namespace) -> str:
    """The space that the options mean: `--space`, else the one that the device can afford."""
    return options.space or default_space(getattr(options, "device", "auto"))


def default_space(device: str = "auto") -> str:
    """What is searched on `device` ("auto", "cpu" or "cuda") unless a space is named."""
    return GPU_SPACE if device == "cuda" or (device == "auto" and has_gpu()) else DEFAULT_SPACE


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU that this process may use, found without torch, which takes seconds to load."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (not visible.strip() or visible.strip() == "-1"):
        return False
    gpus = Path("/proc/driver/nvidia/gpus")
    return gpus.is_dir() and any(gpus.iterdir())


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that the user gave."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}
