"""What a command says when it is asked wrongly."""

from __future__ import annotations

import importlib
from typing import cast

import pytest

from study.command_line.parser import run_command


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("run", ["--jobs", "many"], "argument --jobs: must be a whole number or auto: 'many'"),
        ("run", ["--trials", "ten"], "argument --trials: invalid int value: 'ten'"),
        ("run", ["--sampler", "grid"], "argument --sampler: invalid choice: 'grid'"),
        ("rerank", ["--best", "4"], "unrecognized arguments: --best 4"),
        ("retrain", ["--trial", "x"], "argument --trial: invalid int value: 'x'"),
        ("report", ["twice"], "unrecognized arguments: twice"),
        ("describe", ["--trial"], "argument --trial: expected one argument"),
        ("predict", [], "the following arguments are required"),
        ("export", ["x"], "the following arguments are required: --format"),
    ],
)
def test_a_wrong_command_line_gets_one_line(
    module: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = importlib.import_module(f"study.{module}")
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: cast(int, command.main(arguments)))
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"error: {said}")
    assert err.endswith(f". python -m study.{module} --help says what there is.\n")
    assert err.count("\n") == 1
