"""The best candidates of a study, trained longer in a study of their own."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import SPACES
from search_spaces.constraints import Clock, Limits
from search_spaces.space import Decoded, Params, SearchSpace
from search_spaces.training_dimensions import lengthened
from study.command_line.own import SPACE_FORM
from study.errors import UserError
from study.search.creation import find_study, new_study, refuse_early, refuse_other_version
from study.search.plan import Given, SearchPlan
from study.search.searching import Machine, bring_to_end, get_ready
from study.storage.folder import refuse_foreign
from study.storage.reranked import is_rerank, origin

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from study.storage.config import StudyConfig

FIDELITY = {
    # device: (candidates, epochs); on all images that are not for validation
    "cpu": (4, 8),
    "cuda": (8, 80),
}


@dataclass(frozen=True)
class RerankPlan:
    """A re-ranking to bring to its end.

    Attributes:
        search: Of the re-ranking's own study; its number of trials follows from the candidates.
        source: Name of the study whose candidates they are, in the same storage.
        folder: Of that study.
        top: How many; None: as many as the device affords.
    """

    search: SearchPlan
    source: str
    folder: Path
    top: int | None


def rerank(plan: RerankPlan) -> int:
    """Trains the best candidates of the source again. Returns the exit code.

    Raises:
        UserError: There is no such study, or it has not so many complete trials.
    """
    from study.executors.workplace import workplace
    from study.storage.config import refuse_other_data
    from study.storage.database import candidate_of, config_of, hide_password, open_study

    source = open_study(plan.search.url, plan.source)
    refuse_other_version(plan.source, config_of(source))
    _know_space_of(source)
    place = workplace(plan.search.cluster, plan.search.device)
    best = best_candidates(source, plan.top, FIDELITY[place.device][0])
    refuse_early(plan.search)
    existing = find_study(plan.search)
    refuse_foreign(plan.folder, plan.source, source)
    refuse_foreign(plan.search.out, plan.search.name, existing and existing[0], new=existing is None)
    # A single candidate needs no measurement of how many train at once.
    machine = get_ready(
        dataclasses.replace(plan.search, trials=len(best)), place, [candidate_of(trial) for trial in best]
    )
    refuse_other_data(plan.source, config_of(source), machine.data)
    if existing is None:
        config = _config(plan.search, config_of(source), machine)
        more = {**origin(source), "given": _descriptions(best, config)}
        target = source.user_attrs["target_accuracy"]
        study, storage = new_study(plan.search.url, plan.search.name, config, machine.calibration, target, **more)
    else:
        study, storage = existing
        if not is_rerank(study, source):
            raise UserError(
                f"The study {study.study_name!r} re-ranks another {source.study_name!r}, which is no longer there. "
                f"Delete it: optuna delete-study --study-name {shlex.quote(study.study_name)} "
                f"--storage {shlex.quote(hide_password(plan.search.url))}"
            )
        _add_next_best(study, best, plan.top or 0)
    given: list[dict[str, Any]] = study.user_attrs["given"]
    candidates = [Given(each["name"], each["params"], each["candidate"], each.get("measured", {})) for each in given]
    search = dataclasses.replace(plan.search, trials=len(candidates))
    return bring_to_end(search, machine, study, storage, existing is None, candidates)


def _know_space_of(study: optuna.Study) -> None:
    """Lets a space of the user's that was not typed be known by what its trials tell of it: candidates are stored."""
    from study.search.sampling import dimension_of
    from study.storage.database import best_trial, config_of

    config = config_of(study)
    if config.space in SPACES:
        return

    class Stored(SearchSpace):
        name, version, tree = config.space, config.space_version, ""
        dimensions = {name: dimension_of(each) for name, each in best_trial(study).distributions.items()}  # noqa: RUF012

        def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
            raise UserError(f"{config.space!r} is no space of ours: to sample from it add --space {SPACE_FORM}.")

        def anchors(self, limits: Limits) -> Mapping[str, Params]:
            return {}

    SPACES[config.space] = Stored


def best_candidates(study: optuna.Study, asked: int | None, default: int) -> list[FrozenTrial]:
    """The `asked` best complete trials of different candidates, else as many as there are up to `default`.

    Raises:
        UserError: There are fewer than asked for, or none.
    """
    from study.storage.database import best_trial, ranked_trials

    best_trial(study)  # refuses a study without any
    different = ranked_trials(study)
    if asked is not None and asked > len(different):
        raise UserError(f"--top must not exceed the {len(different)} complete trials of {study.study_name!r}: {asked}.")
    return different[: asked or default]


def _config(plan: SearchPlan, source: StudyConfig, machine: Machine) -> StudyConfig:
    """The source's, but for the fidelity."""
    from study.data.cifar10 import check_sizes

    train_images = plan.settings.get("train_images", machine.data.n_search)
    val_images = plan.settings.get("val_images", machine.data.n_validation)
    check_sizes(train_images, val_images, machine.data)
    return dataclasses.replace(
        source,
        epochs=plan.settings.get("epochs", FIDELITY[machine.place.device][1]),
        train_images=train_images,
        val_images=val_images,
        pruner="none",
        sampler="random",
        precision=machine.calibration.precision,
        limits=dataclasses.replace(source.limits, max_epoch_s=None),  # it was for shorter epochs
    )


def _descriptions(best: Sequence[FrozenTrial], config: StudyConfig) -> list[dict[str, Any]]:
    """The candidates, augmented as all images of a training, counting repetitions, ask for."""
    from study.storage.database import candidate_of

    found = []
    for trial in best:
        candidate = candidate_of(trial)
        longer = lengthened(candidate.augmentation, config.epochs * config.train_images)
        candidate = dataclasses.replace(candidate, augmentation=longer)
        description = {"name": f"trial {trial.number}", "trial": trial.number, "params": trial.params}
        measured = {"measured": trial.user_attrs["measured"]} if "measured" in trial.user_attrs else {}
        found.append({**description, "candidate": candidate.to_json(), **measured})
    return found


def _add_next_best(study: optuna.Study, best: Sequence[FrozenTrial], top: int) -> None:
    """What was begun stays; a larger `top` adds the next best."""
    from study.storage.database import config_of

    known: list[dict[str, Any]] = study.user_attrs["given"]
    numbers = {given["trial"] for given in known}
    others = [given for given in _descriptions(best, config_of(study)) if given["trial"] not in numbers]
    added = others[: max(0, top - len(known))]
    if added:
        study.set_user_attr("given", known + added)
