"""The trials-per-hour benchmark at a tiny size, and that its peer trains what ours trains."""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks import trials_per_hour
from benchmarks.peers import optuna_peer
from search_spaces import get_space
from search_spaces.candidate import Candidate
from search_spaces.constraints import Limits
from search_spaces.reference import REFERENCE
from study.errors import StudyFailed, UserError
from study.model.certificate import count_params
from study.model.network import build

pytestmark = pytest.mark.slow

INDEX = {"index": optuna.distributions.IntDistribution(0, 1)}


def sampled(n: int) -> list[Candidate]:
    """The reference and `n` samples of the benchmark's space."""
    space, rng = get_space(trials_per_hour.SPACE), random.Random(0)
    return [REFERENCE, *(space.decode(space.sample(rng), Limits()).candidate for _ in range(n))]


# The peer


def test_the_peer_builds_the_network_of_a_candidate():
    seen = set()
    for candidate in sampled(12):
        ours = build(candidate.architecture, seed=0).double().eval()
        theirs = optuna_peer.define_model(candidate.to_json()["architecture"]).double().eval()
        assert sum(parameter.numel() for parameter in theirs.parameters()) == count_params(ours)
        mine, other = ours.state_dict(), theirs.state_dict()
        for name, value in mine.items():
            if value.is_floating_point():  # fresh norms are the identity, which would hide a missing one
                mine[name] = torch.rand_like(value) / (value[0].numel() if value.ndim > 1 else 1)
        ours.load_state_dict(mine)
        theirs.load_state_dict(dict(zip(other, mine.values(), strict=True)))
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        torch.testing.assert_close(theirs(images), ours(images))
        seen.update(layer["kind"] for layer in candidate.to_json()["architecture"]["layers"])
    assert seen == {"conv", "residual"}


def test_the_peer_augments_as_the_candidate_says():
    strong = {**REFERENCE.to_json()["augmentation"], "crop_padding": 4, "dropout_p": 1.0, "rotate_deg": 3.0}
    transforms = {type(t).__name__: t for t in optuna_peer.training_transform(strong).transforms}
    assert list(transforms) == [
        "Affine", "CoarseDropout", "Pad", "RandomCrop", "HorizontalFlip", "Normalize", "ToTensorV2",
    ]  # fmt: skip
    assert (transforms["Affine"].p, transforms["Affine"].rotate) == (REFERENCE.augmentation.affine_p, (-3.0, 3.0))
    assert transforms["CoarseDropout"].p == 1.0
    none = dict.fromkeys(strong, 0)
    assert len(optuna_peer.training_transform(none).transforms) == 2


def test_the_peer_leaves_nothing_out_in_silence():
    candidate: dict[str, Any] = REFERENCE.to_json()
    with pytest.raises(ValueError, match="colour"):
        optuna_peer.training_transform({**candidate["augmentation"], "colour": 0.1})
    first = candidate["architecture"]["layers"][0]
    with pytest.raises(ValueError, match="squeeze"):
        optuna_peer.define_model({**candidate["architecture"], "layers": [{**first, "squeeze": 4}]})


def test_the_peer_shares_no_code_with_the_study():
    imported = set()
    for node in ast.walk(ast.parse(trials_per_hour.PEER.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert "optuna" in imported
    assert not imported & {"study", "search_spaces", "benchmarks"}


# The benchmark


def test_both_sides_run_whole_searches(
    benchmark_options: Any, made_cifar10_source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    peer = tmp_path / "peer.py"
    peer.write_text(
        f"import runpy\nimport torchvision.datasets\n{made_cifar10_source}\n"
        f"torchvision.datasets.CIFAR10 = MadeCifar10\n"
        f"runpy.run_path({str(trials_per_hour.PEER)!r}, run_name='__main__')"
    )
    monkeypatch.setattr(trials_per_hour, "PEER", peer)
    options = benchmark_options(
        trials_per_hour, "--repeats", "1", "--trials", "2", "--epochs", "1", "--train-images", "64", "--val-images",
        "20", "--workers", "0", "--jobs", "1",
    )  # fmt: skip
    assert trials_per_hour.run(options) == 0
    record = json.loads((options.out / "trials_per_hour-cpu.json").read_text())
    reference, default = record["candidates"]
    assert reference["params"] == 175_696 != default["params"]
    for side in ("ours", "peer"):
        assert record[side]["samples"] == [pytest.approx(2 * 3600 / record["seconds"][side]["median"])]
        assert len(record["val_accuracy"][side]) == 2
        assert all(0 <= accuracy <= 1 for accuracy in record["val_accuracy"][side])
    assert record["goal"] == "2.3 times"


def complete(
    index: int, candidate: Any = "a", params: int = 100, state: TrialState = TrialState.COMPLETE
) -> FrozenTrial:
    """A trial that serves as either side's."""
    attrs = {"slot": index, "candidate": candidate, "candidate_id": "id", "params": params + index, "macs": 1}
    value = 0.5 if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, params={"index": index}, distributions=INDEX, user_attrs=attrs)


def scripted(monkeypatch: pytest.MonkeyPatch, runs: list[tuple[float, list[FrozenTrial]]]) -> None:
    """Commands that take and leave what `runs` says, in turns ours and the peer's."""
    left = iter(runs)
    found: list[list[FrozenTrial]] = []

    def seconds(_: Any) -> float:
        wall_s, trials = next(left)
        found.append(trials)
        return wall_s

    monkeypatch.setattr(trials_per_hour, "seconds", seconds)
    monkeypatch.setattr(trials_per_hour, "trials", lambda *_: found[-1])


def test_a_rate_is_trials_by_the_wall_time_of_the_whole_command(
    benchmark_options: Any, monkeypatch: pytest.MonkeyPatch
):
    both = [complete(1), complete(0)]  # with several jobs ours are not stored in the order of their slots
    ordered = [complete(0), complete(1)]
    walls = (36.0, 72.0, 18.0, 90.0, 72.0, 144.0)
    scripted(monkeypatch, [(wall, ordered if turn % 2 else both) for turn, wall in enumerate(walls)])
    options = benchmark_options(trials_per_hour, "--trials", "2", "--jobs", "1")
    trials_per_hour.run(options)
    record = json.loads((options.out / "trials_per_hour-cpu.json").read_text())
    assert record["ours"]["samples"] == [200, 400, 100]
    assert record["peer"]["samples"] == [100, 80, 50]
    assert record["ratio"] == 2.5


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([[complete(0), complete(1, state=TrialState.FAIL)]], "complete 2 trials.*FAIL"),
        ([[complete(0)]], "complete 2 trials"),
        ([[complete(0), complete(1)], [complete(0), complete(1, state=TrialState.PRUNED)]], "peer.*PRUNED"),
        ([[complete(0), complete(1)], [complete(0), complete(1, params=99)]], "candidate 1 has 101.*100"),
        ([[complete(0), complete(1)], [complete(1), complete(0)]], "same network"),
        ([[complete(0), complete(1)]] * 2 + [[complete(0), complete(1, "b")]], "other candidates"),
    ],
)
def test_unequal_work_is_refused(
    benchmark_options: Any, monkeypatch: pytest.MonkeyPatch, runs: list[list[FrozenTrial]], message: str
):
    scripted(monkeypatch, [(1.0, trials) for trials in runs])
    options = benchmark_options(trials_per_hour, "--trials", "2", "--repeats", "2", "--jobs", "1")
    with pytest.raises(StudyFailed, match=message):
        trials_per_hour.run(options)
    assert not options.out.exists()


def test_a_command_that_fails_is_told_with_its_words(made_cifar10: Path):
    with pytest.raises(RuntimeError, match="no such thing"):
        trials_per_hour.seconds(["sh", "-c", "echo no such thing >&2; exit 3"])


@pytest.mark.parametrize(
    "words", [("--repeats", "0"), ("--jobs", "0"), ("--jobs", "9999"), ("--train-images", "46000")]
)
def test_options_that_cannot_be_meant_are_refused(benchmark_options: Any, words: tuple[str, str]):
    with pytest.raises(UserError, match=words[0]):
        trials_per_hour.run(benchmark_options(trials_per_hour, *words))
