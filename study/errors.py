"""Kinds of failure: the user's (one line, exit code 2), a trial's (recorded, the study goes on), a process's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A mistake of the user: one line that states the rule, the value and the fix."""


class StudyFailed(Exception):
    """The run cannot go on though it was asked correctly; one line with the cause, exit code 1."""


class TrialFailed(Exception):
    """This trial cannot give a value (it diverged, ran out of memory); the study goes on."""


class CaptureFailed(Exception):
    """A CUDA graph could not be captured. Torch's allocator may be left counting it as under way (seen with 2.11), so
    this process must train no more; another one may."""


def first_line(error: BaseException) -> str:
    """What `error` is and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line like every other, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Refuses the command line.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message.rstrip('.')}. {self.prog} --help says what there is.")


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command and turns its outcome into an exit code; a bug keeps its traceback."""
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_USAGE
    except StudyFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        code = EXIT_FAILED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away: nothing is left to say
        sys.stderr.close()
        code = 0
    sys.exit(code)
