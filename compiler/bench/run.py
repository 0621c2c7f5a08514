"""Runs a benchmark: rounds of all implementations of a problem in turn, so that noise hits all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from wattune.compiler.bench.data import draw, save, work_of
from wattune.compiler.bench.implementations import companions, implementations
from wattune.compiler.bench.process import BenchProcess
from wattune.compiler.bench.rows import Ceiling, Row, make_row
from wattune.compiler.measure.affinity import divide, usable_cpus
from wattune.compiler.measure.memory import state_bytes
from wattune.compiler.measure.pool import cold_footprint
from wattune.errors import MeasureError
from wattune.ops import Problem, operator
from wattune.schedules.target import Target

Progress = Callable[[int, str], None]
Libraries = Mapping[Problem, Path]

# Implementations that are measured together take at most this share of the free memory.
MEMORY_SHARE = 0.6
SETUP_COPIES = 4


@dataclass(frozen=True)
class Settings:
    """How a benchmark measures: ``seconds`` per round, bytes of the rotation (0 in hot mode).

    ``ragged``: requests of different lengths.
    """

    threads: int
    mode: str = "cold"
    rounds: int = 7
    seconds: float = 0.1
    footprint: int = 0
    seed: int = 0
    ragged: bool = False


@dataclass(frozen=True)
class Job:
    """One process to be: the name of its row, and which implementation of which problem it is."""

    name: str
    implementation: str
    problem: Problem


@dataclass
class Entry:
    """One implementation while it is measured."""

    process: BenchProcess
    problem: Problem
    moved: int
    copies: int
    runs: list[float] = field(default_factory=list)


def jobs_of(problem: Problem) -> list[Job]:
    """Return what is measured of a problem: ours first, then peers, then our other ways."""
    own = [Job(name, name, problem) for name in implementations(problem.operator)]
    return own + [Job(name, "wattune", other) for name, other in companions(problem).items()]


def measure_problem(
    problem: Problem,
    libraries: Libraries,
    settings: Settings,
    ceiling: Callable[[int], Ceiling],
    notes: list[str],
    progress: Progress = lambda done, text: None,
) -> list[Row]:
    """Measure every implementation of one problem; absent ones leave a note.

    ``libraries`` are those of our own kernels; ``ceiling`` returns the machine's limits at a
    footprint in bytes.
    """
    jobs = jobs_of(problem)
    work = work_of(problem, settings.seed, settings.ragged)
    # Before and after: a disturbed measurement of the limit would praise everything.
    footprint = settings.footprint if rotates(problem) else 0
    ceiling(footprint or work.bytes)
    entries = measure_jobs(jobs, libraries, settings, notes, lambda n: progress(n, str(problem)))
    # What another problem moves says nothing about this one.
    moved = {n: e.moved if e.problem == problem else work.bytes for n, e in entries.items()}
    limits = {size: ceiling(footprint or size) for size in set(moved.values())}
    mode, threads, ragged = settings.mode, settings.threads, work if settings.ragged else None
    return [
        make_row(problem, name, threads, mode, moved[name], e.runs, limits[moved[name]], ragged)
        for name, e in entries.items()
    ]


def measure_jobs(
    jobs: Sequence[Job],
    libraries: Libraries,
    settings: Settings,
    notes: list[str],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Entry]:
    """Measure jobs, rounds in turn; those that do not fit into memory together go in groups."""
    found: dict[str, Entry] = {}
    with tempfile.TemporaryDirectory(prefix="wattune-bench-") as folder:
        data = _draw(jobs, settings, Path(folder))
        for number, group in enumerate(groups := _groups(jobs, settings.footprint)):
            with ExitStack() as stack:
                entries = _start(group, libraries, data, settings, notes, stack)
                for done in range(settings.rounds):
                    progress((number * settings.rounds + done) // len(groups))
                    _round(entries, settings.seconds, notes)
            found.update(entries)
    progress(settings.rounds)
    return found


def _round(entries: dict[str, Entry], seconds: float, notes: list[str]) -> None:
    for name, entry in list(entries.items()):
        try:
            entry.runs += entry.process.round(seconds)
        except MeasureError as error:
            notes.append(f"{entry.problem}: {error}")
            del entries[name]


def footprint(target: Target, mode: str) -> int:
    """Return the bytes that each implementation rotates over: those of a tune's measurements."""
    return cold_footprint(target.l3, target.memory) if mode == "cold" else 0


def rotates(problem: Problem) -> bool:
    """Say whether anything lies in memory between calls."""
    arguments = operator(problem.operator).arguments(problem)
    return any(argument.role in ("packed", "state") for argument in arguments)


def _groups(jobs: Sequence[Job], footprint: int) -> list[list[Job]]:
    """Cut jobs into groups that fit into memory together, in their order."""
    states = {job: state_bytes(job.problem) for job in jobs}
    # Setups run one at a time; converting caches takes some in float32.
    start = SETUP_COPIES * max(states.values(), default=0)
    room = int(MEMORY_SHARE * free_memory())
    groups: list[list[Job]] = []
    used = room
    for job in jobs:
        need = footprint + states[job]
        if used + need > room or not groups:
            groups.append([])
            used = start
        groups[-1].append(job)
        used += need
    return groups


def free_memory() -> int:
    """Return the bytes that programs could still get."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _draw(jobs: Sequence[Job], settings: Settings, folder: Path) -> dict[Problem, Path]:
    """Write the data of every problem; all its implementations start from the same."""
    found: dict[Problem, Path] = {}
    for problem in dict.fromkeys(job.problem for job in jobs):
        found[problem] = folder / str(len(found))
        found[problem].mkdir()
        save(draw(problem, settings.seed, settings.ragged), found[problem])
    return found


def _start(
    jobs: Sequence[Job],
    libraries: Libraries,
    data: Mapping[Problem, Path],
    settings: Settings,
    notes: list[str],
    stack: ExitStack,
) -> dict[str, Entry]:
    """Start all processes, one after the other: their setups would disturb each other."""
    cpus, _ = divide(usable_cpus(), settings.threads)
    entries = {}
    for job in jobs:
        spec = {
            "implementation": job.implementation,
            "problem": job.problem.to_json(),
            "data": str(data[job.problem]),
            "moved": work_of(job.problem, settings.seed, settings.ragged).bytes,
            "threads": settings.threads,
            "footprint": settings.footprint,
            "library": str(libraries.get(job.problem, "")),
        }
        process = BenchProcess(spec, cpus)
        stack.callback(process.close)
        try:
            ready = process.ready()
        except MeasureError as error:
            ready = {"unavailable": str(error)}
        if "unavailable" in ready:
            notes.append(f"{job.problem}: {job.name} is absent: {ready['unavailable']}")
        else:
            entries[job.name] = Entry(process, job.problem, ready["moved"], ready["copies"])
    return entries
