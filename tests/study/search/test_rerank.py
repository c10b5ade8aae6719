"""Re-ranking: the best candidates, each with two settings, in a study of their own; its winner is retrained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from search_spaces.candidate import Candidate
from search_spaces.training_dimensions import (
    LONG_AUGMENTATION,
    LONG_PASSES,
    SMALL_IMAGES,
    lengthened,
    regularised,
    with_small_images,
)
from study import rerank, retrain, run
from study.errors import UserError
from study.search import reranking
from study.search.plan import SearchPlan
from study.search.reranking import best_candidates
from study.storage.database import best_trial, candidate_of, config_of, open_storage, open_study

pytestmark = pytest.mark.slow

TINY = ("--train-images", "200", "--val-images", "100", "--device", "cpu", "--jobs", "1")


@pytest.fixture(scope="module")
def _searched(_made_cifar10: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searched") / "study"
    arguments = ["--trials", "4", *TINY, "--epochs", "1", "--pruner", "none", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _made_cifar10.items():
            patch.setenv(name, value)
        assert run.main(arguments) == 0
    return out


@pytest.fixture
def searched(_searched: Path, made_cifar10: Path, tmp_path: Path) -> Path:
    """The folder of a study of four trials, the test's own."""
    return Path(shutil.copytree(_searched, tmp_path / "study"))


def opened(out: Path, name: str = "dilated") -> optuna.Study:
    return open_study(f"sqlite:///{out / 'study.db'}", name)


def ids(study: optuna.Study, name: str = "candidate_id") -> list[str]:
    return [trial.user_attrs[name] for trial in study.get_trials(deepcopy=False)]


def as_trained(trial: FrozenTrial) -> str:
    """The id of its candidate with the light setting, on a CPU."""
    return with_small_images(candidate_of(trial)).candidate_id


def test_the_best_are_trained_again_as_they_were(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--top", "2", "--epochs", "2", "--out", str(searched)]
    assert rerank.main(command) == 0
    source, found = opened(searched), opened(searched, "dilated-rerank")
    best = sorted(source.get_trials(), key=lambda trial: (-trial.value, trial.number))
    names = [f"trial {trial.number}, {setting}" for trial in best[:2] for setting in ("light", "strong")]
    assert [trial.user_attrs["anchor"] for trial in found.trials] == names
    assert ids(found)[::2] == [as_trained(trial) for trial in best[:2]]
    assert ids(found, "architecture_id") == [t.user_attrs["architecture_id"] for t in best[:2] for _ in range(2)]
    assert [len(trial.intermediate_values) for trial in found.trials] == [2, 2, 2, 2]
    assert len(source.trials) == 4  # not counted among them
    config = config_of(found)
    assert (config.epochs, config.pruner, config.limits.max_epoch_s) == (2, "none", None)
    assert (searched / "rerank" / "report.html").exists()
    shown = capsys.readouterr().out
    assert f"Next:   python -m study.retrain --device cpu --out {searched}" in shown
    assert f"candidates  {'; '.join(names)}" in shown
    assert "for 4 more trials" in shown
    assert (
        f"Layers of {dict(zip(ids(found), names, strict=True))[best_trial(found).user_attrs['candidate_id']]}" in shown
    )

    # The same command has nothing left to do, until the search went on and found a better one: that is added, once.
    assert rerank.main(command) == 0
    assert len(opened(searched, "dilated-rerank").trials) == 4
    storage = open_storage(f"sqlite:///{searched / 'study.db'}")
    search = optuna.load_study(study_name="dilated", storage=storage)
    for slot, (like, value) in enumerate(((best[3], 1.0), (best[0], 0.99)), 4):  # the other one is known
        search.add_trial(
            optuna.create_trial(
                value=value,
                params=like.params,
                distributions=like.distributions,
                user_attrs={**like.user_attrs, "slot": slot},
                system_attrs=like.system_attrs,
            )
        )
    for _ in range(2):
        assert rerank.main([*TINY, "--out", str(searched)]) == 0
        found = opened(searched, "dilated-rerank")
        assert [given["trial"] for given in found.user_attrs["given"][4:]] == [4, 4]
        assert ids(found)[4::2] == [as_trained(best[3])]

    # A larger --top adds the next best.
    assert rerank.main([*TINY, "--top", "4", "--settings", "light", "--out", str(searched)]) == 0
    assert ids(opened(searched, "dilated-rerank"))[6:] == [as_trained(best[2])]


def test_one_as_long_as_the_trials_repeats_them(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of a GPU are so long that by their length alone they would be augmented more."""
    monkeypatch.setattr("study.search.reranking.lengthened", lambda augmentation, n: lengthened(augmentation, 5000 * n))
    assert rerank.main([*TINY, "--top", "2", "--epochs", "1", "--settings", "light", "--out", str(searched)]) == 0
    source = opened(searched)
    best = sorted(source.get_trials(), key=lambda trial: (-trial.value, trial.number))
    assert ids(opened(searched, "dilated-rerank")) == [trial.user_attrs["candidate_id"] for trial in best[:2]]


def test_one_from_before_there_were_settings_goes_on(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its trainings are light ones, and so are those that a larger --top adds; --settings adds the others."""
    command = [*TINY, "--epochs", "2", "--out", str(searched)]
    assert rerank.main([*command, "--top", "1", "--settings", "light"]) == 0
    found = opened(searched, "dilated-rerank")
    number = found.user_attrs["given"][0]["trial"]
    older = [{**given, "name": f"trial {number}"} for given in found.user_attrs["given"]]
    older[0].pop("setting")
    storage = open_storage(f"sqlite:///{searched / 'study.db'}")
    found = optuna.load_study(study_name=found.study_name, storage=storage)
    found.set_user_attr("given", older)
    found.set_user_attr("small_images", False)  # as that they were not known then
    for more, n, settings in (
        ((), 1, []),
        (("--top", "2"), 2, ["light"]),
        (("--settings", "strong"), 4, ["light", "strong", "strong"]),
        (("--settings", "light"), 4, ["light", "strong", "strong"]),
    ):
        assert rerank.main([*command, *more]) == 0
        found = opened(searched, "dilated-rerank")
        assert len(found.trials) == n
        assert [given["setting"] for given in found.user_attrs["given"][1:]] == settings
    assert len(set(ids(found))) == 4
    assert len(set(ids(found, "architecture_id"))) == 2
    assert not any(candidate_of(trial).optimisation.small_images for trial in found.get_trials()[1:])


def test_retrain_prefers_the_winner_and_says_so(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rerank.main([*TINY, "--top", "4", "--settings", "strong", "--epochs", "2", "--out", str(searched)]) == 0
    # What the search had as its last is made the winner.
    source, found = opened(searched), opened(searched, "dilated-rerank")
    last = min(source.get_trials(), key=lambda trial: (trial.value, -trial.number))
    slot = [given["trial"] for given in found.user_attrs["given"]].index(last.number)
    [again] = [trial for trial in found.get_trials() if trial.user_attrs["slot"] == slot]
    winner = optuna.trial.create_trial(value=1.0, user_attrs=again.user_attrs, system_attrs=again.system_attrs)
    storage = open_storage(f"sqlite:///{searched / 'study.db'}")
    optuna.load_study(study_name=found.study_name, storage=storage).add_trial(winner)
    capsys.readouterr()
    assert retrain.main(["--epochs", "1", "--train-images", "200", "--out", str(searched)]) == 0
    shown = capsys.readouterr().out
    assert f"reranked  trial {last.number}, strong: the best of 4 trainings of 2 epochs;" in shown
    assert "raised   " not in shown  # a strong setting is that of a longer training
    metrics = json.loads((searched / "best" / "metrics.json").read_text())
    assert (metrics["trial"], metrics["candidate_id"]) == (last.number, winner.user_attrs["candidate_id"])
    assert (metrics["val_accuracy"], metrics["reranked_epochs"], metrics["reranked_setting"]) == (1.0, 2, "strong")
    report = (searched / "report.md").read_text()
    assert f"Retrained is trial {last.number}, strong, the best of those that were trained again" in report
    trained = Candidate.from_json(json.loads((searched / "best" / "candidate.json").read_text()))
    assert trained.optimisation == regularised(with_small_images(candidate_of(last)).optimisation)
    assert retrain.main(["--trial", "0", "--epochs", "1", "--train-images", "200", "--out", str(searched)]) == 0
    assert "reranked" not in capsys.readouterr().out


def test_longer_trainings_augment_more(
    searched: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths are those of a full study as seen by the rule; everything else is of this small one."""
    monkeypatch.setattr("study.search.reranking.lengthened", lambda augmentation, n: lengthened(augmentation, 5000 * n))
    monkeypatch.setattr(
        "study.retraining.retraining.lengthened", lambda augmentation, n: lengthened(augmentation, 10**5 * n)
    )
    again = [*TINY, "--top", "2", "--epochs", "2", "--out", str(searched)]
    assert rerank.main([*again, "--settings", "light"]) == 0
    source, found = opened(searched), opened(searched, "dilated-rerank")
    given = found.user_attrs["given"]
    for trial in found.get_trials():
        before = candidate_of(source.get_trials()[given[trial.user_attrs["slot"]]["trial"]])
        after = candidate_of(trial)
        assert after.augmentation == lengthened(before.augmentation, 5000 * 2 * 200) != before.augmentation
        assert (after.architecture, after.optimisation) == (
            before.architecture,
            with_small_images(before).optimisation,
        )

    capsys.readouterr()
    command = ["--epochs", "1", "--train-images", "200", "--device", "cpu", "--out", str(searched)]
    assert retrain.main(command) == 0
    assert "raised   " in capsys.readouterr().out
    metrics = json.loads((searched / "best" / "metrics.json").read_text())
    trained = Candidate.from_json(json.loads((searched / "best" / "candidate.json").read_text()))
    searched_as = source.get_trials()[metrics["trial"]].user_attrs["candidate_id"]
    assert metrics["candidate_id"] == trained.candidate_id != metrics["trial_candidate_id"] == searched_as
    assert trained.augmentation.dropout_p >= LONG_AUGMENTATION.dropout_p
    if metrics["trial"] == best_trial(source).number:
        assert "not the best trial" not in (searched / "report.md").read_text()

    assert retrain.main([*command, "--trial", "0", "--augmentation", "stored"]) == 0
    assert "raised   " not in capsys.readouterr().out
    kept = json.loads((searched / "trial-0" / "metrics.json").read_text())
    assert kept["candidate_id"] == kept["trial_candidate_id"] == source.get_trials()[0].user_attrs["candidate_id"]

    # The strong setting: augmented as a retrain of the default length, regularised more besides.
    assert rerank.main([*again, "--settings", "both"]) == 0
    found = opened(searched, "dilated-rerank")
    for trial in found.get_trials()[2:]:
        before = candidate_of(source.get_trials()[found.user_attrs["given"][trial.user_attrs["slot"]]["trial"]])
        after = candidate_of(trial)
        assert after.augmentation == lengthened(before.augmentation, LONG_PASSES * 50_000)
        assert after.augmentation != lengthened(before.augmentation, 5000 * 2 * 200)
        expected = regularised(with_small_images(before).optimisation)
        assert (after.architecture, after.optimisation) == (before.architecture, expected)
    assert SMALL_IMAGES in {candidate_of(trial).optimisation.small_images for trial in found.get_trials()}


def test_one_that_goes_on_has_as_many_workers_as_it_has_work(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*TINY, "--epochs", "1", "--settings", "light", "--out", str(searched)]
    assert rerank.main([*command, "--top", "3"]) == 0
    asked: list[int] = []
    ready = reranking.get_ready

    def get_ready(plan: SearchPlan, *arguments: Any) -> Any:
        asked.append(plan.trials)
        return ready(plan, *arguments)

    monkeypatch.setattr(reranking, "get_ready", get_ready)
    assert rerank.main([*command, "--top", "1"]) == 0
    assert asked == [3]


def test_equal_candidates_count_once() -> None:
    study = optuna.create_study(direction="maximize", study_name="made")
    for slot, (value, candidate) in enumerate(((0.5, "a"), (0.7, "b"), (0.7, "b"), (0.6, "c"))):
        ours = {"slot": slot, "candidate": {}, "candidate_id": candidate}
        study.add_trial(optuna.trial.create_trial(value=value, user_attrs=ours))
    study.add_trial(optuna.trial.create_trial(value=0.99))  # somebody else's
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED))
    assert [trial.number for trial in best_candidates(study, None, 8)] == [1, 3, 0]
    assert [trial.number for trial in best_candidates(study, 2, 8)] == [1, 3]
    with pytest.raises(UserError, match="--top must not exceed the 3 complete trials of 'made': 4"):
        best_candidates(study, 4, 8)


def test_mistakes_get_a_line(searched: Path, tmp_path: Path) -> None:
    out = ["--out", str(searched)]
    for words, message in (
        (["--top", "0", *out], "--top must be at least 1: 0"),
        (["--top", "9", *out], "--top must not exceed the 4 complete trials"),
        (["--val-images", "1", *out], "--val-images must be between"),
        (["--out", str(tmp_path / "nothing")], "There is no study"),
    ):
        with pytest.raises(UserError, match=message):
            rerank.main([*words, "--device", "cpu"])
    assert rerank.main([*TINY, "--top", "1", "--epochs", "1", *out]) == 0
    with pytest.raises(UserError, match="made with other settings"):
        rerank.main([*TINY, "--top", "1", "--epochs", "2", *out])


def test_a_search_and_a_reranking_are_not_taken_for_each_other(searched: Path, tmp_path: Path) -> None:
    assert rerank.main([*TINY, "--top", "1", "--epochs", "1", "--settings", "light", "--out", str(searched)]) == 0
    url = f"sqlite:///{searched / 'study.db'}"
    storage = ["--storage", url, "--out", str(tmp_path / "new")]
    with pytest.raises(UserError, match="'dilated-rerank' re-ranks another one"):
        run.main([*TINY, *storage, "--study-name", "dilated-rerank", "--trials", "5"])
    found = optuna.load_study(study_name="dilated-rerank", storage=open_storage(url))
    known = {name: value for name, value in found.user_attrs.items() if name not in ("given", "rerank_of")}
    storage_of_both = open_storage(url)
    optuna.delete_study(study_name="dilated-rerank", storage=storage_of_both)
    search = optuna.create_study(study_name="dilated-rerank", storage=storage_of_both, direction="maximize")
    for name, value in known.items():
        search.set_user_attr(name, value)
    with pytest.raises(UserError, match="'dilated-rerank' is a search, and its name is what the re-ranking"):
        rerank.main([*TINY, "--top", "1", "--out", str(searched)])
