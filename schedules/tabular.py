"""Tables as spaces: what was measured before is a problem whose templates hold listed points."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np

from wattune.errors import ScheduleError
from wattune.ops import Problem
from wattune.schedules.space import Constraint, Knob, Space, Value, Values
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout, Template

Point: TypeAlias = tuple[Value, ...]

_ABSENT = "the table has no such point"


@dataclass(frozen=True)
class ListedSpace(Space):
    """A space whose points are listed, each in the order of the knobs; there are no others."""

    points: tuple[Point, ...] = ()

    @classmethod
    def of(
        cls,
        template: str,
        rows: Sequence[Mapping[str, Value]],
        default: Mapping[str, Value] | None = None,
    ) -> ListedSpace:
        """Make knobs of the values that occur: numbers ascending, others in order of appearance.

        Without a default it is what lies in the middle of every knob.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        knobs = [_knob(name, [row[name] for row in rows], default or {}) for name in names]
        points = tuple(dict.fromkeys(tuple(row[name] for name in names) for row in rows))
        return cls.listed(template, knobs, points)

    @classmethod
    def listed(cls, template: str, knobs: Sequence[Knob], points: Sequence[Point]) -> ListedSpace:
        """Build the space of these points, whose values are in the order of the knobs."""
        known, names = frozenset(points), [knob.name for knob in knobs]

        def holds(values: Mapping[str, Value]) -> bool:
            return tuple(values[name] for name in names) in known

        return cls(template, tuple(knobs), (Constraint(_ABSENT, holds),), tuple(points))

    def default(self) -> Values:
        """Return the point nearest to the defaults: in the fewest knobs, then steps, away."""
        if not self.points:
            raise ScheduleError(f"{self.template}: no point satisfies the constraints")
        places = [{value: at for at, value in enumerate(k.values)} for k in self.knobs]
        centre = [place[knob.default] for place, knob in zip(places, self.knobs, strict=True)]

        def away(point: Point) -> tuple[int, int]:
            steps = [abs(p[v] - c) for p, v, c in zip(places, point, centre, strict=True)]
            return sum(step > 0 for step in steps), sum(steps)

        return self._values(min(self.points, key=away))

    def restrict(self, fixed: Mapping[str, Value]) -> ListedSpace:
        """Return the points with these values."""
        knobs = super().restrict(fixed).knobs
        kept = [
            point
            for point in self.points
            if all(v == fixed.get(k.name, v) for k, v in zip(knobs, point, strict=True))
        ]
        return ListedSpace.listed(self.template, knobs, kept)

    def product(self) -> int:
        """Count the points: there is no combination to try besides them."""
        return len(self.points)

    def enumerate(self) -> Iterator[Values]:
        """Yield every point."""
        return map(self._values, self.points)

    def size(self) -> int:
        """Count the points."""
        return len(self.points)

    def sample(self, rng: np.random.Generator, attempts: int = 1) -> Values | None:
        """Draw one point, all alike; None where there is none."""
        return self._values(self.points[rng.integers(len(self.points))]) if self.points else None

    def neighbours(self, values: Mapping[str, Value]) -> Iterator[Values]:
        """Yield the points that differ in one knob: of numbers the nearest on either side."""
        for knob in self.knobs:
            at = knob.values.index(values[knob.name])
            sides = (
                (knob.values[at - 1 :: -1] if at else (), knob.values[at + 1 :])
                if knob.ordered
                else ((v,) for v in knob.neighbours(values[knob.name]))
            )
            for side in sides:
                near = ({**values, knob.name: value} for value in side)
                if found := next((v for v in near if self.constraints[0].holds(v)), None):
                    yield found

    def _values(self, point: Point) -> Values:
        return {knob.name: value for knob, value in zip(self.knobs, point, strict=True)}


def _knob(name: str, values: Sequence[Value], default: Mapping[str, Value]) -> Knob:
    """Return the knob of these values, which are of one kind."""
    distinct = tuple(dict.fromkeys(values))
    ordered = Knob(name, distinct, distinct[0]).ordered
    if ordered:
        distinct = tuple(sorted(distinct, key=int))
    middle = distinct[(len(distinct) - 1) // 2] if ordered else distinct[0]
    # A table may hold a part of the space, without the default's value.
    wanted = default.get(name, middle)
    return Knob(name, distinct, wanted if wanted in distinct else middle)


class TabularTemplate(Template):
    """One template's points of a table; they can be looked up, not built.

    ``counts``: what was counted of each point when it was measured, by its place in the space;
    empty where nothing was.
    """

    operator: ClassVar[str] = "tabular"

    def __init__(self, space: ListedSpace, counts: Sequence[Counts] = ()) -> None:
        """Serve the points of a space."""
        # Of the instance: every table has names of its own.
        self.name = space.template  # type: ignore[misc]
        self._space = space
        self._counts = dict(zip(space.points, counts, strict=True)) if counts else {}

    def applies(self, problem: Any, target: Target) -> bool:
        """Serve the table that this belongs to."""
        return True

    def space(self, problem: Any, target: Target) -> Space:
        """Return the listed points."""
        return self._space

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        """Return one layout for all: a table has nothing packed."""
        return Layout("recorded")

    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        """Return nothing."""
        return {}

    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Any:
        """Refuse: only measurements are there."""
        raise ScheduleError(f"{self.name} is a recorded table; it can be replayed, not built")

    def pack(self, problem: Any, values: Mapping[str, Value]) -> dict[str, Any]:
        """Return nothing: a table has nothing packed."""
        return {}

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        """Return what was counted when the point was measured."""
        point = tuple(values[knob.name] for knob in self._space.knobs)
        return self._counts.get(point, Counts({}, {}))

    def source_hash(self) -> str:
        """Return the same for all: a table's points do not change."""
        return "recorded"


@dataclass(frozen=True)
class Tabular(Problem):
    """What a table was measured of: its fields as one canonical line of JSON, and its templates.

    The fields name an ``operator``, ours or another tool's kernel. Problems with equal fields are
    equal: tables of the same on several devices differ in their target.
    """

    operator: ClassVar[str] = "tabular"

    fields: str
    templates: tuple[TabularTemplate, ...] = field(compare=False, repr=False)

    @cached_property
    def _data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.fields)
        return data

    def to_json(self) -> dict[str, Any]:
        """Return the fields; the table itself is not part of them."""
        return dict(self._data)

    def __str__(self) -> str:
        """Return the operator and the values of the other fields."""
        return " ".join(str(value) for value in self._data.values())
