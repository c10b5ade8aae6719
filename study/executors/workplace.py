"""Where workers run: on this machine, or on a cluster. Whoever has them work does not know which."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from study.command_line.options import ClusterOptions
from study.errors import UserError
from study.executors.local import ThisMachine
from study.executors.messages import Executor, WorkerSetup
from study.machine.hardware import resolve_device

T = TypeVar("T")


class Workplace(Protocol):
    """Where workers run.

    Attributes:
        device: What they train on, "cpu" or "cuda".
    """

    device: str

    def room(self) -> int | None:
        """For how many workers at once there is room; None: how many are best has to be measured."""

    def cores(self, jobs: int) -> int:
        """Cores of each of `jobs` workers."""

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function` returns where a worker would run."""

    def executor(self, setup: WorkerSetup) -> Executor:
        """Of workers there."""


def workplace(cluster: ClusterOptions | None, device: str) -> Workplace:
    """The place that the options `--cluster` and `--device` mean.

    Raises:
        UserError: There is no such cluster or device, or Ray is not installed.
    """
    if cluster is None:
        return ThisMachine(resolve_device(device))
    if find_spec("ray") is None:
        raise UserError("--cluster needs Ray, which is not installed. Install it with: pip install -e '.[cluster]'.")
    from study.executors.cluster import connect

    return connect(cluster, device)
