"""Kinds of failure: the user's (one line, exit code 2), a trial's (recorded, the study goes on), a process's."""

from __future__ import annotations

from functools import singledispatch


class UserError(Exception):
    """A mistake of the user: one line that states the rule, the value and the fix."""


class MadeMeanwhile(UserError):
    """Another process made the study that this one was about to make: begun again, it finds it."""


class StudyFailed(Exception):
    """The run cannot go on though it was asked correctly; one line with the cause, exit code 1."""


class StudyDeleted(StudyFailed):
    """The study is gone while it runs. Its numbers may be given out again, so nothing more may be written."""


class TrialFailed(Exception):
    """This trial cannot give a value (it diverged, ran out of memory); the study goes on."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run, which had the time to save its progress.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class CaptureFailed(Exception):
    """A CUDA graph could not be captured. Torch's allocator may be left counting it as under way (seen with 2.11), so
    this process must train no more; another one may."""


@singledispatch
def as_told(error: BaseException) -> UserError | StudyFailed | None:
    """What a command says of `error` in one line; None for a bug, which keeps its traceback.

    The errors of a package are registered where it is loaded: a command must not load it to know them.
    """
    return error if isinstance(error, (UserError, StudyFailed)) else None


def said(error: BaseException) -> str:
    """The first line of what `error` says, for a sentence of ours; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def first_line(error: BaseException) -> str:
    """What `error` is and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def shortened(text: str, length: int = 60) -> str:
    """`text`, or its beginning where it is longer than a line can show."""
    return text if len(text) <= length else text[: length - 1] + "…"
