"""A stage for the supervisor and what it asks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from stage import COST, Stage

from study.storage.database import checkpoint_sqlite, open_storage
from study.storage.slots import SlotTable


@pytest.fixture(scope="session")
def empty_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's file to copy: making the tables takes longer than most tests."""
    file = tmp_path_factory.mktemp("stage") / "study.db"
    storage = open_storage(f"sqlite:///{file}")
    study = optuna.create_study(study_name="stage", storage=storage, direction="maximize")
    study.set_user_attr("cost_model", COST.to_json())
    SlotTable(study, storage)
    checkpoint_sqlite(storage)
    storage.engine.dispose()
    return file


@pytest.fixture
def stage(empty_study: Path, tmp_path: Path) -> Iterator[Stage]:
    found = Stage(Path(shutil.copy(empty_study, tmp_path)))
    yield found
    found.storage.engine.dispose()
