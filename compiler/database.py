"""The database: every record, failures included, committed to SQLite as it arrives."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from wattune.compiler.record_formats import check_record, record_from_line
from wattune.compiler.sqlite_file import describe, explained, open_file
from wattune.errors import DatabaseError, RecordError
from wattune.ops import Problem
from wattune.schedules.candidate import Record, canonical
from wattune.schedules.target import Target

_COLUMNS = (
    "candidate",
    "problem",
    "static_problem",
    "operator",
    "template",
    "target",
    "source_hash",
    "fingerprint",
    "mode",
    "threads",
    "latency",
    "joules",
    "failure",
    "created",
    "record",
)
# Only the unique key is ignored, a broken constraint of another column is an error.
_INSERT = (
    f"INSERT INTO records ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    "ON CONFLICT (candidate, mode, fingerprint, source_hash, created) DO NOTHING"
)


class Filter(TypedDict, total=False):
    """What records can be asked for by, besides problem, target, fingerprint and mode.

    ``static`` is a problem of which any bucket will do; ``valid`` chooses between measurements
    (True) and failures (False).
    """

    static: Problem | None
    operator: str | None
    template: str | None
    source_hash: str | None
    valid: bool | None


@dataclass(frozen=True)
class ImportReport:
    """What an import did: records ``added``, duplicates ``skipped``, why lines were ``refused``."""

    added: int
    skipped: int
    refused: tuple[str, ...] = ()


class Database:
    """Records, limits and search states in one SQLite file; use it as a context manager.

    Several processes may have the same file open; within a process a database belongs to the
    thread that opened it. Every error is a `DatabaseError` that names the file and what to do.
    """

    def __init__(
        self,
        path: str | Path,
        create: bool = True,
        read_only: bool = False,
        timeout: float = 30.0,
    ) -> None:
        """Open the file, and create an absent one where ``create`` allows it.

        ``timeout``: seconds to wait while another process writes.
        """
        self.path = Path(path)
        self._connection = open_file(self.path, create, read_only, timeout)

    def __enter__(self) -> Self:
        """Return the open database."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with explained(self.path):
            self._connection.close()

    def add(self, record: Record) -> bool:
        """Commit a record; False where it was there already. A kill after this loses nothing."""
        row = _row(record)
        with explained(self.path):
            return self._connection.execute(_INSERT, row).rowcount > 0

    def records(
        self,
        problem: Problem | None = None,
        target: Target | None = None,
        fingerprint: str | None = None,
        mode: str | None = None,
        **more: Unpack[Filter],
    ) -> list[Record]:
        """Return the records with these properties, in the order in which they came."""
        where, values = _where(problem, target, fingerprint, mode, more)
        return self._read(f"SELECT id, record FROM records{where} ORDER BY id", values)

    def best(
        self,
        problem: Problem | None = None,
        target: Target | None = None,
        fingerprint: str | None = None,
        mode: str | None = "cold",
        **more: Unpack[Filter],
    ) -> Record | None:
        """Return the record of the least latency, or None where nothing valid matches."""
        where, values = _where(problem, target, fingerprint, mode, {**more, "valid": True})
        found = self._read(
            f"SELECT id, record FROM records{where} ORDER BY latency, id LIMIT 1", values
        )
        return found[0] if found else None

    def trials(
        self,
        problem: Problem | None = None,
        target: Target | None = None,
        fingerprint: str | None = None,
        mode: str | None = None,
        **more: Unpack[Filter],
    ) -> int:
        """Count the distinct candidates that have a record with these properties."""
        where, values = _where(problem, target, fingerprint, mode, more)
        with explained(self.path):
            query = f"SELECT COUNT(DISTINCT candidate) FROM records{where}"
            return int(self._connection.execute(query, values).fetchone()[0])

    def __len__(self) -> int:
        """Count all records."""
        with explained(self.path):
            return int(self._connection.execute("SELECT COUNT(*) FROM records").fetchone()[0])

    def get_state(self, name: str) -> dict[str, Any] | None:
        """Return what `set_state` kept under the name, or None."""
        return self._get("state", "name", name)

    def set_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep plain data (a strategy's population, a cost model) under a name."""
        self._set("state", "name", name, state)

    def limits(self, fingerprint: str) -> dict[str, Any] | None:
        """Return the measured limits of a machine, or None."""
        return self._get("limits", "fingerprint", fingerprint)

    def set_limits(self, fingerprint: str, limits: Mapping[str, Any]) -> None:
        """Keep the measured limits of a machine."""
        self._set("limits", "fingerprint", fingerprint, limits)

    def export_lines(self) -> Iterator[str]:
        """Yield every record as one line of JSON, without the line's end."""
        with explained(self.path):
            for (text,) in self._connection.execute("SELECT record FROM records ORDER BY id"):
                yield text

    def import_lines(self, lines: Iterable[str], skip_bad: bool = False) -> ImportReport:
        """Add the records of a file's lines; blank lines count, but hold nothing.

        A wrong line is a `RecordError` that names it, and nothing is imported at all; with
        ``skip_bad`` it is left out and reported instead.
        """
        rows, refused = [], []
        # All lines are read before the first is written: a slow or wrong file blocks no tune.
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                rows.append(_row(record_from_line(line)))
            except RecordError as error:
                if not skip_bad:
                    raise RecordError(f"line {number}: {error}; nothing was imported") from error
                refused.append(f"line {number}: {error}")
        added = 0
        with self._transaction():
            for row in rows:
                added += self._connection.execute(_INSERT, row).rowcount
        return ImportReport(added, len(rows) - added, tuple(refused))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit everything inside at once, or nothing."""
        with explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after some errors, a full disk among them.
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def _read(self, query: str, values: list[object]) -> list[Record]:
        with explained(self.path):
            rows = self._connection.execute(query, values).fetchall()
        return [self._decode(number, text) for number, text in rows]

    def _decode(self, number: int, text: str) -> Record:
        try:
            return record_from_line(text)
        except RecordError as error:
            raise DatabaseError(
                f"database {self.path}: record {number} cannot be read ({error}); it is damaged, "
                "or written by a newer Wattune: update Wattune or restore a copy"
            ) from error

    def _get(self, table: str, column: str, key: str) -> dict[str, Any] | None:
        query = f"SELECT json FROM {table} WHERE {column} = ?"
        with explained(self.path):
            row = self._connection.execute(query, [key]).fetchone()
        if row is None:
            return None
        try:
            data: dict[str, Any] = json.loads(row[0])
        except (ValueError, TypeError) as error:
            text = f"{table} {key!r} cannot be read: {error}"
            raise describe(self.path, sqlite3.DatabaseError(text)) from error
        return data

    def _set(self, table: str, column: str, key: str, data: Mapping[str, Any]) -> None:
        query = f"INSERT OR REPLACE INTO {table} ({column}, json) VALUES (?, ?)"
        with explained(self.path):
            self._connection.execute(query, [key, canonical(data)])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _row(record: Record) -> tuple[object, ...]:
    """Return the columns of a record; one that cannot be is a `RecordError`."""
    check_record(record)
    candidate, provenance = record.candidate, record.provenance
    return (
        candidate.key,
        candidate.problem.key,
        candidate.problem.static_key,
        candidate.problem.operator,
        candidate.schedule.template,
        _digest(candidate.target.key),
        provenance.source_hash,
        provenance.fingerprint,
        record.conditions.mode,
        record.conditions.threads,
        record.latency if record.valid else None,
        record.joules,
        record.failure,
        provenance.created,
        canonical(record.to_json()),
    )


def _where(
    problem: Problem | None,
    target: Target | None,
    fingerprint: str | None,
    mode: str | None,
    more: Filter,
) -> tuple[str, list[object]]:
    """Return the condition and its values; None asks for nothing."""
    static = more.get("static")
    pairs = {
        "problem": problem and problem.key,
        "static_problem": static and static.static_key,
        "target": target and _digest(target.key),
        "fingerprint": fingerprint,
        "mode": mode,
        **{name: more.get(name) for name in ("operator", "template", "source_hash")},
    }
    terms = [f"{name} = ?" for name, value in pairs.items() if value is not None]
    if (valid := more.get("valid")) is not None:
        terms.append("failure IS NULL" if valid else "failure IS NOT NULL")
    values: list[object] = [value for value in pairs.values() if value is not None]
    return (f" WHERE {' AND '.join(terms)}" if terms else ""), values
