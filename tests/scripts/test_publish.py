"""What the README's blocks say of their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import publish


def trial(study: str, candidate: str, accuracy: float, anchor: str | None = None) -> dict[str, Any]:
    return {"study": study, "anchor": anchor, "candidate_id": candidate, "curve": [0.1, accuracy]}


def test_whole_studies_count_what_was_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default's mean is 0.55: one of two neighbours is better, and no random sample."""
    how = {"pruner": "none", "seed": 3}
    record = {
        "config": {"epochs": 2, "train_images": 100, "val_images": 50},
        "studies": {
            "near": {"complete": 3, "sampler": "anchored", **how},
            "near-rerank": {"complete": 2, "sampler": "random", **how, "rerank_of": "near"},
            "far": {"complete": 3, "sampler": "random", **how},
        },
        "trials": [
            trial("near", "default", 0.52, "default"),
            trial("near", "a", 0.60),
            trial("near", "b", 0.53),
            trial("near-rerank", "a", 0.57),
            trial("far", "default", 0.58, "default"),
            trial("far", "c", 0.40),
            trial("far", "d", 0.50),
        ],
    }
    (tmp_path / "replays").mkdir()
    (tmp_path / "replays" / "dilated-15000-table.json").write_text(json.dumps(record))
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    text = publish.readme_block("whole-studies")
    assert "| 2 | 56.50% | 60.00% | 57.00% | 1 of 2 |" in text
    assert "| random | 2 | 45.00% | 50.00% |  | 0 of 2 |" in text
    assert "default has 55.00% (mean of 2 trainings, 52.00% to 58.00%)" in text
    assert "--trials 3 --pruner none --sampler anchored --seed 3 --study-name near" in text
    assert "study.rerank --study-name near --top 2 --epochs 2 --train-images 100" in text


def test_a_rank_correlation_of_too_few_candidates_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    assert publish.readme_block("fidelity") == "Not measured yet."
    (tmp_path / "fidelity").mkdir()
    (tmp_path / "fidelity" / "new.json").write_text(json.dumps({"spearman": None, "spearman_interval_95": None}))
    assert publish.readme_block("fidelity") == "Not measured yet."
