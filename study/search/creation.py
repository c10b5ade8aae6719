"""A study is found, with the settings that are asked for, or made."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from search_spaces import SPACES
from search_spaces.architecture import Architecture
from search_spaces.candidate import Candidate
from search_spaces.constraints import SIZE, Clock, InfeasibleError, Limits, Measured, OwnLimit, certify, size_kb
from search_spaces.cost import CostModel
from search_spaces.fields import DescriptionError
from search_spaces.reference import REFERENCE, REFERENCE_ARCHITECTURE
from search_spaces.space import Params, SearchSpace
from study.command_line.own import SPACE_FORM, told
from study.command_line.wording import counted, rounded
from study.errors import MadeMeanwhile, UserError, said
from study.search.plan import SearchPlan
from study.storage.config import default_target

if TYPE_CHECKING:
    import optuna

    from study.calibration.prices import Calibration
    from study.data.dataset import DataSet
    from study.storage.config import StudyConfig


N_FEASIBILITY_SAMPLES = 100
FIRST = "cost_model"
"""The attribute that a study gets first: without a configuration it tells one of ours, half made, from others."""
FIDELITY = {
    # device: (epochs, training images) of a trial
    "cpu": (6, 15_000),
    "cuda": (16, 45_000),
}
EPOCHS_SHARE = {"halving": 0.7, "percentile": 0.67, "median": 0.73, "hyperband": 0.82, "none": 1.0}
"""Of the epochs that trials would have without a pruner: results/pruners. Halving's is rounded up: later trials of a
study are better, and are stopped less often than recorded ones in any order."""


def refuse_early(plan: SearchPlan) -> None:
    """Refuses what can be refused without the storage, the data or a calibration.

    Raises:
        UserError: There is no such space, sampler or pruner, or there are not so many images.
    """
    from study.data.cifar10 import N_SEARCH, N_VALIDATION, check_sizes
    from study.data.opening import is_cifar10
    from study.search.plan import DEFAULT_SAMPLER
    from study.search.pruning import default_pruner
    from study.search.sampling import check_names
    from study.storage.config import open_space

    open_space(plan.space)
    if is_cifar10(plan.data):  # others have to be read first
        check_sizes(plan.settings.get("train_images", N_SEARCH), plan.settings.get("val_images", N_VALIDATION))
    sampler = plan.settings.get("sampler", DEFAULT_SAMPLER)
    check_names(sampler, plan.settings.get("pruner", default_pruner(sampler)))


@contextlib.contextmanager
def typed() -> Iterator[None]:
    """Within it descriptions are made of what was typed: a value that none of them takes is the user's mistake.

    Raises:
        UserError: There is one.
    """
    try:
        yield
    except DescriptionError as error:
        raise UserError(f"{said(error)}.") from error


def find_study(plan: SearchPlan) -> tuple[optuna.Study, optuna.storages.RDBStorage] | None:
    """The stored study, if there is one and the plan agrees with it.

    Raises:
        UserError: It was made with other settings.
    """
    import optuna

    from study.data.augmentation import AUGMENTATION_ORDER
    from study.data.cifar10 import SPLIT_SEED
    from study.machine.sqlite import sqlite_file
    from study.storage.database import config_of, open_storage

    file = sqlite_file(plan.url)
    if file is not None and not os.path.exists(file):
        return None
    storage = open_storage(plan.url)
    if plan.name not in [study.study_name for study in storage.get_all_studies()]:
        return None
    try:
        study = optuna.load_study(study_name=plan.name, storage=storage)
        if not _becomes_whole(study):
            optuna.delete_study(study_name=plan.name, storage=storage)  # nothing is lost with it
            return None
    except KeyError:  # another process deleted it first
        return None
    stored = config_of(study)
    refuse_other_version(plan.name, stored)
    here = dataclasses.replace(stored, split_seed=SPLIT_SEED, augmentation_order=AUGMENTATION_ORDER)
    if differences := stored.differences(here):
        raise UserError(
            f"The study {plan.name!r} was made by a program that trains otherwise ({'; '.join(differences)}). Choose "
            "another --study-name, or go on with the program that made it."
        )
    # Own limits that were not typed stay, as every option that is left out.
    own = {limit.name: limit for limit in (*stored.limits.own, *plan.limits.get("own", ()))}
    with typed():
        limits = dataclasses.replace(stored.limits, **{**plan.limits, "own": tuple(own.values())})
        asked = dataclasses.replace(stored, **plan.settings, limits=limits)
    differences = stored.differences(asked)
    if differences:
        raise UserError(
            f"The study {plan.name!r} was made with other settings ({'; '.join(differences)}). "
            "Leave them out to go on with it, or choose another --study-name."
        )
    return study, storage


def _becomes_whole(study: optuna.Study) -> bool:
    """Waits for one that was begun and has no configuration yet. False: nobody goes on with it, as after a kill.

    Raises:
        KeyError: It was deleted meanwhile.
    """
    from study.storage.patience import MAKING_S

    n_known, deadline = -1, math.inf
    while True:
        known = study.user_attrs
        if "config" in known or (known and FIRST not in known) or study.trials:  # the last two are somebody else's
            return True
        if len(known) > n_known:
            n_known, deadline = len(known), time.monotonic() + MAKING_S
        elif time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def or_join(begin: Callable[[], int]) -> int:
    """The exit code of `begin`, begun again where another process makes the same study while it gets ready."""
    try:
        return begin()
    except MadeMeanwhile:
        return begin()


def refuse_untyped(plan: SearchPlan, study: optuna.Study) -> None:
    """Refuses to go on where the space or a limit is of a file that was not typed: nothing that is stored is run.

    Raises:
        UserError: One is; says what to type.
    """
    from study.storage.database import config_of

    stored = config_of(study)
    missing = [] if stored.space in SPACES else [f"--space {SPACE_FORM} (the space {stored.space!r})"]
    for limit in stored.limits.own:
        if limit.source and limit.name not in plan.own.functions:
            missing.append(f"--limit {limit.function}")
    if missing:
        raise UserError(
            f"The study {plan.name!r} was made with files of yours, which are loaded only as they are typed: add "
            f"{', '.join(missing)}, with the path of each file."
        )


def refuse_other_version(name: str, stored: StudyConfig) -> None:
    """Refuses to go on from the study `name` where its parameters mean other networks.

    A space that is not known here, of a file of the user's, is left to `refuse_untyped`.

    Raises:
        UserError: Its space has another version here.
    """
    version = SPACES[stored.space].version if stored.space in SPACES else stored.space_version
    if stored.space_version != version:
        raise UserError(
            f"The study {name!r} was made with version {stored.space_version} of the space {stored.space!r}; here "
            f"it is version {version}, whose parameters mean other networks. Choose another --study-name, or go on "
            "with the program that made it."
        )


def refuse_other_dimensions(study: optuna.Study, space: SearchSpace) -> None:
    """Refuses to go on where a file of the user's was edited since: trials of other dimensions cannot be compared.

    Raises:
        UserError: A dimension is another one, new or gone.
    """
    from study.search.sampling import distributions
    from study.storage.database import has_result

    here = distributions(space)
    known = next((trial.distributions for trial in study.get_trials(deepcopy=False) if has_result(trial)), here)
    if changed := sorted(name for name in known.keys() | here.keys() if known.get(name) != here.get(name)):
        raise UserError(
            f"The space {space.name!r} was changed since the study {study.study_name!r} was made (in "
            f"{', '.join(changed)}): undo that, or raise its version and choose another --study-name."
        )


def create_study(
    plan: SearchPlan, device: str, calibration: Calibration, data: DataSet
) -> tuple[optuna.Study, optuna.storages.RDBStorage]:
    """The study of `plan` on `data`, new, with the defaults of `device` for what the user left open.

    Raises:
        UserError: Nothing can meet its limits, or the storage cannot be used.
        MadeMeanwhile: Another process was faster.
    """
    from study.data.cifar10 import check_sizes
    from study.search.measuring import Measuring
    from study.search.plan import DEFAULT_SAMPLER
    from study.search.pruning import default_pruner
    from study.storage.config import StudyConfig, open_space

    epochs, train_images = FIDELITY[device]
    space = open_space(plan.space)
    defaults: dict[str, Any] = {
        "space": space.name,
        "epochs": epochs,
        "train_images": min(train_images, data.n_search),
        "val_images": data.n_validation,
        "seed": 0,
        "pruner": default_pruner(plan.settings.get("sampler", DEFAULT_SAMPLER)),
        "sampler": DEFAULT_SAMPLER,
        "precision": calibration.precision,
        "data": data.fingerprint,
        "mirrored": data.mirrored,
    }
    with typed():
        limits = dataclasses.replace(Limits(n_classes=len(data.classes)), **plan.limits)
        config = StudyConfig(**(defaults | dict(plan.settings)), space_version=space.version, limits=limits)
    check_sizes(config.train_images, config.val_images, data)
    if device == "cpu" and limits.max_epoch_s is None:
        reference = calibration.cost.epoch_seconds(REFERENCE_ARCHITECTURE, config.train_images, config.val_images)
        limits = dataclasses.replace(limits, max_epoch_s=round(space.cpu_epoch_factor * reference, 1) or 0.1)
        config = dataclasses.replace(config, limits=limits)
    refuse_impossible(space, config, calibration.cost, Measuring(config.limits.own, plan.own))
    return new_study(plan.url, plan.name, config, calibration, plan.target_accuracy or default_target(data))


def new_study(
    url: str, name: str, config: StudyConfig, calibration: Calibration, target_accuracy: float | None, **more: Any
) -> tuple[optuna.Study, optuna.storages.RDBStorage]:
    """An empty study with our direction, metric and configuration, and `more` user attributes.

    Raises:
        UserError: The storage cannot be used.
        MadeMeanwhile: Another process was faster.
    """
    import optuna

    from study.machine.hardware import versions
    from study.reporting.dashboard import publish_study
    from study.storage.database import FIRST_STEP, open_storage
    from study.storage.patience import MAKING_S

    storage = open_storage(url)
    made_meanwhile = MadeMeanwhile(
        f"The study {name!r} was just created by another process. Run the same command again to join it."
    )
    try:
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    except optuna.exceptions.DuplicatedStudyError as error:
        raise made_meanwhile from error
    attributes = {
        FIRST: calibration.cost.to_json(),
        "hardware": calibration.hardware,
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),  # tells it from others of its name
        "target_accuracy": target_accuracy,
        FIRST_STEP: 1,
        **more,
        "config": config.to_json(),  # last: a study that has it is whole
    }
    try:
        written = time.monotonic()
        for key, value in attributes.items():
            before, written = written, time.monotonic()
            if written - before > MAKING_S:  # suspended meanwhile: it may be another one's by now
                raise made_meanwhile
            study.set_user_attr(key, value)
        publish_study(study)
    except KeyError as error:  # this process was away for so long that another one deleted what was half made
        raise made_meanwhile from error
    return study, storage


def remember_command(study: optuna.Study, command: str) -> None:
    """Adds `command` to those that the study was made by, so that its figures can name them."""
    known: list[str] = study.user_attrs.get("commands", [])
    if command and command not in known:
        study.set_user_attr("commands", [*known, command])


def typical(space: SearchSpace, limits: Limits, otherwise: Candidate = REFERENCE) -> Candidate:
    """The space's default, which trials cost about as much as, or `otherwise` where `limits` exclude that.

    Of as many classes as CIFAR-10 has: they cost nothing, and what was measured of it holds for every data set.
    """
    limits = dataclasses.replace(limits, n_classes=Limits().n_classes)
    with contextlib.suppress(InfeasibleError), told(space):
        default = space.anchors(limits).get("default")
        if default is not None:
            return space.decode(default, limits.to_decode).candidate
    return otherwise


def expected_seconds(config: StudyConfig, cost: CostModel, candidates: Sequence[Candidate]) -> float:
    """Predicted seconds of an average trial: that of `candidates`, less what pruning usually saves."""
    epochs_s = [cost.candidate_seconds(each, config.train_images, config.val_images) for each in candidates]
    return EPOCHS_SHARE[config.pruner] * config.epochs * statistics.mean(epochs_s)


def anchors(space: SearchSpace, config: StudyConfig, cost: CostModel) -> list[tuple[str, Params]]:
    """The named points that the first slots run, unrepaired under these limits."""
    clock, limits = Clock(cost, config.train_images, config.val_images), config.limits.to_decode
    usable = []
    # A network with a name of its own must be that network, not what the limits leave of it.
    unlimited = dataclasses.replace(limits, max_epoch_s=None, max_macs=None)
    with told(space):
        named = space.anchors(limits)
    for name, params in named.items():
        with contextlib.suppress(InfeasibleError), told(space, params=params):  # of a space of the user's
            decoded = space.decode(params, limits, clock)
            if name == "default" or decoded.candidate == space.decode(params, unlimited).candidate:
                usable.append((name, params))
    return usable


def refuse_impossible(
    space: SearchSpace,
    config: StudyConfig,
    cost: CostModel,
    measure: Callable[[Architecture], Measured] = lambda architecture: {},
) -> None:
    """Refuses limits that no candidate of the space can meet.

    Raises:
        UserError: Neither the default nor any of many samples meets them; names the broken limit.
    """
    clock, limits = Clock(cost, config.train_images, config.val_images), config.limits.to_decode
    rng = random.Random(config.seed)
    with told(space):
        try:
            named = space.anchors(limits).values()
        except InfeasibleError as error:
            raise UserError(f"The anchors of the space {space.name!r} meet no limits like these: {error}.") from error
        points = [*named, *(space.sample(rng) for _ in range(N_FEASIBILITY_SAMPLES))]
    broken: list[InfeasibleError] = []
    for params in points:
        try:
            with told(space, params=params):
                architecture = space.decode(params, limits, clock).candidate.architecture
            certify(architecture, config.limits, clock, measure(architecture))
            return
        except InfeasibleError as error:
            broken.append(error)
    of, own = f"of the space {space.name!r}", config.limits.own
    none = f"None of {counted(len(points), 'network')} {of} meets"
    unmet = "; ".join(filter(None, (_unmet(limit, config.limits, broken) for limit in own)))
    if unmet:
        raise UserError(f"{none} {unmet}. Name a larger bound, or another --space.")
    if own:
        raise UserError(f"{none} all limits at once; the last one has: {broken[-1]}. Relax them.")
    raise UserError(f"No candidate {of} can meet these limits; the smallest one has: {broken[-1]}. Relax them.")


def _unmet(limit: OwnLimit, limits: Limits, broken: Sequence[InfeasibleError]) -> str:
    """`limit` and the smallest figure found, if all of these networks break it; empty if not."""
    # Spaces fit networks to a limit on the size as one on the parameters.
    most = limits.to_decode.max_params
    by_params = limit.name == SIZE and most < limits.max_params
    figures = [
        size_kb(int(each.value) + most - 1) if each.name == "parameters" else each.value + limit.bound
        for error in broken
        for each in error.broken
        if each.name == limit.name or (by_params and each.name == "parameters")
    ]
    if len(figures) < len(broken):
        return ""
    typed = f"{limit.function} ({limit.name} < {limit.bound:,g})" if limit.source else f"{limit.name}={limit.bound:g}"
    return f"--limit {typed}: the smallest has {rounded(min(figures))}"
