"""Run: measure a bundle's candidates on the machine it was carried to.

Started by the ``run.py`` of a bundle. Every record is on disk before the next candidate is looked
at; a run that was stopped, however, goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from wattune.compiler.bundle.manifest import Manifest
from wattune.compiler.bundle.results import Results
from wattune.compiler.bundle.table import table
from wattune.compiler.measure.affinity import divide, usable_cpus
from wattune.compiler.measure.builder import BuildResult
from wattune.compiler.measure.confirm import interleaved, marked
from wattune.compiler.measure.station import check, supervisor_of
from wattune.compiler.measure.supervisor import Supervisor
from wattune.errors import MeasureError, MissingDependencyError, WattuneError
from wattune.schedules.candidate import Record
from wattune.schedules.host import fingerprint
from wattune.schedules.nvidia import gpu_facts

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
# Candidates of one problem that are measured in a row: its inputs are drawn once for them.
CHUNK = 8
# What the energy of one candidate takes, reference included, to keep time for it.
ENERGY_SECONDS = 12.0
# Times that finalists are measured in turn.
ROUNDS = 3


@dataclass(frozen=True)
class Options:
    """How much to measure: seconds, candidates of each problem to measure again, names to pick."""

    out: Path
    seconds: float = float("inf")
    energy: int = 0
    confirm: int = 3
    only: tuple[str, ...] = ()


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Measure a bundle; returns 0 done, 1 nothing was valid, 2 user error, 130 interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        options = _options(arguments)
        manifest = Manifest.read(folder)
        _check_names(manifest, options.only)
        _check(manifest)
        return Run(manifest, folder, options).all()
    except (WattuneError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED if isinstance(error, MeasureError) else USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="run.py", description="Measure this bundle's candidates.")
    parser.add_argument("--out", required=True, type=Path, help="records, one a line; appended to")
    parser.add_argument("--minutes", type=_minutes, help="end after so many minutes")
    parser.add_argument(
        "--energy",
        type=_count,
        default=0,
        metavar="K",
        help="measure energy too, of the default and the K fastest of each problem (GPUs)",
    )
    parser.add_argument(
        "--confirm",
        type=_count,
        default=3,
        metavar="K",
        help="measure the default and the K fastest again in turn, 0 for none (default: 3)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="only problems whose name contains this; repeatable",
    )
    given = parser.parse_args(arguments)
    seconds = float("inf") if given.minutes is None else 60 * given.minutes
    return Options(given.out, seconds, given.energy, given.confirm, tuple(given.only))


def _minutes(text: str) -> float:
    """Read a time; in none nothing new is measured."""
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not found >= 0:
        raise argparse.ArgumentTypeError(f"{text} minutes; allowed: a number >= 0")
    return found


def _count(text: str) -> int:
    """Read how many, none included."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} candidates; allowed: an integer >= 0")
    return int(text)


def _check_names(manifest: Manifest, only: Sequence[str]) -> None:
    """Refuse names that no problem has: nothing would be measured."""
    names = [str(problem) for problem in manifest.problems]
    for text in only:
        if not any(text in name for name in names):
            raise WattuneError(f"--only {text!r}: no problem's name has it; {'; '.join(names)}")


def _check(manifest: Manifest) -> None:
    """Say what this machine lacks before anything is started."""
    for package in manifest.needs.get("packages", ()):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "this bundle")
    check(manifest.target, manifest.mode)


class Run:
    """One run of a bundle."""

    def __init__(self, manifest: Manifest, folder: Path, options: Options) -> None:
        """Open the file of records."""
        self._manifest, self._folder, self._options = manifest, folder, options
        self._end = time.monotonic() + options.seconds
        versions = dict(manifest.versions)
        if manifest.target.kind == "cuda":
            versions["driver"] = gpu_facts()["driver"]
        self._versions = versions
        self._fingerprint = fingerprint(manifest.target, versions)
        self._results = Results(options.out, self._fingerprint)
        self._limits: dict[str, float] = {}

    def all(self) -> int:
        """Measure limits, candidates and energy; prints a table last, also when interrupted."""
        target = self._manifest.target
        cpus, _ = divide(usable_cpus(), target.host_threads)
        supervisor = supervisor_of(
            target, self._manifest.mode, cpus, self._manifest.seed, self._versions
        )
        try:
            self._limits = supervisor.limits(str(self._folder / self._manifest.image))
            self._describe()
            self._measure(supervisor)
            self._confirm(supervisor)
            self._measure_energy(supervisor)
        finally:
            supervisor.close()
            self._results.close()
            print(table(self._manifest, self._results, self._limits), flush=True)
        valid = any(self._results.records(p) for p in self._manifest.problems)
        return OK if valid else FAILED

    def _measure(self, supervisor: Supervisor) -> None:
        """Measure what has no record yet, the defaults of all problems first."""
        wanted = [r for r in self._order() if not self._results.measured(r.candidate)]
        kept = ENERGY_SECONDS * (self._options.energy + 1) * len(self._manifest.problems)
        late = self._end - min(kept if self._options.energy else 0, self._options.seconds / 2)
        for at, result in enumerate(wanted):
            if time.monotonic() > late:
                print(f"time is up: {len(wanted) - at} candidates are left for another run")
                return
            self._add(supervisor, result, energy=False, left=len(wanted) - at - 1)

    def _confirm(self, supervisor: Supervisor) -> None:
        """Measure the default and the fastest of each problem again, in turn."""
        for group in self._picked() if self._options.confirm else ():
            finalists = self._fastest(group, self._options.confirm)
            if all(self._results.confirmed(r.candidate) for r in finalists):
                continue
            if time.monotonic() > self._end:
                print("time is up: confirmations are left for another run")
                return
            found = interleaved(supervisor.measure, finalists, ROUNDS)
            session = time.time()
            for record in found.values():
                self._results.add(marked(record, session) if record.valid else record)
            print(
                f"{group[0].candidate.problem}: {len(found)} finalists measured again", flush=True
            )

    def _measure_energy(self, supervisor: Supervisor) -> None:
        """Measure the energy of the default and the fastest candidates of each problem."""
        for result in self._energetic() if self._options.energy else ():
            if time.monotonic() > self._end:
                print("time is up: energies are left for another run")
                return
            record = self._add(supervisor, result, energy=True)
            if record.valid and record.joules is None and record.message:
                return  # it says why, and so would all others

    def _add(
        self, supervisor: Supervisor, result: BuildResult, energy: bool, left: int | None = None
    ) -> Record:
        record = supervisor.measure(result, energy=energy)
        self._results.add(record)
        what = f"{record.latency * 1e6:.1f} us" if record.valid else f"{record.failure}"
        if energy:
            what += f", {record.joules * 1e3:.3f} mJ" if record.joules else ", no energy"
        rest = "" if left is None else f" ({left} left)"
        text = f": {record.message}" if record.message else ""
        print(f"{result.candidate.problem}: {what}{text}{rest}", flush=True)
        return record

    def _picked(self) -> Iterator[list[BuildResult]]:
        for problem in self._manifest.problems:
            if not self._options.only or any(t in str(problem) for t in self._options.only):
                yield self._manifest.of(problem)

    def _order(self) -> list[BuildResult]:
        """Return the defaults, then chunks of every problem in turn: time may be up any moment."""
        groups = list(self._picked())
        found = [group[0] for group in groups]
        longest = max(map(len, groups), default=0)
        for start in range(1, longest, CHUNK):
            for group in groups:
                found += group[start : start + CHUNK]
        return found

    def _energetic(self) -> Iterator[BuildResult]:
        for group in self._picked():
            for result in self._fastest(group, self._options.energy):
                if not self._results.has_energy(result.candidate):
                    yield result

    def _fastest(self, group: Sequence[BuildResult], count: int) -> list[BuildResult]:
        """Return the default and the fastest of a problem's candidates, as far as they work."""
        known = {r.candidate: r for r in self._results.records(group[0].candidate.problem)}
        there = [result for result in group if result.candidate in known]
        fastest = sorted(there, key=lambda result: known[result.candidate].latency)[:count]
        return [result for result in there if result in (there[0], *fastest)]

    def _describe(self) -> None:
        """Write what the device is and can do beside the records."""
        facts: dict[str, Any] = {
            "fingerprint": self._fingerprint,
            "versions": self._versions,
            "limits": self._limits,
        }
        if self._manifest.target.kind == "cuda":
            facts["gpu"] = gpu_facts()
        path = self._options.out.with_suffix(".machine.json")
        path.write_text(json.dumps(facts, indent=1) + "\n")
