"""What own limits measure of an architecture: once, and then as it was stored."""

from __future__ import annotations

from collections.abc import Mapping

import optuna

from search_spaces.architecture import Architecture
from search_spaces.constraints import LATENCY, SIZE, OwnLimit
from study.command_line.own import OwnLimits
from study.reporting.facts import is_number


class Measuring:
    """Measures architectures for the limits of a study, each once.

    Args:
        limits: Own ones of the study.
        typed: Functions of the user's.
        study: Whose trials hold what was measured before, if there is one.
    """

    def __init__(
        self, limits: tuple[OwnLimit, ...], typed: OwnLimits | None = None, study: optuna.Study | None = None
    ) -> None:
        self._limits = [limit for limit in limits if limit.name != SIZE]  # that one is known without
        self._typed = typed or OwnLimits()
        self._known: dict[str, dict[str, float]] = {}
        for trial in study.get_trials(deepcopy=False) if study is not None and self._limits else ():
            self.remember(trial.user_attrs.get("architecture_id"), trial.user_attrs.get("measured"))

    def remember(self, architecture_id: object, figures: object) -> None:
        """Takes `figures` for those of an architecture, unless they are of another kind."""
        if isinstance(architecture_id, str) and isinstance(figures, Mapping):
            known = {name: figure for name, figure in figures.items() if is_number(figure)}
            self._known.setdefault(architecture_id, {}).update(known)

    def __call__(self, architecture: Architecture) -> dict[str, float]:
        """What was measured of `architecture`, now or before, by the names of the limits.

        Raises:
            UserError: A limit's function was not typed, or fails.
        """
        known = self._known.setdefault(architecture.architecture_id, {})
        for limit in self._limits:
            if limit.name not in known:
                known[limit.name] = self._measured(limit, architecture)
        return {limit.name: known[limit.name] for limit in self._limits}

    def _measured(self, limit: OwnLimit, architecture: Architecture) -> float:
        from study.model.latency import latency_ms

        return latency_ms(architecture) if limit.name == LATENCY else self._typed.measure(limit, architecture)
