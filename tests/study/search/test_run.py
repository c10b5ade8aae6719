"""What a run finds in the storage before it trains anything."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from study.errors import UserError
from study.search.creation import find_study
from study.search.plan import SearchPlan
from study.storage.database import open_storage


def existing(folder: Path) -> tuple[optuna.Study, optuna.storages.RDBStorage] | None:
    return find_study(SearchPlan(f"sqlite:///{folder}/study.db", "dilated", folder, "dilated", "what is next"))


def test_nothing_is_created_by_looking(tmp_path: Path):
    assert existing(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_study_killed_in_the_moment_of_its_creation_is_made_anew(tmp_path: Path):
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    optuna.create_study(study_name="dilated", storage=storage).set_user_attr("created", "now")
    assert existing(tmp_path) is None
    assert storage.get_all_studies() == []


def test_somebody_elses_study_is_refused_and_left_alone(tmp_path: Path):
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(study_name="dilated", storage=storage)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(UserError, match=r"was not made by study\.run"):
        existing(tmp_path)
    assert len(study.trials) == 1
