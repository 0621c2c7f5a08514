"""Runs a benchmark: rounds of all implementations of a problem in turn, so that noise hits all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattune.compiler.bench.implementations import implementations
from wattune.compiler.bench.process import BenchProcess
from wattune.compiler.bench.rows import Ceiling, Row, make_row
from wattune.compiler.measure.affinity import divide, usable_cpus
from wattune.compiler.measure.pool import cold_footprint
from wattune.errors import MeasureError
from wattune.ops import Problem, operator_names
from wattune.schedules.target import Target

Progress = Callable[[int, str], None]

# The share of memory that the rotations of all implementations of a problem may take together.
MEMORY_SHARE = 0.6


@dataclass(frozen=True)
class Settings:
    """How a benchmark measures: ``seconds`` per round, bytes of the rotation (0 in hot mode)."""

    threads: int
    mode: str = "cold"
    rounds: int = 7
    seconds: float = 0.1
    footprint: int = 0
    seed: int = 0


@dataclass
class Entry:
    """One implementation while it is measured."""

    process: BenchProcess
    moved: int
    copies: int
    runs: list[float] = field(default_factory=list)


def measure_problem(
    problem: Problem,
    library: Path | None,
    settings: Settings,
    ceiling: Callable[[int], Ceiling],
    notes: list[str],
    progress: Progress = lambda done, text: None,
) -> list[Row]:
    """Measure every implementation of one problem; absent ones leave a note.

    ``ceiling`` returns the machine's limits at a footprint in bytes.
    """
    with ExitStack() as stack:
        entries = _start(problem, library, settings, notes, stack)
        for number in range(settings.rounds):
            progress(number, str(problem))
            for entry in list(entries.values()):
                try:
                    entry.runs += entry.process.round(settings.seconds)
                except MeasureError as error:
                    notes.append(f"{problem}: {error}")
                    entries = {n: e for n, e in entries.items() if e is not entry}
        progress(settings.rounds, str(problem))
    return [
        make_row(
            problem,
            name,
            settings.threads,
            settings.mode,
            entry.moved,
            entry.runs,
            ceiling(settings.footprint or entry.moved),
        )
        for name, entry in entries.items()
    ]


def footprint(target: Target, mode: str) -> int:
    """Return the bytes that each implementation rotates over: those of a tune's measurements.

    Less where the memory cannot hold that many rotations at once.
    """
    if mode != "cold":
        return 0
    count = max(len(implementations(name)) for name in operator_names())
    return min(cold_footprint(target.l3, target.memory), int(MEMORY_SHARE * target.memory) // count)


def _start(
    problem: Problem, library: Path | None, settings: Settings, notes: list[str], stack: ExitStack
) -> dict[str, Entry]:
    """Start all processes, one after the other: their setups would disturb each other."""
    cpus, _ = divide(usable_cpus(), settings.threads)
    entries = {}
    for name in implementations(problem.operator):
        process = BenchProcess(_spec(problem, name, library, settings), cpus)
        stack.callback(process.close)
        try:
            ready = process.ready()
        except MeasureError as error:
            ready = {"unavailable": str(error)}
        if "unavailable" in ready:
            notes.append(f"{problem}: {name} is absent: {ready['unavailable']}")
        else:
            entries[name] = Entry(process, ready["moved"], ready["copies"])
    return entries


def _spec(
    problem: Problem, name: str, library: Path | None, settings: Settings
) -> Mapping[str, Any]:
    return {
        "implementation": name,
        "problem": problem.to_json(),
        "threads": settings.threads,
        "footprint": settings.footprint,
        "library": str(library or ""),
        "seed": settings.seed,
    }
