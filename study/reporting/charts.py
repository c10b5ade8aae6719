"""The sections that are figures."""

from __future__ import annotations

from collections.abc import Sequence

from study.reporting import figures
from study.reporting.facts import Facts, is_or_are, n_trials
from study.reporting.figures import Record
from study.reporting.page import Block, Chart, Charts, Section, Table, Text

N_AXES = 6
"""Parameters in the parallel coordinates and slices: more cannot be read."""


def figure_sections(facts: Facts) -> list[Section]:
    reached = [r for r in facts.records if r.outcome in (figures.COMPLETE, figures.PRUNED) and r.accuracy is not None]
    curves = [r for r in facts.records if r.curve]
    names = list(facts.shares)[:N_AXES]
    n_complete = len(facts.ranked)
    few = Text(
        f"Needs {figures.MIN_FOR_IMPORTANCE} complete trials to tell which parameters matter; "
        f"there {is_or_are(n_complete)}.",
        "note",
    )
    none = Text("No trial has reported an accuracy yet.", "note")
    glanced = Text(
        "After epochs at which no trials are compared only a fifth of the validation images is looked at.", "note"
    )
    learning = (Chart("curves", figures.learning_curves(facts.records)),) if curves else (none,)
    sections = [
        Section("History", (Chart("history", figures.history(facts.records)),) if reached else (none,)),
        Section(
            "Learning curves",
            (*learning, glanced) if any(r.glanced for r in curves) else learning,
        ),
        Section("Importance of parameters", _importance(facts) if names else (few,)),
        Section("Size against accuracy", _size(facts, reached) if reached else (none,)),
        Section(
            "The most important parameters together",
            (
                Text("One line a complete trial; the darker, the more accurate. Drag along an axis to select."),
                Chart("parallel", figures.parallel_coordinates(facts.records, names)),
            )
            if names
            else (few,),
        ),
        Section(
            "The most important parameters one by one",
            (
                Text("Blue: complete. Orange crosses: pruned, at the accuracy where they were stopped."),
                Charts(
                    tuple(Chart(f"slice-{i}", figures.slice_plot(facts.records, name)) for i, name in enumerate(names))
                ),
            )
            if names
            else (few,),
        ),
    ]
    return sections


def _importance(facts: Facts) -> tuple[Block, ...]:
    n = len(facts.ranked)
    caution = ""
    if n < figures.TRUSTED_FOR_IMPORTANCE:
        caution = f" Fewer than {figures.TRUSTED_FOR_IMPORTANCE}: take it as a hint."
    rows = tuple((name, f"{share:.1%}") for name, share in list(facts.shares.items())[:12])
    return (
        Text(f"PED-ANOVA over {n_trials(n, 'complete ')}: what tells the best from the rest.{caution}"),
        Chart("importance", figures.importance_bars(facts.shares)),
        Table(
            ("Parameter", "Share of importance"),
            rows,
            numeric=frozenset({1}),
            folded=True,
            caption="As a table",
        ),
    )


def _size(facts: Facts, reached: Sequence[Record]) -> tuple[Block, ...]:
    if not any(r.params is not None for r in reached):
        return (Text("No trial has stored its parameters.", "note"),)
    return (Chart("size", figures.size_against_accuracy(facts.records, facts.config.limits.max_params)),)
