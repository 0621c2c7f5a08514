"""Other tools' result files: Kernel Tuner's cache files and T4, the autotuning community's format.

Definitions: https://github.com/KernelTuner/kernel_tuner (cache files, simulation mode) and
https://github.com/odgaard/TuningSchema (T4). Times are in milliseconds in both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from wattune.compiler.replay.recording import Recording, Row, recording
from wattune.errors import RecordError
from wattune.schedules.candidate import STANDARD_ERROR, FailureKind
from wattune.schedules.space import Value
from wattune.schedules.target import Target

TEMPLATE = "recorded"

# What stands in the place of a failed configuration's time. A configuration that the device
# refuses is not known to be invalid before it is tried: it counts as an evaluation.
_FAILED: dict[str, FailureKind] = {
    "InvalidConfig": "build_error",
    "CompilationFailedConfig": "build_error",
    "RuntimeFailedConfig": "crash",
}
# Old files have this number instead.
_FAILED_NUMBER = 1e20

_INVALIDITY: dict[str, FailureKind] = {
    "timeout": "timeout",
    "compile": "build_error",
    "runtime": "crash",
    "correctness": "wrong_result",
    "constraints": "build_error",
}

# Columns that hold joules, and what measured them.
_ENERGY = {
    "energy": "recorded",
    "nvml_energy": "nvml",
    "ps_energy": "powersensor",
    "pmt_energy": "pmt",
}


def is_kernel_tuner(data: Any) -> bool:
    """Say whether this is a Kernel Tuner cache file."""
    return isinstance(data, Mapping) and {"cache", "tune_params_keys"} <= data.keys()


def is_t4(data: Any) -> bool:
    """Say whether this is a T4 file."""
    return isinstance(data, Mapping) and {"results", "schema_version"} <= data.keys()


def from_kernel_tuner(data: Mapping[str, Any], energy: str | None = None) -> Recording:
    """Read a cache file; ``energy`` names the column of joules where it has an unusual name."""
    names = list(data["tune_params_keys"])
    size = data.get("problem_size")
    sizes = list(size) if isinstance(size, list) else [size]
    fields: dict[str, Any] = {"operator": str(data.get("kernel_name") or "kernel")}
    fields |= {f"size_{at}": value for at, value in enumerate(sizes)}
    entries = list(data["cache"].values())
    column = _energy_column(set().union(*entries), energy)
    rows = [_row({name: entry[name] for name in names}, entry, column) for entry in entries]
    return recording(
        fields,
        _target(str(data.get("device_name") or "")),
        rows,
        energy_source=_ENERGY.get(column or "", column or "none"),
        about={"format": "Kernel Tuner cache", "tune_params": names},
    )


def from_t4(data: Mapping[str, Any], energy: str | None = None) -> Recording:
    """Read a T4 file; it names neither kernel nor device."""
    entries = [(result["configuration"], _t4_entry(result)) for result in data["results"]]
    column = _energy_column({name for _, entry in entries for name in entry}, energy)
    rows = [_row(configuration, entry, column) for configuration, entry in entries]
    return recording(
        {"operator": "kernel"},
        _target(""),
        rows,
        energy_source=_ENERGY.get(column or "", column or "none"),
        about={"format": "T4"},
    )


def _t4_entry(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result's measurements by name, in Kernel Tuner's words."""
    entry = {m["name"]: m["value"] for m in result["measurements"]}
    entry["times"] = result.get("times", {}).get("runtimes", ())
    if (kind := result.get("invalidity", "correct")) != "correct":
        entry["time"] = str(entry.get("time"))
        entry["failure"] = _INVALIDITY.get(kind, "crash")
    return entry


def _row(values: Mapping[str, Value], entry: Mapping[str, Any], energy: str | None) -> Row:
    time = entry.get("time")
    if isinstance(time, str) or "failure" in entry or (time or 0) >= _FAILED_NUMBER:
        failure = entry.get("failure") or _FAILED.get(str(time), "crash")
        return Row(TEMPLATE, values, failure=failure, message=str(time))
    if time is None:
        raise RecordError(f"{dict(values)}: no time; allowed: tables with a column 'time'")
    joules = entry.get(energy) if energy else None
    facts = {}
    if len(runs := entry.get("times") or ()) > 1:
        mean = sum(runs) / len(runs)
        variance = sum((run - mean) ** 2 for run in runs) / (len(runs) - 1)
        facts[STANDARD_ERROR] = 1e-3 * math.sqrt(variance / len(runs))
    return Row(TEMPLATE, values, 1e-3 * time, joules=joules, facts=facts)


def _energy_column(columns: set[str], wanted: str | None) -> str | None:
    """Return the column that holds joules, if any."""
    if wanted is not None and wanted not in columns:
        raise RecordError(f"no column {wanted!r}; allowed: {', '.join(sorted(columns))}")
    return wanted or next((name for name in _ENERGY if name in columns), None)


def _target(device: str) -> Target:
    """Return a GPU of which only the name is known."""
    name = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    return Target(kind="cuda", arch=name or "unknown", device=device)
