"""What the blocks of the README files say of their records, and how they get there."""

from __future__ import annotations

import errno
import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

import evidence
import publish
from experiments import fidelity, published, replays
from gpu import rates
from study.bundle.files import load_bundle
from study.machine.paths import RESULTS
from study.reporting.facts import read_facts
from study.storage.config import StudyConfig


def trial(study: str, candidate: str, accuracy: float, anchor: str | None = None) -> dict[str, Any]:
    return {"study": study, "anchor": anchor, "candidate_id": candidate, "curve": [0.1, accuracy]}


def test_whole_studies_count_what_was_sampled(tmp_path: Path) -> None:
    """The default's mean is 0.55: one of two neighbours is better, and no random sample."""
    how = {"pruner": "none", "seed": 3}
    record = {
        "config": {"epochs": 2, "train_images": 100, "val_images": 50},
        "studies": {
            "near": {"complete": 3, "sampler": "anchored", **how},
            "near-rerank": {"complete": 2, "sampler": "random", **how, "rerank_of": "near"},
            "far": {"complete": 3, "sampler": "random", **how},
        },
        "trials": [
            trial("near", "default", 0.52, "default"),
            trial("near", "a", 0.60),
            trial("near", "b", 0.53),
            trial("near-rerank", "a", 0.57),
            trial("far", "default", 0.58, "default"),
            trial("far", "c", 0.40),
            trial("far", "d", 0.50),
        ],
    }
    (tmp_path / "replays").mkdir()
    (tmp_path / "replays" / "dilated-15000-table.json").write_text(json.dumps(record))
    text = replays.whole_studies_block(tmp_path)
    assert "| 2 | 56.50% | 60.00% | 57.00% | 1 of 2 |" in text
    assert "| random | 2 | 45.00% | 50.00% |  | 0 of 2 |" in text
    assert "default has 55.00% (mean of 2 trainings, 52.00% to 58.00%)" in text
    assert "--trials 3 --pruner none --sampler anchored --seed 3 --study-name near" in text
    assert "study.rerank --study-name near --top 2 --epochs 2 --train-images 100" in text


def test_the_commands_are_those_that_ran(tmp_path: Path) -> None:
    """Of a study from before they were kept, those that would make it today."""
    study = optuna.create_study(study_name="dilated", direction="maximize")
    config = StudyConfig("dilated", 3, 6, 15_000, 5_000, 0, "none", "random", "float32")
    study.set_user_attr("config", config.to_json())
    searched = "python -m study.run --trials 50 --sampler random --pruner none"
    assert published.commands_of(study, tmp_path, 50) == [searched]
    study.set_user_attr("commands", ["python -m study.run --trials 20", "python -m study.run"])
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "metrics.json").write_text("{}")
    assert published.commands_of(study, tmp_path, 50)[-1] == "python -m study.retrain"
    (tmp_path / "best" / "metrics.json").write_text('{"command": "python -m study.retrain --seeds 3"}')
    assert published.commands_of(study, tmp_path, 50) == [
        "python -m study.run --trials 20", "python -m study.run", "python -m study.retrain --seeds 3",
    ]  # fmt: skip
    (tmp_path / "best").rename(tmp_path / "trial-0")
    (tmp_path / "trial-0" / "metrics.json").write_text('{"command": "python -m study.retrain --trial 0"}')
    assert published.commands_of(study, tmp_path, 50)[-1] == "python -m study.retrain --trial 0"


def test_a_published_bundle_names_no_place(tmp_path: Path) -> None:
    command = 'python -m study.retrain --seeds 1 --out "/a \\"b\\"" --data /c'
    (tmp_path / "metrics.json").write_text(json.dumps({"command": command, "seeds": [0]}))
    (tmp_path / "README.md").write_text(f"- By `{command}`\n")
    published._leave_out_places(tmp_path)
    assert evidence.read(tmp_path / "metrics.json") == {"command": "python -m study.retrain --seeds 1", "seeds": [0]}
    assert (tmp_path / "README.md").read_text() == "- By `python -m study.retrain --seeds 1`\n"


def test_a_published_study_has_its_report_again(tmp_path: Path) -> None:
    """Of its record alone: its database is not published."""
    record = evidence.read(RESULTS / "dilated" / "study.json")
    facts = read_facts(published.restored(record), tmp_path)
    assert [r.outcome.name for r in facts.records] == [row["state"] for row in record["trials"]]
    assert [r.accuracy for r in facts.records] == [row["val_accuracy"] for row in record["trials"]]
    assert facts.best is not None
    assert all(row.met for row in facts.limits(facts.best))
    assert facts.reranking is not None
    longer = record["rerank"]["trials"]
    assert [(r.number, r.accuracy) for r in facts.reranking.ranked] == [(t["trial"], t["val_accuracy"]) for t in longer]

    # A newer one names settings.
    longer[0]["setting"], longer[1]["setting"] = "strong", "light"
    facts = read_facts(published.restored(record), tmp_path)
    assert facts.reranking is not None
    assert [r.setting for r in facts.reranking.ranked[:2]] == ["strong", "light"]
    evidence.write(tmp_path / "dilated" / "study.json", record)
    assert "trial 39 (strong) 87.38%, trial 14 (light) 87.22%, trial 20 87.02%" in published.block("dilated", tmp_path)


def test_a_default_that_was_asked_for_is_a_row_of_its_own(tmp_path: Path) -> None:
    metrics = evidence.read(RESULTS / "dilated" / "best" / "metrics.json")
    trials = [{"trial": number, "anchor": "default"} for number in (0, 7)]
    evidence.write(tmp_path / "made" / "study.json", {"created": "now", "trials": trials})
    for number, accuracy, created in ((0, 0.9, "now"), (7, 0.8, "before, by a study of the same name")):
        found = {**metrics, "trial": number, "test_accuracy_mean": accuracy, "seeds": [0], "study_created": created}
        evidence.write(tmp_path / "made" / f"trial-{number}" / "metrics.json", found)
    lines = published.headline(tmp_path).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:4]] == [
        ["| default of the space `made`, not searched for", "**90.00%** (1 seed)"],
        ["| trial 7 of `made`", "**80.00%** (1 seed)"],
    ]


def test_networks_of_an_earlier_study_of_the_name_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new default would stand beside the old study's; the reference is of no study."""
    monkeypatch.setattr("screenshot.browser", lambda: None)
    study = published.restored(evidence.read(RESULTS / "dilated" / "study.json"))
    metrics = evidence.read(RESULTS / "dilated" / "best" / "metrics.json")
    run, folder, created = tmp_path / "run", tmp_path / "published", study.user_attrs["created"]
    for where, name, of in (
        (folder, "best", "before"),
        (folder, "trial-7", "before"),
        (folder, "trial-6", None),  # from when that was not told
        (folder, "trial-8", created),
        (folder, "reference", None),
        (run, "trial-9", created),
    ):
        found = {**metrics, "study_created": of} if of else metrics
        evidence.write(where / name / "metrics.json", found)
    found = evidence.read(folder / "reference" / "metrics.json")
    del found["study"]
    evidence.write(folder / "reference" / "metrics.json", found)
    evidence.write(folder / "study.json", {"created": "before"})
    (folder / "report.png").touch()
    published.publish(study, run, folder)
    assert published.bundles_in(folder) == ["reference", "trial-8", "trial-9"]
    assert not (folder / "report.png").exists()
    assert evidence.read(folder / "study.json")["created"] == created


def test_a_bundle_is_published_again(tmp_path: Path) -> None:
    """What was measured of it there stays, and nothing else than a bundle's files comes there."""
    run, there = tmp_path / "run", tmp_path / "published"
    run.mkdir()
    metrics = {"command": "python -m study.retrain --out /a", "wall_s": 7.0}
    for name in ("weights.pt", "weights.safetensors", "model.pt2", "model.onnx", "exports.json", "notes.txt"):
        (run / name).write_text("/a")
    evidence.write(run / "metrics.json", metrics)
    for _ in range(2):  # the same again
        published._copy_bundle(run, there)
        (there / "exports.json").write_text("measured here")
    published._copy_bundle(run, there)
    assert {file.name for file in there.iterdir()} == {"weights.safetensors", "metrics.json", "exports.json"}
    assert (there / "exports.json").read_text() == "measured here"

    evidence.write(run / "metrics.json", {**metrics, "wall_s": 8.0})  # another training
    (there.with_name(".published.new")).mkdir()  # of one that was killed
    published._copy_bundle(run, there)
    assert {file.name for file in there.iterdir()} == {"weights.safetensors", "metrics.json"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["published", "run"]


def test_a_disk_that_is_full_costs_nothing_of_what_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    for where, wall_s in (("run", 8.0), ("published", 7.0)):
        evidence.write(tmp_path / where / "metrics.json", {"wall_s": wall_s})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space"):
            published._copy_bundle(tmp_path / "run", tmp_path / "published")
    assert evidence.read(tmp_path / "published" / "metrics.json") == {"wall_s": 7.0}


def test_the_time_of_a_search_is_that_in_which_something_ran() -> None:
    start = datetime(2026, 1, 1, 12)

    def one(begin_s: float, end_s: float, state: TrialState = TrialState.COMPLETE, **attrs: Any) -> FrozenTrial:
        found = optuna.create_trial(state=state, value=0.5 if state == TrialState.COMPLETE else None, user_attrs=attrs)
        found.datetime_start, found.datetime_complete = (start + timedelta(seconds=s) for s in (begin_s, end_s))
        return found

    at_once = [one(0, 100), one(50, 120)]
    later = [one(10_000, 10_060)]
    curve = [{"wall_s": 20.0}, {"wall_s": 21.0}]
    killed = one(200, 9_999, TrialState.FAIL, outcome="interrupted", curve=curve)  # found hours later
    failed = one(10_060, 10_070, TrialState.FAIL, outcome="failed")
    assert published.searching_seconds([*later, killed, *at_once, failed]) == pytest.approx(120 + 41 + 60 + 10)


def test_trials_that_ended_otherwise_are_told_apart(tmp_path: Path) -> None:
    record = evidence.read(RESULTS / "dilated" / "study.json")
    for outcome in ("interrupted", "failed", "interrupted"):
        record["trials"].append({**record["trials"][-1], "state": "FAIL", "outcome": outcome, "epochs_run": 1})
    evidence.write(tmp_path / "dilated" / "study.json", record)
    assert published.block("dilated", tmp_path).startswith("8 trials complete, 42 pruned, 1 failed, 2 interrupted; ")
    facts = read_facts(published.restored(record), tmp_path)
    assert [each.outcome.value for each in facts.records[-3:]] == ["interrupted", "failed", "interrupted"]


def test_a_published_bundle_holds_weights_once() -> None:
    bundles = [file.parent for file in RESULTS.glob("*/*/metrics.json")]
    assert bundles
    for bundle in bundles:
        assert load_bundle(bundle).candidate.architecture.params < 200_000
        names = {file.name for file in bundle.iterdir()}
        assert len(names & {"weights.pt", "weights.safetensors"}) == 1
        assert "model.pt2" not in names


def test_rates_of_a_gpu_are_told_as_far_as_they_were_measured(tmp_path: Path) -> None:
    assert rates.block(tmp_path) == "Not measured yet."
    rate = {"images_s": 1234.4, "step_ms": 2.0, "batch_size": 64}
    record = {
        "command": "python scripts/gpu/smoke.py OUT.json", "machine": {"gpu": "A card"}, "rate best": rate,
        "rate dilated, SGD": {"failed": "no memory"}, "rate best, batch 64": {**rate, "step_ms": 3.0},
    }  # fmt: skip
    evidence.write(tmp_path / "gpu" / "a-card.json", record)
    text = rates.block(tmp_path)
    assert [line for line in text.splitlines() if line.startswith("| `")] == [
        "| `best` |  | 64 | 1,234 | 2.00 |", "| `best` | batch 64 | 64 | 1,234 | 3.00 |"
    ]  # fmt: skip
    assert text.endswith("A card, by `python scripts/gpu/smoke.py OUT.json`.")


def test_a_rank_correlation_of_too_few_candidates_is_not_shown(tmp_path: Path) -> None:
    assert fidelity.block(tmp_path) == "Not measured yet."
    (tmp_path / "fidelity").mkdir()
    (tmp_path / "fidelity" / "new.json").write_text(json.dumps({"spearman": None, "spearman_interval_95": None}))
    assert fidelity.block(tmp_path) == "Not measured yet."


def test_blocks_are_rewritten_in_place_and_links_start_from_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = {"one": lambda: "[table](results/a/b.json), ![](results/a/c.png)", "two": lambda: "`results/a` in code"}
    monkeypatch.setattr(publish, "BLOCKS", blocks)
    monkeypatch.setattr(publish, "REPOSITORY", tmp_path)
    text = "before\n<!-- results:one -->\n{}\n<!-- end -->\n<!-- main command -->\nx\n<!-- end -->\n"
    text += "<!-- results:two -->\n<!-- end -->\nafter\n"
    whole = text.replace("two -->\n", "two -->\n`results/a` in code\n")
    for folder, shown in (
        (tmp_path, "[table](results/a/b.json), ![](results/a/c.png)"),
        (tmp_path / "results", "[table](a/b.json), ![](a/c.png)"),
        (tmp_path / "search_spaces", "[table](../results/a/b.json), ![](../results/a/c.png)"),
    ):
        folder.mkdir(exist_ok=True)
        readme = folder / "README.md"
        readme.write_text(text.format("old"))
        assert publish.rewritten(readme) == whole.format(shown)
        readme.write_text(publish.rewritten(readme))
        assert publish.rewritten(readme) == readme.read_text()


def test_an_unknown_block_is_an_error(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:nonsense -->\n<!-- end -->\n")
    with pytest.raises(KeyError, match="nonsense"):
        publish.rewritten(readme)


def test_only_what_changed_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh, stale = tmp_path / "fresh.md", tmp_path / "stale.md"
    fresh.write_text("<!-- results:one -->\nnew\n<!-- end -->\n")
    stale.write_text("<!-- results:one -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(publish, "BLOCKS", {"one": lambda: "new"})
    monkeypatch.setattr(publish, "READMES", (fresh, stale))
    assert publish.main(["--readme"]) == 0
    assert capsys.readouterr().out == f"Rewrote the result blocks of {stale}\n"
    assert stale.read_text() == fresh.read_text()
    assert publish.main(["--readme"]) == 0
    assert capsys.readouterr().out == ""
