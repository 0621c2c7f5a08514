"""The machine's limits as a benchmark needs them: measured in its own run, at its footprints."""

from __future__ import annotations

from typing import Any

from wattune.compiler.bench.rows import Ceiling
from wattune.compiler.measure.limits import read_bandwidth_at, unit_gops
from wattune.schedules.target import Target

# Field of Limits -> the feature that the unit needs.
_UNITS = {"vnni_gops": "avx512_vnni", "vnni256_gops": "avx_vnni", "amx_gops": "amx_int8"}
# Without an integer unit of its own, a CPU's fastest one is that of float multiply-adds.
_ELSE = "fma_gflops"


class Ceilings:
    """Limits of one target; of a bandwidth the best of what was measured so far counts."""

    def __init__(self, target: Target) -> None:
        """Measure the throughput of the target's units."""
        self.threads = target.threads
        names = [unit for unit, feature in _UNITS.items() if target.has(feature)] or [_ELSE]
        self.units = {name: unit_gops(name, self.threads) for name in names}
        self.read_gbps: dict[int, float] = {}

    def at(self, footprint: int) -> Ceiling:
        """Measure the bandwidth at a footprint in bytes; return the limits."""
        found = read_bandwidth_at(footprint, self.threads)
        self.read_gbps[footprint] = max(found, self.read_gbps.get(footprint, 0.0))
        return Ceiling(self.read_gbps[footprint], max(self.units.values()))

    def to_json(self) -> dict[str, Any]:
        """Return plain data; ``read_gbps`` by footprint in bytes."""
        return {**self.units, "read_gbps": {str(k): v for k, v in self.read_gbps.items()}}
