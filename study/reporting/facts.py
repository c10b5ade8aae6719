"""What the sections of a report are made of, read once: trials as plain records. No plotly here."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search_spaces.architecture import Architecture
from search_spaces.constraints import SIZE, Clock, LimitRow, OwnLimit, limit_rows, size_kb
from search_spaces.cost import CostModel
from search_spaces.fields import Amount, DescriptionError, fitting
from study.bundle.metrics import METRICS, TAUGHT
from study.command_line.wording import percent
from study.machine.files import is_file
from study.reporting.trained import Trained, read_trained
from study.storage.config import StudyConfig
from study.storage.database import config_of, first_step, is_ours, stored
from study.storage.outcome import Outcome
from study.storage.reranked import find_rerank, setting_of

MIN_FOR_IMPORTANCE = 10
"""Complete trials below which a ranking of parameters would be noise."""
WHEN_STOPPED = "when stopped"
"""What every accuracy of a pruned trial is marked by."""

_WITHOUT_RESULT = (Outcome.FAILED, Outcome.INTERRUPTED, Outcome.INFEASIBLE)
"""What Optuna does not tell apart."""
_STORED = (
    "slot", "params", "receptive_field", "receptive_field_with_pool", "macs", "n_dilated_reductions", "anchor",
    "candidate_id", "candidate", "reason", "wall_s", "repairs",
)  # fmt: skip
"""User attributes that a record holds as they are, unless they are of another type: others write to a study, too."""


@dataclass(frozen=True)
class Record:
    """One trial, with None for whatever it has not stored (yet).

    Attributes:
        number, slot: Optuna's number, and the slot of work it filled.
        accuracy: EMA validation accuracy of the last epoch it reached, in [0, 1].
        curve: (epoch from zero, validation accuracy) per epoch.
        glanced: Whether some epochs were validated on fewer images than others.
        sampled, distributions: Value and Optuna's distribution per parameter of the space.
        params, receptive_field, receptive_field_with_pool, macs, n_dilated_reductions: Of the network.
        wall_s: Seconds it took.
        anchor: Name of the known network that it is: "reference", "default" and others; or None.
        candidate: JSON of the candidate.
        repairs: What decoding changed; None if it was not decoded.
        reason: Why it failed or was pruned.
        measured: Figures of its architecture, by the names of the study's own limits, as far as they are known.
    """

    number: int
    outcome: Outcome
    accuracy: float | None
    curve: tuple[tuple[int, float], ...]
    glanced: bool
    sampled: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    wall_s: Amount | None
    repairs: tuple[str, ...] | None
    slot: int | None
    params: int | None
    receptive_field: int | None
    receptive_field_with_pool: int | None
    macs: int | None
    n_dilated_reductions: int | None
    anchor: str | None
    candidate_id: str | None
    candidate: Mapping[str, Any] | None
    reason: str | None
    measured: Mapping[str, float]

    @property
    def reduces_by_dilation(self) -> bool:
        """At least one dilated unpadded convolution does what others leave to a stride or a pooling."""
        return bool(self.n_dilated_reductions)

    @property
    def reached(self) -> str:
        """`87.34%` if it is complete, `30.00% (when stopped, epoch 3)` if it was pruned, else `failed`."""
        if self.outcome == Outcome.COMPLETE:
            return percent(self.accuracy, 2)
        what = WHEN_STOPPED if self.outcome == Outcome.PRUNED and self.curve else str(self.outcome)
        where = f"{what}, epoch {len(self.curve)}" if self.curve else what
        return where if self.accuracy is None else f"{percent(self.accuracy, 2)} ({where})"


@dataclass(frozen=True)
class Reranked:
    """A trial of the search and what one of its longer trainings gave.

    Attributes:
        number: Of the trial in the search.
        setting: One of `SETTINGS`.
        accuracy: EMA validation accuracy after the longer training, in [0, 1].
    """

    number: int
    setting: str
    accuracy: float


@dataclass(frozen=True)
class Reranking:
    """The longer training of a search's best trials: how long, and the complete ones, best first."""

    config: StudyConfig
    ranked: tuple[Reranked, ...]


@dataclass(frozen=True)
class Facts:
    """Everything that sections are made of.

    Attributes:
        records: The study's trials by number, without those that somebody else added.
        ranked: The complete ones, best first.
        n_foreign: How many somebody else added.
        shares: Importance of the parameters, largest first, adding up to 1; empty with too few trials.
        trained: The retrained network; None without a retrain of this study.
        other_bundle: Whose network is found in its place, if another study's is.
        bundle: Name of the folder that it lies in.
        reranking: The longer training of the best trials, if there was one.
        target: Test accuracy to pass, in [0, 1].
    """

    study: optuna.Study
    config: StudyConfig
    records: list[Record]
    ranked: list[Record]
    n_foreign: int
    shares: dict[str, float]
    trained: Trained | None
    other_bundle: str | None
    bundle: str
    reranking: Reranking | None
    target: float | None

    @property
    def best(self) -> Record | None:
        return self.ranked[0] if self.ranked else None

    @property
    def retrained(self) -> Record | None:
        """The trial whose network was retrained, if it is known."""
        metrics = self.trained.metrics if self.trained else {}
        # The retrain may have raised the augmentation, which makes another candidate of the trial's.
        found = metrics.get("trial_candidate_id", metrics.get("candidate_id"))
        same = [record for record in self.records if found is not None and record.candidate_id == found]
        return next((record for record in same if record.number == metrics.get("trial")), same[0] if same else None)

    def having(self, *outcomes: Outcome) -> list[Record]:
        return [record for record in self.records if record.outcome in outcomes]

    def architecture(self, record: Record | None) -> Architecture | None:
        """Of the candidate of `record`, where it can be read."""
        if record is not None and record.candidate is not None:
            with contextlib.suppress(DescriptionError, KeyError, TypeError):
                return Architecture.from_json(record.candidate["architecture"])
        return None

    def limits(self, record: Record | None = None) -> tuple[LimitRow, ...]:
        """Every limit of the study, held against the candidate of `record` where it can be read."""
        architecture, clock, cost = self.architecture(record), None, self.study.user_attrs.get("cost_model")
        if isinstance(cost, dict):
            with contextlib.suppress(DescriptionError):
                clock = Clock(CostModel.from_json(cost), self.config.train_images, self.config.val_images)
        return limit_rows(self.config.limits, architecture, clock, record.measured if record else None)


def read_facts(study: optuna.Study, out: Path) -> Facts:
    """Reads `study`, its re-ranking, and the bundle that `bundle_of` finds in `out`.

    Raises:
        UserError: The study holds no configuration.
    """
    config = config_of(study)
    trials = study.get_trials(deepcopy=False)
    first = first_step(study)
    ours = [trial for trial in trials if is_ours(trial) or not trial.state.is_finished()]
    records = [record_of(trial, first, config.limits.own) for trial in ours]
    ranked = rank(records)
    target = study.user_attrs.get("target_accuracy")
    bundle = bundle_of(out)
    trained = read_trained(bundle)
    foreign = trained is not None and not _are_of(trained.metrics, study, trials)
    return Facts(
        study=study,
        config=config,
        records=records,
        ranked=ranked,
        n_foreign=len(trials) - len(records),
        shares=importances(ranked),
        bundle=bundle.name,
        trained=None if foreign else trained,
        other_bundle=str(trained.metrics.get("study")) if foreign and trained else None,
        reranking=_reranking(study),
        target=target if is_number(target) else None,
    )


def bundle_of(out: Path) -> Path:
    """The folder of the retrained network in `out`: of the best one, else of the trial that was retrained last; a
    taught one only where there is no other."""
    best = out / "best"
    for ending in ("", TAUGHT):
        found = [*out.glob(f"best{ending}"), *out.glob(f"trial-*[0-9]{ending}")]
        found = [folder for folder in found if is_file(folder / METRICS)]
        if found:
            return max(found, key=lambda each: (each.name == f"best{ending}", (each / METRICS).stat().st_mtime))
    return best


def outcome(trial: FrozenTrial) -> Outcome:
    """What became of a trial: its attribute `outcome`; trials of older studies have none, but a reason."""
    known = Outcome.FAILED if trial.state == TrialState.FAIL else Outcome(trial.state.name.lower())
    if known not in (Outcome.FAILED, Outcome.PRUNED):
        return known
    stored, reason = trial.user_attrs.get("outcome"), str(trial.user_attrs.get("reason", ""))
    if stored in (known, *_WITHOUT_RESULT):
        return Outcome(stored)
    if reason.startswith("infeasible") or any(value > 0 for value in trial.constraints.values()):
        return Outcome.INFEASIBLE
    return Outcome.INTERRUPTED if reason.startswith("interrupted") else known


def record_of(trial: FrozenTrial, first_step: int = 0, own: Sequence[OwnLimit] = ()) -> Record:
    """What is known of a trial in whatever state.

    Args:
        trial: Of a study of ours.
        first_step: Optuna's number of its first epoch.
        own: The study's own limits, whose figures are looked for.
    """
    attrs = trial.user_attrs
    steps = sorted(trial.intermediate_values.items())
    curve = tuple((step - first_step, value) for step, value in steps if math.isfinite(value))
    accuracy = curve[-1][1] if curve else None
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        accuracy = trial.value if math.isfinite(trial.value) else None
    repairs, epochs = stored(trial, "repairs"), stored(trial, "curve")
    kept = {
        **attrs,
        "repairs": tuple(map(str, repairs)) if isinstance(repairs, list) else None,
        "candidate": stored(trial, "candidate"),
        "reason": stored(trial, "reason"),
    }
    known = dict.fromkeys(_STORED) | fitting(Record, {name: kept.get(name) for name in _STORED})
    wall_s = known.pop("wall_s")
    if wall_s is None and outcome(trial) == Outcome.INTERRUPTED:  # it was ended when the next run found it, hours later
        seconds: list[Any] = [epoch.get("wall_s") for epoch in epochs or () if isinstance(epoch, dict)]
        wall_s = sum(each for each in seconds if is_number(each))
    elif wall_s is None and trial.state.is_finished() and trial.duration is not None:
        wall_s = trial.duration.total_seconds()
    return Record(
        number=trial.number,
        outcome=outcome(trial),
        accuracy=accuracy,
        curve=curve,
        glanced=len({str(epoch.get("n_val")) for epoch in epochs if isinstance(epoch, dict)}) > 1
        if isinstance(epochs, list)
        else False,
        sampled=trial.params,
        distributions=trial.distributions,
        wall_s=wall_s,
        measured=_measured(attrs, own),
        **known,
    )


def _measured(attrs: Mapping[str, Any], own: Sequence[OwnLimit]) -> dict[str, float]:
    stored, params = attrs.get("measured"), attrs.get("params")
    found = {
        **({SIZE: size_kb(params)} if isinstance(params, int) else {}),  # known without
        **(stored if isinstance(stored, dict) else {}),
    }
    return {limit.name: found[limit.name] for limit in own if is_number(found.get(limit.name))}


def counted_once(records: Iterable[Record]) -> list[Record]:
    """Without the interrupted ones that another trial of their slot went on from: it tells their epochs and seconds,
    too, as far as they were saved."""
    records, told_again, found = list(records), dict[Any, int](), list[Record]()
    for each in reversed(records):
        which, n_epochs = (each.slot, each.candidate_id), len(each.curve)
        if each.outcome != Outcome.INTERRUPTED or n_epochs > told_again.get(which, -1):
            found.append(each)
        told_again[which] = max(n_epochs, told_again.get(which, -1))
    return found[::-1]


def rank(records: Iterable[Record]) -> list[Record]:
    """The complete trials, best first; the earlier one where two are equal."""
    complete = [r for r in records if r.outcome == Outcome.COMPLETE and r.accuracy is not None]
    return sorted(complete, key=lambda r: (-(r.accuracy or 0.0), r.number))


def importances(complete: Sequence[Record]) -> dict[str, float]:
    """Share of importance per sampled parameter, largest first; empty with too few trials.

    PED-ANOVA (Watanabe et al. 2023): unlike fANOVA and mean decrease of impurity it needs no scikit-learn.
    """
    names = set.intersection(*(set(r.sampled) for r in complete)) if complete else set()
    if len(complete) < MIN_FOR_IMPORTANCE or not names:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / len(complete))))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # of a study in memory nobody need be told
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of small regimes; the report states the number of trials instead
            ours = optuna.create_study(direction="maximize")  # the stored one may hold trials of others
            for r in sorted(complete, key=lambda r: r.number):
                kwargs: dict[str, Any] = {"params": dict(r.sampled), "distributions": dict(r.distributions)}
                ours.add_trial(optuna.create_trial(value=r.accuracy, **kwargs))
            found = optuna.importance.get_param_importances(ours, evaluator=evaluator, params=sorted(names))
    finally:
        optuna.logging.set_verbosity(verbosity)
    return dict(sorted(found.items(), key=lambda item: (-round(item[1], 9), item[0])))


def is_number(value: Any) -> bool:
    """Whether it is one that can be reckoned with: JSON may hold integers that no float can."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _are_of(metrics: Mapping[str, Any], study: optuna.Study, trials: Sequence[FrozenTrial]) -> bool:
    """Whether a bundle's figures are those of a trial of `study`, as far as they say whose they are."""
    known = {"study": study.study_name, "study_created": study.user_attrs.get("created")}
    if "trial_candidate_id" in metrics:
        candidates: dict[Any, Any] = {trial.number: trial.user_attrs.get("candidate_id") for trial in trials}
        known["trial_candidate_id"] = candidates.get(metrics.get("trial"))
    return all(metrics.get(name, value) == value for name, value in known.items())


def _reranking(study: optuna.Study) -> Reranking | None:
    longer = find_rerank(study)
    if longer is None:
        return None
    given, found = longer.user_attrs["given"], []
    for record in rank(record_of(trial) for trial in longer.get_trials(deepcopy=False) if is_ours(trial)):
        with contextlib.suppress(LookupError, TypeError):  # what a stranger stored
            entry = given[record.slot]
            if isinstance(number := entry["trial"], int) and record.accuracy is not None:
                found.append(Reranked(number, setting_of(entry), record.accuracy))
    return Reranking(config_of(longer), tuple(found)) if found else None
