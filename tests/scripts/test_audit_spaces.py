"""The audit of the spaces: what it counts, and that a missed goal is said."""

from __future__ import annotations

import json
from pathlib import Path

import audit_spaces
from search_spaces import SPACES
from search_spaces.constraints import Limits


def test_what_was_sampled_is_counted() -> None:
    record = audit_spaces.audit("dilated", Limits(), 40, seed=0)
    assert (record["n"], record["n_infeasible"], record["infeasible_example"]) == (40, 0, None)
    decoded = record["decoded"]
    assert decoded["dilated reduction"] + decoded["strided reduction"] == 1
    assert decoded["3x3 depthwise"] > 0.5
    share = record["params_share"]
    assert 0 < share["min"] <= share["50%"] <= share["max"] <= 1
    assert not any("feasible" in goal for goal in record["goals_missed"])


def test_a_missed_goal_is_said() -> None:
    met = {"n_infeasible": 0, "distinct": 1.0, "params_share": {"min": 0.3, "max": 1.0}}
    assert audit_spaces.goals_missed(met) == []
    missed = audit_spaces.goals_missed({"n_infeasible": 2, "distinct": 0.5, "params_share": {"min": 0.5, "max": 1.0}})
    assert [goal.partition(":")[0] for goal in missed] == [
        "every sample is feasible",
        "at least 95% distinct architectures",
        "parameters spread from 0.42 to 0.98 of the budget",
    ]


def test_the_command_writes_a_record_for_every_space_and_a_table(tmp_path: Path) -> None:
    audit_spaces.main(["--samples", "4", "--max-params", "200000", "--out", str(tmp_path / "audit")])
    records = [json.loads(file.read_text()) for file in sorted((tmp_path / "audit").glob("*.json"))]
    assert [record["space"] for record in records] == sorted(SPACES)
    assert records[0]["command"] == "python scripts/audit_spaces.py --samples 4 --max-params 200000"
    assert len(audit_spaces.block(tmp_path).splitlines()) == 2 + len(SPACES)
