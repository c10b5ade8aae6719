"""The parser of every command, and how its end becomes an exit code."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from study.command_line.wording import printable
from study.errors import StudyFailed, UserError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


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
    _print_whatever_comes()
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        code = EXIT_USAGE
    except StudyFailed as error:
        print(f"failed: {printable(str(error))}", file=sys.stderr)
        code = EXIT_FAILED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away: nothing is left to say
        sys.stderr.close()
        code = 0
    sys.exit(code)


def _print_whatever_comes() -> None:
    """Lets this process and its children escape what their output's encoding lacks: file names hold anything."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            os.environ["PYTHONIOENCODING"] = f"{stream.encoding}:backslashreplace"
