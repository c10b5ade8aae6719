"""Where an interrupted training goes on: its progress in a file, its snapshots in files beside it.

A snapshot never changes, so it is written once, and a checkpoint stays small however many there are. Torch is imported
where one is written: commands that plan a training import this for its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_spaces.architecture import identifier
from search_spaces.candidate import Candidate
from study.command_line.wording import printable
from study.data.augmentation import AUGMENTATION_ORDER
from study.errors import StudyFailed, first_line
from study.machine.files import (
    DamagedFileError,
    UnreadFileError,
    read_tensors,
    tensors_as_bytes,
    what_is,
    write_atomically,
)
from study.training.records import Progress, TrainingConfig


def checkpoint_name(candidate: Candidate, config: TrainingConfig, n_train: int, *more: str) -> str:
    """Names a checkpoint by everything that its training depends on: `more` is what the others do not tell."""
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


def load_progress(file: Path, of: tuple[Candidate, TrainingConfig] | None = None) -> Progress | None:
    """The progress saved in `file`; None if there is none or it cannot be read, which is said.

    Args:
        file: Where `save_progress` put it.
        of: The training that is to go on from it, if one is.

    Raises:
        StudyFailed: It may be whole, and cannot be read now: the training must not be begun anew.
    """
    if what_is(file) == "does not exist":
        return None
    try:
        data = read_tensors(file)
        snapshots = {epoch: read_tensors(_snapshot(file, epoch)) for epoch in data["snapshots"]}
        progress = Progress.from_dict({**data, "snapshots": snapshots})
        if of is not None:
            from study.training.state import TrainState

            TrainState.check(progress, *of)
        return progress
    except UnreadFileError as error:
        what = f"The checkpoint {str(file)!r} cannot be read now ({error})"
        raise StudyFailed(f"{what}. Run the same command again once it can be.") from error
    except (DamagedFileError, AttributeError, KeyError, TypeError, ValueError) as error:  # whole, but not such a file
        print(f"{printable(file.name)} cannot be read ({first_line(error)}): this training starts anew", flush=True)
        return None


def finished(file: Path, candidate: Candidate, config: TrainingConfig) -> Progress:
    """What a finished training left in `file`.

    Raises:
        StudyFailed: It is not finished, or cannot be read.
    """
    progress = load_progress(file, (candidate, config))
    if progress is None or progress.epoch < config.epochs:
        raise StudyFailed(f"{file} does not hold a finished training; run the same command again.")
    return progress


def parts(file: Path) -> dict[str, bytes]:
    """The files of the checkpoint `file`, by their names in its folder; none if there is no checkpoint."""
    found = [*sorted(_snapshot(file, 0).parent.glob("*.pt")), *([file] if file.exists() else [])]
    return {str(each.relative_to(file.parent)): each.read_bytes() for each in found}


def put(parts: Mapping[str, bytes], folder: Path) -> None:
    """Writes what `parts` read to another folder, in the same order: what others need to be there comes first.

    Raises:
        OSError: It cannot be written.
    """
    for name, content in parts.items():
        write_atomically(folder / name, content)


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
    try:
        write_atomically(file, tensors_as_bytes(content), lasting=True)
    except OSError as error:
        cause = error.strerror or error
        raise StudyFailed(f"the checkpoint {file} cannot be written: {cause}. The one before is kept.") from error
