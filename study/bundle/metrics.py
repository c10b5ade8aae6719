"""What a bundle's metrics.json says, with the types that its readers count on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from search_spaces.fields import Amount, DescriptionError, Fraction, Within, check_fields, from_fields
from study.errors import said
from study.machine.files import DamagedFileError, read_json

METRICS = "metrics.json"
TAUGHT = "-distilled"
"""What the folder of a network ends in that also learned from a larger one."""
LATENCY_BATCHES = (1, 256)
"""Sizes of batches whose latency is told."""
_Z = 1.959964
"""Of a normal distribution, 95% lies within so many standard deviations."""
_Whole = Annotated[int, Within(0, 10**18)]


@dataclass(frozen=True)
class _Known:
    """The entries that we read back; all may be missing, and others may stand beside them."""

    candidate_id: str | None = None
    trial_candidate_id: str | None = None
    params: _Whole | None = None
    receptive_field: _Whole | None = None
    macs: _Whole | None = None
    epochs: _Whole | None = None
    seeds: tuple[_Whole, ...] | None = None
    trial: _Whole | None = None
    reranked_epochs: _Whole | None = None
    reranked_setting: str | None = None
    train_images: _Whole | None = None
    test_images: _Whole | None = None
    test_digest: str | None = None
    own_images: bool | None = None
    chosen_by_test_images: str | None = None
    test_accuracy: tuple[Fraction, ...] | None = None
    test_accuracy_mean: Fraction | None = None
    test_accuracy_std: Fraction | None = None
    shipped_seed: _Whole | None = None
    test_accuracy_shipped: Fraction | None = None
    train_accuracy: Fraction | None = None
    target_accuracy: Fraction | None = None
    target_met: bool | None = None
    device: str | None = None
    hardware: dict[str, Any] | None = None
    latency_ms: dict[str, Any] | None = None
    wall_s: Amount | None = None
    teacher: dict[str, Any] | None = None
    commit: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def read_metrics(folder: Path) -> dict[str, Any]:
    """All that metrics.json in `folder` says.

    Raises:
        DamagedFileError: It is not there or cannot be read, or an entry is not of its type.
    """
    data = read_json(folder / METRICS)
    known = {name: data[name] for name in _Known.__dataclass_fields__ if data.get(name) not in (None, [])}
    try:
        from_fields(_Known, {name: tuple(each) if isinstance(each, list) else each for name, each in known.items()})
    except DescriptionError as error:
        raise DamagedFileError(said(error)) from error
    return data


def accuracy_interval(accuracy: float, n_images: int) -> tuple[float, float]:
    """95% interval of an accuracy on `n_images` (Wilson's score): what another draw of images would give."""
    spread = _Z**2 / n_images
    centre = (accuracy + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * (accuracy * (1 - accuracy) / n_images + spread / (4 * n_images)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
