"""Recordings: what was measured of every point of a space, from whatever file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from wattune.compiler.objective import LATENCY, Objective
from wattune.compiler.search.task import Task
from wattune.errors import RecordError, ScheduleError
from wattune.schedules.candidate import (
    Candidate,
    Conditions,
    FailureKind,
    Measurement,
    Provenance,
    Record,
    Schedule,
    canonical,
)
from wattune.schedules.space import Value
from wattune.schedules.tabular import ListedSpace, Tabular, TabularTemplate
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

# What a knob holds in the rows of a table that do not mention it.
ABSENT = "-"


@dataclass(frozen=True)
class Row:
    """One measured point: latency in seconds or a failure, joules where energy was measured.

    Fractions among the values become text in a recording. ``counts``: what its template counted,
    where it is known; ``facts`` as in a `Record`.
    """

    template: str
    values: Mapping[str, Any]
    seconds: float | None = None
    failure: FailureKind | None = None
    joules: float | None = None
    message: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)
    counts: Counts | None = None

    def __post_init__(self) -> None:
        """Refuse a row that is neither a measurement nor a failure, or costs nothing."""
        if (self.seconds is None) == (self.failure is None):
            raise RecordError(f"{dict(self.values)}: neither a time nor a failure, or both")
        for value in (self.seconds, self.joules):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise RecordError(f"{dict(self.values)}: a cost is {value!r}; allowed: > 0")


@dataclass(frozen=True)
class Recording:
    """A measured space: the task of searching it, and the answer for every point.

    ``about`` says where the measurements come from, as far as the file does.
    """

    problem: Tabular
    target: Target
    rows: Mapping[Schedule, Row]
    mode: str = "cold"
    energy_source: str = "none"
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def task(self) -> Task:
        """Return the task of which the table's points are the space."""
        return Task(self.problem, self.target)

    def record(self, candidate: Candidate) -> Record:
        """Return what was measured of a candidate; `ScheduleError` for what is not in the table."""
        row = self.rows.get(candidate.schedule)
        if row is None or (candidate.problem, candidate.target) != (self.problem, self.target):
            raise ScheduleError(f"{candidate.schedule.values} is not in the table of {self}")
        measured = None
        if row.seconds is not None:
            source = "none" if row.joules is None else self.energy_source
            measured = Measurement((row.seconds,), row.joules, source)
        return Record(
            candidate,
            Conditions(self.mode, self.target.threads),
            Provenance("recorded", f"recorded-{self.target.device or self.target.arch}"),
            measured,
            row.failure,
            row.message,
            dict(row.facts),
        )

    def records(self) -> list[Record]:
        """Return the records of all points."""
        return [self.record(candidate) for candidate in self.task.enumerate()]

    def optimum(self, objective: Objective = LATENCY) -> float:
        """Return the least cost by the objective of all points; seconds for latency."""
        return float(np.min(self.costs(list(self.rows), objective)))

    def costs(self, schedules: Sequence[Schedule], objective: Objective = LATENCY) -> Any:
        """Return the objective of points, [n]; infinite for failures.

        Where energy counts within a slack of the latency, it is the table's best latency.
        """
        rows = [self.rows[schedule] for schedule in schedules]
        return objective.decisive.scores(
            _column(rows, "seconds"), _column(rows, "joules"), self._fastest
        )

    @cached_property
    def _fastest(self) -> float:
        return float(_column(list(self.rows.values()), "seconds").min())

    @property
    def has_energy(self) -> bool:
        """Say whether energy was measured."""
        return any(row.joules is not None for row in self.rows.values())

    def __str__(self) -> str:
        """Name what was measured, and on what."""
        return f"{self.problem} on {self.target.device or self.target.arch}"


def _column(rows: Sequence[Row], name: str) -> Any:
    """Return costs, [n], infinite where there is none."""
    return np.array([np.inf if (v := getattr(r, name)) is None else v for r in rows], np.float64)


def recording(
    fields: Mapping[str, Any],
    target: Target,
    rows: Iterable[Row],
    defaults: Mapping[str, Mapping[str, Value]] | None = None,
    **more: Any,
) -> Recording:
    """Build a recording of rows; of the rows of one point the fastest counts.

    ``fields`` describe the problem, with its ``operator``; ``defaults`` are templates' default
    points, where they are known; ``more`` are fields of `Recording`.
    """
    by_template: dict[str, list[Row]] = {}
    for row in rows:
        by_template.setdefault(row.template, []).append(row)
    known: dict[Schedule, Row] = {}
    templates = []
    for name, mine in by_template.items():
        best = _fastest_of_each(_alike(mine))
        known |= best
        templates.append(_template(name, list(best.values()), (defaults or {}).get(name)))
    if all(row.seconds is None for row in known.values()):
        raise RecordError("the table holds no measurement; allowed: at least one")
    return Recording(Tabular(canonical(dict(fields)), tuple(templates)), target, known, **more)


def _fastest_of_each(rows: Sequence[Row]) -> dict[Schedule, Row]:
    """Return the fastest row of each point, in order of appearance."""
    found: dict[Schedule, Row] = {}
    for row in rows:
        schedule = Schedule.make(row.template, row.values)
        other = found.get(schedule)
        if other is None or (row.seconds or np.inf) < (other.seconds or np.inf):
            found[schedule] = row
    return found


def _template(name: str, rows: list[Row], default: Mapping[str, Value] | None) -> TabularTemplate:
    space = ListedSpace.of(name, [row.values for row in rows], default)
    counts = [row.counts for row in rows if row.counts is not None]
    return TabularTemplate(space, counts if len(counts) == len(rows) else ())


def _alike(rows: Sequence[Row]) -> list[Row]:
    """Give the rows of one template the same knobs, and each knob values of one kind."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    columns = [_one_kind([row.values.get(name, ABSENT) for row in rows]) for name in names]
    points = zip(*columns, strict=True) if columns else [()] * len(rows)
    return [
        replace(row, values=dict(zip(names, point, strict=True)))
        for row, point in zip(rows, points, strict=True)
    ]


def _one_kind(values: Sequence[Any]) -> Sequence[Value]:
    """Return flags as flags, whole numbers as integers, the rest and mixtures as text."""
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return values
    if kinds <= {int, float} and all(float(value).is_integer() for value in values):
        return [int(value) for value in values]
    return [str(value) for value in values]
