"""What the dashboard shows: notes and artifacts of finished trials, published once or twice."""

from __future__ import annotations

import csv
import io
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note
from optuna_dashboard._note import get_note_from_system_attrs
from optuna_dashboard.artifact._backend import (
    delete_all_artifacts,
    get_trial_artifact_meta,
    list_trial_artifacts,
)

from search_spaces import get_space
from search_spaces.constraints import Limits
from search_spaces.reference import REFERENCE
from study.machine.paths import REPOSITORY
from study.reporting import dashboard
from study.storage.config import StudyConfig
from study.storage.database import open_storage

CURVE = [
    {
        "epoch": epoch, "train_loss": 2.0 - epoch / 5, "train_accuracy": 0.2 + epoch / 10,
        "val_loss": 1.9 - epoch / 5,
        "val_accuracy": 0.25 + epoch / 10, "lr": 0.1, "wall_s": 20.0, "wait_frac": 0.0,
    }
    for epoch in range(3)
]  # fmt: skip


def made_study(tmp_path: Path) -> optuna.Study:
    """A complete trial of the reference, a pruned one of a sample, and a trial that stored nothing."""
    study = optuna.create_study(
        study_name="dilated", storage=open_storage(f"sqlite:///{tmp_path / 'study.db'}"), direction="maximize"
    )
    config = StudyConfig(
        "dilated", 1, 3, 45_000, 5_000, 0, "percentile", "tpe", "bfloat16", Limits(max_macs=90_000_000)
    )
    study.set_user_attr("config", config.to_json())
    study.set_user_attr("target_accuracy", 0.85)
    space = get_space("dilated")
    sampled = space.decode(space.sample(random.Random(3)), Limits()).candidate
    for candidate, state in ((REFERENCE, TrialState.COMPLETE), (sampled, TrialState.PRUNED)):
        a = candidate.architecture
        attrs: dict[str, Any] = {
            "slot": 0, "params": a.params, "receptive_field": a.receptive_field, "macs": a.macs,
            "wall_s": 61.0,
            "candidate": candidate.to_json(), "candidate_id": candidate.candidate_id, "curve": CURVE,
            "repairs": [] if candidate is REFERENCE else ["depths (1, 1, 1) -> (1, 1, 2)"],
        }  # fmt: skip
        if candidate is REFERENCE:
            attrs["anchor"] = "reference"
        study.add_trial(
            optuna.create_trial(
                state=state,
                value=0.45 if state == TrialState.COMPLETE else None,
                user_attrs=attrs,
                intermediate_values={epoch: e["val_accuracy"] for epoch, e in enumerate(CURVE)},
                constraints={"parameters": -100.0},
            )
        )
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED))
    return study


def note_of(study: optuna.Study, number: int) -> str:
    attrs = study._storage.get_study_system_attrs(study._study_id)
    return str(get_note_from_system_attrs(attrs, study.trials[number]._trial_id)["body"])


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


@pytest.mark.parametrize("number", [0, 1])
def test_a_finished_trial_has_note_layers_and_curve(tmp_path: Path, number: int) -> None:
    study, store = made_study(tmp_path), tmp_path / "artifacts"
    dashboard.publish_trial(study, study.trials[number], store)
    found = artifacts_of(study, number)
    assert set(found) == {"layers.csv", "curve.png"}
    assert (store / found["curve.png"]).read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO((store / found["layers.csv"]).read_text())))
    assert sum(int(row["params"]) for row in rows) == study.trials[number].user_attrs["params"]
    assert sum(int(row["macs"]) for row in rows) == study.trials[number].user_attrs["macs"]


def test_notes_say_what_the_trial_is(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    for trial in study.trials:
        dashboard.publish_trial(study, trial, tmp_path / "artifacts")
    complete, pruned, bare = (note_of(study, number) for number in range(3))
    assert complete.startswith("**Validation accuracy 45.00% after 3 epochs**, 175,696 parameters, receptive field 47")
    assert "Anchor: **reference**" in complete
    assert f"`{REFERENCE.candidate_id}`" in complete
    assert "- Repairs: none" in complete
    assert "- Limits: all met" in complete
    assert "conv 3x3, dilation 8, unpadded + BN + ReLU | 16x16x16 | 2,336 | 589,824 | 23 |" in complete
    assert "**175,696**" in complete
    assert "**47** (50 with the pooling)" in complete
    assert pruned.startswith("**Pruned after epoch 3, validation accuracy 45.00%**")
    assert "- Repairs: depths (1, 1, 1) -> (1, 1, 2)" in pruned
    assert bare.startswith("**Pruned**")


def test_publishing_twice_doubles_nothing(tmp_path: Path) -> None:
    study, store = made_study(tmp_path), tmp_path / "artifacts"
    for _ in range(2):
        dashboard.publish_trial(study, study.trials[0], store)
    files = {path.name: path.read_bytes() for path in store.iterdir()}
    ids, note = artifacts_of(study, 0), note_of(study, 0)
    attrs = study._storage.get_study_system_attrs(study._study_id)
    dashboard.publish_trial(study, study.trials[0], store)
    assert study._storage.get_study_system_attrs(study._study_id) == attrs
    assert artifacts_of(study, 0) == ids
    assert note_of(study, 0) == note
    assert {path.name: path.read_bytes() for path in store.iterdir()} == files
    assert len(files) == 2


def test_trials_do_not_share_artifacts(tmp_path: Path) -> None:
    study, store = made_study(tmp_path), tmp_path / "artifacts"
    for trial in study.trials:
        dashboard.publish_trial(study, trial, store)
    assert len(list(store.iterdir())) == 4
    assert not set(artifacts_of(study, 0).values()) & set(artifacts_of(study, 1).values())
    assert artifacts_of(study, 2) == {}
    delete_all_artifacts(optuna.artifacts.FileSystemArtifactStore(store), study._storage, study._study_id)
    assert list(store.iterdir()) == []  # what the dashboard does when a study is deleted there


def test_an_edited_note_is_left(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    dashboard.publish_study(study)
    save_note(study, "edited by a person")
    dashboard.publish_study(study)
    assert get_note(study) == "edited by a person"


def test_study_note_and_metric_name(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    dashboard.publish_study(study)
    assert study.metric_names == ["val_accuracy"]
    note = get_note(study)
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
        dashboard.publish_trial(study, study.trials[0], blocked / "artifacts")
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
