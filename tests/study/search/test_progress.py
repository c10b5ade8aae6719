"""What a person sees of a search on a terminal."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
from stage import CONFIG, Stage

from search_spaces.constraints import Limits, OwnLimit
from study.machine.interrupts import InterruptFlag
from study.search.progress import Progress, outcome
from study.storage.database import candidate_of


def screen(written: str) -> list[str]:
    """The rows that a terminal shows after what was `written`."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|[\r\n]|[^\r\n\x1b]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif part == "\x1b[A":
            row -= 1
        else:
            rows[row] = rows[row].ljust(column)[:column] + part + rows[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in rows]


def test_on_a_terminal_a_line_for_every_trial_stays_above_one_bar(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    os.set_blocking(controller, False)
    shown = b""
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        stage.skip_anchors()
        n_trials = stage.n_anchors + 3
        assert stage.play(["complete", "pruned", "failed", "complete"], trials=n_trials) == "done"
        stream.flush()
        while True:
            try:
                shown += os.read(controller, 65536)
            except BlockingIOError:
                break
    os.close(controller)
    rows = [row for row in screen(shown.decode()) if row]
    trials = [row for row in rows if row.startswith("[")]
    assert [row.split("]")[0] for row in trials] == [
        *(f"[{n + 1}/{stage.n_anchors}" for n in range(stage.n_anchors)),
        *(f"[{stage.n_anchors + n}/{n_trials}" for n in (1, 2, 3)),
    ]
    assert sum("pruned after epoch 1 of 2" in row for row in trials) == 1
    assert sum("failed: failed" in row for row in rows) == 1
    bars = [row for row in rows if "|" in row and row[0].isdigit()]
    assert [row.split()[0] for row in bars] == [
        f"{n}/{n}" for n in (stage.n_anchors, n_trials)
    ]  # one a run, at its end
    assert rows[-1] == bars[-1]
    assert len({len(row) for row in bars}) == 1  # it stands still


@pytest.mark.parametrize(
    ("n_before", "spent_s", "predicted_s", "left"),
    [
        (0, 270, 150, "2 h 19 min"),  # the default, which nothing prunes: at its pace it would be 3 h 40 min
        (15, 30, 150, "1 h 14 min"),  # one that was nearly done: at its pace it would be 17 min
        (0, 270, None, "3 h 40 min"),
        (49, 200, 150, "0 s"),
    ],
)
def test_the_first_trials_do_not_decide_what_is_left(
    stage: Stage,
    n_before: int,
    spent_s: float,
    predicted_s: float | None,
    left: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    monkeypatch.setattr("study.search.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    progress = Progress(stage.study, 50, n_before, 6, InterruptFlag(), predicted_s)
    now[0] = spent_s
    progress.finished(n_before + 1, n_before, n_before, 0.7, "", 200, 0.7)
    assert capsys.readouterr().out.strip().endswith(f"best 70.00%; {left} left")


def test_the_best_five_and_the_layers_of_the_first(stage: Stage) -> None:
    assert outcome(stage.study) == []
    config = dataclasses.replace(CONFIG, limits=Limits(own=(OwnLimit("size_kb", 700.0),)))
    stage.study.set_user_attr("config", config.to_json())
    stage.play(["complete"] * 7, trials=7)
    lines = outcome(stage.study)
    assert lines[1] == "Best 5 of stage, by validation accuracy"
    assert [line.split()[0] for line in lines[2:8]] == ["trial", "0", "1", "2", "3", "4"]
    params = candidate_of(stage.trials()[0]).architecture.params
    assert f"{params:,}" in lines[3]
    assert lines[2].split()[-3:] == ["MACs", "size_kb", "time"]
    assert f"{params * 4 / 1000:,.4g}" in lines[3].split()
    assert "Layers of trial 0" in lines
    assert any("Parameters" in line for line in lines)
