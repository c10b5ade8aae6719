"""The files of a trial, made where neither torch nor Optuna is loaded."""

from __future__ import annotations

import csv
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from search_spaces.reference import REFERENCE_ARCHITECTURE
from study.machine.paths import REPOSITORY
from study.reporting.pictures import curve_png, layers_csv

EPOCH = {"train_loss": 1.8, "train_accuracy": 0.3, "val_loss": 1.7, "val_accuracy": 0.35}


def test_layers_add_up() -> None:
    rows = list(csv.DictReader(io.StringIO(layers_csv(REFERENCE_ARCHITECTURE))))
    assert sum(int(row["params"]) for row in rows) == REFERENCE_ARCHITECTURE.params
    assert sum(int(row["macs"]) for row in rows) == REFERENCE_ARCHITECTURE.macs
    assert (rows[0]["in_shape"], rows[-1]["out_shape"]) == ("3x32x32", "10x1x1")


@pytest.mark.parametrize("n_epochs", [0, 1, 50])
def test_curves_of_any_length(n_epochs: int) -> None:
    curve = [{**EPOCH, "epoch": epoch, "val_loss": None} for epoch in range(n_epochs)]
    drawn, empty = (
        _pixels(curve_png(rows, "Trial 3: $ <odd> title"))
        for rows in (curve, [{"epoch": row["epoch"]} for row in curve])
    )
    assert np.array_equal(drawn, _pixels(curve_png(curve, "Trial 3: $ <odd> title")))
    assert drawn.shape[:2] == (440, 1050)
    assert len(np.unique(drawn)) > 10  # axes and words, at least
    assert bool((drawn != empty).any()) == (n_epochs > 0)


def _pixels(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))


def test_workers_need_neither_torch_nor_optuna() -> None:
    code = (
        "import sys; from study.reporting.pictures import curve_png, layers_csv\n"
        "assert not {'matplotlib', 'numpy'} & set(sys.modules), 'loaded before a picture is drawn'\n"
        "from search_spaces.reference import REFERENCE_ARCHITECTURE\n"
        f"layers_csv(REFERENCE_ARCHITECTURE); curve_png([{{'epoch': 0, **{EPOCH!r}}}], 'Trial 0')\n"
        "heavy = {'torch', 'optuna', 'optuna_dashboard', 'plotly', 'sqlalchemy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
