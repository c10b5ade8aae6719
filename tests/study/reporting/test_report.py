"""The report: its facts on made studies, and the two files that it writes."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import random
import re
import subprocess
import sys
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from search_spaces import get_space
from search_spaces.constraints import Limits, OwnLimit, check
from search_spaces.space import Choice, Dimension, Integer
from study.errors import StudyFailed, UserError
from study.machine.paths import REPOSITORY
from study.reporting import page as report_page
from study.reporting import report
from study.reporting.facts import counted_once, outcome, read_facts, record_of
from study.reporting.page import Text
from study.reporting.sections import at_bound
from study.reporting.verdict import verdict_blocks
from study.storage.config import StudyConfig
from study.storage.database import HIDDEN, open_storage

SPACE = get_space("dilated")
EPOCHS = 6
CONFIG = StudyConfig(
    space="dilated",
    space_version=SPACE.version,
    epochs=EPOCHS,
    train_images=45_000,
    val_images=5_000,
    seed=0,
    pruner="percentile",
    sampler="tpe",
    precision="bfloat16",
)


def distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if isinstance(dimension, Integer):
        return IntDistribution(dimension.low, dimension.high)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


DISTRIBUTIONS = {name: distribution(dimension) for name, dimension in SPACE.dimensions.items()}


def made_trial(
    slot: int,
    value: float,
    state: TrialState = TrialState.COMPLETE,
    n_epochs: int = EPOCHS,
    anchor: str | None = None,
    **changed: Any,
) -> FrozenTrial:
    """A finished trial of a real candidate; `changed` overrides sampled parameters."""
    sampled = SPACE.anchors(Limits())[anchor] if anchor else SPACE.sample(random.Random(slot))
    params = {**sampled, **changed}
    decoded = SPACE.decode(params, Limits())
    architecture = decoded.candidate.architecture
    values = {epoch: round(value * (epoch + 1) / n_epochs, 4) for epoch in range(n_epochs)}
    curve = [
        {
            "epoch": epoch, "train_loss": 2.0 - accuracy, "train_accuracy": accuracy / 2,
            "val_loss": 1.9 - accuracy,
            "val_accuracy": accuracy, "lr": 0.1, "wall_s": 20.0, "wait_frac": 0.1,
        }
        for epoch, accuracy in values.items()
    ]  # fmt: skip
    attrs = {
        "slot": slot,
        "attempt": 0,
        "params": architecture.params,
        "receptive_field": architecture.receptive_field,
        "receptive_field_with_pool": architecture.receptive_field_with_pool,
        "macs": architecture.macs,
        "n_dilated_reductions": architecture.n_dilated_reductions,
        "candidate": decoded.candidate.to_json(),
        "candidate_id": decoded.candidate.candidate_id,
        "architecture_id": architecture.architecture_id,
        "repairs": list(decoded.repairs),
        "wall_s": 20.0 * n_epochs,
        "curve": curve,
    }
    if anchor:
        attrs["anchor"] = anchor
    return optuna.create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params=params,
        distributions=DISTRIBUTIONS,
        user_attrs=attrs,
        intermediate_values=values,
        constraints={c.name: float(c.value) for c in check(architecture, Limits())},
    )


def failed_trial(slot: int, reason: str, **kwargs: Any) -> FrozenTrial:
    return optuna.create_trial(state=TrialState.FAIL, user_attrs={"slot": slot, "reason": reason}, **kwargs)


def made_study(trials: list[FrozenTrial], storage: Any = None, config: StudyConfig = CONFIG) -> optuna.Study:
    study = optuna.create_study(study_name="dilated", direction="maximize", storage=storage)
    study.set_user_attr("config", config.to_json())
    study.set_user_attr("target_accuracy", 0.85)
    study.set_user_attr("hardware", {"device": "cpu", "n_cores": 2})
    study.add_trials(trials)
    return study


def rich_trials() -> list[FrozenTrial]:
    """Every kind of trial; slot 2 is the best of those that reduce by dilation, slot 1 the best of all."""
    trials = [
        made_trial(0, 0.52, anchor="reference"),
        made_trial(1, 0.8734, reduction="strided", budget_frac=1.0, depth_1=2, lr=0.1, head_convs=0),
        made_trial(2, 0.81, reduction="dilated"),
    ]
    trials += [made_trial(slot, 0.5 + slot / 100, reduction="strided") for slot in range(3, 14)]
    trials += [made_trial(slot, 0.3, TrialState.PRUNED, n_epochs=3) for slot in range(14, 17)]
    trials += [
        failed_trial(17, "diverged: the training loss became nan", intermediate_values={0: 0.2}),
        failed_trial(18, "interrupted"),
        failed_trial(18, "interrupted: its process is gone"),
        failed_trial(19, "infeasible: 230,000 parameters, not below 200,000", constraints={"parameters": 30_001.0}),
        optuna.create_trial(state=TrialState.RUNNING, user_attrs={"slot": 20}, intermediate_values={0: 0.2}),
    ]
    return trials


def section(markdown: str, heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", markdown, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def row(text: str, first_cell: str) -> list[str]:
    """Cells of the table row that starts with `first_cell`."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == first_cell:
            return cells
    raise AssertionError(f"{first_cell!r} is not in\n{text}")


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Markdown and HTML of a study with every kind of trial."""
    out = tmp_path_factory.mktemp("rich")
    html, markdown = report.write_report(made_study(rich_trials()), out)
    return markdown.read_text(), html.read_text()


def test_counts_every_kind_of_trial(rich: tuple[str, str]) -> None:
    figures = section(rich[0], "Key figures")
    counts = {
        name: row(figures, name)[1] for name in ("Complete", "Pruned", "Failed", "Interrupted", "Infeasible", "Running")
    }
    assert counts == {
        "Complete": "14",
        "Pruned": "3",
        "Failed": "1",
        "Interrupted": "2",
        "Infeasible": "1",
        "Running": "1",
    }
    # 14 whole trials and 3 halves of 17 possible ones; the failed trial's epoch is told apart.
    assert row(figures, "Epochs spent of possible (91%)")[1] == "93 of 102"
    assert "spent 1 more epoch." in figures
    assert row(figures, "Time of all trials")[1] == "31 min"


def test_what_an_interrupted_trial_spent_is_counted_once() -> None:
    """It was found and ended fifteen hours later, and the one that went on from it tells its epochs again."""
    started = datetime(2026, 1, 1)

    def one(state: TrialState, slot: int, n_epochs: int, **attributes: Any) -> FrozenTrial:
        trial = optuna.create_trial(
            state=state,
            value=0.5 if state == TrialState.COMPLETE else None,
            user_attrs={"slot": slot, "candidate_id": f"of {slot}", **attributes},
            system_attrs={HIDDEN + "curve": [{"epoch": epoch, "wall_s": 10.0} for epoch in range(n_epochs)]},
            intermediate_values=dict.fromkeys(range(n_epochs), 0.5),
        )
        trial.datetime_start, trial.datetime_complete = started, started + timedelta(hours=15)
        return trial

    cut_off = {"outcome": "interrupted", "reason": "interrupted: its process is gone"}
    trials = [
        one(TrialState.FAIL, 0, 2, **cut_off),
        one(TrialState.COMPLETE, 0, 6, wall_s=60.0),
        one(TrialState.FAIL, 1, 3, **cut_off),
    ]
    records = [record_of(trial) for trial in trials]
    assert [record.wall_s for record in records] == [20.0, 60.0, 30.0]
    assert counted_once(records) == records[1:]


def test_verdict_and_limits(rich: tuple[str, str]) -> None:
    verdict = section(rich[0], "Verdict")
    assert "Best validation accuracy 87.3%: trial 1" in verdict
    assert "Not retrained yet" in verdict
    assert "85.00%" in verdict
    assert "meets every limit" in verdict
    limits = section(rich[0], "Limits")
    best = SPACE.decode(rich_trials()[1].params, Limits()).candidate.architecture
    assert row(limits, "Parameters") == [
        "Parameters", "< 200,000", f"{best.params:,}", f"{199_999 - best.params:,} left", "yes",
    ]  # fmt: skip


def test_a_best_trial_that_breaks_a_limit_is_told(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, limits=Limits(max_params=50_000))
    markdown = report_page.to_markdown(report.build_page(made_study([made_trial(1, 0.8)], config=config), tmp_path))
    assert "breaks a limit: parameters." in section(markdown, "Verdict")
    assert row(section(markdown, "Limits"), "Parameters")[-1] == "no"


def test_best_trials_and_anchors(rich: tuple[str, str]) -> None:
    table = section(rich[0], "The 10 best trials and the anchors")
    first = row(table, "1")
    assert first[1:4] == ["1", "1", "87.34%"]
    reference = row(table, "14")  # not among the ten best, and shown all the same
    assert reference[1] == "0"
    assert reference[-1] == "reference"
    assert reference[4:7] == ["175,696", "47", "50"]
    assert table.count("\n| ") == 2 + 11


def test_best_dilated_beside_the_best(rich: tuple[str, str]) -> None:
    text = section(rich[0], "Side by side")
    assert "is trial 2, 6.3 points behind" in text
    assert row(text, "Trial") == ["Trial", "1", "2", "0"]
    assert int(row(text, "Dilated reductions")[2]) > 0


def test_best_that_is_dilated_itself() -> None:
    study = made_study([made_trial(0, 0.7, anchor="reference"), made_trial(1, 0.6, reduction="strided")])
    markdown = report_page.to_markdown(report.build_page(study, Path("nowhere")))
    text = section(markdown, "Side by side")
    assert "itself reduces by dilated" in text
    assert "Best with strides only" in text


def test_flags_parameters_at_a_bound(rich: tuple[str, str]) -> None:
    text = section(rich[0], "Parameters of the best trial")
    assert row(text, "budget_frac")[-1] == "upper"
    assert row(text, "head_convs")[-1] == "lower"
    assert row(text, "depth_1")[-1] == ""
    assert row(text, "lr")[-1] == ""
    assert row(text, "reduction") == ["reduction", "strided", "strided or dilated", ""]


@pytest.mark.parametrize(
    ("value", "low", "high", "log", "expected"),
    [
        (1, 1, 4, False, "lower"),
        (2, 1, 4, False, ""),
        (4, 1, 4, False, "upper"),
        (1, 0, 400, False, ""),  # a whole number near the end is not at it
        (0.004, 0.0, 1.0, False, "lower"),
        (0.02, 0.0, 1.0, False, ""),
        (0.995, 0.0, 1.0, False, "upper"),
        (0.031, 0.03, 0.6, True, ""),
        (0.0305, 0.03, 0.6, True, "lower"),
        (0.59, 0.03, 0.6, True, "upper"),
        (3, 3, 3, False, ""),
    ],
)
def test_at_bound(value: float, low: float, high: float, log: bool, expected: str) -> None:
    assert at_bound(value, low, high, log) == expected


def test_share_of_repaired_trials() -> None:
    trials = [made_trial(slot, 0.5) for slot in range(4)]
    for trial, repairs in zip(
        trials,
        ([], ["dilations (1, 1, 1) -> (1, 1, 3)"], ["dilations (1, 1, 2) -> (1, 1, 3)"], []),
        strict=True,
    ):
        trial.set_user_attr("repairs", repairs)
    text = section(report_page.to_markdown(report.build_page(made_study(trials), Path("nowhere"))), "Repair")
    assert "2 of 4 trials (50%)" in text
    assert row(text, "dilations") == ["dilations", "2", "50%"]


SMALL_STUDIES: dict[str, list[FrozenTrial]] = {
    "empty": [],
    "one": [made_trial(1, 0.5)],
    "two": [made_trial(1, 0.5), made_trial(2, 0.6)],
    "failed only": [failed_trial(0, "diverged"), failed_trial(1, "")],
    "pruned only": [made_trial(1, 0.3, TrialState.PRUNED, n_epochs=2)],
    "running only": [optuna.create_trial(state=TrialState.RUNNING)],
    "waiting only": [optuna.create_trial(state=TrialState.WAITING)],
    "without attributes": [
        optuna.create_trial(value=0.5, params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)})
    ],
    "equal accuracies": [made_trial(slot, 0.5) for slot in range(12)],
}


@pytest.mark.parametrize("name", SMALL_STUDIES)
def test_every_state_of_a_study_gives_a_report(name: str, tmp_path: Path) -> None:
    html, markdown = report.write_report(made_study(SMALL_STUDIES[name]), tmp_path)
    text = markdown.read_text()
    assert "None" not in text
    assert "nan" not in text
    assert "## Verdict" in text
    assert "<main>" in html.read_text()


def test_curves_of_fewer_images_are_told() -> None:
    def html(trials: list[FrozenTrial]) -> str:
        return report_page.to_html(report.build_page(made_study(trials), Path("nowhere")))

    note = "only a fifth of the validation images"
    trials = rich_trials()
    assert note not in html(trials)
    first, *others = trials[0].user_attrs["curve"]
    trials[0].user_attrs["curve"] = [{**first, "n_val": 1000}, *({**each, "n_val": 5000} for each in others)]
    assert note in html(trials)


def test_too_few_trials_say_so_instead_of_a_ranking() -> None:
    study = made_study(SMALL_STUDIES["two"])
    page = report.build_page(study, Path("nowhere"))
    assert "Needs 10 complete trials to tell which parameters matter; there are 2." in report_page.to_html(page)


def test_importances_find_what_decides() -> None:
    rng = random.Random(0)
    trials = []
    for slot in range(40):
        dropout = rng.uniform(0, 0.6)
        trials.append(made_trial(slot, 0.9 - dropout, dropout_p=dropout))
    study = made_study(trials)
    shares = read_facts(study, Path("nowhere")).shares
    assert next(iter(shares)) == "dropout_p"
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == set(SPACE.dimensions)


def test_retrain_is_shown(tmp_path: Path) -> None:
    trials = rich_trials()
    metrics = {
        "candidate_id": trials[1].user_attrs["candidate_id"], "epochs": 100,
        "params": 180_000, "seeds": [0, 1, 2],
        "test_accuracy": [0.91, 0.915, 0.92], "test_accuracy_mean": 0.915, "test_accuracy_std": 0.005,
        "shipped_seed": 0, "test_accuracy_shipped": 0.91, "train_accuracy": 0.9,
        "target_accuracy": 0.85, "target_met": True, "device": "cpu", "wall_s": 7200.0,
    }  # fmt: skip
    (tmp_path / "best").mkdir()
    file = tmp_path / "best" / "metrics.json"
    file.write_text(json.dumps(metrics))
    study = made_study(trials)
    markdown = report_page.to_markdown(report.build_page(study, tmp_path))
    verdict = section(markdown, "Verdict")
    assert "Retrained test accuracy 91.50% (mean of 3 seeds, standard deviation 0.50%): the target of" in verdict
    assert row(section(markdown, "The retrained network"), "Shipped weights")[1] == "91.00% (seed 0)"
    assert row(section(markdown, "The retrained network"), "Time")[1] == "2 h 0 min, summed over 3 seeds"
    assert "Retrained is trial 1, the best of the search." in verdict
    file.write_text(json.dumps({**metrics, "target_accuracy": None, "target_met": None}))
    first = verdict_blocks(read_facts(study, tmp_path))[0]
    assert first == Text(
        "Retrained test accuracy 91.50% (mean of 3 seeds, standard deviation 0.50%): no target was set."
    )

    file.write_text(json.dumps({**metrics, "candidate_id": trials[2].user_attrs["candidate_id"], "target_met": False}))
    verdict = section(report_page.to_markdown(report.build_page(study, tmp_path)), "Verdict")
    assert "is not met." in verdict
    assert "Retrained is trial 2" in verdict

    file.write_text('{"test_accuracy": [0.')
    assert "holds no test accuracy" in report_page.to_markdown(report.build_page(study, tmp_path))


def test_trials_csv_holds_every_trial_with_its_hyperparameters(tmp_path: Path) -> None:
    trials = rich_trials()
    report.write_report(made_study(trials), tmp_path)
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [row["trial"] for row in rows] == [str(number) for number in range(len(trials))]
    assert [rows[i]["outcome"] for i in (0, 14, 17, 18, 20)] == [
        "complete",
        "pruned",
        "failed",
        "interrupted",
        "infeasible",
    ]
    assert {name: float(rows[2][f"param_{name}"]) for name in ("lr", "depth_1")} == {
        name: trials[2].params[name] for name in ("lr", "depth_1")
    }
    assert {name.removeprefix("param_") for name in rows[0] if name.startswith("param_")} == set(SPACE.dimensions)
    assert rows[17]["param_lr"] == ""


def test_figures_of_own_limits_are_listed_by_name(tmp_path: Path) -> None:
    own = (OwnLimit("energy_mj", 5.0, "mine.py:f 12"), OwnLimit("size_kb", 700.0))
    trials = [made_trial(0, 0.5, anchor="reference"), made_trial(1, 0.8), failed_trial(2, "infeasible: x")]
    trials[0].set_user_attr("measured", {"energy_mj": 3.14159, "other": 1.0})
    trials[1].set_user_attr("measured", {"energy_mj": "a lot"})  # a stranger's
    config = dataclasses.replace(CONFIG, limits=Limits(own=own))
    html, markdown = report.write_report(made_study(trials, config=config), tmp_path)
    table = section(markdown.read_text(), "The 10 best trials and the anchors")
    assert row(table, "Rank")[7:10] == ["MACs", "energy_mj", "size_kb"]
    assert row(table, "2")[8:10] == ["3.142", "702.8"]
    assert row(table, "1")[8] == "-"
    assert row(section(markdown.read_text(), "Side by side"), "energy_mj")[1:] == ["-", "3.142", "3.142"]
    assert "energy_mj 3.142" in html.read_text()  # beside its point
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [each["measured_energy_mj"] for each in rows] == ["3.14159", "", ""]
    assert [each["measured_size_kb"] != "" for each in rows] == [True, True, False]


def test_same_storage_same_bytes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    made_study(rich_trials(), open_storage(url))
    for name, seed in (("a", "1"), ("b", "2")):  # other hash seeds: no order may come from a set
        run_command(["--storage", url, "--out", str(tmp_path / name)], PYTHONHASHSEED=seed)
    for file in ("report.html", "report.md", "trials.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def run_command(arguments: list[str], code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "study.report", *arguments],
        cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def test_command_prints_the_key_lines_and_paths(tmp_path: Path) -> None:
    made_study(rich_trials(), open_storage(f"sqlite:///{tmp_path / 'study.db'}"))
    printed = run_command(["--out", str(tmp_path)]).stdout
    assert "87.3%" in printed
    assert str(tmp_path / "report.html") in printed
    assert str(tmp_path / "report.md") in printed


def test_command_without_a_study_is_one_line(tmp_path: Path) -> None:
    failed = run_command(["--out", str(tmp_path)], code=2)
    assert failed.stderr.startswith("error: There is no study at")
    assert failed.stderr.count("\n") == 1


def test_needs_no_torch(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    made_study(rich_trials(), open_storage(url))
    code = (
        "import sys; from study.report import main\n"
        f"main(['--storage', {url!r}, '--out', {str(tmp_path)!r}])\n"
        "heavy = {'torch', 'torchvision', 'albumentations', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


class _Loads(HTMLParser):
    """Addresses that a browser would load by itself, scripts, and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.ids: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._in_script = tag == "script"
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag in {"script", "img", "iframe", "link", "source", "object", "embed"}:
            self.addresses += [found[key] or "" for key in ("src", "href", "data") if key in found]

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)


def test_html_loads_nothing(rich: tuple[str, str]) -> None:
    page = _Loads()
    page.feed(rich[1])
    assert [address for address in page.addresses if not address.startswith("data:")] == []
    assert sum("plotly.js v" in script for script in page.scripts) == 1
    assert rich[1].count("<style>") == 1
    style = rich[1].split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style
    assert {"history", "curves", "importance", "size", "parallel", "slice-0", "slice-5"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


EVIL = "<img src=x onerror=alert(1)>"


class _Elements(HTMLParser):
    """Every element, each attribute's name, and the words that are shown."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {tag, *(name for name, _ in attrs)}

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def evil_trial(slot: int) -> FrozenTrial:
    """A complete trial all of whose words, and the name of whose parameter, are markup."""
    name = f"</script>{EVIL}"
    distributions = {name: CategoricalDistribution((f"{EVIL}|a", f"{EVIL}|b")), "x": FloatDistribution(0, 1)}
    attrs: dict[str, Any] = {"slot": slot, "anchor": EVIL, "candidate_id": f"{EVIL}|", "repairs": [f"{EVIL}\n## x"]}
    return optuna.create_trial(
        value=slot / 20,
        params={name: f"{EVIL}|{'ab'[slot % 2]}", "x": slot / 20},
        distributions=distributions,
        intermediate_values={0: slot / 20},
        user_attrs={**attrs, "params": 1000 + slot},
    )


def test_words_of_a_study_are_text(tmp_path: Path) -> None:
    study = optuna.create_study(study_name=EVIL, direction="maximize")
    study.set_user_attr("config", CONFIG.to_json())
    study.set_user_attr("hardware", {f"{EVIL}|device": f"{EVIL}|\n[x](javascript:alert(1))"})
    study.set_user_attr("created", EVIL)
    study.add_trials([evil_trial(slot) for slot in range(12)])
    study.add_trial(failed_trial(12, f"<script>alert(1)</script> | and a bar {EVIL}"))
    html_file, markdown_file = report.write_report(study, tmp_path)
    html, markdown = html_file.read_text(), markdown_file.read_text()

    page = _Elements()
    page.feed(html)
    assert not page.found & {"img", "onerror"}
    assert page.words.count(EVIL) >= 2  # title and heading, as they are
    assert EVIL not in html
    assert "<script>alert" not in html
    assert "\\u003cimg" not in html  # plotly would take it for markup of a label
    assert EVIL not in markdown
    assert "<script>" not in markdown
    assert "](" not in markdown
    assert "\n## x" not in markdown
    assert "\\| and a bar" in markdown
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize(
    ("state", "attrs", "expected"),
    [
        (TrialState.COMPLETE, {"outcome": "complete"}, "complete"),
        (TrialState.PRUNED, {"outcome": "pruned"}, "pruned"),
        (TrialState.FAIL, {"outcome": "infeasible"}, "infeasible"),
        (TrialState.PRUNED, {"outcome": "infeasible"}, "infeasible"),
        (TrialState.FAIL, {"outcome": "failed", "reason": "interrupted, says somebody"}, "failed"),
        (TrialState.FAIL, {"outcome": "interrupted", "reason": "infeasible, says somebody"}, "interrupted"),
        # Older studies: no attribute.
        (TrialState.COMPLETE, {}, "complete"),
        (TrialState.PRUNED, {"reason": "pruned after epoch 3 of 6"}, "pruned"),
        (TrialState.FAIL, {"reason": "infeasible: 230,000 parameters"}, "infeasible"),
        (TrialState.FAIL, {"reason": "interrupted: its process is gone"}, "interrupted"),
        (TrialState.FAIL, {"reason": "diverged"}, "failed"),
        (TrialState.FAIL, {}, "failed"),
        # Written, and then something else happened before Optuna was told: the state knows better.
        (TrialState.FAIL, {"outcome": "complete"}, "failed"),
        (TrialState.FAIL, {"outcome": "pruned", "reason": "interrupted"}, "interrupted"),
        (TrialState.RUNNING, {"outcome": "complete"}, "running"),
        (TrialState.WAITING, {}, "waiting"),
        (TrialState.FAIL, {"outcome": ["nonsense"]}, "failed"),
    ],
)
def test_outcome(state: TrialState, attrs: dict[str, Any], expected: str) -> None:
    value = 0.5 if state == TrialState.COMPLETE else None
    assert outcome(optuna.create_trial(state=state, value=value, user_attrs=attrs)) == expected


def test_outcome_of_older_studies_by_broken_constraints() -> None:
    assert outcome(optuna.create_trial(state=TrialState.FAIL, constraints={"parameters": 1.0})) == "infeasible"


def test_trials_of_others_are_told_and_count_nowhere(rich: tuple[str, str], tmp_path: Path) -> None:
    x = {"x": FloatDistribution(0, 1)}
    copied = made_trial(1, 0.99)
    foreign = [
        optuna.create_trial(value=0.999, params={"x": 0.5}, distributions=x),
        optuna.create_trial(value=0.99, params=copied.params, distributions=copied.distributions),
        optuna.create_trial(state=TrialState.FAIL, user_attrs={"reason": "mine"}),
        optuna.create_trial(state=TrialState.PRUNED, intermediate_values={700: 0.3}),
    ]
    study = made_study([*rich_trials(), *foreign])
    markdown = report_page.to_markdown(report.build_page(study, tmp_path))
    line = "Not counted: 4 trials that this program did not make.\n\n"
    assert markdown.count(line) == 1
    assert markdown.replace(line, "") == rich[0]


def test_a_full_disk_keeps_the_older_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = made_study([made_trial(1, 0.5)])
    html, markdown = report.write_report(study, tmp_path)
    before = html.read_bytes(), markdown.read_bytes()
    study.add_trial(made_trial(2, 0.6))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StudyFailed, match="No space left"):
        report.write_report(study, tmp_path)
    assert (html.read_bytes(), markdown.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md", "trials.csv"]


def test_a_foreign_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no configuration"):
        report.write_report(optuna.create_study(), tmp_path)
