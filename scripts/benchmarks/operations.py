"""Operations of a training step, eager and compiled: on a GPU each is at least one launch, which bounds small networks.

Counted by a trace of the step on a CPU, in bfloat16: what torch is asked for by the network, by autograd and by the
optimizer (Muon with all its kernels together, as on a GPU), views left out, and of the compiled step the kernels that
the compiler made. No data set and no GPU is needed.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import write
from search_spaces import get_space
from search_spaces.candidate import Candidate
from search_spaces.constraints import Limits
from study.data.batches import Batch
from study.data.cifar10 import Images
from study.model.layers import GroupedConv2d
from study.training.compiling import compiled
from study.training.loop import Training
from study.training.optimizers import Together
from study.training.records import TrainingConfig
from study.training.step import Step

GOAL_MUON = 30
_WHOLE = re.compile(r"aten::(_foreach|_fused|native_|convolution$|\w+_backward$)|.*cpp_fused")
"""Operations that count as one whatever they do inside: on many tensors, with kernels of their own, or compiled.

What a convolution comes down to differs between processors: depthwise ones of bfloat16 are many without AVX-512."""
_FREE = re.compile(
    r"aten::(_?unsafe_view|view\w*|_reshape_alias|as_strided_?|permute|transpose|t|expand\w*|detach_?|slice|select|split\w*"
    r"|chunk|narrow|unflatten|unsqueeze|squeeze|unbind|alias|empty\w*|new_empty\w*|lift_fresh|result_type|resolve_\w+"
    r"|is_\w+|_has_\w+|item|_local_scalar_dense|resize_|set_|numpy_T|mT|to|reshape|contiguous|flatten)"
)
"""Operations that compute nothing by themselves."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--space", default="best", help="whose default is trained (default: best)")


def run(options: argparse.Namespace) -> int:
    candidate = default_of(options.space)
    plain, other = training(candidate), training(candidate)
    eager = operations(step_of(plain.step, plain.example()))
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
        fused = operations(step_of(compiled(other.step), other.example()))
    muon = muon_operations(plain)
    title = f"operations of a training step of the default of `{options.space}`, compiled; peer: eager"
    goal = f"recorded; Muon's at most {GOAL_MUON}"
    more = {"muon": muon, "eager_by_name": dict(eager.most_common(25)), "compiled_by_name": summary_of(fused)}
    sides, name = ([float(fused.total())], [float(eager.total())]), f"operations-{options.space}"
    write(options, name, title, "cpu", "operations", *sides, goal=goal, higher_is_better=False, more=more)
    print(f"Muon's: {muon}")
    return 0


def default_of(space: str) -> Candidate:
    """The candidate that every study of `space` starts with."""
    found = get_space(space)
    return found.decode(found.anchors(Limits())["default"], Limits()).candidate


def summary_of(counted: Counter[str]) -> dict[str, int]:
    """The compiler's kernels, which have names of their own, as one entry; the most frequent others."""
    others = Counter({name: n for name, n in counted.items() if "cpp_fused" not in name})
    return {"fused kernels": counted.total() - others.total(), **dict(others.most_common(20))}


def training(candidate: Candidate) -> Training:
    """Of made images, ready for a step."""
    n = candidate.optimisation.batch_size
    images = Images(np.zeros((n, 32, 32, 3), np.uint8), (np.arange(n) % 10).astype(np.int64))
    made = Training(candidate, images, TrainingConfig(1, seed=0), None)
    for module in made.network.modules():
        if isinstance(module, GroupedConv2d):
            module.grids = False  # which only some processors use
    made.network.train()
    return made


def step_of(step: Step, example: Batch) -> Callable[[], None]:
    mix = torch.ones(())
    return lambda: step.run(example, 0.5, mix)


def muon_operations(made: Training) -> int:
    """Of an update of all kernels that mix channels, as on a GPU in one stack; 0 where another optimizer has them."""
    if not isinstance(made.state.optimizer, Together):
        return 0
    muon: Any = made.state.optimizer.optimizers[0]
    muon.one_stack = True
    made.state.set_rate(torch.tensor(0.01))
    muon._stacks.clear()
    return operations(muon.step).total()


def operations(again: Callable[[], None]) -> Counter[str]:
    """By name, of a call of `again` after one that warms up."""
    again()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        again()
    return Counter(name for event in found.events() if event.cpu_parent is None for name in _innermost(event))


def _innermost(event: Any) -> list[str]:
    """The operations that `event` comes down to, and the compiler's kernels in it."""
    if _WHOLE.match(event.name):
        return [event.name]
    inside = [name for child in event.cpu_children for name in _innermost(child)]
    computes = event.name.startswith("aten::") and not _FREE.fullmatch(event.name)
    return inside or ([event.name] if computes else [])
