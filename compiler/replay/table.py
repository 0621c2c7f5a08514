"""Wattune tables: a recording in one small JSON document, by columns.

    {"wattune_table": 1, "about": {...}, "problem": {...}, "target": {...}, "mode", "energy_source",
     "templates": [{"name", "default": {knob: value},
                    "knobs": {knob: {"values": [...], "points": [place of the value, ...]}},
                    "seconds": [number, or null for a failure], "joules": [...] or null,
                    "failures": {place of the point: kind}, "facts": {name: [...]},
                    "counts": null or {"distinct": [...], "points": [place, ...]}}]}

A point's knobs, time and facts have the same place in every list.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wattune.compiler.replay.recording import Recording, Row, recording
from wattune.errors import RecordError
from wattune.schedules.candidate import STANDARD_ERROR, canonical
from wattune.schedules.tabular import TabularTemplate
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

_VERSION = 1
# Significant digits of what was measured: far below the noise of any measurement.
_DIGITS, _FACT_DIGITS = 6, 3


def is_table(data: Any) -> bool:
    """Say whether this is a Wattune table."""
    return isinstance(data, Mapping) and "wattune_table" in data


def write_table(found: Recording, path: str | Path) -> None:
    """Write a recording, gzipped; equal recordings give equal files."""
    text = json.dumps(to_table(found), separators=(",", ":"))
    # No time and no name in the header, so that what was not measured anew does not change.
    with Path(path).open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, 0) as file:
        file.write(text.encode())


def to_table(found: Recording) -> dict[str, Any]:
    """Return a recording as plain data; messages of failures are left out."""
    return {
        "wattune_table": _VERSION,
        "about": dict(found.about),
        "problem": found.problem.to_json(),
        "target": found.target.to_json(),
        "mode": found.mode,
        "energy_source": found.energy_source,
        "templates": [_branch(found, template) for template in found.problem.templates],
    }


def _branch(found: Recording, template: TabularTemplate) -> dict[str, Any]:
    rows = [row for row in found.rows.values() if row.template == template.name]
    space = template.space(found.problem, found.target)
    knobs = {}
    for knob in space.knobs:
        places = {value: at for at, value in enumerate(knob.values)}
        points = [places[row.values[knob.name]] for row in rows]
        knobs[knob.name] = {"values": list(knob.values), "points": points}
    energy = [row.joules and _short(row.joules) for row in rows]
    return {
        "name": template.name,
        "default": space.default(),
        "knobs": knobs,
        "seconds": [row.seconds and _short(row.seconds) for row in rows],
        "joules": energy if any(energy) else None,
        "failures": {str(at): row.failure for at, row in enumerate(rows) if row.failure},
        "facts": _facts(rows),
        "counts": _distinct([row.counts for row in rows]),
    }


def _facts(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Return the facts that say how good a measurement is; the others are not of the point."""
    errors = [row.facts.get(STANDARD_ERROR) for row in rows]
    if not any(errors):
        return {}
    return {STANDARD_ERROR: [e if e is None else _short(e, _FACT_DIGITS) for e in errors]}


def _distinct(counts: Sequence[Counts | None]) -> dict[str, Any] | None:
    """Return the distinct counts once, and which of them each point has."""
    if any(one is None for one in counts):
        return None
    lines = [canonical(dataclasses.asdict(one)) for one in counts if one is not None]
    places = {line: at for at, line in enumerate(dict.fromkeys(lines))}
    return {
        "distinct": [json.loads(line) for line in places],
        "points": [places[line] for line in lines],
    }


def from_table(data: Mapping[str, Any]) -> Recording:
    """Read a table; `RecordError` for one of a newer version."""
    if (version := data["wattune_table"]) != _VERSION:
        raise RecordError(f"a table of version {version}, this program knows {_VERSION}")
    return recording(
        data["problem"],
        Target.from_json(data["target"]),
        [row for branch in data["templates"] for row in _rows(branch)],
        {branch["name"]: branch["default"] for branch in data["templates"]},
        mode=str(data["mode"]),
        energy_source=str(data["energy_source"]),
        about=dict(data["about"]),
    )


def _rows(branch: Mapping[str, Any]) -> Iterator[Row]:
    columns = {
        name: [knob["values"][at] for at in knob["points"]]
        for name, knob in branch["knobs"].items()
    }
    counts, failures = branch["counts"], branch["failures"]
    distinct = [Counts(**one) for one in counts["distinct"]] if counts else []
    for at, seconds in enumerate(branch["seconds"]):
        facts = {name: column[at] for name, column in branch["facts"].items()}
        yield Row(
            branch["name"],
            {name: column[at] for name, column in columns.items()},
            seconds,
            failures.get(str(at)),
            branch["joules"] and branch["joules"][at],
            facts={name: value for name, value in facts.items() if value is not None},
            counts=distinct[counts["points"][at]] if counts else None,
        )


def _short(value: float, digits: int = _DIGITS) -> float:
    return float(f"{value:.{digits}g}")
