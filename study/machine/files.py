"""Files that are whole or not there: written in one step, and read only when nothing of them is damaged."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from study.errors import first_line


class DamagedFileError(Exception):
    """A file that cannot be read: the cause in one line."""


@contextlib.contextmanager
def replaced(file: Path, lasting: bool = False) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place at the end; after an error the older `file` is there.

    Args:
        file: Its folder is made.
        lasting: Whether it must survive a machine that stops right after; costs a wait for the disk.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
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
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_together(texts: Mapping[Path, str]) -> None:
    """Writes every text to its path: all are written before the first one replaces what was there."""
    with contextlib.ExitStack() as stack:
        for file, text in texts.items():
            stack.enter_context(replaced(file, lasting=True)).write_text(text, encoding="utf-8", newline="\n")


def read_tensors(file: Path) -> Any:
    """What `torch.save` wrote to `file`, on the CPU.

    Raises:
        DamagedFileError: It is not there, not whole, or holds more than tensors and plain containers.
    """
    import torch

    try:
        with zipfile.ZipFile(file) as archive:  # torch.load does not compare the checksums it writes
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum does not match")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # by where the damage is, zipfile, pickle and torch raise any type there is
        raise DamagedFileError(first_line(error)) from error


def _wait_for_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
