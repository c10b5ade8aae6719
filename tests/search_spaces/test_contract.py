"""What every registered space promises, whatever it searches."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest
import torch

from search_spaces import DEFAULT_SPACE, SPACES, UnknownSpaceError, get_space
from search_spaces.candidate import Augmentation, Candidate, Optimisation
from search_spaces.constraints import Clock, InfeasibleError, Limits
from search_spaces.dilated import DilatedSpace
from search_spaces.reference import REFERENCE_ARCHITECTURE
from search_spaces.space import Decoded, Params, SearchSpace
from search_spaces.training_dimensions import TRAINING_DIMENSIONS
from study.machine.paths import REPOSITORY
from study.model.contract import PROMISES, complaint_of, sampled
from study.model.layers import ResidualBlock

SLOW = {"whether limits can be met does not depend on the sample": pytest.mark.slow}
"""A study checks its limits once, on an anchor; no later sample may then turn out infeasible."""


@pytest.fixture(params=sorted(SPACES))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return get_space(request.param)


def test_unknown_space_is_named_with_those_that_exist() -> None:
    with pytest.raises(UnknownSpaceError, match=f"'nonsense'.*{DEFAULT_SPACE}"):
        get_space("nonsense")


@pytest.mark.parametrize("promise", [pytest.param(each, marks=SLOW.get(each, ())) for each in PROMISES])
def test_promise(space: SearchSpace, promise: str) -> None:
    assert SPACES[space.name] is type(space)
    assert complaint_of(space, promise) == ""


@pytest.mark.slow
def test_a_limit_that_only_some_samples_meet_breaks_a_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = DilatedSpace.decode

    def moody(space: DilatedSpace, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        if limits.max_params < 4_000 and params["budget_frac"] < 0.7:
            raise InfeasibleError([])
        return decode(space, params, limits, clock)

    monkeypatch.setattr(DilatedSpace, "decode", moody)
    promise = "whether limits can be met does not depend on the sample"
    assert "some samples decode and others do not" in complaint_of(DilatedSpace(), promise)


def test_weights_that_never_learn_break_a_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(block: ResidualBlock) -> None:
        for weight in block.body.parameters():
            torch.nn.init.zeros_(weight)

    monkeypatch.setattr(ResidualBlock, "start_as_identity", die)
    promise = "a step of training lowers the loss"
    assert "has weights that never learn: " in complaint_of(get_space("dilated"), promise)


def test_the_same_seed_gives_the_same_ids_in_another_process(space: SearchSpace) -> None:
    """Ids are stored and compared across runs: nothing in them may depend on Python's hash seed."""
    code = (
        "import random; from search_spaces import get_space; from search_spaces.constraints import Limits\n"
        f"space, rng = get_space({space.name!r}), random.Random(3)\n"
        "print(*(space.decode(space.sample(rng), Limits()).candidate.candidate_id for _ in range(5)))"
    )
    there = _python(code).split()
    rng = random.Random(3)
    here = [space.decode(space.sample(rng), Limits()).candidate.candidate_id for _ in range(5)]
    assert there == here


def test_default_limits_need_only_small_repairs() -> None:
    """Simplifying is for limits that hurt: here it would silently narrow what is searched."""
    space, rng = get_space("dilated"), random.Random(9)
    repairs = [space.decode(space.sample(rng), Limits()).repairs for _ in range(300)]
    assert sum(bool(found) for found in repairs) < 0.25 * 300
    assert sum("width ratios lowered to 1" in found for found in repairs) < 0.07 * 300
    kinds = {repair.partition(" (")[0] for found in repairs for repair in found}
    assert kinds <= {"last unit of stage 2 made separable", "dilations", "width ratios lowered to 1"}


def test_samples_of_the_published_space_stay_what_they_were() -> None:
    space, rng = get_space("dilated"), random.Random(0)
    found = [space.decode(space.sample(rng), Limits()).candidate.candidate_id for _ in range(3)]
    assert found == ["3d07f155309b", "cb880ac66a64", "35e74b703b1b"]


def test_spaces_share_the_dimensions_of_training(space: SearchSpace) -> None:
    names = [name for name in TRAINING_DIMENSIONS if name != "batch_size" or space.name != "best"]  # which fixes it
    assert list(space.dimensions)[-len(names) :] == names
    assert all(space.dimensions[name] == TRAINING_DIMENSIONS[name] for name in names)
    assert space.dimensions.keys() & TRAINING_DIMENSIONS.keys() == set(names)


@pytest.mark.parametrize("name", ["best", "multiscale", "separable"])
def test_new_spaces_are_rarely_simplified_under_the_default_limits(name: str) -> None:
    space, rng = get_space(name), random.Random(9)
    repairs = [space.decode(space.sample(rng), Limits()).repairs for _ in range(200)]
    kinds = [repair.partition(" (")[0] for found in repairs for repair in found]
    assert set(kinds) <= {"dilations", "dilations inside the map", "width ratios lowered to 1"}
    assert kinds.count("width ratios lowered to 1") < 0.05 * 200


def test_half_of_the_samples_reduce_by_dilation() -> None:
    n_dilated = sum(a.n_dilated_reductions > 0 for a in sampled(get_space("dilated"), Limits(), 600, seed=5))
    assert 0.42 < n_dilated / 600 < 0.58


def test_search_spaces_need_neither_torch_nor_optuna() -> None:
    code = (
        "import sys, search_spaces, search_spaces.cost, search_spaces.reference\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(*sorted(loaded & {'torch', 'optuna', 'numpy', 'joblib', 'study'}))"
    )
    assert _python(code).split() == []


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def test_candidates_without_what_came_later_keep_their_ids() -> None:
    """The reference network was trained before there was a choice of optimizer, colour or mixup."""
    light = Augmentation(crop_padding=0, affine_p=0.5, shift_frac=0.1, scale_frac=0.1, rotate_deg=10.0, dropout_p=0.25)
    candidate = Candidate(REFERENCE_ARCHITECTURE, light, Optimisation(lr=0.1, batch_size=128, weight_decay=5e-4))
    assert candidate.candidate_id == "ce05d1e08130"
    stored = candidate.to_json()
    assert Candidate.from_json(stored) == candidate
    assert not {"optimizer", "small_images"} & set(stored["optimisation"])
    assert not {"colour_p", "colour_strength", "sharpen_p", "mixup"} & set(stored["augmentation"])


class WideSpace(DilatedSpace):
    """Forgets the limits, and one of its dimensions in the tree."""

    name, tree = "wide", "wide: nothing"

    def decode(self, params: Params, limits: Limits, clock: Clock | None = None) -> Decoded:
        return super().decode(params, Limits(), clock)


@pytest.mark.parametrize(
    ("promise", "words"),
    [
        ("dimensions are fixed and stand in the tree", "budget_frac is not in the tree"),
        ("anchors decode as they are", r"InfeasibleError: .* parameters, not below 100,000"),
        ("odd limits are met", r"InfeasibleError: .* parameters, not below 5,000"),
        ("limits that nothing meets are named", "returns a candidate that breaks parameters"),
    ],
)
def test_a_broken_promise_is_named(promise: str, words: str) -> None:
    assert re.search(words, complaint_of(WideSpace(), promise))
