"""What the sections of a report are made of, read once, and how it is worded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from search_spaces.architecture import Architecture, ArchitectureError
from search_spaces.constraints import Clock
from search_spaces.cost import CostModel
from study.command_line.wording import MISSING, percent
from study.reporting import figures
from study.reporting.figures import Record
from study.storage.config import StudyConfig
from study.storage.database import config_of

BOUND_FRAC = 0.01
"""A real parameter within this share of its range from an end counts as being at the bound."""


@dataclass(frozen=True)
class Facts:
    """Everything that sections are made of, read once."""

    study: optuna.Study
    out: Path
    config: StudyConfig
    records: list[Record]
    ranked: list[Record]
    shares: dict[str, float]
    metrics: dict[str, Any] | None
    target: float | None

    @property
    def best(self) -> Record | None:
        return self.ranked[0] if self.ranked else None

    def count(self, outcome: str) -> int:
        return sum(record.outcome == outcome for record in self.records)


def read_facts(study: optuna.Study, out: Path) -> Facts:
    config = config_of(study)
    records = figures.read_records(study)
    target = study.user_attrs.get("target_accuracy")
    return Facts(
        study=study,
        out=out,
        config=config,
        records=records,
        ranked=figures.rank(records),
        shares=figures.importances(study, records),
        metrics=_metrics(out / "best" / "metrics.json"),
        target=target if isinstance(target, (int, float)) else None,
    )


def _metrics(path: Path) -> dict[str, Any] | None:
    """The retrain's figures; None without a retrain, an empty dict if the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def architecture_of(record: Record | None) -> Architecture | None:
    if record is None or record.candidate is None:
        return None
    try:
        return Architecture.from_json(record.candidate["architecture"])
    except (ArchitectureError, KeyError, TypeError):
        return None


def clock_of(facts: Facts) -> Clock | None:
    stored = facts.study.user_attrs.get("cost_model")
    if not isinstance(stored, dict):
        return None
    try:
        return Clock(CostModel.from_json(stored), facts.config.train_images, facts.config.val_images)
    except TypeError:
        return None


def shorten(text: str, length: int = 120) -> str:
    """The first line of `text`, at most `length` characters."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= length else line[: length - 1] + "…"


def reached(record: Record) -> str:
    accuracy = percent(record.accuracy, 2)
    if record.outcome == figures.COMPLETE:
        return accuracy
    return f"{accuracy} ({record.outcome}, epoch {len(record.curve)})"


def in_points(difference: float) -> str:
    return MISSING if difference == 0 else f"{100 * difference:+.2f} points"


def n_trials(n: int, kind: str = "") -> str:
    return f"{n:,} {kind}trial" + ("" if n == 1 else "s")


def is_or_are(n: int) -> str:
    return f"is {n}" if n == 1 else f"are {n}"


def shown_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def mean_of(value: Any) -> float:
    return sum(value) / len(value) if isinstance(value, list) else float(value)
