"""What the dashboard shows: notes and artifacts."""

from __future__ import annotations

import csv
import io
import logging
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna_dashboard import get_note, save_note
from optuna_dashboard._note import get_note_from_system_attrs, split_body
from optuna_dashboard.artifact._backend import (
    delete_all_artifacts,
    get_trial_artifact_meta,
    list_study_artifacts,
    list_trial_artifacts,
)

from search_spaces import get_space
from search_spaces.candidate import Candidate
from search_spaces.constraints import Limits
from search_spaces.reference import REFERENCE
from study.machine.paths import REPOSITORY
from study.reporting import dashboard
from study.reporting.pictures import curve_png
from study.storage.config import StudyConfig
from study.storage.database import open_storage, open_study

ROOM = "\N{EN SPACE}"
CURVE = [
    {
        "epoch": epoch, "train_loss": 2.0 - epoch / 5, "train_accuracy": 0.2 + epoch / 10,
        "val_loss": 1.9 - epoch / 5,
        "val_accuracy": 0.25 + epoch / 10, "lr": 0.1, "wall_s": 20.0, "wait_frac": 0.0,
    }
    for epoch in range(3)
]  # fmt: skip


def made_study(tmp_path: Path) -> optuna.Study:
    study = optuna.create_study(
        study_name="dilated", storage=open_storage(f"sqlite:///{tmp_path / 'study.db'}"), direction="maximize"
    )
    config = StudyConfig(
        "dilated", 1, 3, 45_000, 5_000, 0, "percentile", "tpe", "bfloat16", Limits(max_macs=90_000_000)
    )
    study.set_user_attr("config", config.to_json())
    study.set_user_attr("target_accuracy", 0.85)
    return study


def sampled() -> Candidate:
    space = get_space("dilated")
    return space.decode(space.sample(random.Random(3)), Limits()).candidate


def published(
    study: optuna.Study, candidate: Candidate, store: Path, repairs: Sequence[str] = (), **more: Any
) -> optuna.Trial:
    """A running trial of `candidate`."""
    trial, a = study.ask(), candidate.architecture
    attrs: dict[str, Any] = {
        "slot": 0, "params": a.params, "receptive_field": a.receptive_field, "macs": a.macs,
        "candidate_id": candidate.candidate_id, **more,
    }  # fmt: skip
    for name, value in attrs.items():
        trial.set_user_attr(name, value)
    trial.set_constraint("parameters", -100.0)
    note = dashboard.trial_note(trial, a, repairs)
    dashboard.publish_trial(study, trial, a, note, store)
    return trial


def note_of(study: optuna.Study, number: int) -> str:
    attrs = study._storage.get_study_system_attrs(study._study_id)
    body = str(get_note_from_system_attrs(attrs, study.trials[number]._trial_id)["body"])
    return body.replace(ROOM, "")


def artifacts_of(study: optuna.Study, number: int) -> dict[str, str]:
    """Artifact ids by file name, as the dashboard finds them."""
    trial = study.trials[number]
    found = list_trial_artifacts(
        study._storage.get_study_system_attrs(study._study_id),
        study._storage.get_trial_system_attrs(trial._trial_id),
        trial,
    )
    for meta in found:
        assert get_trial_artifact_meta(study._storage, study._study_id, trial._trial_id, meta["artifact_id"]) == meta
    names = [meta["filename"] for meta in found]
    assert len(names) == len(set(names))
    return {meta["filename"]: meta["artifact_id"] for meta in found}


def test_a_trial_has_note_layers_and_curve(tmp_path: Path) -> None:
    study, store = made_study(tmp_path), tmp_path / "artifacts"
    trial = published(study, REFERENCE, store)
    dashboard.attach(trial, store, {"curve.png": curve_png(CURVE, "Trial 0")})
    study.tell(trial, 0.5)
    found = artifacts_of(study, 0)
    assert set(found) == {"layers.csv", "curve.png"}
    assert (store / found["curve.png"]).read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO((store / found["layers.csv"]).read_text())))
    assert sum(int(row["params"]) for row in rows) == REFERENCE.architecture.params
    assert sum(int(row["macs"]) for row in rows) == REFERENCE.architecture.macs


def test_files_that_were_deleted_are_made_again(tmp_path: Path) -> None:
    study, store = made_study(tmp_path), tmp_path / "artifacts"
    trial = published(study, REFERENCE, store, curve=CURVE)
    trial.set_user_attr("candidate", REFERENCE.to_json())
    dashboard.attach(trial, store, {"curve.png": curve_png(CURVE, "Trial 0"), "notes.txt": b"somebody's"})
    study.tell(trial, 0.5)
    older = published(study, REFERENCE, store, slot=1)  # has stored neither
    found = artifacts_of(study, 0)
    layers = (store / found["layers.csv"]).read_bytes()
    for file in store.iterdir():
        file.unlink()
    dashboard.restore(study, store)
    assert {file.name for file in store.iterdir()} == {found["layers.csv"], found["curve.png"]}
    assert (store / found["layers.csv"]).read_bytes() == layers
    assert (store / found["curve.png"]).read_bytes().startswith(b"\x89PNG")
    assert older.number == 1

    (store / found["curve.png"]).write_bytes(b"as it was")
    dashboard.restore(study, store)
    assert (store / found["curve.png"]).read_bytes() == b"as it was"
    dashboard.restore(study, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_the_report_is_one_file_however_often_it_is_written(tmp_path: Path) -> None:
    study, store, report = made_study(tmp_path), tmp_path / "artifacts", tmp_path / "report.html"
    report.write_text("first")
    dashboard.publish_report(study, store, report, add=False)
    assert not store.exists()
    for text in ("first", "second"):
        report.write_text(text)
        dashboard.publish_report(study, store, report)
    report.write_text("of a retrain")
    read_only = open_study(f"sqlite:///{tmp_path / 'study.db'}", "dilated")
    dashboard.publish_report(read_only, store, report, add=False)
    (meta,) = list_study_artifacts(study._storage.get_study_system_attrs(study._study_id))
    assert (meta["filename"], meta["mimetype"]) == ("report.html", "text/html")
    assert [file.name for file in store.iterdir()] == [meta["artifact_id"]]
    assert (store / meta["artifact_id"]).read_text() == "of a retrain"


def test_files_of_an_older_reranking_are_found(tmp_path: Path) -> None:
    study, store, older = made_study(tmp_path), tmp_path / "artifacts", tmp_path / "rerank" / "artifacts"
    study.tell(published(study, REFERENCE, store), 0.5)
    study.tell(published(study, sampled(), older), 0.5)
    dashboard.restore(study, store)
    for number in range(2):
        assert (store / artifacts_of(study, number)["layers.csv"]).is_file()
    assert not older.exists()
    dashboard.restore(study, store)  # there is nothing more to move


@pytest.mark.parametrize("described", ['{"artifact_id": "../elsewhere", "filename": "layers.csv"}', "{", "[1]", "{}"])
def test_what_a_stranger_stored_makes_no_file_elsewhere(described: str, tmp_path: Path) -> None:
    study, store = made_study(tmp_path), tmp_path / "artifacts"
    trial = published(study, REFERENCE, store)
    trial.set_user_attr("slot", 0)
    trial.storage.set_trial_system_attr(trial._trial_id, "artifacts:x", described)
    before = set(tmp_path.iterdir())
    dashboard.restore(study, store)
    assert set(tmp_path.iterdir()) == before


def test_notes_say_what_the_trial_is(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    published(study, REFERENCE, tmp_path / "artifacts", anchor="reference")
    published(study, sampled(), tmp_path / "artifacts", repairs=["depths (1, 1, 1) -> (1, 1, 2)"], queued=True)
    reference, other = (note_of(study, number) for number in range(2))
    assert reference.startswith("**175,696 parameters**, receptive field 47, 18.6M multiply-accumulates.")
    assert "Anchor: **reference**" in reference
    assert f"`{REFERENCE.candidate_id}`" in reference
    assert "- Repairs: none" in reference
    assert "- Limits: all met" in reference
    assert "conv 3x3, dilation 8, unpadded + BN + ReLU | 16x16x16 | 2,336 | 589,824 | 23 |" in reference
    assert "**175,696**" in reference
    assert "**47** (50 with the pooling)" in reference
    assert "- Repairs: depths (1, 1, 1) -> (1, 1, 2)" in other
    assert "From the queue." in other


def test_trials_do_not_share_artifacts(tmp_path: Path) -> None:
    study, store = made_study(tmp_path), tmp_path / "artifacts"
    for candidate in (REFERENCE, sampled()):
        study.tell(published(study, candidate, store), 0.5)
    assert len(list(store.iterdir())) == 2
    assert not set(artifacts_of(study, 0).values()) & set(artifacts_of(study, 1).values())
    delete_all_artifacts(optuna.artifacts.FileSystemArtifactStore(store), study._storage, study._study_id)
    assert list(store.iterdir()) == []  # what the dashboard does when a study is deleted there


def test_the_dashboard_edits_our_notes_as_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written under its names without it: this fails when it changes them."""
    monkeypatch.setattr(dashboard, "_NOTE_PART", 300)  # so that they come in several parts
    study = made_study(tmp_path)
    dashboard.publish_study(study)
    trial = published(study, REFERENCE, tmp_path / "artifacts")
    bodies = get_note(study), get_note(trial)
    assert bodies[1] == dashboard.trial_note(trial, REFERENCE.architecture, ())
    save_note(study, bodies[0] + "edited")
    save_note(trial, "edited by a person")
    assert (get_note(study), get_note(trial)) == (bodies[0] + "edited", "edited by a person")
    assert split_body("x" * 5000, None) == {f"dashboard:note_str:{i}": "x" * n for i, n in enumerate((2045, 2045, 910))}


def test_study_note_and_metric_name(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    dashboard.publish_study(study)
    assert study.metric_names == ["val_accuracy"]
    assert f"|{ROOM}" in get_note(study).replace("| ", "|")  # else cells touch
    note = get_note(study).replace(ROOM, "")
    assert "| Parameters | < 200,000 |" in note
    assert "| Multiply-accumulates | < 90,000,000 |" in note
    assert "Predicted seconds" not in note  # that limit is not set
    assert "| epochs | 3 |" in note
    assert "85.0%" in note


def test_a_disk_that_refuses_costs_no_trial(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = made_study(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        published(study, REFERENCE, blocked / "artifacts")
    assert "artifacts could not be written" in caplog.text
    assert artifacts_of(study, 0) == {}
    assert note_of(study, 0)


def test_import_is_light() -> None:
    code = (
        "import sys, study.reporting.dashboard\n"
        "heavy = {'torch', 'matplotlib', 'optuna_dashboard', 'plotly'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
