"""Read recorded data of any kind that is known; the kind is told from the content."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wattune.compiler.database import Database
from wattune.compiler.record_formats import record_from_line
from wattune.compiler.replay.kernel_tuner import (
    from_kernel_tuner,
    from_t4,
    is_kernel_tuner,
    is_t4,
)
from wattune.compiler.replay.recording import Recording
from wattune.compiler.replay.records import from_records
from wattune.compiler.replay.table import from_table, is_table
from wattune.compiler.sqlite_file import DATABASE_MAGIC
from wattune.errors import RecordError, UnknownNameError
from wattune.schedules.candidate import Record

_ALLOWED = (
    "a Wattune database",
    "records as JSON lines",
    "a Wattune table",
    "a Kernel Tuner cache file",
    "a T4 file",
)


def read_recording(
    path: str | Path, problem: str | None = None, energy: str | None = None
) -> Recording:
    """Read a file of recorded data, gzipped or not.

    ``problem``: which one of a database of several, as `str(problem)` writes it. ``energy``: the
    column of joules in another tool's file. Raises `RecordError` for what cannot be read, and
    `UnknownNameError` for what is not known.
    """
    content = Path(path).read_bytes()
    if content.startswith(DATABASE_MAGIC):
        with Database(path, create=False, read_only=True) as database:
            return from_records(database.records(), problem)
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        text = content.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    data = _document(text)
    if data is None:
        return from_records(_lines(text, path), problem)
    try:
        if is_table(data):
            return from_table(data)
        if is_kernel_tuner(data):
            return from_kernel_tuner(data, energy)
        if is_t4(data):
            return from_t4(data, energy)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise RecordError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    raise UnknownNameError("kind of recorded data", str(path), _ALLOWED)


def _document(text: str) -> Mapping[str, Any] | None:
    """Return the one JSON object of a file; None where it is lines of records."""
    first = text.lstrip().partition("\n")[0]
    # Kernel Tuner closes its file at the end of a run: a killed one leaves it open.
    for whole in (text, text.rstrip().rstrip(",") + "}}"):
        try:
            data = json.loads(whole)
        except ValueError:
            continue
        is_record = isinstance(data, Mapping) and "schedule" in data
        return data if isinstance(data, Mapping) and not is_record else None
    if not first.endswith("}"):
        raise RecordError("neither JSON nor records as JSON lines")
    return None


def _lines(text: str, path: str | Path) -> list[Record]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                found.append(record_from_line(line))
            except RecordError as error:
                raise RecordError(f"{path}: line {number}: {error}") from error
    return found
