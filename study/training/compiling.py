"""Whether a training runs its network compiled: where that saves more time than the compiler takes.

Both are measured, once for a network on a machine, and kept in the user's cache. A network that was never compiled
here is assumed to gain what such networks did elsewhere.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from search_spaces.architecture import identifier
from study.data.batches import Batch
from study.errors import CaptureFailed, first_line
from study.machine import cache
from study.machine.hardware import hardware, versions
from study.training.step import CapturedStep, Step, step_seconds

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

    plain_s: float
    compiled_s: float
    compile_s: float

    def pays(self, n_steps: int) -> bool:
        """Whether so many steps save more than the compiler takes."""
        return n_steps * (self.plain_s - self.compiled_s) > self.compile_s

    @classmethod
    def expected(cls, plain_s: float, device: str) -> Gain:
        return cls(plain_s, (1 - EXPECTED_GAIN[device]) * plain_s, EXPECTED_COMPILE_S)


def fastest(
    step: Step, example: Batch, n_steps: int, architecture_id: str, decided: bool | None = None
) -> tuple[Callable[..., None], bool]:
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
    plain, again = _ready(step, example)
    if n_steps == 0 or decided is False or not (decided or _may_pay(step, example, again, n_steps, architecture_id)):
        return plain, False
    try:
        if decided:  # nothing is left to measure
            step.compile()
            return _ready(step, example)[0], True
        compiled, found = _compiled(step, example, architecture_id, step_seconds(step, again))
    except CaptureFailed:
        raise
    except Exception as error:  # a compiler that is missing or fails costs speed, never the training
        print(f"not compiled: {first_line(error)}", file=sys.stderr)
    else:
        if found.compiled_s < found.plain_s:
            return compiled, True
    step.forward = step.network
    return plain, False


def _may_pay(step: Step, example: Batch, again: Callable[[], None], n_steps: int, architecture_id: str) -> bool:
    """By what is known of the network here, else by what is expected."""
    gain = _known(_name(step, example, architecture_id))
    if gain is None and n_steps < LEAST_STEPS:
        return False
    return (gain or Gain.expected(step_seconds(step, again, 2), step.settings.device)).pays(n_steps)


def measured(step: Step, example: Batch, architecture_id: str) -> Gain:
    """What compiling `step` brings and costs here; trainings of the same network will know it. Leaves it compiled.

    Raises:
        CaptureFailed: See `CapturedStep`.
    """
    _, again = _ready(step, example)
    return _compiled(step, example, architecture_id, step_seconds(step, again))[1]


def _compiled(step: Step, example: Batch, architecture_id: str, plain_s: float) -> tuple[Callable[..., None], Gain]:
    started = time.perf_counter()
    step.compile()
    compiled, again = _ready(step, example)
    with step.unchanged():
        again()
    compile_s = time.perf_counter() - started
    found = Gain(plain_s, step_seconds(step, again), compile_s)
    cache.keep(_name(step, example, architecture_id), dataclasses.asdict(found))
    return compiled, found


def _ready(step: Step, example: Batch) -> tuple[Callable[..., None], Callable[[], None]]:
    """How `step` is called with a batch, and how it is repeated on `example`."""
    if step.settings.device == "cuda":
        captured = CapturedStep(step, example)
        return captured, captured.replay
    mix = torch.ones(())
    return step, lambda: step.run(example, 0.5, mix)


def _name(step: Step, example: Batch, architecture_id: str) -> str:
    settings = step.settings
    where = [hardware(settings.device), versions(), settings.precision, torch.get_num_threads()]
    return f"compiled-{identifier([*where, architecture_id, len(example[1])])}"


def _known(name: str) -> Gain | None:
    try:
        return Gain(**cache.recall(name))
    except TypeError:  # nothing, or something else
        return None
