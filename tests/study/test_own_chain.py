"""Whole commands on a user's own images, with the user's own space and limits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search_spaces import SPACES
from study import describe, rerank, retrain, run
from study.bundle import load_bundle
from study.errors import UserError
from study.storage.database import open_study

TINY = ["--epochs", "1", "--jobs", "1", "--device", "cpu"]
FILE = """
from search_spaces.dilated import DilatedSpace

class Mine(DilatedSpace):
    name = "mine"

def wide(architecture):
    return "widest", max(op.out_shape[0] for op in architecture.operations), 90
"""


@pytest.fixture
def folder(tmp_path: Path, made_cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with data/train/<class>/ and mine.py."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200), ("mixed", 120)):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for number in range(40):
            pixels = np.clip(rng.normal(level, 20, (20 + number, 50 - number)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "train" / name / f"{number}.png")
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STUDY_DATA", raising=False)
    yield tmp_path
    SPACES.pop("mine", None)


@pytest.mark.slow
def test_own_images_space_and_limits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--space", "mine.py:Mine", "--limit", "mine.py:wide", "--limit", "size_kb=200", "--limit", "latency_ms=1000"]
    out = ["--out", "out", "--study-name", "mine"]
    first = [*TINY, *out, *own, "--data", "data"]
    assert run.main(["--trials", "1", *first]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"limits .*widest < 90 \(mine.py:wide [0-9a-f]{12}\), size_kb < 200, latency_ms < 1,000", shown)
    assert re.search(r"data  data: 3 classes, 100 \+ 20 images, [0-9a-f]{12}", shown)
    study = open_study("sqlite:///out/study.db", "mine")
    assert study.user_attrs["target_accuracy"] is None
    assert study.user_attrs["config"]["train_images"] == 90
    for trial in study.trials:
        assert set(trial.user_attrs["measured"]) == {"widest", "latency_ms"}
        assert trial.user_attrs["params"] < 50_000
        assert max(trial.constraints.values()) <= 0
        assert trial.constraints["widest"] == trial.user_attrs["measured"]["widest"] - 90

    # What is stored is never run: to go on, files are typed again.
    SPACES.pop("mine")
    both = r"made with files of yours, .*: add --space file\.py:Class \(the space 'mine'\), --limit mine\.py:wide, with"
    with pytest.raises(UserError, match=both):
        run.main(["--trials", "3", *TINY, *out, "--data", "data"])
    with pytest.raises(UserError, match=r"typed: add --limit mine\.py:wide, with"):
        run.main(["--trials", "3", *TINY, *out, "--data", "data", *own[:2], "--limit", "latency_ms=1000"])
    (folder / "mine.py").write_text(FILE.replace("90", "80"))
    with pytest.raises(UserError, match=r"other settings \(widest: < 90 .* -> < 80 "):
        run.main(["--trials", "3", *first])
    (folder / "mine.py").write_text(FILE)
    (folder / "data" / "train" / "dark" / "0.png").rename(folder / "0.png")
    with pytest.raises(UserError, match="was made with other images"):
        run.main(["--trials", "3", *first])
    (folder / "0.png").rename(folder / "data" / "train" / "dark" / "0.png")

    # Whoever trains stored candidates needs no file.
    SPACES.pop("mine")
    assert rerank.main(["--top", "1", *TINY, *out, "--data", "data"]) == 0
    assert "mine" not in SPACES
    assert retrain.main(["--epochs", "1", "--device", "cpu", *out, "--data", "data"]) == 0
    shown = capsys.readouterr().out
    assert "passes" not in shown
    assert shown.endswith("Next:   python -m study.predict out/best --serve\n")
    bundle = load_bundle(Path("out/best"))
    assert bundle.preprocessing.classes == ("dark", "light", "mixed")
    assert bundle.preprocessing.mean != (0.4914, 0.4822, 0.4465)
    assert bundle.preprocessing.data == "data"
    assert bundle.candidate.architecture.n_classes == 3
    assert json.loads(Path("out/best/metrics.json").read_text())["target_met"] is None
    assert Path("out/best/confusion.csv").read_text().startswith("true \\ predicted,dark,light,mixed")
    text = Path("out/report.md").read_text()
    assert "widest" in text
    assert "Milliseconds for one image on the CPU" in text
    assert describe.main(["--trial", "0", *out]) == 0
    assert "Limits of the study" in capsys.readouterr().out
