"""What a claimed slot is to train: prescribed or sampled, decoded, certified, and written down as a running trial."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, InfeasibleError, certify
from search_spaces.space import Decoded
from study.machine.hardware import versions
from study.model.certificate import certify_module
from study.model.network import build
from study.reporting.dashboard import publish_trial
from study.search.creation import anchors
from study.search.plan import Given
from study.search.sampling import (
    N_STARTUP_TRIALS,
    Draws,
    fixed_sampler,
    is_neighbour,
    neighbour,
    sampler_seed,
    training_seed,
)
from study.storage.config import StudyConfig, open_space
from study.storage.database import best_of, cost_model_of, finished_trials
from study.storage.outcome import Outcome
from study.storage.slots import Claim, SlotTable, fail_trial


@dataclass(frozen=True)
class Asked:
    """A running trial of ours.

    Attributes:
        claim: The slot that it is for.
        trial: In the storage.
        seed: Of its training.
        anchor: Name of the known point that it is, if it is one; such a trial is never pruned.
        candidate: What to train; None if what was drawn breaks a limit.
        reason: Which limit.
    """

    claim: Claim
    trial: optuna.Trial
    seed: int
    anchor: str | None
    candidate: Candidate | None
    reason: str = ""


class Asker:
    """Turns claims into running trials.

    Args:
        study, storage: Where trials are written.
        slots: Of the study.
        config: Of the study.
        artifacts: Folder of the dashboard's files.
        given: The candidates of a study that samples none, one for every slot.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: optuna.storages.BaseStorage,
        slots: SlotTable,
        config: StudyConfig,
        artifacts: Path,
        given: Sequence[Given] | None = None,
    ) -> None:
        self._study, self._storage, self._slots = study, storage, slots
        self._config, self._artifacts, self._given = config, artifacts, given
        self._space = open_space(config.space)
        cost = cost_model_of(study)
        self._clock = Clock(cost, config.train_images, config.val_images)
        self._anchors = anchors(self._space, config, cost)
        self._draws = Draws(self._space, config.sampler)
        self._versions = versions()
        self._parked: list[optuna.Trial] = []

    @property
    def parked(self) -> list[int]:
        """Numbers of the trials that came out of the queue before there was a slot for them."""
        return [trial.number for trial in self._parked]

    def has_queued(self) -> bool:
        """Whether the user put a trial into Optuna's queue, which comes before anything else."""
        return bool(self._parked or self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def ask(self, claim: Claim) -> Asked:
        """A new running trial for the slot of `claim`."""
        params, anchor, given = self._prescribed(claim)
        self._study.sampler = fixed_sampler(params)
        claim, trial = self._next_trial(claim)
        if claim.queued:
            anchor = None
        trial.set_user_attr("slot", claim.slot)
        trial.set_user_attr("fence", claim.fence)
        seed = training_seed(self._config.seed, claim.slot)
        attributes = {
            "attempt": claim.attempt,
            "sampler_seed": sampler_seed(self._config.seed, claim.slot, claim.attempt),
            "training_seed": seed,
            "versions": self._versions,
            **({"anchor": anchor} if anchor else {}),
            **({"queued": True} if claim.queued else {}),
        }
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        try:
            candidate = self._decode(trial, given)
        except InfeasibleError as error:
            for constraint in error.broken:
                trial.set_constraint(constraint.name, constraint.value)
            return Asked(claim, trial, seed, anchor, None, f"infeasible: {error}")
        publish_trial(self._study, self._storage, trial, candidate.architecture, self._artifacts)
        return Asked(claim, trial, seed, anchor, candidate)

    def put_back(self) -> None:
        """Puts the trials for which there was no slot into the queue again."""
        for trial in self._parked:
            params, attributes = self._frozen(trial).system_attrs["fixed_params"], trial.user_attrs
            fail_trial(
                self._study, self._storage, trial.number, "no slot was left: it waits again", Outcome.INTERRUPTED
            )
            self._study.enqueue_trial(params, user_attrs=attributes)
        self._parked.clear()

    def _prescribed(self, claim: Claim) -> tuple[dict[str, Any], str | None, dict[str, Any] | None]:
        """Parameters of the slot, the anchor's name if they are one's, and the candidate if that is given."""
        seed = sampler_seed(self._config.seed, claim.slot, claim.attempt)
        if self._given is not None:  # whatever became of it before, there is nothing else to run
            given = self._given[claim.slot]
            return given.params, given.name, given.candidate
        if claim.repeats is not None:
            repeated = self._study.get_trials(deepcopy=False)[claim.repeats]
            return dict(repeated.params), repeated.user_attrs.get("anchor"), None
        if claim.ordinal < len(self._anchors) and claim.attempt == 0:
            name, params = self._anchors[claim.ordinal]
            return dict(params), name, None
        finished = finished_trials(self._study)
        if self._config.sampler == "anchored" and is_neighbour(claim.slot, len(finished)):
            return neighbour(self._space, self._centre(finished), seed), None, None
        return self._draws.draw(finished, seed), None, None

    def _centre(self, finished: Sequence[FrozenTrial]) -> dict[str, Any]:
        """The point whose neighbour is drawn: the default during the start-up, then the best trial."""
        best = best_of(finished)
        if len(finished) >= N_STARTUP_TRIALS and best is not None:
            return best.params
        return dict(self._space.anchors(self._config.limits)["default"])

    def _next_trial(self, claim: Claim) -> tuple[Claim, optuna.Trial]:
        """A trial with its parameters, and what the claim is now.

        Optuna gives the trials in its queue to whoever asks. One that comes where something else was to be run takes a
        slot that nobody began, or waits for one.
        """
        if claim.queued and claim.repeats is None and self._parked:
            return claim, self._parked.pop(0)
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of what is out of range: said below
                    trial = self._study.ask(self._draws.distributions)
            except ValueError:  # no choice of the space
                if not self._refuse_queued():
                    raise
                continue
            queued = "fixed_params" in self._frozen(trial).system_attrs
            if queued and self._out_of_space(trial.params):
                self._refuse_queued()
            elif queued and (claim.repeats is not None or not (claim.queued or claim.fresh)):
                self._parked.append(trial)
            elif queued == claim.queued or claim.repeats is not None:
                return claim, trial
            elif claim.fresh:  # somebody else took the queued trial, or put one there just now
                return self._slots.set_queued(claim, queued), trial
            else:
                return dataclasses.replace(claim, queued=False), trial

    def _out_of_space(self, params: Mapping[str, Any]) -> str:
        known = [(name, self._space.dimensions.get(name), value) for name, value in params.items()]
        return ", ".join(f"{name}={value}" for name, each, value in known if each and not each.contains(value))

    def _refuse_queued(self) -> bool:
        """Fails the trials out of the queue whose parameters are not of the space; whether there are any."""
        refused = False
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            wrong = self._out_of_space(trial.system_attrs.get("fixed_params", {}))
            if wrong and "slot" not in trial.user_attrs:
                fail_trial(self._study, self._storage, trial.number, f"not of the space: {wrong}", Outcome.FAILED)
                refused = True
        return refused

    def _frozen(self, trial: optuna.Trial) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[trial.number]

    def _decode(self, trial: optuna.Trial, given: dict[str, Any] | None) -> Candidate:
        """The trial's candidate, certified and written down.

        Raises:
            InfeasibleError: It breaks a limit.
        """
        config, clock = self._config, self._clock
        if given is None:
            decoded = self._space.decode(trial.params, config.limits, clock)
        else:  # as it is: limits and predicted times differ between studies
            decoded = Decoded(Candidate.from_json(given))
        candidate, architecture = decoded.candidate, decoded.candidate.architecture
        certified = certify(architecture, config.limits, clock)
        certify_module(build(architecture), architecture, config.limits)
        for constraint in certified:
            trial.set_constraint(constraint.name, constraint.value)
        attributes = {
            "params": architecture.params,
            "receptive_field": architecture.receptive_field,
            "receptive_field_with_pool": architecture.receptive_field_with_pool,
            "macs": architecture.macs,
            "n_dilated_reductions": architecture.n_dilated_reductions,
            "candidate_id": candidate.candidate_id,
            "architecture_id": architecture.architecture_id,
            "repairs": list(decoded.repairs),
            "predicted_s": config.epochs * clock.epoch_s(architecture),
            "candidate": candidate.to_json(),  # last: a trial that has it can be run again
        }
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        return candidate
