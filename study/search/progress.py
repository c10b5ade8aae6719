"""How a search goes on: a line per trial, above a bar on a terminal, and what came out of it."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

from study.command_line.wording import aligned, duration, millions, percent, rounded, whole
from study.errors import UserError
from study.machine.interrupts import InterruptFlag

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


N_BEST = 5
PREDICTED_TRIALS = 5
"""As many as these weighs the prediction of what a trial takes: the first of a study are its anchors, which nothing
prunes, and the first of one that goes on may have been nearly done."""


class Progress:
    """A line per trial that ended; on a terminal they stay above a bar, which shows what is going on.

    Args:
        study: Whose trials.
        wanted, n_finished: How many of them.
        epochs: Of every trial.
        interrupted: Hears of it if a line cannot be written.
        predicted_s: Seconds from one trial's end to the next one's. None: unknown.
    """

    def __init__(
        self,
        study: optuna.Study,
        wanted: int,
        n_finished: int,
        epochs: int,
        interrupted: InterruptFlag,
        predicted_s: float | None,
    ) -> None:
        from tqdm import tqdm

        from study.storage.database import best_trial

        self.wanted, self.n_finished, self.n_before, self.epochs = wanted, n_finished, n_finished, epochs
        self.interrupted, self.predicted_s = interrupted, predicted_s
        self.started = time.monotonic()
        try:
            self.best: float | None = best_trial(study).value
        except UserError:
            self.best = None
        self.bar = (
            tqdm(total=wanted, initial=min(wanted, n_finished), unit="trial", dynamic_ncols=True, bar_format=_BAR)
            if sys.stderr.isatty()
            else None
        )
        self._show("waiting for the first epoch")

    def tick(self) -> None:
        if self.bar is not None:
            self.bar.refresh()

    def epoch(self, slot: int, epoch: int, val_accuracy: float) -> None:
        # Columns as wide as they get, so that the bar stands still.
        number, of = f"{slot:{len(str(self.wanted))}}", f"{epoch + 1:{len(str(self.epochs))}}/{self.epochs}"
        self._show(f"slot {number} epoch {of}: {_percent(val_accuracy):>6}")

    def failed(self, slot: int, reason: str) -> None:
        self.write(f"slot {slot}: failed: {reason}")

    def finished(
        self, n: int, slot: int, trial: int, value: float, pruned: str, wall_s: float, best: float | None
    ) -> None:
        """A trial is complete, or was `pruned`, which says when; `n` are finished now, and `best` is the best of them,
        whoever ran it."""
        self.n_finished, self.best = n, best
        detail = _percent(value) + (f", {pruned}" if pruned else "")
        with self._above():
            self.interrupted.say(
                f"[{self.n_finished}/{self.wanted}] slot {slot}, trial {trial}: {detail}, "
                f"{wall_s:.0f} s; best {_percent(self.best)}; {duration(self._left_s())} left"
            )
        if self.bar is not None:
            self.bar.update(n - self.bar.n)

    def _left_s(self) -> float:
        """By what trials of this run took, and what was predicted of them."""
        n, spent_s = self.n_finished - self.n_before, time.monotonic() - self.started
        if self.predicted_s is not None:
            n, spent_s = n + PREDICTED_TRIALS, spent_s + PREDICTED_TRIALS * self.predicted_s
        return spent_s / max(1, n) * max(0, self.wanted - self.n_finished)

    def write(self, line: str) -> None:
        with self._above(), contextlib.suppress(OSError):  # where else could it be said?
            print(line, file=sys.stderr, flush=True)

    def _show(self, what: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"best {_percent(self.best):>8}, {what}")

    def _above(self) -> contextlib.AbstractContextManager[None]:
        """Where a line can be printed above the bar, if there is one."""
        if self.bar is None:
            return contextlib.nullcontext()
        above: contextlib.AbstractContextManager[None] = self.bar.external_write_mode(file=sys.stdout)
        return above

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


_BAR = "{n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}"
"""Without tqdm's guess of what is left: trials at once end in pairs. The lines say it."""


def outcome(study: optuna.Study) -> list[str]:
    """The best trials as a table, and the layers of the first; nothing where none is complete."""
    from study.reporting.dashboard import UNITS, units
    from study.reporting.facts import record_of
    from study.storage.database import candidate_of, config_of, ranked_trials

    best = ranked_trials(study)[:N_BEST]
    if not best:
        return []
    own = config_of(study).limits.own
    rows = [("trial", "accuracy", "parameters", "receptive field", "MACs", *(limit.name for limit in own), "time")]
    for trial in best:
        found = record_of(trial, own=own)
        known = whole(found.params), whole(found.receptive_field), millions(found.macs)
        measured = (rounded(found.measured.get(limit.name)) for limit in own)
        rows.append((_number(study, trial), _percent(trial.value), *known, *measured, duration(found.wall_s)))
    heading = f"Best {len(best)} of {study.study_name}, by validation accuracy" if len(best) > 1 else "Best trial"
    layers = aligned([UNITS, *units(candidate_of(best[0]).architecture)])
    return ["", heading, *aligned(rows), "", f"Layers of trial {_number(study, best[0])}", *layers, ""]


def _number(study: optuna.Study, trial: FrozenTrial) -> str:
    """Its number, in a re-ranking that of the search's trial: the one that people name to other commands."""
    anchor = str(trial.user_attrs.get("anchor", ""))
    named = "given" in study.user_attrs and anchor.startswith("trial ")
    return anchor.removeprefix("trial ") if named else str(trial.number)


def _percent(value: float | None) -> str:
    return "none yet" if value is None else percent(value, 2)
