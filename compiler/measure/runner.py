"""Runners: measure candidates. Every candidate becomes exactly one record, whatever it does."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from wattune.compiler.cc import compiler
from wattune.compiler.cuda.program import limits_image
from wattune.compiler.measure.affinity import divide, usable_cpus
from wattune.compiler.measure.builder import BuildPool, BuildResult
from wattune.compiler.measure.confirm import interleaved
from wattune.compiler.measure.limits import Limits, limits_key, measure_limits
from wattune.compiler.measure.meters import open_meter
from wattune.compiler.measure.shelf import Shelf
from wattune.compiler.measure.station import check, supervisor_of
from wattune.errors import MissingDependencyError, TargetError
from wattune.schedules.candidate import Candidate, Record
from wattune.schedules.host import toolchain
from wattune.schedules.target import Target
from wattune.schedules.template import register_module

# Built ahead of the measuring process, per build worker.
BUILT_AHEAD = 4
# Built candidates that are kept, by kind of target: a GPU's are measured again for their energy,
# and more of them are built than measured. A library takes about 0.1 MB.
KEPT = {"cpu": 0, "cuda": 512}
# Candidates that a search may build for each that it measures: building takes no GPU.
SURPLUS = {"cpu": 1, "cuda": 2}


class Runner(Protocol):
    """Measures candidates; records may come in any order, one for each candidate.

    A runner on which energy takes extra time has a method ``energy`` like `run`, whose records have
    joules; on others they come with the latency or not at all. ``interleaved`` is optional too, and
    so is ``facts``, with ``surplus``: how many candidates to build for each measured one.
    """

    def run(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        """Yield the record of each candidate as it arrives."""

    def close(self) -> None:
        """Give back processes and files."""


class LocalRunner(Runner):
    """Builds in worker processes and measures in one other process, on this machine.

    ``mode`` is ``cold`` (packed arguments come from memory, as in decoding) or ``hot``. Where the
    target leaves cores free, they build ahead during measurements; else the two alternate.
    ``template_modules`` are registered here and in the build workers.
    """

    def __init__(
        self,
        target: Target,
        mode: str = "cold",
        build_workers: int | None = None,
        build_timeout: float = 60,
        run_timeout: float = 30,
        seed: int = 0,
        template_modules: Sequence[str] = (),
    ) -> None:
        """Prepare the processes; they start with the first candidate."""
        check(target, mode)
        if find_spec("tvm") is None:
            raise MissingDependencyError("apache-tvm", "tuning")
        compiler()  # an error now, not for every candidate
        for module in template_modules:
            register_module(target.kind, module)
        self._target = target
        self.surplus = SURPLUS[target.kind]
        self._shelf = Shelf(KEPT[target.kind])
        self._folder = Path(tempfile.mkdtemp(prefix="wattune-"))
        cpus = usable_cpus()
        measuring, free = divide(cpus, target.host_threads)
        # An energy counter of CPUs counts every core.
        self._overlap = bool(free) and (target.kind != "cpu" or open_meter("cpu") is None)
        building = free if self._overlap else cpus
        self._pool = BuildPool(
            build_workers or len(building),
            self._folder,
            build_timeout,
            building,
            template_modules,
            target.kind,
        )
        self._supervisor = supervisor_of(
            target, mode, measuring, seed, toolchain(), run_timeout, self._pool
        )

    def __enter__(self) -> Self:
        """Return the runner."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End all processes and delete what was built."""
        self._pool.close()
        self._supervisor.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def limits(self) -> Limits:
        """Measure what the target's device can do at most."""
        target = self._target
        if target.kind == "cpu":
            return measure_limits(target)
        image = limits_image(target, self._folder)
        found = self._supervisor.limits(str(image))
        return Limits({limits_key(target.threads, target.memory, True): found["read_gbps"]})

    def run(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        """Yield the record of each candidate; nothing is being timed while the caller has one."""
        return self._run(candidates, energy=False)

    def energy(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        """Yield records with energy, which takes some ten seconds a candidate on GPUs."""
        return self._run(candidates, energy=True)

    def _run(self, candidates: Sequence[Candidate], energy: bool) -> Iterator[Record]:
        for result in self._built(candidates):
            record = self._supervisor.measure(result, energy=energy)
            self._shelf.put(result)
            yield record

    def facts(self, candidates: Sequence[Candidate]) -> Mapping[Candidate, Mapping[str, float]]:
        """Build candidates and return the facts of those that build; `run` finds them built."""
        found = {}
        for result in self._built(candidates):
            self._shelf.put(result)
            if result.failure is None:
                found[result.candidate] = result.facts
        return found

    def interleaved(
        self, candidates: Sequence[Candidate], rounds: int = 5, energy: bool = False
    ) -> list[Record]:
        """Measure finalists in turn, several rounds, so that drift hits all of them alike.

        Returns one record per candidate, in the order given; its runs are those of all rounds.
        ``energy``: measure it too where that takes extra time.
        """
        distinct = list(dict.fromkeys(candidates))
        built = list(self._built(distinct, ahead=False))
        found = interleaved(
            lambda result, verify: self._supervisor.measure(result, verify, energy),
            built,
            rounds,
        )
        for result in built:
            self._shelf.put(result)
        return [found[candidate] for candidate in candidates]

    def _built(self, candidates: Sequence[Candidate], ahead: bool = True) -> Iterator[BuildResult]:
        """Yield build results; building goes on meanwhile only on cores that do not measure."""
        known = {c: found for c in self._checked(candidates) if (found := self._shelf.get(c))}
        yield from (known[candidate] for candidate in candidates if candidate in known)
        pool, queue = self._pool, deque(c for c in candidates if c not in known)
        most = BUILT_AHEAD * len(pool.processes) if ahead else len(queue)
        together = self._overlap and ahead
        try:
            while queue or pool.pending or pool.finished:
                if together or not pool.finished:
                    while queue and pool.pending + len(pool.finished) < most:
                        pool.submit(queue.popleft())
                if pool.finished and (together or not pool.pending):
                    yield pool.finished.popleft()
                else:
                    pool.wait()
        finally:
            pool.cancel()

    def _checked(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        for candidate in candidates:
            if candidate.target != self._target:
                raise TargetError("a candidate is for another target than this runner measures on")
        return candidates
