"""The model card: what hubs read is valid, its figures are the files', and no name breaks it."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from search_spaces.reference import REFERENCE
from study.bundle.card import card
from study.bundle.metrics import accuracy_interval
from study.bundle.preprocessing import CIFAR_10
from study.bundle.summary import summary
from study.command_line.wording import taught_by
from study.machine.files import read_json
from study.machine.paths import RESULTS

CONFUSION = np.full((10, 10), 1) + np.diag([90] * 9 + [40])
CONFUSION[3, 5] += 30
SHIPPED = sorted(file.parent for file in RESULTS.glob("*/*/metrics.json"))


def head_and_text(whole: str) -> tuple[Any, str]:
    _, head, text = whole.split("---\n", 2)
    return yaml.safe_load(head), text


def test_hubs_read_its_head() -> None:
    metrics = {"study": "dilated", "name": "best", "test_accuracy_shipped": 0.85, "shipped_seed": 0, "seeds": [0]}
    head, _ = head_and_text(card(REFERENCE, metrics, CIFAR_10, CONFUSION))
    assert head["license"] == "mit"
    assert head["datasets"] == ["uoft-cs/cifar10"]
    assert head["metrics"] == ["accuracy"]
    assert {"image-classification", "cnn"} <= set(head["tags"])
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert model["name"] == "dilated-best"
    assert result["task"]["type"] == head["pipeline_tag"] == "image-classification"
    assert {"type", "name", "split"} <= set(result["dataset"])
    assert result["metrics"] == [{"type": "accuracy", "value": 0.85, "name": "Test accuracy"}]


def test_a_folder_that_is_called_as_a_data_set_is_not_it() -> None:
    metrics = {"test_accuracy_shipped": 0.85, "own_images": True}
    head, _ = head_and_text(card(REFERENCE, metrics, CIFAR_10, CONFUSION))
    assert "datasets" not in head
    assert "uoft-cs" not in str(head)
    assert head["model-index"][0]["results"][0]["dataset"]["type"] == "own"


def test_a_teacher_is_told() -> None:
    metrics = {"epochs": 4, "seeds": [0], "shipped_seed": 0, "wall_s": 90.0}
    teacher = {"params": 1_234_567, "macs": 10, "epochs": 3, "wall_s": 60.0}
    told = "1,234,567 parameters, trained before it for 3 epochs in 1 min"
    _, text = head_and_text(card(REFERENCE, {**metrics, "teacher": teacher}, CIFAR_10, CONFUSION))
    assert f"learned from a larger network, {told}" in text
    assert told in summary(REFERENCE, {**metrics, "teacher": teacher})
    assert "larger network" not in card(REFERENCE, metrics, CIFAR_10, CONFUSION)
    assert taught_by({"params": "many"}) == ""


def test_accuracy_has_its_interval_and_classes_theirs() -> None:
    metrics = {
        "test_accuracy_shipped": 0.85, "test_accuracy": [0.85, 0.87], "test_accuracy_mean": 0.86, "seeds": [0, 1],
        "test_accuracy_std": 0.01, "shipped_seed": 0, "target_accuracy": 0.8, "target_met": True,
    }  # fmt: skip
    _, text = head_and_text(card(REFERENCE, metrics, CIFAR_10, CONFUSION))
    assert "**85.00%** of the test images (seed 0, 980 test images, 95% interval 82.63% to 87.10%)" in text
    assert "86.00% ± 1.00 over 2 seeds: 85.00%, 87.00%" in text
    assert "Target 80.00%, met" in text
    assert "nothing was chosen by them. " in text
    told = card(REFERENCE, {**metrics, "chosen_by_test_images": "how it is augmented"}, CIFAR_10, CONFUSION)
    assert "nothing was chosen by them but how it is augmented, before. " in told
    rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", text, re.MULTILINE))
    assert rows["cat"] == "70.0% | 91.0% | 130"
    assert rows["truck"] == "82.0% | 82.0% | 50"
    assert "cat and dog (32 of their 230);" in text
    assert "Least recognised: cat 70.0%, truck 82.0%, airplane 91.0%." in text


@pytest.mark.parametrize(
    ("accuracy", "n", "expected"),
    [(0.5, 10, (0.2366, 0.7634)), (0.0, 10, (0.0, 0.2775)), (0.9201, 10_000, (0.9146, 0.9252))],
)
def test_the_interval_is_wilson_s(accuracy: float, n: int, expected: tuple[float, float]) -> None:
    """Of Newcombe's tables (1998), and of a large sample."""
    assert accuracy_interval(accuracy, n) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "name", ["a: b", "- x", "#", "'", '"', "|", "<script>", "`", "]( javascript:x)", "---", "ä\n", "{"]
)
def test_no_name_breaks_it(name: str) -> None:
    own = dataclasses.replace(CIFAR_10, classes=(name, *CIFAR_10.classes[1:]), data=name)
    metrics = {"test_accuracy_shipped": 0.5, "name": name, "study": name, "command": name, "commit": name}
    whole = card(REFERENCE, metrics, own, CONFUSION)
    head, text = whole.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert "datasets" not in yaml.safe_load(head)
    assert "<script>" not in text
    assert "](" not in text.replace("]\\(", "")
    columns = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| ")}
    assert columns == {5}


def test_seeds_without_one_that_is_shipped() -> None:
    text = card(REFERENCE, {"seeds": [0, 1]}, CIFAR_10, None)
    assert "- Seeds 0, 1\n" in text


@pytest.mark.parametrize("wall_s", [float("inf"), float("nan"), "long"])
def test_a_teacher_that_cannot_be_told(wall_s: Any) -> None:
    assert taught_by({"params": 1, "epochs": 1, "wall_s": wall_s}) == ""


def test_nothing_known_is_a_card_too() -> None:
    head, text = head_and_text(card(REFERENCE, {}, CIFAR_10, None))
    assert "model-index" not in head
    assert "Not measured." in text
    assert "None" not in text.replace("[None]", "")


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_shipped_cards_say_what_their_files_say(folder: Path) -> None:
    """After a change of the card: python -m study.export results/.../best --format card"""
    from study.bundle.files import load_candidate
    from study.bundle.preprocessing import read_preprocessing

    with (folder / "confusion.csv").open(newline="") as stream:
        counts = np.array([row[1:] for row in list(csv.reader(stream))[1:]], dtype=np.int64)
    expected = card(load_candidate(folder), read_json(folder / "metrics.json"), read_preprocessing(folder), counts)
    assert (folder / "README.md").read_text() == expected
    assert (folder / "config.json").exists()
