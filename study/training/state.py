"""What a training changes, and nothing else does: weights, their averages, the optimizer's memory, an epoch's sums."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from search_spaces.candidate import Candidate
from study.errors import first_line
from study.model.network import Network, build, described, use_native_depthwise
from study.training.optimizers import make_optimizer
from study.training.records import Progress, TrainingConfig


class Ema:
    """Exponential moving average of weights and of the floating buffers of norms.

    The decay per step is 0.5 ** (1 / half_life), but never more than (1 + t) / (10 + t): early
    averages must forget the initial weights.
    """

    def __init__(self, network: Network, half_life_steps: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = 0.5 ** (1 / max(half_life_steps, 1e-9))
        live, kept = network.state_dict(keep_vars=True), self.network.state_dict(keep_vars=True)
        names = [name for name, tensor in kept.items() if tensor.is_floating_point()]
        self._live = [live[name].detach() for name in names]
        self._kept = [kept[name].detach() for name in names]

    def weight(self, step: int) -> float:
        """What the live weights count for at `step`, in (0, 1]."""
        return float(1 - min(self._decay, (1 + step) / (10 + step)))

    def update(self, weight: float | torch.Tensor) -> None:
        """Moves the averages by `weight` towards the live weights; a tensor may change between replays."""
        difference = torch._foreach_sub(self._live, self._kept)
        torch._foreach_mul_(difference, weight)
        torch._foreach_add_(self._kept, difference)


@dataclass(frozen=True, eq=False)
class TrainState:
    """The same tensors from the first step to the last: a CUDA graph goes on using them.

    Attributes:
        network: On its device, in channels_last memory.
        ema: Its averages.
        optimizer: Of its parameters.
        sums: float64 [2], on the device: the loss times the images, and the images classified correctly, of the
            running epoch. Nothing is read from the device before the epoch's end.
    """

    network: Network
    ema: Ema
    optimizer: torch.optim.Optimizer
    sums: torch.Tensor

    @classmethod
    def initial(cls, candidate: Candidate, config: TrainingConfig, steps_per_epoch: int) -> TrainState:
        """Before the first step of training `candidate` as `config` says."""
        network = use_native_depthwise(build(candidate.architecture, config.seed), config.native_depthwise)
        network = network.to(config.device).to(memory_format=torch.channels_last)
        return cls(
            network,
            Ema(network, config.ema_half_life * steps_per_epoch),
            make_optimizer(network, candidate.optimisation),
            torch.zeros(2, dtype=torch.float64, device=config.device),
        )

    def set_rate(self, lr: float | torch.Tensor) -> None:
        """A tensor may change between replays; a number would be frozen in a graph."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def copy_to(self, progress: Progress) -> None:
        """Makes `progress` hold it, on the CPU."""
        progress.network = to_cpu(self.network.state_dict())
        progress.ema = to_cpu(self.ema.network.state_dict())
        progress.optimizer = copy.deepcopy(self.optimizer.state_dict())

    def load(self, progress: Progress) -> None:
        """Becomes what `copy_to` copied, here or on another device."""
        self.network.load_state_dict(progress.network)
        self.ema.network.load_state_dict(progress.ema)
        self.optimizer.load_state_dict(progress.optimizer)
        for group in self.optimizer.param_groups:
            if "capturable" in group:  # stored as it was where the training began
                group["capturable"] = self.sums.is_cuda

    @classmethod
    def check(cls, progress: Progress, candidate: Candidate, config: TrainingConfig) -> None:
        """Whether `load` could become `progress` and go on, tried on a state of its own.

        Raises:
            ValueError: It belongs to another network or optimizer.
        """
        state = cls.initial(candidate, dataclasses.replace(config, device="cpu"), 1)
        expected = described(state.network.state_dict())
        ended = progress.epoch >= config.epochs  # then only the averages are kept
        for each in (progress.ema, *([] if ended else [progress.network]), *progress.snapshots.values()):
            if described(each) != expected:
                raise ValueError("its weights are of another network")
        if ended:
            return
        try:
            state.load(copy.deepcopy(progress))
            momenta = [
                (parameter, tensor)
                for parameter, found in state.optimizer.state.items()
                for tensor in found.values()
                if tensor is not None
            ]
            fits = all(tensor.numel() == 1 or tensor.shape == parameter.shape for parameter, tensor in momenta)
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"its optimizer is another ({first_line(error)})") from error
        if not fits:
            raise ValueError("its optimizer is of another network")

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Puts everything back, in place, at the end."""
        tensors = [*self.network.state_dict().values(), *self.ema.network.state_dict().values(), self.sums]
        before = [tensor.clone() for tensor in tensors]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        momenta = {id(tensor): tensor.clone() for tensor in self._momenta()}
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
                for tensor in self._momenta():
                    # A buffer that was made meanwhile starts from zero, as a missing one does.
                    tensor.copy_(momenta[id(tensor)]) if id(tensor) in momenta else tensor.zero_()
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _momenta(self) -> Iterator[torch.Tensor]:
        for state in self.optimizer.state.values():
            yield from (tensor for tensor in state.values() if isinstance(tensor, torch.Tensor))


def to_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of a state dict."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
