"""`study.describe`: exact figures, quickly, and mistakes answered in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from search_spaces import SPACES, get_space
from search_spaces.architecture import Architecture, Branch, Branches, Conv, Gated, Residual
from search_spaces.candidate import Candidate
from search_spaces.constraints import Limits
from search_spaces.layer_table import layer_table
from search_spaces.reference import REFERENCE, REFERENCE_ARCHITECTURE
from study.describe import main
from study.errors import UserError
from study.machine.paths import REPOSITORY
from study.storage.database import open_storage


def described(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert isinstance(facts, dict)
    return facts


def test_reference_is_the_published_network(capsys: pytest.CaptureFixture[str]) -> None:
    facts = described(capsys, "reference")
    assert (facts["params"], facts["receptive_field"], facts["receptive_field_with_pool"]) == (
        175_696,
        47,
        50,
    )
    assert facts["macs"] == REFERENCE_ARCHITECTURE.macs
    assert facts["candidate_id"] == REFERENCE.candidate_id
    assert facts["architecture_id"] == REFERENCE_ARCHITECTURE.architecture_id
    assert Architecture.from_json(facts["architecture"]) == REFERENCE_ARCHITECTURE
    assert sum(layer["params"] for layer in facts["layers"]) == facts["params"]
    assert Candidate.from_json(facts) == REFERENCE
    main(["reference"])
    text = capsys.readouterr().out
    assert layer_table(REFERENCE_ARCHITECTURE) in text
    assert "rotate_deg=10" in text


@pytest.mark.parametrize("name", sorted(SPACES))
def test_every_space_is_described(capsys: pytest.CaptureFixture[str], name: str) -> None:
    space = get_space(name)
    facts = described(capsys, name)
    assert (facts["name"], facts["version"]) == (name, space.version)
    assert list(facts["dimensions"]) == list(space.dimensions) == list(facts["default"])
    default = space.decode(facts["default"], Limits()).candidate
    assert facts["candidate_id"] == default.candidate_id
    assert facts["params"] == default.architecture.params < facts["limits"]["max_params"]
    main([name])
    text = capsys.readouterr().out
    assert layer_table(default.architecture) in text
    assert "200,000" in text
    for dimension, values in space.dimensions.items():
        assert re.search(rf"^{dimension} +{re.escape(str(values))} ", text, re.MULTILINE)
    assert space.tree.strip().splitlines()[-1].strip() in text


def test_bundle_needs_only_its_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "candidate.json").write_text(json.dumps(REFERENCE.to_json()))
    assert described(capsys, str(tmp_path))["candidate_id"] == REFERENCE.candidate_id


@pytest.fixture
def out(tmp_path: Path) -> str:
    """A study of three trials: complete, pruned, and failed before it had a candidate."""
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    study = optuna.create_study(storage=storage, study_name="dilated", direction="maximize")
    attrs = {"candidate": REFERENCE.to_json(), "slot": 0}
    state = optuna.trial.TrialState
    study.add_trial(optuna.trial.create_trial(state=state.COMPLETE, value=0.75, user_attrs=attrs))
    study.add_trial(optuna.trial.create_trial(state=state.PRUNED, user_attrs=attrs))
    study.add_trial(optuna.trial.create_trial(state=state.FAIL, user_attrs={"slot": 1}))
    broken = {"candidate": {"architecture": {"version": 99}}}
    study.add_trial(optuna.trial.create_trial(state=state.PRUNED, user_attrs=broken))
    return str(tmp_path)


def test_trial(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts = described(capsys, "--trial", "0", "--out", out)
    assert (facts["trial"], facts["slot"], facts["state"], facts["val_accuracy"]) == (0, 0, "COMPLETE", 0.75)
    assert facts["candidate_id"] == REFERENCE.candidate_id
    facts = described(capsys, "--trial", "1", "--storage", f"sqlite:///{out}/study.db")
    assert (facts["state"], facts["outcome"], facts["val_accuracy"]) == ("PRUNED", "pruned", None)
    main(["--trial", "0", "--out", out])
    assert "Trial 0 of dilated, validation accuracy 75.00%: candidate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "not neither"),
        (["reference", "--trial", "0"], "not both"),
        (["nonsense"], "'nonsense'. Name 'reference', a search space (best, dilated"),
        (["{out}"], "must hold candidate.json"),
        (["{out}/study.db"], "is a file"),
        (["--trial", "9", "--out", "{out}"], "between 0 and 3"),
        (["--trial", "-1", "--out", "{out}"], "between 0 and 3"),
        (["--trial", "2", "--out", "{out}"], "before it had a candidate"),
        (["--trial", "3", "--out", "{out}"], "version=99"),
        (["--trial", "0", "--out", "{out}", "--study-name", "other"], "No study is called 'other'"),
        (["--trial", "0", "--out", "{out}/nowhere"], "no study at"),
    ],
)
def test_mistakes_take_one_line(out: str, argv: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        main([word.format(out=out) for word in argv])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_command_starts_without_torch_and_exits_2_on_a_mistake(tmp_path: Path) -> None:
    code = (
        "import sys; from study.describe import main; from study.command_line.parser import run_command\n"
        "try: run_command(main)\n"
        "finally: assert not {'torch', 'matplotlib', 'albumentations'} & set(sys.modules), 'heavy import'"
    )
    for target, expected in (("reference", 0), ("nonsense", 2)):
        command = [sys.executable, "-c", code, target]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == expected, done.stderr
        assert len(done.stderr.splitlines()) == (1 if expected else 0)


def test_table_lists_every_operation_with_thousands_and_totals() -> None:
    lines = layer_table(REFERENCE_ARCHITECTURE).splitlines()
    rules = [index for index, line in enumerate(lines) if set(line) == {"-"}]
    assert rules[1] - rules[0] - 1 == len(REFERENCE_ARCHITECTURE.operations)
    totals = "\n".join(lines[rules[1] + 1 :])
    for expected in (
        r"^Parameters +175,696$",
        r"^Multiply-accumulates +18,620,576$",
        r"^Receptive field +47$",
        r"^  with the global pooling +50$",
        r"^Size of the weights +0\.67 MiB$",
    ):
        assert re.search(expected, totals, re.MULTILINE), expected
    row = next(line for line in lines if line.startswith("3 "))
    assert re.split(r"  +", row) == [
        "3",
        "Conv2d",
        "3x3, dilation 8, unpadded",
        "[16, 16, 16]",
        "2,304",
        "589,824",
        "23",
    ]


def test_table_shows_residual_bodies() -> None:
    body = (Conv(8, separable=True, norm=False), Conv(8, activation=False))
    lines = layer_table(Architecture((Conv(8), Residual(body), Conv(8)))).splitlines()[2:-6]
    found = [(line[:3].strip(), line[5:].split("  ")[0] or line[7:].split("  ")[0]) for line in lines]
    assert found == [
        ("0", "Conv2d"),
        ("", "BatchNorm2d"),
        ("", "ReLU"),
        ("1", "Residual"),
        ("1.0", "Conv2d"),
        ("", "Conv2d"),
        ("", "ReLU"),
        ("1.1", "Conv2d"),
        ("", "BatchNorm2d"),
        ("", "Add"),
        ("", "ReLU"),
        ("2", "Conv2d"),
        ("", "BatchNorm2d"),
        ("", "ReLU"),
        ("3", "AvgPool2d"),
        ("", "Conv2d"),
    ]


def test_table_numbers_every_run_of_a_repeated_block() -> None:
    body = (Branches((Branch(1), Branch(3)), norm_type="layer"), Gated(8, 4))
    architecture = Architecture((Conv(8), Residual(body, activation=False, scaled="identity", times=2)))
    lines = layer_table(architecture).splitlines()[2:-6]
    found = [(line[:3].strip(), *line[5:].split()[:2]) for line in lines]
    run = [
        ("1.0", "Conv2d", "3x3,"),
        ("", "Concat", "identity,"),
        ("", "LayerNorm2d", "[8,"),
        ("1.1", "Conv2d", "1x1,"),
        ("", "Gate", "SiLU"),
        ("", "Conv2d", "1x1,"),
        ("", "Scale", "identity"),
        ("", "Add", "identity"),
    ]
    assert found[3:] == [("1", "Residual", "2"), *run, *run, ("2", "AvgPool2d", "global,"), ("", "Conv2d", "1x1,")]


def test_a_space_for_other_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "roomy.py"
    file.write_text(
        "from search_spaces.constraints import InfeasibleError\nfrom search_spaces.dilated import DilatedSpace\n\n"
        "class Roomy(DilatedSpace):\n    name = 'roomy'\n\n    def decode(self, params, limits, clock=None):\n"
        "        if limits.max_params < 500_000:\n            raise InfeasibleError(())\n"
        "        return super().decode(params, limits, clock)\n"
    )
    assert main([f"{file}:Roomy"]) == 0
    text = capsys.readouterr().out
    assert "Search space roomy, version 3" in text
    assert "No default network under the default limits: " in text
    assert main([f"{file}:Roomy", "--json"]) == 0
    assert "batch_size" in json.loads(capsys.readouterr().out)["dimensions"]
    SPACES.pop("roomy")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dilated", "--out", "x"], "dilated takes no --out"),
        (["dilated", "--check", "--json"], "--check takes no --json"),
    ],
)
def test_options_that_would_be_ignored_are_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        main(arguments)
