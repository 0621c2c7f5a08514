"""What records of other tasks say of this one's points: other shapes, operators and devices.

A *source* is a task that measured most of this one's points: the same space on another device, or
of another shape. What it says of a point is ln(slowdown), the cost there over its best. All other
records train a cost model, which is one more source: it says ln(latency) by the features, of which
problem and target are a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.search.task import Task
from wattune.cost_models.base import CostModel
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Record, Schedule
from wattune.schedules.target import Target

Floats = NDArray[np.float64]
Key = tuple[Problem, Target, str]

# What is slower than the best by more than this factor says no more than that, and so do failures:
# how bad the bad points are on one device is no guide to where they are good on another.
SLOWEST = 2.0
# A source holds this share of a task's points; of a large space so many points are looked up.
_COVERED, _LOOKED_UP = 0.5, 512
# A model of fewer valid records than this has nothing to say; more than these would cost too much
# time to train on.
_LEAST_RECORDS, _MOST_RECORDS = 8, 2000


@dataclass(frozen=True)
class Transfer:
    """Other tasks' knowledge of one task; ``tables``: by schedule, ln(slowdown) on each source.

    ``least``: the ln(latency) of what the model holds to be fastest.
    """

    tables: Sequence[Mapping[Schedule, float]]
    model: CostModel | None = None
    least: float = 0.0

    def columns(self, candidates: Sequence[Candidate]) -> Floats:
        """Return what each source says, [n, sources]; a point that it lacks counts as failed."""
        worst = math.log(SLOWEST)
        found = [[t.get(c.schedule, worst) for c in candidates] for t in self.tables]
        if self.model is not None:
            expected = np.log(self.model.predict(candidates).latency) - self.least
            found.append(np.minimum(expected, worst).tolist())
        return np.array(found, np.float64).T.reshape(len(candidates), len(found))

    @cached_property
    def best(self) -> list[Schedule]:
        """Return the schedules of all sources' tables, those of the least mean slowdown first."""
        known: dict[Schedule, list[float]] = {}
        for table in self.tables:
            for schedule, slowdown in table.items():
                known.setdefault(schedule, []).append(slowdown)
        whole = {s: sum(found) for s, found in known.items() if len(found) == len(self.tables)}
        return sorted(whole, key=lambda schedule: (whole[schedule], schedule.knobs))


def transfer_of(
    task: Task, others: Sequence[Record], make: Callable[[], CostModel]
) -> Transfer | None:
    """Return what records of other tasks say of this one; None where they say nothing.

    ``make`` makes the cost model that learns what no table holds. Records of the task itself, on
    whatever machine of its target, are left out.
    """
    groups: dict[Key, list[Record]] = {}
    for record in others:
        candidate = record.candidate
        if (candidate.problem, candidate.target) != (task.problem, task.target):
            key = (candidate.problem, candidate.target, record.provenance.fingerprint)
            groups.setdefault(key, []).append(record)
    points = _points(task)
    schedules = [candidate.schedule for candidate in points]
    tables, rest = [], []
    for mine in groups.values():
        table = _slowdowns(mine)
        if sum(schedule in table for schedule in schedules) >= _COVERED * len(points):
            tables.append(table)
        else:
            rest += mine
    model = _trained(nearest(task, rest), make)
    if model is None:
        return Transfer(tables) if tables else None
    return Transfer(tables, model, float(np.log(model.predict(points).latency.min())))


def nearest(task: Task, records: Sequence[Record]) -> list[Record]:
    """Return so many records as a model can learn from in time, the most alike first.

    Those of the same operator come before others, and among them those of the same kind of device.
    """
    if len(records) <= _MOST_RECORDS:
        return list(records)

    def strangeness(record: Record) -> tuple[bool, bool, bool]:
        problem, target = record.candidate.problem, record.candidate.target
        return (
            problem.operator != task.problem.operator,
            target.kind != task.target.kind,
            target != task.target,
        )

    ordered = sorted(records, key=strangeness)
    # Evenly over what is equally strange: the last records of a search are all alike.
    kept: list[Record] = []
    start = 0
    while start < len(ordered) and len(kept) < _MOST_RECORDS:
        end = start
        while end < len(ordered) and strangeness(ordered[end]) == strangeness(ordered[start]):
            end += 1
        room = min(_MOST_RECORDS - len(kept), end - start)
        kept += [ordered[start + at * (end - start) // room] for at in range(room)]
        start = end
    return kept


def _points(task: Task) -> list[Candidate]:
    """Return points of a task, all of them where that is not many."""
    if task.product() <= _LOOKED_UP:
        return list(task.enumerate())
    return task.spread(_LOOKED_UP, np.random.default_rng(0))


def _slowdowns(records: Sequence[Record]) -> dict[Schedule, float]:
    """Return ln(latency / the least) of each schedule, by its fastest record."""
    latency: dict[Schedule, float] = {}
    for record in records:
        schedule = record.candidate.schedule
        latency[schedule] = min(record.latency, latency.get(schedule, math.inf))
    least = min(latency.values())
    if not math.isfinite(least):
        return {}
    return {s: math.log(min(value / least, SLOWEST)) for s, value in latency.items()}


def _trained(records: Sequence[Record], make: Callable[[], CostModel]) -> CostModel | None:
    if sum(record.valid for record in records) < _LEAST_RECORDS:
        return None
    model = make()
    model.update(records)
    return model
