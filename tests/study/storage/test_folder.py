"""A study's folder belongs to one study: two never mix in it, whatever command comes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import optuna
import pytest

from search_spaces import get_space
from study import report, rerank, retrain, run
from study.errors import UserError
from study.reporting.report import build_page
from study.storage.config import StudyConfig
from study.storage.database import checkpoint_sqlite, open_storage, open_study
from study.storage.folder import OWNER, claim_folder, refuse_foreign
from study.storage.reranked import find_rerank, origin

CONFIG = StudyConfig("dilated", get_space("dilated").version, 6, 15_000, 5_000, 0, "halving", "tpe", "bfloat16")
OURS = {"slot": 0, "candidate": {}, "candidate_id": "abc"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two studies, "first" and "second", each with one complete trial."""
    file = tmp_path_factory.mktemp("database") / "study.db"
    storage = open_storage(f"sqlite:///{file}")
    for name in ("first", "second"):
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
        study.set_user_attr("created", f"{name} moment")
        study.set_user_attr("config", CONFIG.to_json())
        study.add_trial(optuna.create_trial(value=0.5, user_attrs=OURS))
    checkpoint_sqlite(storage)
    storage.engine.dispose()
    return file


@pytest.fixture
def url(database: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(database, tmp_path)}"


@pytest.fixture
def out(url: str, tmp_path: Path) -> Path:
    """The folder of "first"."""
    claim_folder(tmp_path / "out", open_study(url, "first"))
    return tmp_path / "out"


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("command", "options"), [(run, ()), (rerank, ()), (retrain, ()), (retrain, ("--reference",)), (report, ())]
)
def test_no_command_writes_into_the_folder_of_another_study(
    command: ModuleType, options: tuple[str, ...], url: str, out: Path
) -> None:
    before = contents(out)
    with pytest.raises(UserError, match=r"belongs to the study 'first' made at first moment.*'second' too.*--out"):
        command.main(["--storage", url, "--study-name", "second", "--out", str(out), *options])
    assert contents(out) == before


def test_a_new_study_gets_no_used_folder(url: str, out: Path, tmp_path: Path) -> None:
    """Not even under the name of the study that was there: its storage may just be elsewhere."""
    for name, words in (("third", "'third' too"), ("first", "a later one of that name too")):
        elsewhere = f"sqlite:///{tmp_path / 'new.db'}"
        with pytest.raises(UserError, match=words):
            run.main(["--storage", elsewhere, "--study-name", name, "--out", str(out)])
    assert not (tmp_path / "new.db").exists()


def test_the_same_name_in_another_database_is_another_study(url: str, out: Path, tmp_path: Path) -> None:
    other = optuna.create_study(study_name="first", storage=f"sqlite:///{tmp_path / 'other.db'}")
    other.set_user_attr("created", "another moment")
    with pytest.raises(UserError, match="a later one of that name too"):
        refuse_foreign(out, "first", other)


def test_a_copy_is_the_same_study_wherever_it_lies(url: str, out: Path, tmp_path: Path) -> None:
    copy = f"sqlite:///{shutil.copy(tmp_path / 'study.db', tmp_path / 'copy.db')}"
    shutil.copytree(out, tmp_path / "elsewhere")
    for storage in (url, copy):
        for folder in (out, tmp_path / "elsewhere", tmp_path / "second folder"):
            claim_folder(folder, open_study(storage, "first"))
    claim_folder(tmp_path / "of second", open_study(url, "second"))  # one database, a folder each


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}"])
def test_a_folder_that_names_nobody_belongs_to_the_first_that_comes(text: str | None, url: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / OWNER).write_text(text)
    claim_folder(tmp_path, open_study(url, "first"))
    with pytest.raises(UserError, match="belongs to the study 'first'"):
        claim_folder(tmp_path, open_study(url, "second"))


def test_a_folder_that_cannot_be_written_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: .*--out"):
        claim_folder(tmp_path / "file", open_study(url, "first"))


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        ({}, True),  # an older bundle
        ({"study": "first", "study_created": "first moment", "trial": 0, "trial_candidate_id": "abc"}, True),
        ({"study": "second"}, False),
        ({"study": "first", "study_created": "second moment"}, False),
        ({"study": "first", "trial": 0, "trial_candidate_id": "def"}, False),
        ({"study": "first", "trial": 7, "trial_candidate_id": "abc"}, False),
    ],
)
def test_a_report_shows_the_bundle_of_its_own_study(says: dict[str, object], shown: bool, url: str, out: Path) -> None:
    (out / "best").mkdir()
    (out / "best" / "metrics.json").write_text(json.dumps({"test_accuracy_mean": 0.77, **says}))
    words = " ".join(build_page(open_study(url, "first"), out).key_lines)
    assert ("77.00%" in words) == shown
    assert ("best/ holds a network of another study" in words) != shown


def test_a_rerank_of_an_earlier_study_of_that_name_does_not_count(url: str) -> None:
    storage = open_storage(url)
    first, second = (optuna.load_study(study_name=name, storage=storage) for name in ("first", "second"))
    rerank = optuna.create_study(study_name="first-rerank", storage=storage, direction="maximize")
    rerank.add_trial(optuna.create_trial(value=0.5, user_attrs=OURS))
    rerank.set_user_attr("given", [])
    for said, counts in (({"rerank_of": "first"}, True), (origin(first), True), (origin(second), False)):
        for name, value in said.items():
            rerank.set_user_attr(name, value)
        assert (find_rerank(first) is not None) == counts
