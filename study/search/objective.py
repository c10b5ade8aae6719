"""One trial: sample, decode, certify, build, train, report. No test image can be reached from here."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna

from search_spaces import SearchSpace
from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, InfeasibleError, certify
from search_spaces.cost import CostModel
from search_spaces.space import Decoded
from study.data.cifar10 import Images
from study.errors import CaptureFailed, TrialFailed
from study.machine.hardware import memory, versions
from study.model.certificate import certify_module
from study.model.layers import DepthwiseClass
from study.model.network import build
from study.search.pruning import compared_epochs
from study.search.sampling import suggest
from study.storage.config import StudyConfig
from study.storage.database import set_attributes
from study.training.loop import train
from study.training.records import EpochRecord, TrainingConfig


@dataclass(frozen=True)
class Slot:
    """One of a study's N pieces of work; not Optuna's trial number.

    Attributes:
        index: From zero.
        attempt: How often its parameters were sampled anew before.
        sampler_seed, training_seed: Derived from the study's seed and the slot.
        fixed: Parameters to use instead of sampling: an anchor's, or an interrupted trial's.
        anchor: Name of the anchor, if it is one.
        repeats: Number of the trial whose parameters are `fixed`, if it is one.
        candidate: A stored candidate to train as it is, instead of the one that its parameters decode to
            here: limits and predicted times differ between studies.
    """

    index: int
    attempt: int
    sampler_seed: int
    training_seed: int
    fixed: dict[str, Any] | None = None
    anchor: str | None = None
    repeats: int | None = None
    candidate: dict[str, Any] | None = None


class Objective:
    """What `study.optimize` calls for one slot; returns the last epoch's EMA validation accuracy."""

    def __init__(
        self,
        slot: Slot,
        space: SearchSpace,
        config: StudyConfig,
        cost: CostModel,
        images: Images,
        validation: Images,
        device: str,
        n_loaders: int,
        on_start: Callable[[int], None] = lambda number: None,
        on_epoch: Callable[[EpochRecord], None] = lambda record: None,
        native_depthwise: frozenset[DepthwiseClass] = frozenset(),
    ) -> None:
        self.slot, self.space, self.config, self.cost = slot, space, config, cost
        self.images, self.validation = images, validation
        self.device, self.n_loaders = device, n_loaders
        self.on_start, self.on_epoch = on_start, on_epoch
        self.native_depthwise = native_depthwise

    def __call__(self, trial: optuna.Trial) -> float:
        started = time.perf_counter()
        slot = self.slot
        attributes = {
            "slot": slot.index,
            "attempt": slot.attempt,
            "sampler_seed": slot.sampler_seed,
            "training_seed": slot.training_seed,
            "versions": versions(),
            **memory(self.device),  # what the trials before left behind
            **({"anchor": slot.anchor} if slot.anchor else {}),
        }
        set_attributes(trial, attributes, {})
        self.on_start(trial.number)
        try:
            return self._run(trial)
        except (TrialFailed, CaptureFailed, optuna.TrialPruned) as error:
            trial.set_user_attr("reason", str(error))
            raise
        finally:
            trial.set_user_attr("wall_s", time.perf_counter() - started)

    def _run(self, trial: optuna.Trial) -> float:
        config = self.config
        clock = Clock(self.cost, config.train_images, config.val_images)
        params = suggest(trial, self.space)
        try:
            if self.slot.candidate is None:
                decoded = self.space.decode(params, config.limits, clock)
            else:
                decoded = Decoded(Candidate.from_json(self.slot.candidate))
            architecture = decoded.candidate.architecture
            certified = certify(architecture, config.limits, clock)
            network = build(architecture)
            certify_module(network, architecture, config.limits)
        except InfeasibleError as error:
            set_attributes(trial, {}, {constraint.name: constraint.value for constraint in error.broken})
            raise TrialFailed(f"infeasible: {error}") from error
        candidate = decoded.candidate
        attributes = {
            "params": architecture.params,
            "receptive_field": architecture.receptive_field,
            "receptive_field_with_pool": architecture.receptive_field_with_pool,
            "macs": architecture.macs,
            "n_dilated_reductions": architecture.n_dilated_reductions,
            "candidate": candidate.to_json(),
            "candidate_id": candidate.candidate_id,
            "architecture_id": architecture.architecture_id,
            "repairs": list(decoded.repairs),
            "predicted_s": config.epochs * clock.epoch_s(architecture),
        }
        set_attributes(trial, attributes, {constraint.name: constraint.value for constraint in certified})

        curve: list[dict[str, Any]] = []

        def on_epoch(record: EpochRecord) -> None:
            assert record.val_accuracy is not None
            curve.append(dataclasses.asdict(record))
            trial.report(record.val_accuracy, record.epoch)
            trial.set_user_attr("curve", curve)
            self.on_epoch(record)
            # What others are measured by is measured whole, however few there are yet to compare it with.
            prunable = self.slot.anchor is None and record.epoch + 1 < config.epochs
            if prunable and trial.should_prune():
                raise optuna.TrialPruned(f"pruned after epoch {record.epoch + 1} of {config.epochs}")

        training = TrainingConfig(
            epochs=config.epochs,
            seed=self.slot.training_seed,
            device=self.device,
            precision=config.precision,
            n_loaders=self.n_loaders,
            native_depthwise=self.native_depthwise,
            whole_validations=compared_epochs(config.pruner, config.epochs),
        )
        trained = train(candidate, self.images, training, self.validation, on_epoch)
        value = trained.records[-1].val_accuracy
        assert value is not None
        return value
