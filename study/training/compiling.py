"""Whether a training runs its network compiled: where that saves more time than the compiler takes.

Both are measured, once for a network on a machine, and kept in the user's cache. A network that was never compiled
here is assumed to gain what such networks did elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from dataclasses import dataclass

import torch

from search_spaces.architecture import identifier
from search_spaces.fields import Amount, check_fields, from_fields
from study.data.batches import Batch
from study.errors import first_line
from study.machine import cache
from study.machine.hardware import hardware, versions
from study.training.step import AnyStep, Step, ready, step_seconds

EXPECTED_GAIN = {"cpu": 0.1, "cuda": 0.3}
"""Share of a step that compiling is assumed to save until it is measured."""

EXPECTED_COMPILE_S = 60.0
LEAST_STEPS = 500
"""With fewer left a step would have to take more than a second for compiling to pay: it is not even timed."""


@dataclass(frozen=True)
class Gain:
    """What compiling a network brings and costs.

    Attributes:
        plain_s, compiled_s: Seconds of a step.
        compile_s: Seconds until the first compiled step is done.
    """

    plain_s: Amount
    compiled_s: Amount
    compile_s: Amount

    def __post_init__(self) -> None:
        check_fields(self)

    def pays(self, n_steps: int) -> bool:
        """Whether so many steps save more than the compiler takes."""
        return n_steps * (self.plain_s - self.compiled_s) > self.compile_s

    @classmethod
    def expected(cls, plain_s: float, device: str) -> Gain:
        return cls(plain_s, (1 - EXPECTED_GAIN[device]) * plain_s, EXPECTED_COMPILE_S)


def fastest(
    step: Step, example: Batch, n_steps: int, architecture_id: str, decided: bool | None = None
) -> tuple[AnyStep, bool]:
    """`step`, on a GPU captured, compiled if `n_steps` of it pay for that; and whether it is compiled.

    Args:
        step: Plain.
        example: Shaped like every batch.
        n_steps: That are left; with 0 nothing is compiled.
        architecture_id: Of its network.
        decided: What was decided before, if it must stay: a resumed training on a CPU is to give the same digits.

    Raises:
        CaptureFailed: See `CapturedStep`.
    """
    plain = ready(step, example)
    if n_steps == 0 or decided is False or not (decided or _may_pay(plain, example, n_steps, architecture_id)):
        return plain, False
    try:
        if decided:  # nothing is left to measure
            return ready(compiled(step), example), True
        faster, gain = _tried(step, example, architecture_id, step_seconds(plain, example))
    except (RuntimeError, OSError, ImportError) as error:
        # A compiler that is missing or fails, which torch tells as RuntimeErrors, costs speed, never the training.
        print(f"not compiled: {first_line(error)}", file=sys.stderr)
        return plain, False
    return (faster, True) if gain.compiled_s < gain.plain_s else (plain, False)


def measured(step: Step, example: Batch, architecture_id: str) -> tuple[AnyStep, Gain]:
    """`step` compiled, and what that brings and costs here; trainings of the same network will know it.

    Raises:
        CaptureFailed: See `CapturedStep`.
    """
    return _tried(step, example, architecture_id, step_seconds(ready(step, example), example))


def compiled(step: Step) -> Step:
    """`step` with its network compiled, as one graph, when it is first called."""
    torch.compiler.reset()  # each network starts its own count of recompilations
    return dataclasses.replace(step, forward=torch.compile(step.state.network, fullgraph=True))


def _may_pay(plain: AnyStep, example: Batch, n_steps: int, architecture_id: str) -> bool:
    """By what is known of the network here, else by what is expected."""
    gain = _known(_name(plain, example, architecture_id))
    if gain is None and n_steps < LEAST_STEPS:
        return False
    return (gain or Gain.expected(step_seconds(plain, example, 2), plain.settings.device)).pays(n_steps)


def _tried(step: Step, example: Batch, architecture_id: str, plain_s: float) -> tuple[AnyStep, Gain]:
    """`step` compiled and ready, and what was measured of it, which is kept."""
    started = time.perf_counter()
    faster = ready(compiled(step), example)
    with step.state.unchanged():
        faster(example, 0.01, 0.5)
    compile_s = time.perf_counter() - started
    gain = Gain(plain_s, step_seconds(faster, example), compile_s)
    cache.keep(_name(step, example, architecture_id), dataclasses.asdict(gain))
    return faster, gain


def _name(step: AnyStep, example: Batch, architecture_id: str) -> str:
    settings = step.settings
    where = [hardware(settings.device), versions(), settings.precision, torch.get_num_threads()]
    return f"compiled-{identifier([*where, architecture_id, len(example[1])])}"


def _known(name: str) -> Gain | None:
    return cache.recall(name, functools.partial(from_fields, Gain))
