"""The parser of every command, and how its end becomes an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from study.errors import UserError, as_told

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
    try:
        code = main() or 0
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away: nothing is left to say
        sys.stderr.close()
        code = 0
    except Exception as error:
        told = as_told(error)
        if told is None:
            raise
        usage = isinstance(told, UserError)
        print(f"{'error' if usage else 'failed'}: {told}", file=sys.stderr)
        code = EXIT_USAGE if usage else EXIT_FAILED
    sys.exit(code)
