"""Files that are whole or not there: written in one step, and read only when nothing of them is damaged."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.errors import StudyFailed, UserError, first_line, said

if TYPE_CHECKING:
    import numpy as np
    import torch

MOST_JSON, MOST_NUMBERS = 2**24, 2**30
"""Bytes; nobody writes as many."""


class DamagedFileError(Exception):
    """A file that cannot be read: the cause in one line."""


class UnreadFileError(DamagedFileError):
    """The system could not read it now, or not for this user, which says nothing of the file."""


def what_is(path: Path | str) -> str:
    """What stands at `path`, for a sentence: "is a file", "is a folder", "does not exist" and so on.

    The system refuses to say of names that are too long, loop or lie behind closed doors, by errors that
    `Path.exists` lets through.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    except ValueError as error:  # a null character, or one that no file name has
        return f"cannot be opened ({said(error)})"
    return "is a file" if stat.S_ISREG(mode) else "is a folder" if stat.S_ISDIR(mode) else "is a pipe or a device"


def is_file(path: Path | str) -> bool:
    """Whether a regular file stands there; never raises."""
    return what_is(path) == "is a file"


def is_folder(path: Path | str) -> bool:
    """Whether a folder stands there; never raises."""
    return what_is(path) == "is a folder"


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`.

    Raises:
        DamagedFileError: It is no regular file, too large, or holds something else.
    """
    if not is_file(file):
        raise DamagedFileError(f"it {what_is(file)}")  # reading a pipe waits, reading a device never ends
    try:
        if file.stat().st_size > MOST_JSON:
            raise DamagedFileError(f"it is larger than {MOST_JSON:,} bytes")
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 are ValueErrors
        raise DamagedFileError(said(error)) from error
    if not isinstance(data, dict):
        raise DamagedFileError(f"it must hold a JSON object, not a {type(data).__name__}")
    return data


@contextlib.contextmanager
def replaced(file: Path, lasting: bool = False) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place at the end; after an error the older `file` is there.

    Args:
        file: Its folder is made.
        lasting: Whether it must survive a machine that stops right after; costs a wait for the disk.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")  # processes of two containers share numbers
    try:
        yield temporary
        if lasting:
            _wait_for_disk(temporary)
        temporary.replace(file)
        if lasting:
            _wait_for_disk(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(file: Path, content: str | bytes, lasting: bool = False) -> None:
    """Makes `content` that of `file`, as `replaced` does; text in UTF-8."""
    with replaced(file, lasting) as temporary:
        # Names of files may hold halves of characters, which UTF-8 has not.
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def write_together(texts: Mapping[Path, str]) -> None:
    """Writes every text to its path: all are written before the first one replaces what was there."""
    with contextlib.ExitStack() as stack:
        for file, text in texts.items():
            stack.enter_context(replaced(file, lasting=True)).write_bytes(text.encode(errors="backslashreplace"))


def tensors_as_bytes(content: Any) -> bytes:
    """What `torch.save` writes. Its own writer takes a full disk for a bug of its own."""
    import torch

    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def read_tensors(file: Path) -> Any:
    """What `tensors_as_bytes` made and somebody wrote to `file`, on the CPU.

    Raises:
        DamagedFileError: It is not there, not whole, or holds more than tensors and plain containers.
    """
    import torch

    with _archive(file):
        return torch.load(file, map_location="cpu", weights_only=True)


def numbers_as_bytes(state: dict[str, torch.Tensor]) -> bytes:
    """A state dict in the format safetensors, which holds numbers and nothing that could run."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in state.items()})


def read_numbers(file: Path) -> dict[str, torch.Tensor]:
    """What `numbers_as_bytes` made and somebody wrote to `file`, on the CPU.

    Raises:
        DamagedFileError: It is no regular file, too large, or not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not is_file(file):
        raise DamagedFileError(f"it {what_is(file)}")
    try:
        if file.stat().st_size > MOST_NUMBERS:
            raise DamagedFileError(f"it is larger than {MOST_NUMBERS:,} bytes")
        return load(file.read_bytes())
    except (OSError, SafetensorError, KeyError, ValueError) as error:  # KeyError: of numbers that torch has not
        raise DamagedFileError(first_line(error)) from error


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """What `np.savez` wrote to `file`.

    Raises:
        DamagedFileError: It is not there, not whole, or holds more than arrays.
    """
    import numpy as np

    with _archive(file), np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


_PASSING = (errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT)
"""What a network's file system, a lack of memory or of descriptors make of a file that is whole."""


@contextlib.contextmanager
def _archive(file: Path) -> Iterator[None]:
    """Within it `file` is read, an archive that is whole; whatever goes wrong is its damage.

    Raises:
        DamagedFileError: Something went wrong; `UnreadFileError`: but not with the file.
    """
    standing = what_is(file)
    if standing != "is a file":
        untold = standing.startswith("cannot be opened")  # by a network's file system now, or by this user
        raise (UnreadFileError if untold else DamagedFileError)(f"it {standing}")
    try:
        with zipfile.ZipFile(file) as archive:  # torch and numpy do not compare the checksums that they write
            if sum(entry.file_size for entry in archive.infolist()) > file.stat().st_size:
                raise zipfile.BadZipFile("it holds more than its size")  # packed, which neither of them does
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum does not match")
        yield
    except Exception as error:  # by where the damage is, zipfile, pickle, torch and numpy raise any type there is
        passes = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING)
        raise (UnreadFileError if passes else DamagedFileError)(first_line(error)) from error


def unwritten(what: str, error: OSError, otherwise: str) -> Exception:
    """What to raise because `what` cannot be written: a full disk is no mistake of the user's.

    Args:
        what: A file or folder, with words before it.
        error: What the system said.
        otherwise: What to do unless the disk is full.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StudyFailed(f"{what} cannot be written: {error.strerror}. Make room and run the same command again.")
    return UserError(f"{what} cannot be written: {error.strerror or error}. {otherwise}")


def _wait_for_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
