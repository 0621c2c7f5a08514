"""What this machine is: feature flags, cores, caches, memory; its fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from wattune.schedules.nvidia import gpu_facts
from wattune.schedules.target import CPU_FEATURES, Target

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@cache
def _cpuinfo() -> dict[str, str]:
    """Return the first processor's lines of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _cache_sizes() -> dict[str, int]:
    """Return bytes of the data caches by level: ``l1``, ``l2``, ``l3``."""
    sizes: dict[str, int] = {}
    for index in sorted(_CACHES.glob("index*")):
        if (index / "type").read_text().strip() == "Instruction":
            continue
        text = (index / "size").read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)
        level = (index / "level").read_text().strip()
        sizes[f"l{level}"] = int(text.rstrip("KM")) * unit
    return sizes


def host_fields() -> dict[str, Any]:
    """Return the fields of the native target, without ``threads``."""
    flags = set(_cpuinfo().get("flags", "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "kind": "cpu",
        "arch": platform.machine(),
        "features": tuple(sorted(flags & set(CPU_FEATURES))),
        "cores": cores or 1,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        **_cache_sizes(),
    }


def device_name() -> str:
    """Return the CPU's own name: it identifies measurements, nothing is chosen by it."""
    info = _cpuinfo()
    steps = (info.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{info.get('model name', platform.processor() or 'unknown')} ({'-'.join(steps)})"


@cache
def toolchain() -> dict[str, str]:
    """Return the versions that can change what a candidate compiles to or how it runs."""
    versions = {"wattune": _version("wattune"), "python": platform.python_version()}
    for package in ("apache-tvm", "apache-tvm-ffi"):
        versions[package] = _version(package)
    versions["kernel"] = platform.release()
    return versions


def fingerprint(target: Target, versions: Mapping[str, str] | None = None) -> str:
    """Return the exact device and compiler in one short name.

    Measurements with different fingerprints are not compared. Versions that only touch the host
    program (Python, the kernel) are in a record's provenance and not in here. ``versions`` are
    those of the compiler, where candidates were built elsewhere.
    """
    facts: dict[str, Any] = {"device": target.device or target.arch}
    if target.kind == "cpu":
        # What the process may use (its cores) says nothing about the device.
        here = {name: host_fields()[name] for name in ("arch", "features")}
        facts = {"device": device_name(), "host": {**here, **_cache_sizes()}}
    elif target.runs_here():
        facts = gpu_facts()
    built = toolchain() if versions is None else versions
    facts["versions"] = {name: built[name] for name in ("apache-tvm", "apache-tvm-ffi")}
    device = str(facts["device"])
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", device.split("(")[0]).strip("-").lower()
    return f"{readable}-{digest}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
