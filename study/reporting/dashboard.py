"""What optuna-dashboard shows of a study and of every finished trial: notes, layer table, curves.

Optuna refuses new attributes on a finished trial, and with them `optuna.artifacts.upload_artifact`.
The dashboard also reads a trial's artifacts from the study's attributes; they are written there, with
fixed ids, so that publishing a trial again replaces its files and never doubles them.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from search_spaces.architecture import ACTIVATION_NAMES, Architecture, ArchitectureError
from search_spaces.candidate import Candidate
from search_spaces.constraints import limit_rows
from study.command_line.wording import markdown_table
from study.errors import first_line
from study.reporting.pictures import curve_png, layers_csv, shape_text
from study.storage.database import METRIC, config_of, study_attributes

_logger = logging.getLogger(__name__)

LAYERS, CURVE = "layers.csv", "curve.png"
_ARTIFACT_KEY = "dashboard:artifacts:{trial_id}:{artifact_id}"
"""Where the dashboard looks for artifacts of trials among the study's system attributes."""
_NAMESPACE = uuid.UUID("6d0c3f0e-8d3b-4f55-9d0a-6b6f6d1f7c11")


def publish_study(study: optuna.Study) -> None:
    """Names the metric, and writes the study's note unless it has one (a person may have edited it).

    Raises:
        UserError: The study holds no configuration.
    """
    if study.metric_names != [METRIC]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([METRIC])
    _note(study, study_note(study))


def publish_trial(study: optuna.Study, trial: FrozenTrial, artifacts: Path) -> None:
    """Writes the trial's note and its artifacts `layers.csv` and `curve.png`.

    May be called again: files are replaced, a note that exists is left (a person may have edited it).
    A disk that cannot take the files, or a package that is missing, costs the trial its note or its pictures, not its
    result: it is logged.

    Args:
        study: The study in its storage.
        trial: A complete or pruned trial of it.
        artifacts: Folder of the study's artifact store; made if it is missing.
    """
    live = SimpleNamespace(storage=_TrialNotes(study, trial), study=study, _trial_id=trial._trial_id)
    _note(cast(optuna.Trial, live), trial_note(study, trial))  # all that save_note reads of a live trial
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        architecture = _architecture(trial)
        if architecture is not None:
            _attach(study, trial, artifacts, LAYERS, "text/csv", layers_csv(architecture).encode())
        curve = trial.user_attrs.get("curve")
        if curve:
            title = f"Trial {trial.number}: {_outcome(trial)}"
            _attach(study, trial, artifacts, CURVE, "image/png", curve_png(curve, title))
    except ImportError as error:
        _do_without(f"curves ({first_line(error)})")
    except OSError as error:
        _logger.warning("Trial %d: its artifacts could not be written to %s: %s.", trial.number, artifacts, error)


class _TrialNotes:
    """What the dashboard asks of a storage for the note of one trial: the attributes of all trials are not read."""

    def __init__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._study, self._prefix = study, f"dashboard:{trial._trial_id}:"

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return study_attributes(self._study, self._prefix)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._study._storage.set_study_system_attr(study_id, key, value)


def trial_note(study: optuna.Study, trial: FrozenTrial) -> str:
    """GitHub Markdown: one line of verdict, candidate, repairs, layer table."""
    attrs = trial.user_attrs
    anchor = f" Anchor: **{attrs['anchor']}**." if attrs.get("anchor") else ""
    facts = [f"{attrs['params']:,} parameters"] if "params" in attrs else []
    if "receptive_field" in attrs:
        facts.append(f"receptive field {attrs['receptive_field']}")
    if "macs" in attrs:
        facts.append(f"{attrs['macs'] / 1e6:,.1f}M multiply-accumulates")
    if "wall_s" in attrs:
        facts.append(f"{attrs['wall_s']:,.0f} s")
    lines = [f"**{_outcome(trial)}**" + "".join(f", {fact}" for fact in facts) + f".{anchor}", ""]
    if attrs.get("candidate_id"):
        lines.append(f"- Candidate `{attrs['candidate_id']}`, slot {attrs.get('slot', '?')}")
    repairs = attrs.get("repairs")
    if repairs is not None:
        lines.append(f"- Repairs: {'; '.join(repairs) if repairs else 'none'}")
    broken = sorted(name for name, value in trial.constraints.items() if value > 0)
    if trial.constraints:
        lines.append(f"- Limits: {'broken: ' + ', '.join(broken) if broken else 'all met'}")
    architecture = _architecture(trial)
    if architecture is not None:
        lines += ["", _layer_table(architecture)]
    return "\n".join(lines) + "\n"


def study_note(study: optuna.Study) -> str:
    """GitHub Markdown: what is searched, under which limits and conditions."""
    config = config_of(study)
    limits = [(row.label, row.required) for row in limit_rows(config.limits)]
    target = study.user_attrs.get("target_accuracy")
    aim = f" The target is {100 * target:.1f}% test accuracy after the retrain." if isinstance(target, float) else ""
    conditions = [(name, str(value)) for name, value in config.to_json().items() if name != "limits"]
    return "\n".join(
        [
            f"Search for the best small CIFAR-10 network in the space `{config.space}`. A trial's value is "
            f"the EMA validation accuracy of its last epoch; no trial reads a test image.{aim}",
            "",
            "### Limits",
            "",
            markdown_table(("Limit", "Required"), limits),
            "",
            "### Configuration",
            "",
            markdown_table(("Name", "Value"), conditions),
            "",
        ]
    )


def _note(target: optuna.Study | optuna.Trial, body: str) -> None:
    try:
        from optuna_dashboard import get_note, save_note  # brings a web server along: only when it is needed
    except ImportError as error:
        _do_without(f"notes ({first_line(error)})")
        return
    if not get_note(target):
        save_note(target, body)


@functools.cache
def _do_without(what: str) -> None:
    """Says once what the dashboard will not show."""
    _logger.warning("optuna-dashboard will show no %s. The study goes on without.", what)


def _attach(
    study: optuna.Study, trial: FrozenTrial, folder: Path, filename: str, mimetype: str, content: bytes
) -> None:
    artifact_id = str(uuid.uuid5(_NAMESPACE, f"{study.study_name}/{trial.number}/{filename}"))
    store = optuna.artifacts.FileSystemArtifactStore(folder)
    store.write(artifact_id, io.BytesIO(content))  # first the file: the dashboard may look at any moment
    key = _ARTIFACT_KEY.format(trial_id=trial._trial_id, artifact_id=artifact_id)
    meta = {"artifact_id": artifact_id, "filename": filename, "mimetype": mimetype, "encoding": None}
    study._storage.set_study_system_attr(study._study_id, key, json.dumps(meta))


def _outcome(trial: FrozenTrial) -> str:
    values = trial.intermediate_values
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        return f"Validation accuracy {100 * trial.value:.2f}% after {len(values)} epochs"
    if values:
        last = max(values)
        accuracy = f"validation accuracy {100 * values[last]:.2f}%"
        return f"{trial.state.name.capitalize()} after epoch {last + 1}, {accuracy}"
    return trial.state.name.capitalize()


def _architecture(trial: FrozenTrial) -> Architecture | None:
    stored = trial.user_attrs.get("candidate")
    if stored is None:
        return None
    try:
        return Candidate.from_json(stored).architecture
    except ArchitectureError:
        return None


def _layer_table(architecture: Architecture) -> str:
    rows = list(_units(architecture))
    total = ("", "**total**", "", f"**{architecture.params:,}**", f"**{architecture.macs:,}**")
    columns = ("#", "Operation", "Output", "Parameters", "MACs", "Receptive field")
    field = f"**{architecture.receptive_field}** ({architecture.receptive_field_with_pool} with the pooling)"
    return markdown_table(columns, [*rows, (*total, field)], numeric={3, 4, 5})


def _units(architecture: Architecture) -> Iterator[tuple[str, ...]]:
    """One row a convolution, join, gate, addition or pooling; the norm and activation after it are part of its row."""
    names = {"BatchNorm2d": "BN", "LayerNorm2d": "LN", **{name: name for name in ACTIVATION_NAMES.values()}}
    rows: list[tuple[list[str], Any, int, int]] = []
    for op in architecture.operations:
        if op.name in names and rows:
            words, first, params, macs = rows[-1]
            rows[-1] = ([*words, names[op.name]], first, params + op.params, macs + op.macs)
        else:
            kind = {"Conv2d": "conv", "AvgPool2d": "average pool"}.get(op.name, op.name.lower())
            rows.append(([f"{kind} {op.detail}".strip()], op, op.params, op.macs))
    for words, op, params, macs in rows:
        yield (
            str(op.layer), " + ".join(words), shape_text(op.out_shape), f"{params:,}", f"{macs:,}",
            str(op.receptive_field),
        )  # fmt: skip
