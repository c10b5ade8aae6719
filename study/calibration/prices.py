"""What this machine can do: its device, the faster precision, and the price of each class of operation.

Measured once (in some ten seconds), kept in the user's cache for this machine and torch version, and stored with every
study. What was measured beside busy neighbours, or fits badly, is used once and not kept.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from search_spaces.architecture import identifier
from search_spaces.cost import CostModel
from search_spaces.fields import Amount, Within, check_fields, from_fields
from study.command_line.waiting import said_while
from study.errors import StudyFailed
from study.machine import cache
from study.machine.hardware import hardware, versions
from study.machine.neighbours import Neighbours
from study.machine.processes import begin, without_ctrl_c
from study.training.records import TrainingConfig

if TYPE_CHECKING:
    from study.model.layers import DepthwiseClass


Seconds = Annotated[float, Within(0, math.inf)]
ABOUT_S = {"cpu": 10.0, "cuda": 35.0}
"""A GPU's libraries take most of a second for each class of operations that they have not met before."""
BUSY = 0.2
"""Share of the cores that others may take without spoiling what is measured: the fastest of several runs counts."""
POOR_FIT = 0.3
"""Of `Calibration.fit_error`."""


@dataclass(frozen=True)
class DepthwisePrice:
    """Seconds per multiply-accumulate of a class of depthwise convolutions, forward and backward.

    Attributes:
        kernel, dilated, side: The class, see `study.model.layers.DepthwiseClass`.
        channels_last_s: As networks run, which on a GPU means cuDNN's kernels; infinite if there is none.
        native_s: On a GPU by torch's own kernels, the way there and back included; likewise.
    """

    kernel: int
    dilated: bool
    side: int
    channels_last_s: Seconds
    native_s: Seconds = math.inf

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def fastest_s(self) -> float:
        return min(self.channels_last_s, self.native_s)


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        device: "cpu" or "cuda".
        hardware: Names of the device and the processor, cores in use.
        precision: The faster of "bfloat16" and "float32" for the reference network; always "bfloat16" on a GPU.
        cost: Seconds per unit of work in that precision.
        fit_error: Median relative error of the cost model on the networks it was fitted to.
        depthwise: On a GPU, both ways to run each class of depthwise convolutions.
    """

    device: str
    hardware: dict[str, Any]
    precision: str
    cost: CostModel
    fit_error: Amount
    depthwise: tuple[DepthwisePrice, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def native_depthwise(self) -> frozenset[DepthwiseClass]:
        """The classes that are faster by torch's own kernels than by cuDNN's (`study.model.layers.DepthwiseConv2d`)."""
        return frozenset((p.kernel, p.dilated, p.side) for p in self.depthwise if p.native_s < p.channels_last_s)

    def precision_of(self, precision: str | None, searched_on: dict[str, Any] | None) -> str:
        """That of a study, where it was searched on this hardware, since it may have been chosen; elsewhere the
        fastest, since another one can be several times slower."""
        return precision if precision and searched_on == self.hardware else self.precision

    def training(self, precision: str) -> TrainingConfig:
        """How a training runs here of which nothing but the speed is wanted."""
        return TrainingConfig(1, 0, self.device, precision, native_depthwise=self.native_depthwise)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        """Reads what `to_json` wrote.

        Raises:
            KeyError, DescriptionError: It is of another version.
        """
        depthwise = tuple(from_fields(DepthwisePrice, each) for each in data["depthwise"])
        return from_fields(cls, {**data, "cost": CostModel.from_json(data["cost"]), "depthwise": depthwise})


def name_of(hardware: dict[str, Any]) -> str:
    """Under which its calibration is kept."""
    return f"calibration-{identifier([hardware, versions(), 'cost-13'])}"


def calibrate(device: str) -> Calibration:
    """Measures, or reads what was measured on this machine before."""
    name = name_of(hardware(device))
    known = cache.recall(name, Calibration.from_json)
    if known is not None:
        return known
    with said_while("Measuring this machine once", ABOUT_S[device]):
        neighbours = Neighbours()
        found = _measured(device)
        others = neighbours.share()
    poor = found.fit_error > POOR_FIT
    keep_unless(others, name, found.to_json(), f"prices fit badly, median error {found.fit_error:.0%}" * poor)
    return found


def keep_unless(others: float, name: str, content: dict[str, Any], poor: str = "") -> None:
    """Keeps what was measured, unless it is not to be trusted: then says so.

    Args:
        others: Share of the cores that other processes took meanwhile.
        name, content: As `study.machine.cache.keep` takes them.
        poor: What else speaks against it.
    """
    busy = f"other processes took {others:.0%} of the cores" if others > BUSY else ""
    if reason := " and ".join(filter(None, (busy, poor))):
        what = f"this machine was not measured well ({reason})"
        cache.complain(f"{what}: that is used for this run, and measured again by the next")
    else:
        cache.keep(name, content)


def _measured(device: str) -> Calibration:
    from study.calibration.measuring import SpoiledError, measure  # needs torch; what is known needs none

    spoiled: set[str] = set()
    while True:
        # In a process of its own: a GPU context or thread pools must not stay behind in the caller.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin) as pool:
            try:
                with without_ctrl_c():
                    found = pool.submit(measure, device, frozenset(spoiled))
                return found.result()
            except SpoiledError as error:  # the process must measure no more; another one leaves that out
                spoiled.add(str(error))
            except BrokenProcessPool as error:
                raise StudyFailed("the calibration of this machine was killed; is there enough memory?") from error
