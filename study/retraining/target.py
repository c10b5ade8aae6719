"""What is retrained, and where its bundle goes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.candidate import Candidate
from search_spaces.cost import CostModel
from search_spaces.reference import REFERENCE
from search_spaces.yardstick import YARDSTICK_ARCHITECTURE
from study.retraining.plan import RetrainPlan
from study.storage.config import DEFAULT_TARGET
from study.storage.reranked import find_rerank

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Target:
    """What is retrained, and where its bundle goes.

    Attributes:
        candidate: As it was trained in the search.
        folder: Of the bundle.
        facts: What the bundle says of its origin.
        precision, cost: Of the study; None where there is none.
        target_accuracy: To pass, a fraction.
        study: Whose report shows it.
    """

    candidate: Candidate
    folder: Path
    facts: dict[str, Any]
    precision: str | None
    target_accuracy: float
    cost: CostModel | None
    study: optuna.Study | None


def find_target(plan: RetrainPlan) -> Target:
    """What `plan` means.

    Raises:
        UserError: There is no such study or trial.
    """
    from study.storage.database import best_trial, candidate_of, config_of, get_trial, open_study

    name, out = plan.name, plan.out
    facts: dict[str, Any] = {"name": "reference"}
    if plan.what == "reference":
        target_accuracy = plan.target_accuracy or DEFAULT_TARGET
        return Target(REFERENCE, out / "reference", facts, None, target_accuracy, None, None)
    study = open_study(plan.url, name)
    config = config_of(study)
    rerank = find_rerank(study) if plan.trial is None else None
    if rerank is not None:
        trial = best_trial(rerank)
        number = rerank.user_attrs["given"][trial.user_attrs["slot"]]["trial"]
        facts = {"name": "best", "study": name, "trial": number, "reranked_epochs": config_of(rerank).epochs}
        print(
            f"  reranked  trial {number} is the best of {len(rerank.user_attrs['given'])} after "
            f"{config_of(rerank).epochs} epochs; that of the search is trial {best_trial(study).number} "
            "(--trial N retrains another)"
        )
    else:
        trial = best_trial(study) if plan.trial is None else get_trial(study, plan.trial)
        title = "best" if plan.trial is None else f"trial-{trial.number}"
        facts = {"name": title, "study": name, "trial": trial.number}
    candidate = candidate_of(trial)
    if plan.what == "yardstick":
        candidate = dataclasses.replace(candidate, architecture=YARDSTICK_ARCHITECTURE)
        facts = {"name": "yardstick", "study": name, "recipe_of_trial": facts["trial"], "broken_limits": ["pooling"]}
    else:
        facts["val_accuracy"] = trial.value
        facts["trial_candidate_id"] = get_trial(study, facts["trial"]).user_attrs["candidate_id"]
    return Target(
        candidate,
        out / facts["name"],
        facts,
        config.precision,
        plan.target_accuracy or study.user_attrs["target_accuracy"],
        CostModel.from_json(study.user_attrs["cost_model"]),
        study,
    )
