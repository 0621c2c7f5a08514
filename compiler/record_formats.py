"""Records as text: JSON lines that are checked leaf by leaf, and T4 files for other tools."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from wattune.errors import RecordError
from wattune.schedules.candidate import Record, canonical

_FIELDS = (
    *("problem", "target", "schedule", "conditions", "provenance"),
    *("measurement", "failure", "message", "facts"),
)

# T4 is the autotuning community's result format: its reasons for an invalid result, and what it
# puts in the place of the time (Kernel Tuner's words, which readers of T4 compare with).
_T4_INVALIDITY = {
    None: "correct",
    "build_error": "compile",
    "timeout": "timeout",
    "crash": "runtime",
    "wrong_result": "correctness",
}
_T4_FAILED = {"compile": "CompilationFailedConfig"}
_T4_FAILED_LATER = "RuntimeFailedConfig"

# Seconds since 1970 that a date can still hold.
_YEAR_10000 = 253402300800


def check_record(record: Record) -> Record:
    """Return the record; raises `RecordError` where a number or a name in it cannot be."""
    measurement, provenance = record.measurement, record.provenance
    if measurement is not None:
        if not measurement.seconds:
            raise RecordError("measurement.seconds is empty; allowed: one number a run")
        for value in measurement.seconds:
            _positive("measurement.seconds", value)
        if measurement.joules is not None:
            _positive("measurement.joules", measurement.joules)
            if measurement.energy_source == "none":
                raise RecordError("measurement.joules is given, but energy_source is 'none'")
    for name, text in (
        ("conditions.mode", record.conditions.mode),
        ("provenance.source_hash", provenance.source_hash),
        ("provenance.fingerprint", provenance.fingerprint),
        ("schedule.template", record.candidate.schedule.template),
        ("message", record.message),
    ):
        if not _is_text(text):
            raise RecordError(f"{name} is {text!r}; allowed: text")
    threads = record.conditions.threads
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= 1 << 20:
        raise RecordError(f"conditions.threads is {threads!r}; allowed: an integer >= 1")
    created = provenance.created
    if not _is_number(created) or not 0 <= created < _YEAR_10000:
        raise RecordError(f"provenance.created is {created!r}; allowed: seconds since 1970")
    for knob, choice in record.candidate.schedule.knobs:
        if not isinstance(choice, int | str):
            raise RecordError(f"knob {knob} is {choice!r}; allowed: an integer, a flag or text")
    for fact, number in record.facts.items():
        if not _is_number(number):
            raise RecordError(f"facts.{fact} is {number!r}; allowed: a number")
    try:
        hash(record)
    except TypeError as error:
        raise RecordError(
            f"a field holds a list or an object where none can be: {error}"
        ) from error
    return record


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        # JSON can spell half a character, UTF-8 and SQLite cannot.
        return False


def _positive(name: str, value: object) -> None:
    if not _is_number(value) or not value > 0:  # type: ignore[operator]
        raise RecordError(f"{name} holds {value!r}; allowed: numbers > 0")


def record_to_line(record: Record) -> str:
    """Return the record as one line of JSON, without the line's end."""
    return canonical(check_record(record).to_json())


def record_from_line(line: str) -> Record:
    """Read one line of a record file; anything but a record is a `RecordError`."""
    try:
        data = json.loads(line)
    except ValueError as error:
        raise RecordError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise RecordError("not a record: nested too deeply") from error
    if not isinstance(data, Mapping):
        raise RecordError(f"not a record: a JSON object is expected, not {_short(data)}")
    for name in _FIELDS:
        if name not in data:
            raise RecordError(f"not a record: field {name!r} is missing")
    if unknown := sorted(set(data) - set(_FIELDS)):
        raise RecordError(f"no field {unknown[0]!r} in a record; allowed: {', '.join(_FIELDS)}")
    try:
        return check_record(Record.from_json(data))
    except RecordError:
        raise
    except (ValueError, OverflowError) as error:
        raise RecordError(f"not a record: {type(error).__name__}: {error}") from error


def _short(value: object, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def export_t4(records: Iterable[Record]) -> dict[str, Any]:
    """Return the records as a T4 document: plain data that ``json.dump`` writes.

    A configuration holds the template, its knobs, and the fields in which the problems differ,
    prefixed ``problem.``. ``time`` is the median in milliseconds, ``energy`` is in joules.
    """
    found = list(records)
    varying = _varying_fields(found)
    return {
        # The format's own spelling.
        "metadata": {"timeunit": "miliseconds"},
        "results": [_t4_result(record, varying) for record in found],
        "schema_version": "1.0.0",
    }


def _varying_fields(records: list[Record]) -> list[str]:
    """Name the problem fields that do not have one value throughout."""
    values: dict[str, set[str]] = {}
    for problem in {record.candidate.problem for record in records}:
        for name, value in problem.to_json().items():
            values.setdefault(name, set()).add(canonical(value))
    return sorted(name for name, seen in values.items() if len(seen) > 1)


def _t4_result(record: Record, varying: list[str]) -> dict[str, Any]:
    schedule, measurement = record.candidate.schedule, record.measurement
    fields = record.candidate.problem.to_json()
    invalidity = _T4_INVALIDITY[record.failure]
    times: dict[str, Any] = {
        "compilation": 1e3 * record.facts.get("compile_seconds", 0.0),
        "framework": 0.0,
        "search_algorithm": 0.0,
        "validation": 0.0,
    }
    measurements: list[dict[str, Any]] = []
    if measurement is None:
        value = _T4_FAILED.get(invalidity, _T4_FAILED_LATER)
        measurements.append({"name": "time", "value": value, "unit": ""})
    else:
        times["runtimes"] = [1e3 * second for second in measurement.seconds]
        measurements.append({"name": "time", "value": 1e3 * measurement.latency, "unit": "ms"})
        if measurement.joules is not None:
            measurements.append({"name": "energy", "value": measurement.joules, "unit": "J"})
    return {
        "timestamp": str(datetime.fromtimestamp(record.provenance.created, UTC)),
        "configuration": {
            **{f"problem.{name}": fields[name] for name in varying if name in fields},
            "template": schedule.template,
            **schedule.values,
        },
        "times": times,
        "invalidity": invalidity,
        "correctness": int(measurement is not None),
        "measurements": measurements,
        "objectives": ["time"],
    }
