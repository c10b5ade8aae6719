"""What a report shows of a retrained network, as far as its bundle can be read."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from PIL import Image
from test_report import CONFIG, made_study, made_trial, rich_trials, row, section

from study.bundle.evaluation import EVALUATION
from study.bundle.files import CONFUSION_CSV, CURVES, MISSES
from study.data.cifar10 import CLASSES
from study.reporting import report
from study.reporting.facts import read_facts
from study.reporting.figures import pareto_front
from study.reporting.page import to_html, to_markdown
from study.storage.outcome import Outcome
from study.storage.reranked import origin, rerank_name


@pytest.fixture
def out(tmp_path: Path, made_bundle: Callable[..., None]) -> Path:
    """A study's folder; its bundle is of trial 1, the best of `rich_trials`."""
    made_bundle(tmp_path / "best", trial_candidate_id=rich_trials()[1].user_attrs["candidate_id"])
    return tmp_path


def written(study: optuna.Study, out: Path) -> tuple[str, str]:
    page = report.build_page(study, out)
    return to_markdown(page), to_html(page)


def test_a_bundle_is_shown_whole(out: Path) -> None:
    markdown, html = written(made_study(rich_trials()), out)
    verdict = section(markdown, "Verdict")
    assert "Retrained is trial 1, the best of the search." in verdict
    accuracy = row(verdict, "Test accuracy")
    n_right = round(float(accuracy[1].rstrip("%")) * 20)
    assert accuracy[3].endswith("(Wilson, 2,000 test images)")
    assert row(verdict, "Receptive field")[1:3] == ["47", "limit: above 44 pixels"]
    network = section(markdown, "The retrained network")
    assert row(network, "cpu") == ["cpu", "1", "1.25 ms", "800"]
    matrix = section(markdown, "Right and wrong by class")
    diagonal = [int(row(matrix, name)[i + 1]) for i, name in enumerate(("airplane", "automobile", "bird"))]
    assert 0 < sum(diagonal) < n_right
    assert row(section(markdown, "Calibration"), "Expected calibration error")[1].endswith("%")
    layers = section(markdown, "Its layers")
    assert "before the pooling, and must pass the line at 44" in layers
    assert row(layers, "0")[2:] == ["16x32x32", str(3 * 16 * 9 + 2 * 16), "3"]
    for name in ("trained-loss", "trained-accuracy", "classes", "reliability"):
        assert f'id="{name}"' in html
    labels = re.findall(r'role="img" aria-label="([^"]*)"', html)
    assert "Loss and accuracy of the retrained network by epoch: Cross-entropy" in labels
    assert len(labels) == len(set(labels)) == html.count('role="img"')
    assert all(" " in label for label in labels)  # words, not ids
    assert '<th scope="row">airplane</th>' in html
    regions = re.findall(r'role="region" aria-label="([^"]*)"', html)
    assert all(": " in region for region in regions)
    assert html.count('<img src="data:image/png;base64,') == 40 + 1


def test_an_older_bundle_shows_what_it_has(out: Path) -> None:
    for name in (EVALUATION, "augmented.png", "candidate.json"):
        (out / "best" / name).unlink()
    metrics = json.loads((out / "best" / "metrics.json").read_text())
    for name in ("test_images", "latency_ms"):
        del metrics[name]
    (out / "best" / "metrics.json").write_text(json.dumps(metrics))
    for name in (CURVES, MISSES):
        Image.new("RGB", (4, 4)).save(out / "best" / name)
    rows = [(name, *([30 * (name == other) for other in CLASSES])) for name in CLASSES]
    with (out / "best" / CONFUSION_CSV).open("w", newline="") as stream:
        csv.writer(stream).writerows([("true \\ predicted", *CLASSES), *rows])
    markdown, html = written(made_study(rich_trials()), out)
    assert row(section(markdown, "Verdict"), "Test accuracy")[3].endswith("(Wilson, 300 test images)")
    assert row(section(markdown, "Right and wrong by class"), "bird")[1:4] == ["·", "·", "30"]
    assert "Retrained is trial 1" in markdown
    assert html.count('<img src="data:image/png;base64,') == 2
    assert "Left out" not in markdown
    assert "## Its layers" not in markdown


@pytest.mark.parametrize("name", [EVALUATION, "candidate.json", "metrics.json"])
def test_damaged_files_are_left_out_and_named(name: str, out: Path) -> None:
    (out / "best" / name).write_bytes(b"{]")
    (out / "best" / MISSES).write_text("<script>alert(1)</script>")  # no picture
    markdown, html = written(made_study(rich_trials()), out)
    assert f"Left out, since it cannot be read: {name} (" in section(markdown, "The retrained network")
    assert ("## Calibration" in markdown) == (name != EVALUATION)
    assert ("## Its layers" in markdown) == (name != "candidate.json")
    assert "alert(1)" not in html


def test_whatever_a_stranger_names_is_text(out: Path, made_bundle: Callable[..., None]) -> None:
    evil = "<img src=x onerror=alert(1)>"
    shutil.rmtree(out / "best")
    made_bundle(out / "best", device=evil, latency_ms={evil: {"1": 1.0, "256": "fast"}, "x": 3}, commit=evil)
    _, html = written(made_study(rich_trials()), out)
    assert evil not in html


def test_it_says_which_network_was_retrained_and_why(out: Path) -> None:
    trials = rich_trials()
    metrics = json.loads((out / "best" / "metrics.json").read_text())

    def verdict(**changed: Any) -> str:
        (out / "best" / "metrics.json").write_text(json.dumps({**metrics, **changed}))
        return section(written(made_study(trials), out)[0], "Verdict")

    second = {"trial": 2, "trial_candidate_id": trials[2].user_attrs["candidate_id"]}
    text = verdict(**second, reranked_epochs=8)
    assert "Retrained is trial 2, the best of those that were trained again for 8 epochs; in the search it was" in text
    assert "number 2." in text
    assert "Retrained is trial 2, strong, the best of those" in verdict(
        **second, reranked_epochs=8, reranked_setting="strong"
    )
    assert "Retrained is trial 2, which was the best when it was retrained; the best trial now is 1." in verdict(
        **second
    )


def test_where_the_best_is_not_retrained_a_trial_that_was_asked_for_is_shown(
    out: Path, made_bundle: Callable[..., None]
) -> None:
    trials = rich_trials()
    for number in (2, 3):
        made_bundle(out / f"trial-{number}", trial_candidate_id=trials[number].user_attrs["candidate_id"], trial=number)
    shutil.copytree(out / "trial-3", out / "trial-3-distilled")
    for name, written_at in (("trial-2", 3e8), ("trial-3", 2e8), ("trial-3-distilled", 4e8)):
        os.utime(out / name / "metrics.json", (written_at, written_at))
    study = made_study(trials)
    assert "Retrained is trial 1, the best of the search." in section(written(study, out)[0], "Verdict")

    shutil.rmtree(out / "best")
    verdict = section(written(study, out)[0], "Verdict")
    assert "Retrained is trial 2, which was asked for; the best of the search is trial 1." in verdict  # the last one
    shutil.rmtree(out / "trial-2")
    trials[3].user_attrs["anchor"] = "default"
    verdict = section(written(made_study(trials), out)[0], "Verdict")
    assert "Retrained is trial 3, the space's default, which was asked for; the best" in verdict
    shutil.rmtree(out / "trial-3")
    verdict = section(written(study, out)[0], "Verdict")
    assert "Retrained is trial 3, which was asked for" in verdict  # a taught one, where there is no other
    shutil.rmtree(out / "trial-3-distilled")
    assert "Not retrained yet" in section(written(study, out)[0], "Verdict")
    made_bundle(out / "best-distilled", trial_candidate_id=trials[1].user_attrs["candidate_id"], trial=1)
    assert "Retrained is trial 1, the best of the search." in section(written(study, out)[0], "Verdict")


def test_the_re_ranking_is_a_table_of_its_own(out: Path) -> None:
    study = made_study(rich_trials())
    longer = optuna.create_study(
        study_name=rerank_name("dilated"), direction="maximize", storage=study._storage, load_if_exists=False
    )
    config = dataclasses.replace(CONFIG, epochs=8)
    for name, value in {"config": config.to_json(), **origin(study)}.items():
        longer.set_user_attr(name, value)
    longer.set_user_attr("given", [{"name": f"trial {n}", "trial": n} for n in (1, 2)])
    for slot, accuracy in ((0, 0.88), (1, 0.91)):
        trial = made_trial(slot, accuracy)
        longer.add_trial(trial)
    metrics = json.loads((out / "best" / "metrics.json").read_text()) | {"reranked_epochs": 8}
    (out / "best" / "metrics.json").write_text(json.dumps(metrics))
    text = section(written(study, out)[0], "Re-ranking")
    assert "its 2 best candidates were trained again for 8 epochs" in text
    assert "Trial 2, number 2 of the search, came out first" in text
    assert row(text, "1")[1:5] == ["2", "91.00%", "81.00%", "2"]
    assert row(text, "2")[-1] == "retrained"
    assert "strong" not in text  # there were no settings

    settings = [(2, "light"), (1, "light"), (2, "strong"), (1, "strong")]
    longer.set_user_attr("given", [{"name": "any", "trial": n, "setting": setting} for n, setting in settings])
    for slot, accuracy in ((2, 0.93), (3, 0.9)):
        longer.add_trial(made_trial(slot, accuracy))
    metrics["reranked_setting"] = "light"
    (out / "best" / "metrics.json").write_text(json.dumps(metrics))
    markdown = written(study, out)[0]
    text = section(markdown, "Re-ranking")
    verdict = section(markdown, "Verdict")
    assert "Retrained is trial 1, light, the best of those that were trained again for 8 epochs when it was" in verdict
    assert "; the best of them now is trial 2, strong." in verdict
    assert "its 2 best candidates were trained again" in text
    assert "Trial 2, strong, number 2 of the search, came out first" in text
    ranked = [row(text, str(rank)) for rank in (1, 2, 3, 4)]
    assert [each[1:4] for each in ranked] == [
        ["2", "strong", "93.00%"], ["1", "light", "91.00%"], ["1", "strong", "90.00%"], ["2", "light", "88.00%"],
    ]  # fmt: skip
    assert [each[-1] for each in ranked] == ["", "retrained", "", ""]

    # Retrained as the search had it, before it was re-ranked: by neither setting.
    searched = {**metrics, "reranked_epochs": None, "reranked_setting": None}
    (out / "best" / "metrics.json").write_text(json.dumps(searched))
    text = section(written(study, out)[0], "Re-ranking")
    assert [row(text, str(rank))[-1] for rank in (1, 2, 3, 4)] == [""] * 4


def test_the_pareto_front(out: Path) -> None:
    records = read_facts(made_study(rich_trials()), out).records
    made = [
        dataclasses.replace(records[1], number=number, params=params, accuracy=accuracy, outcome=state)
        for number, params, accuracy, state in (
            (0, 100, 0.5, Outcome.COMPLETE), (1, 100, 0.6, Outcome.COMPLETE), (2, 90, 0.9, Outcome.PRUNED),
            (3, 200, 0.6, Outcome.COMPLETE), (4, 300, 0.7, Outcome.COMPLETE), (5, 80, 0.4, Outcome.COMPLETE),
        )
    ]  # fmt: skip
    assert [record.number for record in pareto_front(made)] == [5, 1, 4]
