"""What optuna-dashboard shows of a study and of every trial: notes, layer table, curves, report.

A trial's note and layer table are written when it begins, so that nothing a person writes later is lost. Notes are
system attributes of the study under names that the dashboard reads. Its own `save_note` reads all notes of the study
several times before it writes one, a second at thousands of trials.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search_spaces.architecture import ACTIVATION_NAMES, Architecture, ArchitectureError
from search_spaces.constraints import limit_rows
from study.command_line.wording import markdown_table, markdown_text, rounded
from study.machine.files import write_atomically
from study.reporting.pictures import curve_png, layers_csv, shape_text
from study.storage.database import METRIC, config_of, is_ours, storage_of, stored

_logger = logging.getLogger(__name__)

RESTORING_S = 5.0
_ARTIFACT = "artifacts:"
"""Begins the names of the attributes under which Optuna keeps what it knows of a file."""
UNITS = ("#", "Operation", "Output", "Parameters", "MACs", "Receptive field")
_ROOM = "\N{EN SPACE}"
"""Markdown drops ordinary spaces at the ends of a cell."""
_NOTE_PART = 2045
"""Characters that the dashboard keeps in one attribute."""


def publish_study(study: optuna.Study) -> None:
    """Names the metric of a new study, and writes its note.

    Raises:
        UserError: The study holds no configuration.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([METRIC])
    _write_note(study, "dashboard:", study_note(study))


def publish_trial(
    study: optuna.Study, trial: optuna.Trial, architecture: Architecture, note: str, artifacts: Path
) -> None:
    """Writes the `note` and the layer table of a trial that is about to be trained."""
    storage = storage_of(study)
    study_id = storage.get_study_id_from_name(study.study_name)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
    _write_note(study, f"dashboard:{trial_id}:", note)
    attach(trial, artifacts, {"layers.csv": layers_csv(architecture).encode()})


def attach(trial: optuna.Trial, artifacts: Path, files: Mapping[str, bytes]) -> None:
    """Adds `files`, by name, to a running trial. A disk that cannot take them costs the trial its files, not its
    result: that is logged.

    Args:
        trial: Running; Optuna takes no artifact of a finished one.
        artifacts: Folder of the dashboard's files, one for a study and its re-ranking; made if it is missing.
        files: Their contents.
    """
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        store = optuna.artifacts.FileSystemArtifactStore(artifacts)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                file = Path(folder) / name
                file.write_bytes(content)
                optuna.artifacts.upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=trial)
    except OSError as error:
        _logger.warning("Trial %d: its artifacts could not be written to %s: %s.", trial.number, artifacts, error)


def publish_report(study: optuna.Study, artifacts: Path, report: Path, add: bool = True) -> None:
    """Makes the page `report` the study's file there, in place of the one of an earlier run.

    Args:
        study: Whose report.
        artifacts: Folder of the dashboard's files.
        report: An HTML file.
        add: Whether to add it to a study that has none there; its storage is written to.
    """
    try:
        for meta in _described(storage_of(study).get_study_system_attrs(_id_of(study))):
            if meta["filename"] == report.name:
                write_atomically(artifacts / Path(meta["artifact_id"]).name, report.read_bytes())
                return
        if add:
            artifacts.mkdir(parents=True, exist_ok=True)
            store = optuna.artifacts.FileSystemArtifactStore(artifacts)
            optuna.artifacts.upload_artifact(artifact_store=store, file_path=str(report), study_or_trial=study)
    except OSError as error:
        _logger.warning("The report could not be written to %s: %s.", artifacts, error)


def gather(artifacts: Path) -> None:
    """Moves the files that an older version kept of a re-ranking, in a folder of their own, to `artifacts`."""
    older = artifacts.parent / "rerank" / artifacts.name
    with contextlib.suppress(OSError):
        files = list(older.iterdir())
        artifacts.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.replace(artifacts / file.name)  # their names are unique
        older.rmdir()


def restore(study: optuna.Study, artifacts: Path) -> None:
    """Makes files of our trials again that are missing in `artifacts`, as far as that is quickly done."""
    gather(artifacts)
    deadline = time.monotonic() + RESTORING_S
    # Without the folder nobody watches there.
    for trial in study.get_trials(deepcopy=False) if artifacts.is_dir() else ():
        for meta in _described(trial.system_attrs) if is_ours(trial) else ():
            # OSError: they may not be written here; ImportError: of a package that only draws; else: what an older
            # version stored, or a stranger.
            with contextlib.suppress(OSError, ImportError, ArchitectureError, LookupError, TypeError, ValueError):
                file = artifacts / Path(meta["artifact_id"]).name  # and nowhere else, whatever is stored
                if not file.exists() and time.monotonic() < deadline:
                    write_atomically(file, _made_again(trial, meta["filename"]))


def _described(attributes: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """What Optuna knows of the files of a study or a trial: artifact_id, filename and more."""
    for name, described in attributes.items():
        if name.startswith(_ARTIFACT):
            with contextlib.suppress(TypeError, ValueError):  # a stranger's
                meta = json.loads(described)
                if isinstance(meta, dict) and isinstance(meta.get("artifact_id"), str) and "filename" in meta:
                    yield meta  # the dashboard keeps null for one that was deleted there


def _id_of(study: optuna.Study) -> int:
    return storage_of(study).get_study_id_from_name(study.study_name)


def _made_again(trial: FrozenTrial, name: str) -> bytes:
    """The file `name` of a trial.

    Raises:
        KeyError: We make none of that name, or not without what the trial has not stored.
    """
    if name == "layers.csv":
        return layers_csv(Architecture.from_json(stored(trial, "candidate")["architecture"])).encode()
    if name == "curve.png":
        return curve_png(stored(trial, "curve"), f"Trial {trial.number}")
    raise KeyError(name)


def _write_note(study: optuna.Study, prefix: str, body: str) -> None:
    storage = storage_of(study)
    study_id = storage.get_study_id_from_name(study.study_name)
    for part, start in enumerate(range(0, len(body), _NOTE_PART)):
        storage.set_study_system_attr(study_id, f"{prefix}note_str:{part}", body[start : start + _NOTE_PART])
    storage.set_study_system_attr(study_id, f"{prefix}note_ver", 1)


def trial_note(trial: optuna.Trial | FrozenTrial, architecture: Architecture, repairs: Sequence[str]) -> str:
    """GitHub Markdown: what the trial is, its repairs, its layers."""
    attrs, constraints = trial.user_attrs, trial.constraints
    facts = [
        f"{attrs['params']:,} parameters",
        f"receptive field {attrs['receptive_field']}",
        f"{attrs['macs'] / 1e6:,.1f}M multiply-accumulates",
        *(f"{name} {rounded(value)}" for name, value in attrs.get("measured", {}).items()),
    ]
    anchor = f" Anchor: **{markdown_text(attrs['anchor'])}**." if attrs.get("anchor") else ""
    queued = " From the queue." if attrs.get("queued") else ""
    broken = sorted(name for name, value in constraints.items() if value > 0)
    lines = [
        f"**{facts[0]}**, {', '.join(facts[1:])}.{anchor}{queued}",
        "",
        f"- Candidate `{attrs['candidate_id']}`, slot {attrs['slot']}",
        f"- Repairs: {markdown_text('; '.join(repairs) or 'none')}",
        f"- Limits: {'broken: ' + ', '.join(broken) if broken else 'all met'}",
        "",
        _layer_table(architecture),
    ]
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
            f"Search for the best small network for {markdown_text(config.data)} in the space `{config.space}`. A "
            f"trial's value is the EMA validation accuracy of its last epoch; no trial reads a test image.{aim}",
            "",
            "### Limits",
            "",
            _table(("Limit", "Required"), limits),
            "",
            "### Configuration",
            "",
            _table(("Name", "Value"), conditions),
            "",
        ]
    )


def _layer_table(architecture: Architecture) -> str:
    rows = list(units(architecture))
    total = ("", "**total**", "", f"**{architecture.params:,}**", f"**{architecture.macs:,}**")
    field = f"**{architecture.receptive_field}** ({architecture.receptive_field_with_pool} with the pooling)"
    return _table(UNITS, [*rows, (*total, field)], numeric={3, 4, 5})


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Collection[int] = ()) -> str:
    """A table whose cells do not touch: the dashboard gives them no room of their own."""
    spaced = [[f"{_ROOM}{cell}{_ROOM}" for cell in row] for row in (columns, *rows)]
    return markdown_table(spaced[0], spaced[1:], numeric)


def units(architecture: Architecture) -> Iterator[tuple[str, ...]]:
    """One row of cells (see UNITS) a convolution, join, gate, addition or pooling; the norm and activation after it are
    part of its row."""
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
