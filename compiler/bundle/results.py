"""The file of records that a bundle's run appends to, and goes on with when started again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from wattune.compiler.measure.confirm import is_confirmation
from wattune.compiler.record_formats import record_from_line, record_to_line
from wattune.errors import RecordError
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, Record


class Results:
    """Records by candidate, each on disk before the next is measured."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Read what an earlier run on the same device wrote; `RecordError` for another file.

        A last line that was cut off by a kill is dropped from the file.
        """
        self._known: dict[Candidate, list[Record]] = {}
        self._fingerprint = fingerprint
        kept = _whole_lines(path)
        for number, line in enumerate(kept.splitlines(), start=1):
            try:
                self._remember(record_from_line(line))
            except RecordError as error:
                raise RecordError(f"{path}: line {number}: {error}; give a new file") from error
        self._file: TextIO = path.open("a")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add(self, record: Record) -> None:
        """Write a record through to the disk."""
        self._file.write(record_to_line(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._remember(record)

    def _remember(self, record: Record) -> None:
        # Of another device, or another driver: kept in the file, but not to be compared with.
        if record.provenance.fingerprint == self._fingerprint:
            self._known.setdefault(record.candidate, []).append(record)

    def measured(self, candidate: Candidate) -> bool:
        """Say whether there is a record, if only of a failure."""
        return candidate in self._known

    def confirmed(self, candidate: Candidate) -> bool:
        """Say whether a candidate was measured in turn with others."""
        return any(is_confirmation(r) for r in self._known.get(candidate, []))

    def has_energy(self, candidate: Candidate) -> bool:
        """Say whether energy was measured."""
        return any(r.joules is not None for r in self._known.get(candidate, []))

    def records(self, problem: Problem) -> list[Record]:
        """Return the record that counts of each candidate of a problem.

        The newest confirmation; without one the fastest: a disturbance makes longer, not shorter.
        """
        return [
            next((r for r in reversed(valid) if is_confirmation(r)), None)
            or min(valid, key=lambda r: r.latency)
            for candidate, records in self._known.items()
            if candidate.problem == problem and (valid := [r for r in records if r.valid])
        ]

    def energy(self, candidate: Candidate) -> float | None:
        """Return the measured joules of a candidate, the newest."""
        found = [r.joules for r in self._known.get(candidate, []) if r.joules is not None]
        return found[-1] if found else None

    def failures(self) -> list[Record]:
        """Return the newest record of every candidate that failed."""
        return [records[-1] for records in self._known.values() if not records[-1].valid]


def _whole_lines(path: Path) -> str:
    if not path.exists():
        return ""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.decode(errors="replace")
