"""A search and its re-ranking in a running optuna-dashboard, as a browser shows them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from study import rerank

WIDTH = 1280
PATIENCE_S = 60.0
TINY = ["--train-images", "200", "--val-images", "100", "--epochs", "2", "--device", "cpu", "--jobs", "1"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reranked(made_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study whose best was trained again, with two settings."""
    out = tmp_path_factory.mktemp("dashboard") / "study"
    shutil.copytree(made_study, out)
    assert rerank.main([*TINY, "--top", "1", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def dashboard(reranked: Path) -> Iterator[str]:
    """The address of a dashboard, as the banner says to start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    command = [str(program), f"sqlite:///{reranked / 'study.db'}", "--artifact-dir", str(reranked / "artifacts")]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                urlopen(f"{address}/api/studies", timeout=PATIENCE_S).close()
                break
            except URLError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def studies(address: str) -> list[dict[str, Any]]:
    with urlopen(f"{address}/api/studies") as answer:
        ids = [study["study_id"] for study in json.load(answer)["study_summaries"]]
    found = []
    for study_id in ids:
        with urlopen(f"{address}/api/studies/{study_id}?after=0") as answer:
            found.append({"id": study_id, **json.load(answer)})
    return found


def page(browser: Any, address: str, words: str) -> str:
    """The text of a page once it shows `words`."""
    browser.set_window_size(WIDTH, 2400)
    browser.get(address)
    deadline = time.monotonic() + PATIENCE_S
    while words not in (text := browser.execute_script("return document.body.innerText")):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    return str(text)


def test_every_file_of_both_studies_is_served(dashboard: str) -> None:
    search, again = studies(dashboard)
    assert (search["name"], again["name"]) == ("dilated", "dilated-rerank")
    for study in (search, again):
        assert [file["filename"] for file in study["artifacts"]] == ["report.html"]
        with urlopen(f"{dashboard}/artifacts/{study['id']}/{study['artifacts'][0]['artifact_id']}") as answer:
            assert answer.headers["Content-Type"].startswith("text/html")
        for trial in study["trials"]:
            assert sorted(file["filename"] for file in trial["artifacts"]) == ["curve.png", "layers.csv"]
            for file in trial["artifacts"]:
                with urlopen(
                    f"{dashboard}/artifacts/{study['id']}/{trial['trial_id']}/{file['artifact_id']}"
                ) as answer:
                    assert answer.read()


def test_a_trial_fits_its_page_and_counts_epochs_from_1(dashboard: str, browser: Any) -> None:
    for study, epochs in zip(studies(dashboard), (1, 2), strict=True):
        for trial in study["trials"]:
            address = f"{dashboard}/dashboard/studies/{study['id']}/trials?numbers={trial['number']}"
            text = page(browser, address, "wall_s")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= WIDTH
            assert [step["step"] for step in trial["intermediate_values"]] == list(range(1, epochs + 1))
            assert "candidate_id" in text
            gaps = browser.execute_script(GAPS)
            assert gaps
            assert min(gaps) >= 8


GAPS = """
const gaps = [];
for (const row of document.querySelectorAll("table tr")) {
  const boxes = [...row.cells].map(cell => {
    const text = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), range = document.createRange();
    let left = null, right = null;
    for (let node = text.nextNode(); node; node = text.nextNode()) {
      const shown = node.data.trim();
      if (!shown) continue;
      const start = node.data.indexOf(shown);
      range.setStart(node, start);
      range.setEnd(node, start + shown.length);
      const box = range.getBoundingClientRect();
      left = left === null ? box.left : Math.min(left, box.left);
      right = right === null ? box.right : Math.max(right, box.right);
    }
    return [left, right];
  });
  for (let i = 1; i < boxes.length; i++)
    if (boxes[i][0] !== null && boxes[i - 1][1] !== null) gaps.push(boxes[i][0] - boxes[i - 1][1]);
}
return gaps;
"""
"""Pixels between what neighbouring cells of a table show."""
