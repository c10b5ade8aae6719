"""Whose a study's folder is. Reports, bundles and the dashboard's files of two studies must not mix in one.

A file in it names the study that was first run there, by its name and the moment it was made. A folder of an older
version has none, and belongs to the first study that comes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.errors import UserError
from study.machine.files import DamagedFileError, read_json, unwritten, write_atomically

if TYPE_CHECKING:
    import optuna

OWNER = "study.json"


def refuse_foreign(out: Path, name: str, study: optuna.Study | None = None, new: bool = False) -> None:
    """Refuses the folder `out` to the study `name` where it is another one's.

    Args:
        study: Itself, where it is known.
        new: Whether it is still to be made.

    Raises:
        UserError: It is.
    """
    owner = _read(out / OWNER)
    if owner is None:
        return
    older = new or (study is not None and owner["created"] != _created(study))
    if owner["study"] != name or older:
        asked = f"{name!r}" if owner["study"] != name else "a later one of that name"
        raise UserError(
            f"The folder {str(out)!r} belongs to the study {owner['study']!r} made at {owner['created']}: it cannot be "
            f"that of {asked} too. Choose another with --out, or name that study."
        )


def claim_folder(out: Path, study: optuna.Study) -> None:
    """Makes `study` the owner of its folder `out`.

    Raises:
        UserError, StudyFailed: It is another one's, or cannot be written.
    """
    refuse_foreign(out, study.study_name, study)
    if _read(out / OWNER) is None:
        owner = {"study": study.study_name, "created": _created(study)}
        try:
            write_atomically(out / OWNER, json.dumps(owner, indent=1) + "\n")
        except OSError as error:
            raise unwritten(f"The folder {str(out)!r}", error, "Name another with --out.") from error


def _created(study: optuna.Study) -> Any:
    return study.user_attrs.get("created")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = read_json(file)
    except DamagedFileError:  # none, or none that can be read
        return None
    return found if {"study", "created"} <= set(found) else None
