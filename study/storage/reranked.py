"""Where the longer training of a study's best candidates is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from search_spaces.training_dimensions import LONG_DECAY, LONG_LABEL_SMOOTHING

if TYPE_CHECKING:
    import optuna

LIGHT, STRONG = "light", "strong"
SETTINGS = {
    LIGHT: "augmentation as a training of this length needs it",
    STRONG: f"augmentation as a retrain of the default length needs it, label smoothing of at least "
    f"{LONG_LABEL_SMOOTHING:g} and {LONG_DECAY:g} times the weight decay",
}
"""How a re-ranking trains each of its candidates, in words."""


def setting_of(given: Mapping[str, Any]) -> str:
    """The setting of an entry of a re-ranking's `given`. Older re-rankings name none: theirs was what is now light."""
    return STRONG if given.get("setting") == STRONG else LIGHT


def rerank_name(study_name: str) -> str:
    """Name of the study that re-ranks the candidates of another."""
    return f"{study_name}-rerank"


def origin(source: optuna.Study) -> dict[str, Any]:
    """The attributes of a re-ranking that say whose it is."""
    return {"rerank_of": source.study_name, "source_created": source.user_attrs.get("created")}


def is_rerank(study: optuna.Study, source: optuna.Study) -> bool:
    """Whether `study` re-ranks `source`, not an earlier study of that name. Older ones do not say when it was made."""
    stored = study.user_attrs
    return all(stored.get(name, value) == value for name, value in origin(source).items())


def find_rerank(study: optuna.Study) -> optuna.Study | None:
    """The re-ranking of `study`, if it has a complete trial."""
    import optuna

    from study.storage.database import finished_trials, storage_of

    name, storage = rerank_name(study.study_name), storage_of(study)
    if name not in optuna.get_all_study_names(storage):
        return None
    found = optuna.load_study(study_name=name, storage=storage)
    complete = any(trial.state == optuna.trial.TrialState.COMPLETE for trial in finished_trials(found))
    return found if complete and "given" in found.user_attrs and is_rerank(found, study) else None
