"""Where an interrupted training goes on: its progress in a file, its snapshots in files beside it.

A snapshot never changes, so it is written once, and a checkpoint stays small however many there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.architecture import identifier
from search_spaces.candidate import Candidate
from study.errors import StudyFailed
from study.storage.config import AUGMENTATION_ORDER

if TYPE_CHECKING:
    from study.training.records import Progress, TrainingConfig


def checkpoint_name(candidate: Candidate, config: TrainingConfig, n_train: int, *more: Any) -> str:
    """Names a checkpoint by everything that its training depends on: these, and `more` that JSON takes."""
    what = [
        candidate.to_json(),
        config.epochs,
        config.seed,
        config.precision,
        config.n_snapshots,
        n_train,
        AUGMENTATION_ORDER,
        *more,
    ]
    return f"{candidate.candidate_id}-seed{config.seed}-{identifier(what)}"


def load_progress(file: Path) -> Progress | None:
    """The progress saved in `file`; None if there is none or it cannot be read."""
    import pickle

    import torch

    from study.training.records import Progress

    if not file.exists():
        return None
    try:
        # On the CPU: what it was trained on may be busy, or elsewhere.
        data = torch.load(file, map_location="cpu", weights_only=True)
        snapshots = {
            epoch: torch.load(_snapshot(file, epoch), map_location="cpu", weights_only=True)
            for epoch in data["snapshots"]
        }
        return Progress.from_dict({**data, "snapshots": snapshots})
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, TypeError, KeyError) as error:
        print(f"{file.name} cannot be read ({str(error).splitlines()[0]}): this training starts anew", flush=True)
        return None


def save_progress(progress: Progress, file: Path) -> None:
    """Replaces `file` in one step, so that a kill or a full disk leaves the older one.

    Raises:
        StudyFailed: It cannot be written.
    """
    for epoch, state in progress.snapshots.items():
        if not _snapshot(file, epoch).exists():
            _save(state, _snapshot(file, epoch))
    _save({**progress.to_dict(), "snapshots": sorted(progress.snapshots)}, file)


def forget_snapshots(file: Path, but: Progress | None) -> None:
    """Removes the snapshots beside `file` that are not of the training that goes on from `but`, None for a new one."""
    known = set() if but is None else {_snapshot(file, epoch) for epoch in but.snapshots}
    for found in _snapshot(file, 0).parent.glob("*.pt"):
        if found not in known:
            found.unlink()


def _snapshot(file: Path, epoch: int) -> Path:
    return file.with_suffix(".snapshots") / f"epoch-{epoch:04d}.pt"


def _save(content: dict[str, Any], file: Path) -> None:
    import torch

    temporary = file.with_suffix(".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, temporary)
        temporary.replace(file)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise StudyFailed(f"the checkpoint {file} cannot be written: {error}. The one before is kept.") from error
