"""How a search goes on: a bar on a terminal, a line per trial elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

from study.command_line.wording import duration, percent
from study.errors import UserError
from study.machine.interrupts import InterruptFlag

if TYPE_CHECKING:
    import optuna


class Progress:
    """A progress bar on a terminal, a line per trial elsewhere.

    Args:
        study: Whose trials.
        wanted, n_finished: How many of them.
        interrupted: Hears of it if a line cannot be written.
    """

    def __init__(self, study: optuna.Study, wanted: int, n_finished: int, interrupted: InterruptFlag) -> None:
        from tqdm import tqdm

        from study.storage.database import best_trial

        self.wanted, self.n_finished, self.n_before = wanted, n_finished, n_finished
        self.interrupted = interrupted
        self.started = time.monotonic()
        try:
            self.best: float | None = best_trial(study).value
        except UserError:
            self.best = None
        self.bar = (
            tqdm(total=wanted, initial=min(wanted, n_finished), unit="trial", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def tick(self) -> None:
        if self.bar is not None:
            self.bar.refresh()

    def epoch(self, slot: int, epoch: int, val_accuracy: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"best {_percent(self.best)}, slot {slot} epoch {epoch + 1}: {_percent(val_accuracy)}"
            )

    def failed(self, slot: int, reason: str) -> None:
        self.write(f"slot {slot}: failed: {reason}")

    def finished(self, slot: int, trial: int, value: float, pruned: str, wall_s: float) -> None:
        """A trial is complete, or was `pruned`, which says when."""
        self.n_finished += 1
        if not pruned:
            self.best = max(self.best or 0.0, value)
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix_str(f"best {_percent(self.best)}")
            return
        spent = time.monotonic() - self.started
        left = spent / max(1, self.n_finished - self.n_before) * max(0, self.wanted - self.n_finished)
        detail = _percent(value) + (f", {pruned}" if pruned else "")
        self.interrupted.say(
            f"[{self.n_finished}/{self.wanted}] slot {slot}, trial {trial}: {detail}, "
            f"{wall_s:.0f} s; best {_percent(self.best)}; {duration(left)} left"
        )

    def write(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            with contextlib.suppress(OSError):  # where else could it be said?
                print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _percent(value: float | None) -> str:
    return "none yet" if value is None else percent(value, 2)
