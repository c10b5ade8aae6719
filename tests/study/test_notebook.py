"""The notebook, from its first cell to its last."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from study.machine.paths import REPOSITORY

NOTEBOOK = REPOSITORY / "scripts" / "study.ipynb"


def test_no_outputs_are_kept() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(made_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    given = {
        "REPOSITORY": "",
        "TRIALS": 2,
        "SEARCH": ["--train-images", "200", "--val-images", "100", "--epochs", "1", "--device", "cpu", "--jobs", "1"],
        "RETRAIN": ["--epochs", "1", "--train-images", "200", "--device", "cpu"],
        "OUT": str(tmp_path / "out"),
    }
    assert {line.split(" = ")[0] for line in parameters.source.splitlines()} == set(given)
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    shown = [output.data for output in outputs if output.output_type == "display_data"]
    assert "2 trials are finished" not in printed  # which is said of a run that was stopped
    assert "Test accuracy" in printed
    assert printed.count(".png ") == 8  # a prediction for every file
    assert sum("image/png" in data for data in shown) == 4
    (report,) = [data["text/html"] for data in shown if "text/html" in data and "<iframe" in data["text/html"]]
    assert len(report) > 100_000
