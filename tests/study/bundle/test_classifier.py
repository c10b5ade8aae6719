"""`study.load`: four lines for programs of others."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from older_bundle import CANDIDATE, write_older_bundle
from PIL import Image

import study
from study.data.batches import normalise
from study.data.cifar10 import CLASSES
from study.data.image_files import UnreadableImageError
from study.errors import UserError
from study.machine.paths import REPOSITORY
from study.model.network import build


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_older_bundle(tmp_path_factory.mktemp("best"))


def test_it_answers_as_the_trained_network(bundle: Path) -> None:
    model, pixels = study.load(str(bundle)), np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    assert model.classes == CLASSES
    assert not any(module.training for module in model.modules())
    images = torch.stack([model.preprocess(Image.fromarray(each)) for each in pixels])
    assert (images.dtype, images.shape) == (torch.float32, (5, 3, 32, 32))
    expected = build(CANDIDATE.architecture, seed=3).eval()(normalise(torch.from_numpy(pixels)))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(model)(images), expected, rtol=1e-4, atol=1e-5)


def test_whatever_holds_the_image(bundle: Path, tmp_path: Path) -> None:
    """A file, its name, an opened one, or an image: grey, turned and transparent ones as `study.predict` sees them."""
    model = study.load(bundle)
    image = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20)  # 16-bit grey
    image.save(tmp_path / "a.png")
    stream = io.BytesIO((tmp_path / "a.png").read_bytes())
    found = [model.preprocess(each) for each in (tmp_path / "a.png", str(tmp_path / "a.png"), stream, image)]
    assert all(torch.equal(each, found[0]) for each in found)
    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert torch.equal(model.preprocess(colours), model.preprocess(Image.fromarray(colours)))
    assert 0 <= float(found[0].min()) < float(found[0].max()) <= 1
    with pytest.raises(UnreadableImageError, match="does not exist"):
        model.preprocess(tmp_path / "gone.png")
    Image.fromarray(colours).save(tmp_path / "cut.png")
    os.truncate(tmp_path / "cut.png", 2000)
    with pytest.raises(UnreadableImageError, match="truncated"), Image.open(tmp_path / "cut.png") as cut:
        model.preprocess(cut)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (np.zeros((32, 32, 3)), r"float64 \[32, 32, 3\]"),
        (np.zeros((3, 32, 32), np.uint8), r"uint8 \[3, 32, 32\]"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), r"torch.uint8 \[32, 32, 3\]"),
        (None, "NoneType"),
    ],
)
def test_what_holds_no_image(bundle: Path, given: Any, what: str) -> None:
    with pytest.raises(TypeError, match=rf"an array that is uint8 \[H, W, 3\], RGB: this is {what}\."):
        study.load(bundle).preprocess(given)


def test_bytes_in_place_of_fractions_are_refused(bundle: Path) -> None:
    with pytest.raises(TypeError, match="divide them by 255"):
        study.load(bundle)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        study.load(tmp_path / "nowhere")


def test_importing_the_package_loads_nothing() -> None:
    code = "import study, sys; assert callable(study.load); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "PIL", "study.bundle"} & set(done.stdout.split())
