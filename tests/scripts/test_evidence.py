"""What experiments, benchmarks and publishing share."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

import evidence
from study.errors import UserError


def test_a_command_line_has_no_places_of_this_machine() -> None:
    words = ["--data", "/here", "--seeds", "3", "--out=/there", "--results", "/r", "--", "--epochs", "2"]
    assert evidence.command_line("a.py", words) == "python scripts/a.py --seeds 3 -- --epochs 2"
    command = "python -m study.run --trials 2 --data SVHN --out '/a b/c' --space best --storage sqlite:///x.db"
    assert evidence.without_places(command) == "python -m study.run --trials 2 --data SVHN --space best"


def test_commands_of_older_records_name_todays_place() -> None:
    old, new = ({"command": f"python scripts/{place}pruners.py --seed 0"} for place in ("", "experiments/"))
    assert evidence.command_of(old) == evidence.command_of(new) == "`python scripts/experiments/pruners.py --seed 0`"


def test_too_small_numbers_are_refused() -> None:
    options = argparse.Namespace(train_images=4, jobs=None)
    evidence.at_least(options, train_images=4, jobs=1)
    with pytest.raises(UserError, match="--train-images must be at least 5: 4"):
        evidence.at_least(options, train_images=5)


def test_a_record_is_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.json"
    assert evidence.read(file) is None
    evidence.write(file, {"a": 1})
    assert evidence.read(file) == {"a": 1}
    with pytest.raises(TypeError):
        evidence.write(file, {"a": object()})
    assert evidence.records(file.parent) == {"a": {"a": 1}}


def test_intervals_hold_the_true_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(200):
        values = rng.normal(1.0, 2.0, 25)
        found = evidence.t_interval(values), evidence.bootstrap(25, lambda rows, v=values: float(v[rows].mean()))
        held += [low <= 1.0 <= high for low, high in found]
    assert 0.9 <= held[0] / 200 <= 0.99
    assert 0.87 <= held[1] / 200 <= 0.99  # a little narrow, as percentile intervals of few values are


def test_tables_are_folded_but_for_the_first() -> None:
    assert evidence.folded([]) == evidence.NOTHING
    assert evidence.folded(["a", "b"], "more") == "a\n\n<details><summary>more</summary>\n\nb\n\n</details>"
