"""Dated files of benchmark results, one for each machine, that grow a row at a time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

# What names a row: measured again, it takes the place of the one before.
KEYS = ("problem", "mode", "threads", "implementation", "block_bytes", "trials", "seed")


def results_file(folder: Path, name: str, device: str) -> Path:
    """Return today's file of a benchmark; the device is in its name where another one's exists."""
    folder.mkdir(exist_ok=True)
    plain = folder / f"{time.strftime('%Y-%m-%d')}-{name}.json"
    if not plain.exists() or _device(json.loads(plain.read_text())) == device:
        return plain
    words = re.findall(r"[a-z0-9]+", device.lower())
    return plain.with_stem(f"{plain.stem}-{'-'.join(words)}")


def write_rows(path: Path, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write a result and its rows, after those of the file that were not measured again."""
    before = known_rows(path)
    path.write_text(json.dumps({**result, "rows": [*_kept(before, rows), *rows]}, indent=1) + "\n")


def write_runs(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Write runs, each with rows, after those of the file of which no row was measured again."""
    before = json.loads(path.read_text()) if path.exists() else []
    rows = [row for run in runs for row in run["rows"]]
    kept = [run for run in before if _kept(run["rows"], rows) == run["rows"]]
    path.write_text(json.dumps([*kept, *runs], indent=1) + "\n")


def known_rows(path: Path, **fields: Any) -> list[Any]:
    """Return the rows of a file that have these fields; none where there is no file."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if fields.items() <= row.items()]


def _device(data: Any) -> str:
    return str((data[0] if isinstance(data, list) else data)["machine"]["device"])


def _kept(before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    names = [_name(row) for row in rows]
    return [row for row in before if _name(row) not in names]


def _name(row: Row) -> list[Any]:
    return [row.get(key) for key in KEYS]
