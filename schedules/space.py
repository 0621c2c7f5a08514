"""Spaces: typed knobs and constraints. A search needs nothing else to know about a template."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from wattune.errors import ScheduleError, UnknownNameError

Value: TypeAlias = int | str | bool
Values: TypeAlias = dict[str, Value]


@dataclass(frozen=True)
class Knob:
    """One choice: its values in order, the default, whether the packed layout depends on it.

    ``ordered`` values (numbers) have neighbours beside them and are encoded by their logarithm;
    others are one-hot and every other value is a neighbour.
    """

    name: str
    values: tuple[Value, ...]
    default: Value
    layout: bool = False

    def __post_init__(self) -> None:
        """Refuse a default that is not among the values."""
        if self.default not in self.values:
            raise ScheduleError(
                f"knob {self.name}: default {self.default!r}; allowed: {list(self.values)}"
            )

    @property
    def ordered(self) -> bool:
        """Say whether the values are numbers."""
        return all(isinstance(v, int) and not isinstance(v, bool) for v in self.values)

    def neighbours(self, value: Value) -> tuple[Value, ...]:
        """Return the values one step away."""
        at = self.values.index(value)
        if not self.ordered:
            return tuple(v for v in self.values if v != value)
        return tuple(self.values[i] for i in (at - 1, at + 1) if 0 <= i < len(self.values))

    def encode(self, value: Value) -> dict[str, float]:
        """Return features of a value: log2(1 + |v|) with the sign of v, or one column a value."""
        if self.ordered:
            number = int(value)
            return {self.name: math.copysign(math.log2(1 + abs(number)), number)}
        return {f"{self.name}={v}": float(v == value) for v in self.values}


def powers_of_two(low: int, high: int) -> tuple[int, ...]:
    """Return low, 2 low, ... up to high."""
    found = []
    while low <= high:
        found.append(low)
        low *= 2
    return tuple(found)


@dataclass(frozen=True)
class Constraint:
    """A rule between knobs, with the reason a user is told."""

    reason: str
    holds: Callable[[Mapping[str, Value]], bool]


@dataclass(frozen=True)
class Space:
    """All schedules of one template for one problem and target."""

    template: str
    knobs: tuple[Knob, ...]
    constraints: tuple[Constraint, ...] = ()

    def default(self) -> Values:
        """Return every knob's default, or the nearest point that the constraints allow.

        A restricted space can rule its own defaults out; the nearest point is found breadth
        first, one knob by one step at a time, so it is the same every time.
        """
        first = {knob.name: knob.default for knob in self.knobs}
        queue, seen = deque([first]), {tuple(first.values())}
        while queue:
            values = queue.popleft()
            if all(rule.holds(values) for rule in self.constraints):
                return values
            for knob in self.knobs:
                for value in knob.neighbours(values[knob.name]):
                    near = {**values, knob.name: value}
                    if (key := tuple(near.values())) not in seen:
                        seen.add(key)
                        queue.append(near)
        raise ScheduleError(f"{self.template}: no point satisfies the constraints")

    def check(self, values: Mapping[str, Value]) -> None:
        """Refuse values outside the space, with the reason."""
        names = [knob.name for knob in self.knobs]
        for name in values:
            if name not in names:
                raise UnknownNameError(f"knob of {self.template}", name, names)
        for knob in self.knobs:
            if knob.name not in values:
                raise ScheduleError(f"{self.template}: knob {knob.name!r} is missing")
            # `True == 1` in Python, but a flag is not a number.
            same = [v for v in knob.values if v == values[knob.name]]
            if not same or type(same[0]) is not type(values[knob.name]):
                raise ScheduleError(
                    f"{self.template}: {knob.name} is {values[knob.name]!r}; "
                    f"allowed: {list(knob.values)}"
                )
        for rule in self.constraints:
            if not rule.holds(values):
                raise ScheduleError(f"{self.template}: {rule.reason}")

    def contains(self, values: Mapping[str, Value]) -> bool:
        """Say whether the values are a point of the space."""
        try:
            self.check(values)
        except (ScheduleError, UnknownNameError):
            return False
        return True

    def restrict(self, fixed: Mapping[str, Value]) -> Space:
        """Return the space with some knobs fixed; their defaults follow."""
        knobs = []
        for knob in self.knobs:
            if knob.name in fixed:
                value = fixed[knob.name]
                if value not in knob.values:
                    raise ScheduleError(
                        f"{self.template}: {knob.name} is {value!r}; allowed: {list(knob.values)}"
                    )
                knob = dataclasses.replace(knob, values=(value,), default=value)
            knobs.append(knob)
        return dataclasses.replace(self, knobs=tuple(knobs))

    def product(self) -> int:
        """Count the points without regard to constraints."""
        return math.prod(len(knob.values) for knob in self.knobs)

    def enumerate(self) -> Iterator[Values]:
        """Yield every point that satisfies the constraints."""
        names = [knob.name for knob in self.knobs]
        for combination in itertools.product(*(knob.values for knob in self.knobs)):
            values = dict(zip(names, combination, strict=True))
            if all(rule.holds(values) for rule in self.constraints):
                yield values

    def size(self) -> int:
        """Count the points; walks the space, so call it once."""
        return sum(1 for _ in self.enumerate())

    def sample(self, rng: np.random.Generator, attempts: int = 200) -> Values | None:
        """Draw one point; None where no valid one was found in the attempts."""
        for _ in range(attempts):
            values = {k.name: k.values[rng.integers(len(k.values))] for k in self.knobs}
            if all(rule.holds(values) for rule in self.constraints):
                return values
        return None

    def neighbours(self, values: Mapping[str, Value]) -> Iterator[Values]:
        """Yield the valid points that differ in one knob by one step."""
        for knob in self.knobs:
            for value in knob.neighbours(values[knob.name]):
                near = {**values, knob.name: value}
                if all(rule.holds(near) for rule in self.constraints):
                    yield near

    def encode(self, values: Mapping[str, Value]) -> dict[str, float]:
        """Return the features of a point, one name a column."""
        columns: dict[str, float] = {}
        for knob in self.knobs:
            columns.update(knob.encode(values[knob.name]))
        return columns


def layout_knobs(knobs: Sequence[Knob]) -> tuple[Knob, ...]:
    """Return the knobs that decide a packed layout."""
    return tuple(knob for knob in knobs if knob.layout)
