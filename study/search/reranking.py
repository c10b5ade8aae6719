"""The best candidates of a study, each trained longer with two settings, in a study of their own."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import SPACES
from search_spaces.candidate import Candidate
from search_spaces.constraints import Clock, Limits
from search_spaces.space import Decoded, Params, SearchSpace
from search_spaces.training_dimensions import lengthened, regularised, with_small_images
from study.command_line.own import SPACE_FORM
from study.command_line.wording import counted
from study.errors import UserError
from study.search.creation import find_study, new_study, refuse_early, refuse_other_version, typical
from study.search.plan import Given, SearchPlan
from study.search.searching import Machine, bring_to_end, get_ready
from study.storage.folder import refuse_foreign
from study.storage.reranked import SETTINGS, STRONG, is_rerank, origin, setting_of

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from study.calibration.prices import Calibration
    from study.storage.config import StudyConfig

FIDELITY = {
    # device: (candidates, epochs); on all images that are not for validation
    "cpu": (3, 12),
    "cuda": (4, 80),
}
"""Each is trained with every setting. Few, since the search's best differ by little more than luck, while a setting can
decide points of a long training."""


TOP = "top"
"""Attribute of a re-ranking: how many of the search's best it is of. What is among these later is added, once."""


@dataclass(frozen=True)
class RerankPlan:
    """A re-ranking to bring to its end.

    Attributes:
        search: Of the re-ranking's own study; its number of trials follows from the candidates.
        source: Name of the study whose candidates they are, in the same storage.
        folder: Of that study.
        top: How many; None: as many as the device affords.
        settings: Names of `SETTINGS`; None: all, or those that the re-ranking was begun with.
    """

    search: SearchPlan
    source: str
    folder: Path
    top: int | None
    settings: tuple[str, ...] | None


def rerank(plan: RerankPlan) -> int:
    """Trains the best candidates of the source again. Returns the exit code.

    Raises:
        UserError: There is no such study, or it has not so many complete trials.
    """
    from study.executors.workplace import workplace
    from study.storage.config import RETRAIN_EPOCHS, refuse_cifar10, refuse_other_data
    from study.storage.database import candidate_of, config_of, get_trial, hide_password, open_study

    source = open_study(plan.search.url, plan.source)
    refuse_other_version(plan.source, config_of(source))
    space = _space_of(source)
    place = workplace(plan.search.cluster, plan.search.device)
    refuse_early(plan.search)
    existing = find_study(plan.search)
    refuse_foreign(plan.folder, plan.source, source)
    refuse_foreign(plan.search.out, plan.search.name, existing and existing[0], new=existing is None)
    known: list[dict[str, Any]] = existing[0].user_attrs.get("given", []) if existing else []
    # Older ones do not tell how many they are of: as many as there are.
    before = existing[0].user_attrs.get(TOP, len(_numbers(known))) if existing else 0
    top = plan.top or before or FIDELITY[place.device][0]
    best = best_candidates(source, plan.top, top)
    settings = plan.settings or tuple(dict.fromkeys(map(setting_of, known))) or tuple(SETTINGS)
    # A single training needs no measurement of how many run at once.
    search = dataclasses.replace(plan.search, trials=max(len(known), len(best) * len(settings)))
    found = [candidate_of(trial) for trial in best]
    like = typical(space, config_of(source).limits, found[0])  # measured by the search already
    refuse_cifar10(plan.source, config_of(source), plan.search.data)
    begun = config_of(existing[0]).precision if existing else None

    def precision(here: Calibration) -> str:
        return begun or here.precision_of(config_of(source).precision, source.user_attrs.get("hardware"))

    machine = get_ready(search, place, like, found, precision)
    refuse_other_data(plan.source, config_of(source), machine.data)
    retrained, searched = RETRAIN_EPOCHS[place.device] * machine.data.n_train, _n_images(config_of(source))
    if existing is None:
        config = _config(plan.search, config_of(source), machine, precision(machine.calibration))
        small = place.device == "cpu" and _n_images(config) > searched
        given = [
            _description(each, setting, config, searched, retrained, small) for each in best for setting in settings
        ]
        more = {**origin(source), "given": given, "small_images": small, TOP: top}
        target = source.user_attrs["target_accuracy"]
        study, storage = new_study(plan.search.url, plan.search.name, config, machine.calibration, target, **more)
    else:
        study, storage = existing
        if "given" not in study.user_attrs:
            raise UserError(
                f"The study {study.study_name!r} is a search, and its name is what the re-ranking of {plan.source!r} "
                "would be called. Re-rank in another --storage, or copy one of them under another name."
            )
        if not is_rerank(study, source):
            raise UserError(
                f"The study {study.study_name!r} re-ranks another {source.study_name!r}, which is no longer there. "
                f"Delete it: optuna delete-study --study-name {shlex.quote(study.study_name)} "
                f"--storage {shlex.quote(hide_password(plan.search.url))}"
            )
        known = study.user_attrs["given"]  # as it is now: getting ready took a while
        there = {get_trial(source, number).user_attrs["candidate_id"] for number in _numbers(known)}
        new = [trial.number for trial in best if trial.user_attrs["candidate_id"] not in there]
        wanted = _more_wanted(known, new, settings)
        config = config_of(study)
        small = study.user_attrs.get("small_images", False)  # as those that it is compared with
        added = [
            _description(get_trial(source, number), setting, config, searched, retrained, small)
            for number, setting in wanted
        ]
        given = known + added
        if added:
            study.set_user_attr("given", given)
        if top > before:
            study.set_user_attr(TOP, top)
    candidates = [Given(each["name"], each["params"], each["candidate"], each.get("measured", {})) for each in given]
    search = dataclasses.replace(plan.search, trials=len(candidates))
    machine = dataclasses.replace(machine, candidates=tuple(Candidate.from_json(each["candidate"]) for each in given))
    return bring_to_end(search, machine, study, storage, existing is None, candidates, space)


def _space_of(study: optuna.Study) -> SearchSpace:
    """What `study` searches; of a space that was not typed what its trials tell, enough for stored candidates."""
    from study.search.sampling import dimension_of
    from study.storage.config import open_space
    from study.storage.database import best_trial, config_of

    config = config_of(study)
    if config.space in SPACES:
        return open_space(config.space)

    class Stored(SearchSpace):
        name, version, tree = config.space, config.space_version, ""
        dimensions = {name: dimension_of(each) for name, each in best_trial(study).distributions.items()}  # noqa: RUF012

        def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
            raise UserError(f"{config.space!r} is no space of ours: to sample from it add --space {SPACE_FORM}.")

        def anchors(self, limits: Limits) -> Mapping[str, Params]:
            return {}

    return Stored()


def best_candidates(study: optuna.Study, asked: int | None, default: int) -> list[FrozenTrial]:
    """The `asked` best complete trials of different candidates, else as many as there are up to `default`.

    Raises:
        UserError: There are fewer than asked for, or none.
    """
    from study.storage.database import best_trial, ranked_trials

    best_trial(study)  # refuses a study without any
    different = ranked_trials(study)
    if asked is not None and asked > len(different):
        raise UserError(
            f"--top must not exceed the {counted(len(different), 'complete trial')} of {study.study_name!r}: {asked}."
        )
    return different[: asked or default]


def _config(plan: SearchPlan, source: StudyConfig, machine: Machine, precision: str) -> StudyConfig:
    """The source's, but for the fidelity, and the `precision` of another machine."""
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
        precision=precision,
        limits=dataclasses.replace(source.limits, max_epoch_s=None),  # it was for shorter epochs
    )


def _n_images(config: StudyConfig) -> int:
    """That a training sees in all, counting repetitions."""
    return config.epochs * config.train_images


def _description(
    trial: FrozenTrial, setting: str, config: StudyConfig, searched: int, retrained: int, small: bool
) -> dict[str, Any]:
    """The candidate of `trial` as it is trained with `setting`: a light training as long as the trial repeats it.

    Args:
        trial: Of the search.
        setting: One of `SETTINGS`.
        config: Of the re-ranking.
        searched: Images that the trial saw in all, counting repetitions.
        retrained: Images that a retrain sees in all, counting repetitions.
        small: Whether it begins with smaller images, as a retrain on a CPU does.
    """
    from study.storage.database import candidate_of

    candidate, n_images = candidate_of(trial), _n_images(config)
    if setting == STRONG:
        n_images = max(n_images, retrained)
        candidate = dataclasses.replace(candidate, optimisation=regularised(candidate.optimisation))
    if n_images > searched:
        candidate = dataclasses.replace(candidate, augmentation=lengthened(candidate.augmentation, n_images))
    if small:
        candidate = with_small_images(candidate)
    measured = {"measured": trial.user_attrs["measured"]} if "measured" in trial.user_attrs else {}
    return {
        "name": f"trial {trial.number}, {setting}",
        "trial": trial.number,
        "setting": setting,
        "params": trial.params,
        "candidate": candidate.to_json(),
        **measured,
    }


def _numbers(given: Sequence[Mapping[str, Any]]) -> list[int]:
    """Of the trials in `given`, each once."""
    return list(dict.fromkeys(each["trial"] for each in given))


def _more_wanted(
    known: Sequence[Mapping[str, Any]], new: Iterable[int], settings: Sequence[str]
) -> list[tuple[int, str]]:
    """(trial, setting) of what is to be added to `known`: what was begun stays, the trials `new` come, and another
    setting trains all of them with it, too."""
    there = {(given["trial"], setting_of(given)) for given in known}
    numbers = (*_numbers(known), *new)
    return [(number, setting) for number in numbers for setting in settings if (number, setting) not in there]
