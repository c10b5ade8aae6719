"""Made files lie as torchvision has them, and our reader gets out of them what was put in."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torchvision

from experiments import own_data
from study.data.opening import load_test, open_data
from study.errors import UserError


@pytest.mark.parametrize(("name", "n_classes", "counts"), [("SVHN", 10, (1_500, 400)), ("CIFAR100", 100, (2_000, 500))])
def test_made_files_are_read(
    name: str, n_classes: int, counts: tuple[int, int], user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = getattr(torchvision.datasets, name)
    for sums in ("split_list", "train_list", "test_list", "meta"):
        if hasattr(known, sums):
            monkeypatch.setattr(known, sums, copy.deepcopy(getattr(known, sums)))
    assert own_data.MAKERS[name]({}) == name
    data = open_data(name)
    assert (data.n_train, data.n_test, len(data.classes)) == (*counts, n_classes)
    pixels, labels = own_data._made(counts[1], n_classes, seed=4)
    test = load_test(name)
    assert np.array_equal(test.pixels, pixels)
    assert np.array_equal(test.labels, labels)


def test_digits_need_scikit_learn_or_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_data, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip download scikit-learn --no-deps, then name it by --digits"):
        own_data._digits_file(None)
