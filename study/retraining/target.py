"""What is retrained, and where its bundle goes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.candidate import Candidate
from search_spaces.reference import REFERENCE
from search_spaces.yardstick import YARDSTICK_ARCHITECTURE
from study.bundle.metrics import TAUGHT
from study.command_line.wording import counted
from study.data.opening import is_cifar10
from study.retraining.plan import RetrainPlan
from study.storage.folder import refuse_foreign
from study.storage.reranked import find_rerank, setting_of

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Target:
    """What is retrained, and where its bundle goes.

    Attributes:
        candidate: As the search trained it, or the re-ranking with the setting that won.
        recipe_of: Whose recipe that is, if it is another network's.
        folder: Of the bundle.
        facts: What the bundle says of its origin.
        target_accuracy: To pass, a fraction; None: that of the data set, if it has one.
        precision, searched_on: Of the study, and its hardware; None where there is none.
        study: Whose report shows it.
    """

    candidate: Candidate
    folder: Path
    facts: dict[str, Any]
    target_accuracy: float | None
    recipe_of: Candidate | None = None
    precision: str | None = None
    searched_on: dict[str, Any] | None = None
    study: optuna.Study | None = None


def find_target(plan: RetrainPlan) -> Target:
    """What `plan` means.

    Raises:
        UserError: There is no such study or trial, or the folder is another study's.
    """
    from study.storage.database import candidate_of, config_of, get_trial, open_study

    def named(name: str) -> str:
        return name + TAUGHT * plan.teacher

    if plan.what == "reference":
        name = named("reference")
        refuse_foreign(plan.out, plan.name)
        known = {"name": name}
        if plan.augmentation == "lengthened" and is_cifar10(plan.data):
            known["chosen_by_test_images"] = "how it is augmented"  # by us, once: results/README.md
        return Target(REFERENCE, plan.out / name, known, plan.target_accuracy)
    study = open_study(plan.url, plan.name)
    refuse_foreign(plan.out, plan.name, study)
    trial, title, facts = _chosen(plan, study)
    candidate, recipe_of = candidate_of(trial), None
    if plan.what == "yardstick":
        title, recipe_of = "yardstick", candidate
        candidate = dataclasses.replace(candidate, architecture=YARDSTICK_ARCHITECTURE)
        setting = {"recipe_setting": facts["reranked_setting"]} if "reranked_setting" in facts else {}
        facts = {"recipe_of_trial": facts["trial"], **setting, "broken_limits": ["pooling"]}
    else:
        facts["val_accuracy"] = trial.value
        facts["trial_candidate_id"] = get_trial(study, facts["trial"]).user_attrs["candidate_id"]
    return Target(
        candidate=candidate,
        folder=plan.out / named(title),
        facts={"name": named(title), "study": plan.name, "study_created": study.user_attrs.get("created"), **facts},
        target_accuracy=plan.target_accuracy or study.user_attrs.get("target_accuracy"),
        recipe_of=recipe_of,
        precision=config_of(study).precision,
        searched_on=study.user_attrs.get("hardware"),
        study=study,
    )


def _chosen(plan: RetrainPlan, study: optuna.Study) -> tuple[FrozenTrial, str, dict[str, Any]]:
    """The trial to retrain, what its bundle is called, and where it comes from."""
    from study.storage.database import best_trial, config_of, get_trial, ranked_trials

    if plan.trial is not None:
        trial = get_trial(study, plan.trial)
        return trial, f"trial-{trial.number}", {"trial": trial.number}
    trial, rerank = best_trial(study), find_rerank(study)
    if rerank is None:
        return trial, "best", {"trial": trial.number}
    winner, epochs, n = best_trial(rerank), config_of(rerank).epochs, len(ranked_trials(rerank))
    given = rerank.user_attrs["given"][winner.user_attrs["slot"]]
    number, setting = given["trial"], setting_of(given)
    print(
        f"  reranked  trial {number}, {setting}: the best of {counted(n, 'training')} of {counted(epochs, 'epoch')}; "
        f"the best of the search is trial {trial.number} (--trial N retrains another)"
    )
    return winner, "best", {"trial": number, "reranked_epochs": epochs, "reranked_setting": setting}
