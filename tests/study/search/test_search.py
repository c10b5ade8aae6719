"""Pruning as a table of stops, samplers that a restart cannot change, and seeds."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import optuna
import pytest
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState
from stage import Stage

from search_spaces import DEFAULT_SPACE, SPACES, SearchSpace, get_space
from search_spaces.constraints import Limits
from search_spaces.space import Real
from study.errors import UserError
from study.search.plan import PRUNERS, SAMPLERS
from study.search.pruning import Judge, compared_epochs, default_pruner, make_pruner
from study.search.sampling import (
    CHANGED_SHARE,
    FORGOTTEN_AT_ONCE,
    MAX_COMPARED,
    N_BEST,
    N_STARTUP_TRIALS,
    Draws,
    check_names,
    compared,
    distributions,
    fixed_sampler,
    make_sampler,
    neighbour,
    sampler_seed,
    training_seed,
)
from study.storage.database import finished_trials, open_storage, storage_of
from study.storage.known import KnownTrials
from study.storage.slots import SlotTable

SPACE = get_space(DEFAULT_SPACE)

EPOCHS = 9  # the first three never prune

LIVE: dict[str, list[float]] = {
    # the live trial's curve, scripted as its validation accuracy after each epoch
    "best": [0.30, 0.45, 0.60, 0.70, 0.76, 0.80, 0.84, 0.86, 0.88],
    "good": [0.20, 0.35, 0.48, 0.575, 0.64, 0.685, 0.72, 0.745, 0.765],
    "middling": [0.18, 0.30, 0.43, 0.53, 0.58, 0.62, 0.65, 0.67, 0.69],
    "hopeless": [0.10, 0.10, 0.10, 0.10, 0.10, 0.10, 0.10, 0.10, 0.10],
    "fades late": [0.30, 0.45, 0.60, 0.70, 0.60, 0.40, 0.30, 0.20, 0.10],
}

# Epoch, from zero, after which the live trial is pruned; None: it runs to its end.
STOPS: dict[str, dict[str, int | None]] = {
    "percentile": {"best": None, "good": 3, "middling": 3, "hopeless": 3, "fades late": 6},
    "median": {"best": None, "good": None, "middling": 3, "hopeless": 3, "fades late": 7},
    "halving": {"best": None, "good": 3, "middling": 3, "hopeless": 3, "fades late": None},
    "hyperband": {"best": None, "good": 3, "middling": 3, "hopeless": 3, "fades late": None},
    "none": {"best": None, "good": None, "middling": None, "hopeless": None, "fades late": None},
}


def history_curve(rank: int) -> list[float]:
    """One of eight finished trials, the better the higher the rank: at every epoch 0.01 apart."""
    shape = [0.20, 0.34, 0.48, 0.58, 0.63, 0.67, 0.70, 0.72, 0.74]
    return [value + 0.01 * (rank - 5) for value in shape]


def run_live(study: optuna.Study, curve: list[float], first_step: int = 0) -> int | None:
    """Reports a curve as a trial does and returns the epoch after which it is pruned."""
    trial = study.ask()
    for epoch, value in enumerate(curve):
        trial.report(value, first_step + epoch)
        if epoch + 1 < len(curve) and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return epoch
    study.tell(trial, curve[-1])
    return None


def study_with_history(pruner: str, n_history: int = 8, first_step: int = 0) -> optuna.Study:
    # The name decides Hyperband's brackets.
    study = optuna.create_study(
        direction="maximize", study_name="table", pruner=make_pruner(pruner, EPOCHS, first_step)
    )
    rung = EPOCHS // 2 - 1 if pruner == "halving" else EPOCHS // 3
    for rank in range(n_history):
        curve = history_curve(rank)
        study.add_trial(
            optuna.create_trial(
                value=curve[-1],
                intermediate_values=dict(enumerate(curve, first_step)),
                system_attrs={"completed_rung_0": curve[rung]},  # as the halving pruners write it
            )
        )
    return study


@pytest.mark.parametrize("first_step", [0, 1])
@pytest.mark.parametrize(("pruner", "curve"), list(product(PRUNERS, LIVE)))
def test_a_scripted_curve_is_pruned_after_the_expected_epoch(pruner: str, curve: str, first_step: int) -> None:
    """Older studies count epochs from zero, as Optuna does."""
    study = study_with_history(pruner, first_step=first_step)
    assert run_live(study, LIVE[curve], first_step) == STOPS[pruner][curve]


@pytest.mark.parametrize("pruner", ["percentile", "median"])
def test_nothing_is_pruned_before_five_trials_are_complete(pruner: str) -> None:
    assert run_live(study_with_history(pruner, 4), LIVE["hopeless"]) is None
    assert run_live(study_with_history(pruner, 5), LIVE["hopeless"]) == 3


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("epochs", [1, 2, 3, 6, 16])
def test_no_schedule_prunes_in_its_first_third(pruner: str, epochs: int) -> None:
    study = optuna.create_study(direction="maximize", study_name="warmup", pruner=make_pruner(pruner, epochs))
    stops = [run_live(study, [(0.9 if rank < 6 else 0.1)] * epochs) for rank in range(12)]
    first = max(1, epochs // 2 - 1 if pruner == "halving" else epochs // 3)
    assert all(stop is None or stop >= first for stop in stops)
    if pruner in ("percentile", "median") and epochs >= 3:
        assert stops[-1] == epochs // 3  # the bad ones do go, at the first chance
    if pruner == "halving" and epochs >= 3:
        assert stops[-1] == first
    if pruner == "none" or epochs == 1:
        assert stops == [None] * 12


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("epochs", [1, 2, 3, 6, 9, 16, 30, 70])
@pytest.mark.parametrize("first_step", [0, 1])
def test_only_compared_epochs_decide(pruner: str, epochs: int, first_step: int) -> None:
    """Curves whose other epochs are made up lead to the same stops as true ones."""
    compared = compared_epochs(pruner, epochs)
    assert (compared is None) == (pruner != "halving")
    kept = set(range(epochs) if compared is None else compared)
    assert max(kept) == epochs - 1
    rng = random.Random(0)
    true = [[rng.random()] * epochs for _ in range(60)]
    made_up = [[value if epoch in kept else rng.random() for epoch, value in enumerate(curve)] for curve in true]
    found = []
    for curves in (true, made_up):
        made = make_pruner(pruner, epochs, first_step)
        study = optuna.create_study(direction="maximize", study_name="compared", pruner=made)
        found.append([run_live(study, curve, first_step) for curve in curves])
    assert found[0] == found[1]
    stops = {stop for stop in found[0] if stop is not None}
    if compared is not None:
        assert stops == set(compared[:-1])  # and every one of them does decide something


def test_halving_compares_after_a_half() -> None:
    assert compared_epochs("halving", 6) == (2, 5)
    assert compared_epochs("halving", 16) == (7, 15)
    assert compared_epochs("halving", 1) == (0,)


# A slot of a study in miniature, with made values instead of training.


def value_of(params: dict[str, Any]) -> float:
    return float(0.5 * params["budget_frac"] + 0.1 * params["residual"] - params["weight_decay"])


def run_slot(study: optuna.Study, sampler: str, slot: int, attempt: int = 0, fail: bool = False) -> dict[str, Any]:
    """As a supervisor that was started for this slot draws it."""
    params = Draws(SPACE, sampler).draw(finished_trials(study), sampler_seed(7, slot, attempt))
    study.sampler = fixed_sampler(params)
    trial = study.ask(distributions(SPACE))
    assert trial.params == params
    trial.set_user_attr("slot", slot)
    trial.set_user_attr("candidate", {})
    if fail:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value_of(params))
    return params


def new_study(**options: Any) -> optuna.Study:
    return optuna.create_study(direction="maximize", study_name="slots", **options)


N_SLOTS = N_STARTUP_TRIALS + 4  # the last four come from the model, not from chance


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, list[dict[str, Any]]]:
    found = {}
    for sampler, n_slots in (("anchored", N_SLOTS), ("tpe", N_SLOTS), ("random", N_SLOTS), ("gp", 3)):
        study = new_study()
        found[sampler] = [run_slot(study, sampler, slot) for slot in range(n_slots)]
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_draws_the_same_parameters(sampler: str, uninterrupted: dict[str, list[dict[str, Any]]]) -> None:
    study = new_study()
    again = [run_slot(study, sampler, slot) for slot in range(len(uninterrupted[sampler]))]
    assert again == uninterrupted[sampler]
    assert len({repr(params) for params in again}) == len(again)


@pytest.mark.parametrize("stop_after", [3, N_STARTUP_TRIALS + 2])
def test_tpe_draws_the_same_after_a_restart(stop_after: int, uninterrupted: dict[str, list[dict[str, Any]]]) -> None:
    storage = optuna.storages.InMemoryStorage()
    study = new_study(storage=storage)
    drawn = [run_slot(study, "tpe", slot) for slot in range(stop_after)]
    # The slot at work when the run was stopped leaves a failed trial; trial numbers shift by one.
    lost = run_slot(study, "tpe", stop_after, fail=True)
    study = optuna.load_study(study_name="slots", storage=storage)
    drawn += [run_slot(study, "tpe", slot) for slot in range(stop_after, N_SLOTS)]
    assert drawn == uninterrupted["tpe"]
    assert drawn[stop_after] == lost


def test_the_model_is_used_after_the_startup_trials(
    uninterrupted: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the restart test above would compare independent draws only.
    chance, model = uninterrupted["random"], uninterrupted["tpe"]
    n_calls = 0
    sample = optuna.samplers.TPESampler._sample

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        return sample(*args, **kwargs)

    monkeypatch.setattr(optuna.samplers.TPESampler, "_sample", count)
    study = new_study()
    for slot in range(N_STARTUP_TRIALS):
        run_slot(study, "tpe", slot)
    assert n_calls == 0
    run_slot(study, "tpe", N_STARTUP_TRIALS)
    assert n_calls > 0
    assert chance[N_STARTUP_TRIALS:] != model[N_STARTUP_TRIALS:]


@pytest.mark.parametrize("name", SPACES)
def test_neighbours_share_most_dimensions_with_the_default(name: str) -> None:
    space = get_space(name)
    default = space.anchors(Limits())["default"]
    found = [neighbour(space, default, seed) for seed in range(200)]
    assert found[7] == neighbour(space, default, 7)
    assert len({repr(params) for params in found}) > 0.98 * len(found)
    assert all(list(params) == list(space.dimensions) for params in found)
    assert all(space.dimensions[key].contains(value) for params in found for key, value in params.items())
    reals = [key for key, dimension in space.dimensions.items() if isinstance(dimension, Real)]
    changed = sum(params[key] != default[key] for params in found for key in reals) / (len(found) * len(reals))
    assert changed == pytest.approx(CHANGED_SHARE, abs=0.03)
    assert all(any(params[key] != default[key] for params in found) for key in space.dimensions)


def test_a_new_attempt_draws_something_else() -> None:
    assert run_slot(new_study(), "tpe", 2) != run_slot(new_study(), "tpe", 2, attempt=1)


def fixed_points() -> list[tuple[str, Any]]:
    points = []
    for name in SPACES:
        space = get_space(name)
        points += [(name, params) for params in space.anchors(Limits()).values()]
        points += [(name, space.sample(random.Random(seed))) for seed in range(3)]
    return points


def test_fixed_parameters_are_returned_exactly() -> None:
    for name, params in fixed_points():
        space = get_space(name)
        study = new_study(sampler=fixed_sampler(params))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna only warns of a value outside its distribution
            drawn = study.ask(distributions(space)).params
        assert drawn == dict(params)
        assert list(drawn) == list(space.dimensions)
        assert {name: type(value) for name, value in drawn.items()} == {
            name: type(value) for name, value in params.items()
        }


def test_fixed_parameters_come_back_from_the_storage_unchanged(tmp_path: Path) -> None:
    study = new_study(storage=open_storage(f"sqlite:///{tmp_path / 'study.db'}"))
    drawn = run_slot(study, "tpe", 0)
    study.sampler = fixed_sampler(study.trials[0].params)
    assert study.ask(distributions(SPACE)).params == drawn


@pytest.mark.parametrize("name", SPACES)
def test_every_parameter_has_one_fixed_distribution(name: str) -> None:
    space = get_space(name)
    assert list(distributions(space)) == list(space.dimensions)
    study = new_study(sampler=make_sampler("random", 0))
    for _ in range(5):
        study.tell(study.ask(distributions(space)), 0.5)
    assert set(optuna.search_space.intersection_search_space(study.trials)) == set(space.dimensions)
    for trial in study.trials:
        assert all(space.dimensions[name].contains(value) for name, value in trial.params.items())


@pytest.mark.parametrize(
    "seed_of",
    [
        pytest.param(lambda base, slot, attempt: sampler_seed(base, slot, attempt), id="sampler"),
        pytest.param(lambda base, slot, attempt: training_seed(base, slot + 1000 * attempt), id="training"),
    ],
)
def test_seeds_differ_and_fit_every_generator(seed_of: Callable[[int, int, int], int]) -> None:
    seeds = [seed_of(*key) for key in product(range(3), range(200), range(3))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seeds == [seed_of(*key) for key in product(range(3), range(200), range(3))]


def test_a_training_seed_does_not_depend_on_the_attempt_and_fits_31_bits() -> None:
    assert training_seed(0, 5) != training_seed(0, 6) != sampler_seed(0, 6, 0)
    assert all(0 <= training_seed(base, slot) < 2**31 for base, slot in product(range(3), range(200)))


@pytest.mark.parametrize("pruner", [name for name in PRUNERS if name != "none"])
def test_the_gaussian_process_is_refused_with_a_pruner(pruner: str) -> None:
    with pytest.raises(UserError, match=f"--sampler gp .* needs --pruner none: --pruner {pruner}"):
        check_names("gp", pruner)


def test_every_other_combination_is_allowed() -> None:
    for sampler, pruner in product(("tpe", "random"), PRUNERS):
        check_names(sampler, pruner)
    check_names("gp", "none")
    for sampler in SAMPLERS:
        check_names(sampler, default_pruner(sampler))  # what a study gets that names no pruner


# Draws in a copy of the study


def test_draws_are_those_of_a_fresh_sampler_on_the_study_itself() -> None:
    """Over slots, with pruned and failed trials and one that runs beside them."""
    draws = Draws(SPACE, "tpe")
    study = optuna.create_study(direction="maximize")
    rng, beside = random.Random(0), None
    for slot in range(40):
        drawn = draws.draw(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)), 1000 + slot)
        study.sampler = make_sampler("tpe", 1000 + slot)
        trial = study.ask(distributions(SPACE))
        assert trial.params == drawn, slot
        value = rng.random()
        trial.report(value, 0)
        if slot % 7 == 3:
            study.tell(trial, state=TrialState.FAIL)
        elif slot % 3 == 1:
            study.tell(trial, state=TrialState.PRUNED)
        elif slot % 5 == 0:  # ends one slot later, as with two workers
            if beside is not None:
                study.tell(*beside)
            beside = (trial, value)
        else:
            study.tell(trial, value)


def many(n: int) -> list[FrozenTrial]:
    """Trials of a study in one dimension; the best is the first, every third was pruned."""
    study = optuna.create_study(direction="maximize")
    x = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for number in range(n):
        value, state = 1.0 - number / n, TrialState.PRUNED if number % 3 == 2 else TrialState.COMPLETE
        trial = optuna.create_trial(
            state=state, params={"x": value}, distributions=x, value=None if state == TrialState.PRUNED else value
        )
        study.add_trial(trial)
    return study.get_trials(deepcopy=False)


def test_of_many_trials_the_best_and_the_newest_are_compared() -> None:
    trials = many(MAX_COMPARED + 2 * FORGOTTEN_AT_ONCE)
    assert compared(trials[:MAX_COMPARED]) == trials[:MAX_COMPARED]
    for n in (MAX_COMPARED + 1, MAX_COMPARED + FORGOTTEN_AT_ONCE):
        seen = compared(trials[:n])
        assert len(seen) == N_BEST + n - FORGOTTEN_AT_ONCE <= MAX_COMPARED + N_BEST
        assert seen[N_BEST:] == trials[FORGOTTEN_AT_ONCE:n]
        assert [trial.number for trial in seen[:N_BEST]] == [i for i in range(2 * N_BEST) if i % 3 != 2][:N_BEST]


def test_a_restart_does_not_change_what_is_drawn_from_many_trials() -> None:
    class Line:
        dimensions: ClassVar = {"x": Real(0.0, 1.0)}

    trials = many(MAX_COMPARED + 8)
    going_on = Draws(cast(SearchSpace, Line()), "tpe")
    for n in range(MAX_COMPARED - 4, MAX_COMPARED + 8, 2):  # over the edge where old ones are forgotten
        drawn = going_on.draw(trials[:n], n)
        assert drawn == Draws(cast(SearchSpace, Line()), "tpe").draw(trials[:n], n)
        assert 0 <= drawn["x"] <= 1


# Trials that were cut off


def test_a_trial_that_was_cut_off_after_the_rung_counts_once() -> None:
    study = optuna.create_study(direction="maximize", pruner=make_pruner("halving", 6))
    nobody: Any = SimpleNamespace(n_finished=lambda: 0)
    known = KnownTrials(study, cast(Any, storage_of(study)), nobody)
    judge = Judge(study, known)
    [rung, _] = cast(tuple[int, ...], compared_epochs("halving", 6))

    def reach(value: float, end: TrialState | None) -> bool:
        trial = study.ask()
        for epoch in range(rung + 1):
            trial.report(value, epoch)
        prune = judge(trial.number)
        if end is not None:
            study.tell(trial, value if end == TrialState.COMPLETE else None, state=end)
            known.read(trial.number)
        return prune

    for value in (0.1, 0.2, 0.3):
        reach(value, TrialState.PRUNED if value < 0.3 else TrialState.COMPLETE)
    for _ in range(20):  # a good one is killed again and again after the rung
        assert not reach(0.5, TrialState.FAIL)
    assert not reach(0.4, None)  # the best of four that live; with each of them counted it would be behind twenty
    assert reach(0.2, None)


def test_a_trial_that_failed_for_good_counts_on_no_rung(stage: Stage) -> None:
    stage.skip_anchors()
    supervisor = stage.supervisor([], stage.n_anchors + 1)
    claim = stage.slots.claim(stage.n_anchors + 1)
    assert claim is not None
    asked = stage.asker().ask(claim)
    stage.known.read(asked.trial.number)
    supervisor._teller.infeasible(asked)
    assert asked.trial.number not in [trial.number for trial in supervisor._judge.get_trials()]


def test_a_storage_that_does_not_answer_changes_no_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(direction="maximize", pruner=make_pruner("halving", 6))
    known = KnownTrials(study, cast(Any, storage_of(study)), cast(Any, SimpleNamespace(n_finished=lambda: 0)))
    judge = Judge(study, known)
    [rung, _] = cast(tuple[int, ...], compared_epochs("halving", 6))

    def reach(value: float) -> int:
        trial = study.ask()
        for epoch in range(rung + 1):
            trial.report(value, epoch)
        return trial.number

    for value in (0.5, 0.6, 0.7):
        assert not judge(reach(value))
    number, read, reads = reach(0.1), known.read, list[int]()

    def unsteady(which: int) -> FrozenTrial:
        reads.append(which)
        if len(reads) == 2:  # what the pruner noted is stored by then
            raise optuna.exceptions.StorageInternalError
        return read(which)

    monkeypatch.setattr(known, "read", unsteady)
    with pytest.raises(optuna.exceptions.StorageInternalError):
        judge(number)
    assert judge(number)  # the worst of four


# What a supervisor knows without asking the storage


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_pruner_decides_as_if_it_had_read_every_trial(pruner: str, tmp_path: Path) -> None:
    """The same trials, many under way at once, in two studies: Optuna's own way and ours."""

    def stops(file: str, ours: bool) -> list[tuple[int, int]]:
        storage = open_storage(f"sqlite:///{tmp_path / file}")
        study = optuna.create_study(
            study_name="judged", storage=storage, direction="maximize", pruner=make_pruner(pruner, 6)
        )
        known = KnownTrials(study, storage, SlotTable(study, storage))
        judge, rng, found = Judge(study, known), random.Random(0), []
        for _ in range(3):
            trials = [known.create(optuna.create_trial(state=TrialState.RUNNING)) for _ in range(8)]
            for epoch in range(6):
                for trial in list(trials):
                    trial.report(rng.random(), epoch)
                    if epoch < 5 and (judge(trial.number) if ours else trial.should_prune()):
                        found.append((trial.number, epoch))
                        trials.remove(trial)
                        study.tell(trial, state=TrialState.PRUNED)
                        known.read(trial.number)
            for trial in trials:
                study.tell(trial, rng.random())
                known.read(trial.number)
        return found

    found = stops("ours.db", True)
    assert found == stops("optuna.db", False)
    assert bool(found) == (pruner != "none")


def test_trials_are_read_again_only_when_another_process_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, n_read = f"sqlite:///{tmp_path}/study.db", 0
    storage = open_storage(url)
    study = optuna.create_study(study_name="shared", storage=storage, direction="maximize")
    slots = SlotTable(study, storage)
    known = KnownTrials(study, storage, slots)
    monkeypatch.setattr("study.storage.known.REFRESH_S", 0.0)
    everything = study.get_trials

    def counted(*args: Any, **kwargs: Any) -> list[FrozenTrial]:
        nonlocal n_read
        n_read += 1
        return everything(*args, **kwargs)

    monkeypatch.setattr(study, "get_trials", counted)

    def finish_one(study: optuna.Study, slots: SlotTable) -> int:
        claim = slots.claim(10)
        assert claim is not None
        attributes = {"slot": claim.slot, "candidate": {}}
        study.add_trial(optuna.create_trial(value=0.5, user_attrs=attributes))
        slots.finish(claim)
        return claim.slot

    known.read(finish_one(study, slots))
    assert [trial.number for trial in known.finished()] == [0]
    assert n_read == 0
    other = optuna.load_study(study_name="shared", storage=open_storage(url))
    finish_one(other, SlotTable(other, open_storage(url)))
    assert [trial.number for trial in known.finished()] == [0, 1]
    assert [trial.number for trial in known.get_trials(states=(TrialState.COMPLETE,))] == [0, 1]
    assert n_read == 1


def test_a_sampler_that_knows_its_parameters_draws_what_it_drew_without() -> None:
    study, common = optuna.create_study(direction="maximize"), IntersectionSearchSpace(include_pruned=True)
    space = distributions(get_space(DEFAULT_SPACE))
    for seed in range(16):
        draws = []
        for sampler in (
            make_sampler("tpe", seed, common),
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS),
        ):
            study.sampler = sampler
            trial = study.ask(space)
            draws.append(trial.params)
            study.tell(trial, state=TrialState.FAIL)
        assert draws[0] == draws[1]
        study.add_trial(optuna.create_trial(params=draws[0], distributions=space, value=random.Random(seed).random()))
