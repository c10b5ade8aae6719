"""The parser of every command, and how its end becomes an exit code."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from study.command_line.wording import printable, without_passwords
from study.errors import UserError, as_told

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BY_SIGNAL = 128
"""Plus the signal's number, as shells have it: Ctrl-C 130, SIGTERM 143, SIGHUP 129, a closed pipe 141."""
EXIT_INTERRUPTED = EXIT_BY_SIGNAL + signal.SIGINT


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line like every other, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Refuses the command line.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message.rstrip('.')}. {self.prog} --help says what there is.")

    def refuse_beside(self, main: str, options: argparse.Namespace, names: Iterable[str]) -> None:
        """Refuses options that would be ignored.

        Args:
            main: What makes them void.
            options: As they were parsed.
            names: Of these options, as in `options`.

        Raises:
            UserError: One is given, and is not its default.
        """
        given = [name for name in names if getattr(options, name) != self.get_default(name)]
        if given:
            raise UserError(f"{main} takes no --{given[0].replace('_', '-')}. Leave it out.")


def run_command(main: Callable[[], int | None], resumes: bool = False) -> None:
    """Runs a command and turns its outcome into an exit code; a bug keeps its traceback.

    Args:
        main: The command.
        resumes: Whether it saves its progress when it is stopped, and goes on from there.
    """
    _print_whatever_comes()
    lost: OSError | None = None
    try:
        code = main() or 0
    except KeyboardInterrupt as error:
        code = EXIT_BY_SIGNAL + getattr(error, "signum", signal.SIGINT)
    except Exception as error:
        told = as_told(error)
        if told is not None:
            code = EXIT_USAGE if isinstance(told, UserError) else EXIT_FAILED
            _say(f"{'error' if code == EXIT_USAGE else 'failed'}: {told}")
        elif isinstance(error, OSError) and (isinstance(error, BrokenPipeError) or _write_error("\n")):
            code, lost = 0, error
        else:
            raise
    lost = _write_error() or lost
    if lost is not None and code == 0:
        code = _output_is_lost(lost, "; what was done is saved, and the same command goes on" if resumes else "")
    sys.exit(code)


def _write_error(text: str = "") -> OSError | None:
    """Writes all that is to be written; what prevents that, if anything does."""
    try:
        print(end=text, flush=True)
    except OSError as error:
        # Else the interpreter would try again, and complain, when it ends.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return error
    return None


def _output_is_lost(error: OSError, saved: str) -> int:
    """Says what became of a command whose output cannot be written. Returns the exit code."""
    if isinstance(error, BrokenPipeError):  # its reader had enough; that is an error only of what should go on
        if saved:
            _say(f"interrupted: nobody reads the output any more{saved}")
        return EXIT_BY_SIGNAL + signal.SIGPIPE
    _say(f"failed: the output cannot be written ({error.strerror or error}){saved}")
    return EXIT_FAILED


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(printable(without_passwords(line)), file=sys.stderr)


def _print_whatever_comes() -> None:
    """Lets this process and its children escape what their output's encoding lacks: file names hold anything."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            os.environ["PYTHONIOENCODING"] = f"{stream.encoding}:backslashreplace"
