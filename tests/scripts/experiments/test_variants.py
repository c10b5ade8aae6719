"""Changes of a candidate against it, at equal epochs: trained once each, told as a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import variants
from search_spaces.constraints import Limits, certify
from study.errors import UserError
from study.machine.paths import RESULTS


@pytest.mark.slow
def test_what_is_trained_is_kept_and_not_trained_again(
    made_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "VAL_IMAGES", 100)
    arguments = ["reference", "--epochs", "1", "--train-images", "40", "--jobs", "1", "--data", str(made_cifar10)]
    arguments += ["--results", str(tmp_path / "results"), "--checkpoints", str(tmp_path / "checkpoints")]
    assert variants.main([*arguments, "--only", "SGD, stronger augmentation"]) == 0
    file = tmp_path / "results" / "reference.json"
    (first,) = json.loads(file.read_text())["runs"]
    assert (
        variants.main(
            [*arguments, "--only", "SGD, stronger augmentation", "Muon, stronger augmentation", "--seeds", "2"]
        )
        == 0
    )
    runs = json.loads(file.read_text())["runs"]
    assert runs[0] == first
    assert sorted((run["name"], run["seed"]) for run in runs) == [
        *[("Muon, stronger augmentation", seed) for seed in (0, 1)],
        *[("SGD, stronger augmentation", seed) for seed in (0, 1)],
    ]
    monkeypatch.setattr(variants, "N_TURNS", 1)
    assert variants.main([*arguments, "--only", "SGD, stronger augmentation", "--time"]) == 0
    timed = json.loads(file.read_text())
    assert timed["runs"] == runs
    assert set(timed["speed"]["rates"]) == {"SGD, stronger augmentation"}
    assert variants.main([*arguments, "--only", "Muon, stronger augmentation", "--time"]) == 0
    speed = json.loads(file.read_text())["speed"]
    assert set(speed["rates"]) == {"SGD, stronger augmentation", "Muon, stronger augmentation"}
    assert speed["command"].count(" && ") == 1
    assert not list((tmp_path / "checkpoints").glob("*.pt"))
    with pytest.raises(UserError, match=r"--only must be of 'SGD, stronger augmentation', .*: 'another'"):
        variants.main([*arguments, "--only", "another"])


def test_differences_are_of_the_same_seeds(tmp_path: Path) -> None:
    def run(name: str, seed: int, accuracy: float, order: int) -> dict[str, object]:
        return {
            **{"name": name, "seed": seed, "val_accuracy": accuracy, "train_accuracy": 0.9, "order": order},
            **{"epochs": 2, "train_images": 100, "macs": 5e6, "command": "python x.py", "hardware": HARDWARE},
        }

    runs = [run("changed", 1, 0.8, 1), run("changed", 2, 0.9, 1), run("plain", 0, 0.6, 0), run("plain", 1, 0.7, 0)]
    speed = {"rates": {"plain": 1234.0}, "command": "python x.py --time"}
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants" / "made.json").write_text(json.dumps({"runs": runs, "speed": speed}))
    lines = variants.block(tmp_path).splitlines()
    assert lines[2] == "| plain | 5.0 M | 1,234 | 65.00% | 90.00% |  | 2 |"
    assert lines[3] == "| changed | 5.0 M |  | 85.00% | 90.00% | +10.00 | 2 |"
    timed = "; images per second of one thread by `python x.py --time`"
    assert lines[-1] == f"2 epochs of 100 images, 2 cores of a CPU (`python x.py`{timed})."
    assert variants.block(tmp_path / "empty") == "Not measured yet."


HARDWARE = {"cpu": "a CPU", "n_cores": 2}


def test_every_variant_keeps_the_limits() -> None:
    for candidates in variants.groups().values():
        for candidate in candidates.values():
            certify(candidate.architecture, Limits())


@pytest.mark.parametrize("name", sorted(variants.groups()))
def test_a_recorded_command_still_trains_what_it_trained(name: str) -> None:
    runs = json.loads((RESULTS / "variants" / f"{name}.json").read_text())["runs"]
    known = {title: candidate.candidate_id for title, candidate in variants.groups()[name].items()}
    assert {run["name"]: run["candidate_id"] for run in runs} == {run["name"]: known[run["name"]] for run in runs}
