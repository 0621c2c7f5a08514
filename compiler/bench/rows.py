"""What a benchmark says: one row per problem and implementation, and why a row is absent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from wattune.ops import Problem, Work, operator


@dataclass(frozen=True)
class Row:
    """One implementation of one problem.

    ``seconds`` has the median and the least of all calls; ``gops`` and ``gbps`` follow from the
    median, the latter from the bytes that the problem must move: of packed weights those of the
    implementation's own format, else the same for all. ``limit`` is the least time in seconds that
    the machine's limits, measured in the same run, allow. ``lengths``: whether requests are
    ``full`` or ``ragged``.
    """

    operator: str
    problem: dict[str, Any]
    implementation: str
    threads: int
    mode: str
    seconds: dict[str, float]
    gops: float
    gbps: float
    limit: float
    fraction_of_limit: float
    lengths: str = "full"

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Ceiling:
    """The machine's limits for one run: bandwidth at the run's footprint, integer peak."""

    gbps: float
    gops: float

    def seconds(self, moved: int, operations: int) -> float:
        """Return the least time for so many bytes and integer operations."""
        return max(moved / (self.gbps * 1e9), operations / (self.gops * 1e9))


@dataclass(frozen=True)
class BenchResult:
    """All rows of a run, the machine, the limits behind each, and why rows are absent."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "machine": self.machine,
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }


def make_row(
    problem: Problem,
    implementation: str,
    threads: int,
    mode: str,
    moved: int,
    runs: Sequence[float],
    ceiling: Ceiling,
    ragged: Work | None = None,
) -> Row:
    """Build a row from the seconds of each call and the bytes that one call moves.

    ``ragged`` is the work of requests that are not full.
    """
    middle = median(runs)
    work = ragged or operator(problem.operator).work(problem)
    # How fast floats could be at best depends on roundings that the problem leaves open.
    limit = ceiling.seconds(moved, work.operations if work.integer else 0)
    return Row(
        operator=problem.operator,
        problem=problem.to_json(),
        implementation=implementation,
        threads=threads,
        mode=mode,
        seconds={"median": middle, "min": min(runs)},
        gops=work.operations / middle / 1e9,
        gbps=moved / middle / 1e9,
        limit=limit,
        fraction_of_limit=limit / middle,
        lengths="ragged" if ragged else "full",
    )
