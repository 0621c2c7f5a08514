"""The description of the machine that goes with every benchmark result."""

from __future__ import annotations

import os
import time
from typing import Any

from wattune.compiler.measure.memory import huge_pages_available
from wattune.schedules.host import device_name, toolchain
from wattune.schedules.target import Target


def describe_machine(target: Target) -> dict[str, Any]:
    """Return device, sizes, versions, date, and the load before the benchmark began."""
    return {
        "device": device_name(),
        "target": target.to_json(),
        "versions": {**toolchain(), **_peers()},
        "huge_pages": huge_pages_available(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _peers() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for package in ("torch", "llama-cpp-python", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found
