"""Points of a task as rows of numbers in which distances mean something, for a Gaussian process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.search.task import Task
from wattune.cost_models.gaussian_process import GaussianProcess
from wattune.schedules.candidate import Candidate
from wattune.schedules.space import Knob, Value

Floats = NDArray[np.float64]

# The expected length of a knob that spans 0 to 1; it grows with the root of the number of knobs,
# so that points of a large space are not all strangers to each other.
_LENGTH = 0.35
# Divisibility matters for some knobs only: it is expected to weigh this much.
_DERIVED = 0.3
# The same for what a model expects, once it is scaled to a standard deviation of 1: physics, or
# other tasks, may say all of it or nothing.
_TREND = 0.3
# Points by which the scale of what a model expects is found.
_SHOWN = 256
# What differs by less than this, in ln(cost), is expected to be the same.
_LEAST_STD = 1e-3

# What a model expects of candidates: logarithms of their costs, [n].
Expected = Callable[[Sequence[Candidate]], Floats]


@dataclass(frozen=True)
class Part:
    """Columns of one knob: what each of its values becomes."""

    template: str
    knob: str
    table: Mapping[Value, Floats]
    derived: bool = False

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return len(next(iter(self.table.values())))


class Encoding:
    """Rows of a task's points, and the process that is expected before anything is measured.

    Ordered values go from 0 to 1, half by logarithm and half by rank: either alone crowds some of
    them. Others have a column each, at distance 1 from one another. A derived column says how often
    two divides a value, to which code generation and hardware react: 48 is not between 32 and 64.
    Knobs of other templates are 0. A last column holds what a model expects, where it tells points
    apart: the cost may follow it in a straight line.
    """

    def __init__(self, task: Task, expected: Expected | None = None) -> None:
        """Encode a task's points."""
        names = list(dict.fromkeys(branch.template.name for branch in task.branches))
        self._templates = _apart(names)
        first = len(names) if len(names) > 1 else 0
        self._parts: dict[str, list[tuple[int, Part]]] = {name: [] for name in names}
        groups, derived, start = [0] * first, [False] * bool(first), first
        for name in names:
            knobs = _merged([b.space.knobs for b in task.branches if b.template.name == name])
            for part in _parts(name, knobs):
                self._parts[name].append((start, part))
                groups += [len(derived)] * part.width
                derived.append(part.derived)
                start += part.width
        count = max(1, len(derived) - sum(derived))
        weights = [_DERIVED if d else 1 / (_LENGTH**2 * count) for d in derived or [False]]
        self._trend = expected and _Trend.of(task, expected)
        trends: frozenset[int] = frozenset()
        if self._trend:
            groups, weights = [*(groups or [0]), len(weights)], [*weights, _TREND]
            trends = frozenset([len(weights) - 1])
        self.prior = GaussianProcess(np.array(groups or [0]), np.array(weights), trends=trends)

    def rows(self, candidates: Sequence[Candidate]) -> Floats:
        """Return [n, columns]."""
        found = np.zeros((len(candidates), len(self.prior.groups)))
        for row, candidate in zip(found, candidates, strict=True):
            schedule = candidate.schedule
            if len(self._templates) > 1:
                row[: len(self._templates)] = self._templates[schedule.template]
            values = schedule.values
            for start, part in self._parts[schedule.template]:
                numbers = part.table[values[part.knob]]
                row[start : start + len(numbers)] = numbers
        if self._trend and candidates:
            found[:, -1] = self._trend.of_rows(candidates)
        return found


@dataclass(frozen=True)
class _Trend:
    """What a model expects, scaled to mean 0 and standard deviation 1 over a task."""

    expected: Expected
    mean: float
    std: float

    @classmethod
    def of(cls, task: Task, expected: Expected) -> _Trend | None:
        """Find the scale on points of a task; None where the model expects the same of all."""
        shown = expected(task.spread(_SHOWN, np.random.default_rng(0)))
        std = float(shown.std())
        return cls(expected, float(shown.mean()), std) if std > _LEAST_STD else None

    def of_rows(self, candidates: Sequence[Candidate]) -> Floats:
        """Return the scaled logarithms, [n]."""
        return (self.expected(candidates) - self.mean) / self.std


def _parts(template: str, knobs: Sequence[Knob]) -> Iterator[Part]:
    """Yield the columns of a template's knobs, then the derived ones."""
    free = [knob for knob in knobs if len(knob.values) > 1]
    for knob in free:
        yield Part(template, knob.name, _scale(knob) if knob.ordered else _apart(knob.values))
    for knob in free:
        twos = {value: _twos(int(value)) for value in knob.values} if knob.ordered else {}
        # All different, it says what the knob's own column says.
        if 1 < len(set(twos.values())) < len(twos):
            yield Part(template, knob.name, _spanned(twos), derived=True)


def _merged(parts: Sequence[tuple[Knob, ...]]) -> list[Knob]:
    """Return the knobs of one template whose restricted spaces are several branches."""
    values: dict[str, dict[Value, None]] = {}
    for knob in (knob for part in parts for knob in part):
        values.setdefault(knob.name, {}).update(dict.fromkeys(knob.values))
    return [Knob(name, tuple(known), next(iter(known))) for name, known in values.items()]


def _scale(knob: Knob) -> dict[Value, Floats]:
    numbers = sorted(int(value) for value in knob.values)
    logs = np.array([math.copysign(math.log2(1 + abs(number)), number) for number in numbers])
    logs = (logs - logs[0]) / (logs[-1] - logs[0])
    ranks = np.arange(len(numbers)) / (len(numbers) - 1)
    pairs = zip(numbers, (logs + ranks) / 2, strict=True)
    return {number: np.array([place]) for number, place in pairs}


def _apart(values: Sequence[Value]) -> dict[Value, Floats]:
    """Return a column for each value; any two are at distance 1."""
    return dict(zip(values, np.eye(len(values)) / math.sqrt(2), strict=True))


def _spanned(table: Mapping[Value, int]) -> dict[Value, Floats]:
    """Return the numbers scaled to 0 to 1."""
    low, high = min(table.values()), max(table.values())
    return {value: np.array([(n - low) / (high - low)]) for value, n in table.items()}


def _twos(number: int) -> int:
    """Return how often two divides a number; 0 for 0."""
    return (number & -number).bit_length() - 1 if number else 0
