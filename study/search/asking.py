"""What a claimed slot is to train: prescribed or sampled, decoded, certified, and written down as a running trial."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, Constraint, InfeasibleError, certify
from search_spaces.space import Decoded, SearchSpace
from study.command_line.own import OwnLimits, told
from study.machine.hardware import versions
from study.model.certificate import certify_module
from study.model.network import build
from study.reporting.dashboard import publish_trial, trial_note
from study.search.creation import anchors
from study.search.measuring import Measuring
from study.search.plan import Given
from study.search.sampling import (
    N_STARTUP_TRIALS,
    Draws,
    fixed_sampler,
    near_is_better,
    neighbour,
    sampler_seed,
    training_seed,
)
from study.storage.config import StudyConfig, open_space
from study.storage.database import HIDDEN, cost_model_of
from study.storage.known import KnownTrials
from study.storage.outcome import Outcome
from study.storage.slots import Claim, fail_trial

N_REDRAWS = 20
"""Samples more for a slot whose first one breaks a limit of the user's own, which no space repairs."""


@dataclass(frozen=True)
class Asked:
    """A running trial of ours.

    Attributes:
        claim: The slot that it is for.
        trial: In the storage.
        seed: Of its training.
        anchor: Name of the known point that it is, if it is one; such a trial is never pruned.
        given: Whether the study was given its candidate, and knows no other for the slot.
        candidate: What to train; None if what was drawn breaks a limit.
        reason: Which limit.
    """

    claim: Claim
    trial: optuna.Trial
    seed: int
    anchor: str | None
    candidate: Candidate | None
    reason: str = ""
    given: bool = False


class Asker:
    """Turns claims into running trials.

    Args:
        study: Where trials are written.
        known: Of the study.
        config: Of the study.
        artifacts: Folder of the dashboard's files.
        given: The candidates of a study that samples none, one for every slot.
        own: Limits of the user's own, as typed.
        space: Where it is none that is registered.
    """

    def __init__(
        self,
        study: optuna.Study,
        known: KnownTrials,
        config: StudyConfig,
        artifacts: Path,
        given: Sequence[Given] | None = None,
        own: OwnLimits | None = None,
        space: SearchSpace | None = None,
    ) -> None:
        self._study, self._slots, self._known = study, known.slots, known
        self._config, self._artifacts, self._given = config, artifacts, given
        self._space = space or open_space(config.space)
        cost = cost_model_of(study)
        self._clock = Clock(cost, config.train_images, config.val_images)
        self._anchors = anchors(self._space, config, cost)
        self._draws = Draws(self._space, config.sampler)
        self._measure = Measuring(config.limits.own, own, study)
        self._versions = versions()

    def has_queued(self) -> bool:
        """Whether the user put a trial into Optuna's queue, which comes before anything else but given candidates."""
        return self._given is None and self._known.n_waiting() > 0

    def ask(self, claim: Claim) -> Asked:
        """A new running trial for the slot of `claim`."""
        trial = None
        if claim.queued and claim.repeats is None:
            claim, trial = self._from_queue(claim)
        params, anchor, given = self._prescribed(claim) if trial is None else (trial.params, None, None)
        if claim.queued:
            anchor = None
        seed = training_seed(self._config.seed, claim.slot)
        attributes: dict[str, Any] = {
            "slot": claim.slot,
            "fence": claim.fence,
            "attempt": claim.attempt,
            "sampler_seed": sampler_seed(self._config.seed, claim.slot, claim.attempt),
            "training_seed": seed,
            **({"queued": True} if claim.queued else {}),
        }
        # Spaces repair what they sample for every limit but the user's own.
        samples = trial is None and given is None and claim.repeats is None
        redraws = iter(range(1, 1 + N_REDRAWS) if samples and self._config.limits.own else ())
        hidden: dict[str, Any] = {"versions": self._versions}
        while True:
            if self._config.limits.own:
                self._slots.renew(())  # what measures them may take minutes, and nobody else renews meanwhile
            try:
                candidate, constraints = self._decoded(params, given, attributes, hidden)
                reason = ""
                break
            except InfeasibleError as error:
                candidate, reason, constraints = None, f"infeasible: {error}", error.broken
            redraw = next(redraws, None)
            if redraw is None:
                break
            params, anchor, attributes["redraws"] = self._drawn(claim, redraw), None, redraw
            attributes.pop("measured", None)
        if anchor:
            attributes["anchor"] = anchor
        self._slots.refuse_deleted()  # sampling and building took a while
        if trial is None:
            trial = self._known.create(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING,
                    params=params,
                    distributions={name: self._draws.distributions[name] for name in params},
                    user_attrs=attributes,
                    system_attrs={HIDDEN + name: value for name, value in hidden.items()},
                    constraints={each.name: each.value for each in constraints},
                )
            )
        else:
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            for each in constraints:
                trial.set_constraint(each.name, each.value)
            for name, value in hidden.items():
                self._known.hide(trial.number, name, value)
        if candidate is not None:
            note = trial_note(trial, candidate.architecture, hidden["repairs"])
            publish_trial(self._study, trial, candidate.architecture, note, self._artifacts)
        return Asked(claim, trial, seed, anchor, candidate, reason, given is not None)

    def _prescribed(self, claim: Claim) -> tuple[dict[str, Any], str | None, dict[str, Any] | None]:
        """Parameters of the slot, the anchor's name if they are one's, and the candidate if that is given."""
        if self._given is not None:  # whatever became of it before, there is nothing else to run
            given = self._given[claim.slot]
            architecture = Candidate.from_json(given.candidate).architecture
            self._measure.remember(architecture.architecture_id, given.measured)
            return given.params, given.name, given.candidate
        if claim.repeats is not None:
            repeated = self._known.read(claim.repeats)
            return dict(repeated.params), repeated.user_attrs.get("anchor"), None
        if claim.ordinal < len(self._anchors) and claim.attempt == 0:
            name, params = self._anchors[claim.ordinal]
            return dict(params), name, None
        return self._drawn(claim), None, None

    def _drawn(self, claim: Claim, redraw: int = 0) -> dict[str, Any]:
        """A sample for the slot, or another one in its place."""
        seed = sampler_seed(self._config.seed, claim.slot, claim.attempt, redraw)
        finished = self._known.finished()
        if self._config.sampler == "anchored" and len(finished) < N_STARTUP_TRIALS:
            with told(self._space):
                default = self._space.anchors(self._config.limits.to_decode).get("default")
            tried = [trial for trial in finished if not trial.user_attrs.keys() & {"anchor", "queued"}]
            n_drawn = claim.ordinal - len(self._anchors)
            if default is not None and near_is_better(self._space, default, tried, n_drawn):
                return neighbour(self._space, default, seed)
        return self._draws.draw(finished, seed)

    def _from_queue(self, claim: Claim) -> tuple[Claim, optuna.Trial | None]:
        """The next trial in Optuna's queue with all its parameters; None if somebody else took it."""
        while self.has_queued():
            drawn, _, _ = self._prescribed(claim)  # for what the user left open
            self._study.sampler = fixed_sampler(drawn)
            self._slots.refuse_deleted()  # sampling took a while
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of what is out of range: said below
                    trial = self._study.ask(self._draws.distributions)
            except ValueError:  # no choice of the space
                if not self._refuse_queued():
                    raise
                continue
            if "fixed_params" not in self._known.read(trial.number).system_attrs:
                return self._slots.set_queued(claim, False), trial
            if not self._out_of_space(trial.params):
                return claim, trial
            self._refuse_queued()
        return self._slots.set_queued(claim, False), None

    def _out_of_space(self, params: Mapping[str, Any]) -> str:
        known = [(name, self._space.dimensions.get(name), value) for name, value in params.items()]
        return ", ".join(f"{name}={value}" for name, each, value in known if each and not each.contains(value))

    def _refuse_queued(self) -> bool:
        """Fails the trials out of the queue whose parameters are not of the space; whether there are any, those that
        another process failed first among them."""
        refused = False
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.FAIL)):
            wrong = self._out_of_space(trial.system_attrs.get("fixed_params", {}))
            if wrong and "slot" not in trial.user_attrs:
                if trial.state == TrialState.RUNNING:
                    fail_trial(self._study, trial.number, f"not of the space: {wrong}", Outcome.FAILED)
                refused = True
        return refused

    def _decoded(
        self,
        params: Mapping[str, Any],
        given: dict[str, Any] | None,
        attributes: dict[str, Any],
        hidden: dict[str, Any],
    ) -> tuple[Candidate, Sequence[Constraint]]:
        """The candidate, certified, and what its limits say of it; `attributes` and `hidden` get what is known of it.

        Raises:
            InfeasibleError: It breaks a limit.
        """
        config, clock = self._config, self._clock
        if given is None:
            with told(self._space, params=params):
                decoded = self._space.decode(params, config.limits.to_decode, clock)
            if not config.mirrored:
                decoded = Decoded(decoded.candidate.without_flips(), decoded.repairs)
        else:  # as it is: limits and predicted times differ between studies
            decoded = Decoded(Candidate.from_json(given))
        candidate, architecture = decoded.candidate, decoded.candidate.architecture
        certify(architecture, config.limits, clock)  # before anything is measured
        certify_module(build(architecture), architecture, config.limits)
        measured = self._measure(architecture)
        if measured:
            attributes |= {"architecture_id": architecture.architecture_id, "measured": measured}
        certified = certify(architecture, config.limits, clock, measured)
        attributes |= {
            "params": architecture.params,
            "receptive_field": architecture.receptive_field,
            "receptive_field_with_pool": architecture.receptive_field_with_pool,
            "macs": architecture.macs,
            "n_dilated_reductions": architecture.n_dilated_reductions,
            "candidate_id": candidate.candidate_id,
            "architecture_id": architecture.architecture_id,
            "predicted_s": config.epochs
            * clock.cost.candidate_seconds(candidate, config.train_images, config.val_images),
        }
        hidden |= {"candidate": candidate.to_json(), "repairs": list(decoded.repairs)}  # so it can be run again
        return candidate, certified
