"""The script that makes everything published from a GPU: its steps, and that it goes on after a failure."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import same_as_cpu
from study.paths import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "gpu_study.sh"
FAKE = """#!/usr/bin/env bash
# Stands in for python: notes what it is asked for, and fails where it is told to.
case "$*" in *is_available*) exit "$NO_GPU" ;; esac
if [ "$1" = -c ]; then echo 2; exit 0; fi
echo "$*" >> "$CALLS"
case "$*" in *"$FAILS"*) exit 3 ;; esac
case "$*" in *"$HANGS"*) sleep 60 ;; esac
"""


def call(tmp_path: Path, *words: str, fails: str = "nothing", hangs: str = "nothing", **more: str):
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(fake), "CALLS": str(tmp_path / "calls"), "FAILS": fails, "HANGS": hangs}
    environment |= {"NO_GPU": "0"}
    command = [str(SCRIPT), *words]
    return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, timeout=120)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_every_step_is_named_and_defined() -> None:
    listed = subprocess.run([SCRIPT, "--list"], capture_output=True, text=True, check=True).stdout.split()
    defined = re.findall(r"^    ([a-z0-9-]+)\)", SCRIPT.read_text().split("run_step() {")[1], re.MULTILINE)
    assert listed == defined
    assert listed.index("correctness") < listed.index("throughput") < listed.index("study") < listed.index("publish")


def test_steps_that_are_done_are_skipped(tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    first = call(tmp_path, "--out", out, "study", "rerank")
    assert (first.returncode, len(calls(tmp_path))) == (0, 2)
    assert "--space best --trials 50 --device cuda" in calls(tmp_path)[0]
    again = call(tmp_path, "--out", out, "study", "rerank", "retrain")
    assert again.returncode == 0
    assert len(calls(tmp_path)) == 3
    assert "study: done before" in again.stdout
    assert "--seeds 5" in calls(tmp_path)[2]


def test_a_failed_step_does_not_stop_the_others_and_is_tried_again(tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    found = call(tmp_path, "--out", out, "study", "rerank", "reference", fails="study.run")
    assert found.returncode == 1
    assert "study: FAILED with exit code 3" in found.stdout
    assert "rerank: waits for study" in found.stdout
    assert [line.split()[1] for line in calls(tmp_path)] == ["study.run", "study.retrain"]
    assert call(tmp_path, "--out", out, "study", "rerank").returncode == 0
    assert [line.split()[1] for line in calls(tmp_path)[2:]] == ["study.run", "study.rerank"]


def test_a_long_step_is_cut_off_and_goes_on_next_time(tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    found = call(tmp_path, "--out", out, "study", "rerank", "reference", hangs="study.run", STEP_S="1")
    assert found.returncode == 1
    assert re.search(r"study: cut off after \d+ s; the same command goes on", found.stdout)
    assert "rerank: waits for study" in found.stdout  # a list of the best of half a study would stay
    assert "study.retrain" in calls(tmp_path)[1]
    assert call(tmp_path, "--out", out, "study").returncode == 0


def test_a_call_ends_in_time(tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    found = call(tmp_path, "--out", out, "study", "reference", hangs="study.run", TOTAL_S="52")
    assert re.search(r"study: cut off after \d+ s; the same command goes on", found.stdout)
    assert "reference: no time left" in found.stdout
    assert (found.returncode, len(calls(tmp_path))) == (1, 1)


@pytest.mark.parametrize("lacking", [{"STUDY_DATA": ""}, {"NO_GPU": "1"}])
def test_correctness_is_not_what_was_skipped(tmp_path: Path, lacking: dict[str, str]) -> None:
    out, there = str(tmp_path / "runs"), {"STUDY_DATA": "somewhere"}
    found = call(tmp_path, "--out", out, "correctness", **{**there, **lacking})
    assert found.returncode == 1
    assert "correctness: FAILED" in found.stdout
    assert not (tmp_path / "calls").exists()
    assert call(tmp_path, "--out", out, "correctness", **there).returncode == 0


def test_what_is_published_goes_where_it_is_wanted(tmp_path: Path) -> None:
    runs, results = tmp_path / "runs", str(tmp_path / "published")
    (runs / "best").mkdir(parents=True)
    (runs / "best" / "study.db").touch()
    found = call(tmp_path, "--out", str(runs), "--results", results, "throughput", "samplers", "publish")
    assert found.returncode == 0
    throughput, samplers, publish = calls(tmp_path)
    assert f"--out {results}/benchmarks" in throughput
    assert samplers.endswith(f"--runs {runs}/samplers --results {results}/samplers")
    assert publish == f"scripts/publish.py --study-name best --out {runs}/best --results {results}"


@pytest.mark.parametrize("words", [["--nonsense"], ["nonsense"], ["--out"], ["--results"]])
def test_mistakes_get_a_line(tmp_path: Path, words: list[str]) -> None:
    found = call(tmp_path, *words)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert len(found.stderr.splitlines()) == 1


def test_a_gpu_that_trains_worse_than_chance_allows_is_noticed() -> None:
    lost, allowed = same_as_cpu.compare([0.60, 0.61, 0.62], [0.595, 0.61, 0.62])
    assert 0 < lost < allowed
    lost, allowed = same_as_cpu.compare([0.60, 0.61, 0.62], [0.55, 0.56, 0.57])
    assert lost == pytest.approx(0.05)
    assert lost > allowed
    assert same_as_cpu.compare([0.6], [0.6])[1] == same_as_cpu.MARGIN
