"""The machine's limits: what a kernel's speed is a fraction of, measured here in the same run."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.cc import cached
from wattune.compiler.measure.affinity import divide, usable_cpus
from wattune.compiler.measure.amx import allow_amx
from wattune.compiler.measure.memory import pages
from wattune.compiler.measure.pool import cold_footprint
from wattune.errors import TargetError
from wattune.schedules.target import CPU_FEATURES, Target

SOURCE = Path(__file__).with_name("limits.c")
SMALLEST_FOOTPRINT = 16 << 10
LEAST_READ = 4 << 10
READ_SECONDS = 0.05
READ_PASSES = 5
UNIT_SECONDS = 0.1
_WAYS = 3
# Fields of `Limits` in the order of wattune_unit.
_UNITS = ("vnni_gops", "vnni256_gops", "fma_gflops", "amx_gops", "bf16_gflops", "words_gops")


def limits_key(threads: int, footprint: int, huge: bool) -> str:
    """Return the name of a bandwidth in `Limits.read_gbps`."""
    return f"{threads}:{footprint}:{'huge' if huge else 'small'}"


@dataclass(frozen=True)
class Limits:
    """Measured maxima of one machine.

    ``read_gbps`` holds GB/s by ``threads:footprint_bytes:pages`` (pages ``huge`` or ``small``);
    the others hold 1e9 operations per second by number of threads, as text, and nothing where the
    machine lacks the unit. A multiply and an add are two operations.
    """

    read_gbps: dict[str, float] = field(default_factory=dict, hash=False)
    vnni_gops: dict[str, float] = field(default_factory=dict, hash=False)
    vnni256_gops: dict[str, float] = field(default_factory=dict, hash=False)
    amx_gops: dict[str, float] = field(default_factory=dict, hash=False)
    fma_gflops: dict[str, float] = field(default_factory=dict, hash=False)
    bf16_gflops: dict[str, float] = field(default_factory=dict, hash=False)
    words_gops: dict[str, float] = field(default_factory=dict, hash=False)

    def read_bandwidth(self, footprint: int, threads: int, huge: bool = True) -> float:
        """Return GB/s at a footprint, between the measured ones on a logarithmic scale."""
        pages_name = "huge" if huge else "small"
        points = sorted(
            (int(size), value)
            for key, value in self.read_gbps.items()
            for count, size, kind in [key.split(":")]
            if int(count) == threads and kind == pages_name
        )
        if not points:
            known = ", ".join(sorted(self.read_gbps)) or "nothing"
            raise TargetError(
                f"no read bandwidth was measured for {threads} threads on {pages_name} pages; "
                f"measured: {known}"
            )
        sizes = [math.log(size) for size, _ in points]
        return float(np.interp(math.log(max(1, footprint)), sizes, [value for _, value in points]))

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build limits from `to_json`'s data; unknown fields are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: dict(value) for name, value in data.items() if name in known})


def limits_library(features: tuple[str, ...]) -> Path:
    """Return limits.c, compiled for these features."""
    # gcc spells its options like LLVM its attributes.
    flags = [f"-m{CPU_FEATURES[name]}" for name in features if name in CPU_FEATURES]
    return cached(SOURCE, (*flags, "-pthread"), ".so")


@cache
def _library(features: tuple[str, ...]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(limits_library(features)))
    library.wattune_read.restype = library.wattune_unit.restype = ctypes.c_double
    return library


def _host() -> tuple[ctypes.CDLL, list[int]]:
    return _library(Target.native().features), usable_cpus()


def _processors(cpus: list[int], threads: int) -> Any:
    measuring, _ = divide(cpus, threads)
    if len(measuring) < threads:
        raise TargetError(f"threads is {threads}; allowed: 1 to {len(cpus)}, the usable cores")
    return (ctypes.c_int32 * threads)(*measuring)


class ReadMeter:
    """Memory to read from, kept between footprints: page faults cost more than the reading."""

    def __init__(self, most: int, huge: bool = True) -> None:
        """Map and touch ``most`` bytes."""
        # Prefetches run a little past the end; the least reads of all threads may be longer.
        self._memory: NDArray[np.uint8] = pages(max(most, 1 << 20) + (1 << 16), huge)
        self._memory[:] = 1

    def gbps(
        self, footprint: int, threads: int, seconds: float = 0, cpus: Sequence[int] = ()
    ) -> float:
        """Return GB/s of reading a footprint again and again, in the fastest of several ways.

        ``cpus``: those to read on, by default all that this thread may use.
        """
        library, usable = _host()
        # The loops take so many bytes in a turn: less is nothing to measure.
        footprint = max(footprint, threads * LEAST_READ)
        # Enough passes for a median where one takes long; 10 GB/s is slow for a core.
        budget = seconds or max(READ_SECONDS, READ_PASSES * footprint / 10e9)
        found = [
            library.wattune_read(
                ctypes.c_void_p(int(self._memory.ctypes.data)),
                ctypes.c_int64(footprint),
                ctypes.c_int(way),
                ctypes.c_int(threads),
                _processors(list(cpus) or usable, threads),
                ctypes.c_double(budget),
            )
            for way in range(_WAYS)
        ]
        return float(max(found)) * 1e-9


def read_bandwidth_at(
    footprint: int,
    threads: int,
    huge: bool = True,
    seconds: float = 0,
    cpus: Sequence[int] = (),
) -> float:
    """Measure GB/s of reading exactly this footprint, now, with this many pinned threads."""
    return ReadMeter(footprint, huge).gbps(footprint, threads, seconds, cpus)


def unit_gops(unit: str, threads: int, seconds: float = UNIT_SECONDS) -> float:
    """Measure 1e9 operations per second of a unit, by its field in `Limits`; 0 without it."""
    library, cpus = _host()
    if unit == "amx_gops":
        allow_amx()
    value = library.wattune_unit(
        ctypes.c_int(_UNITS.index(unit)),
        ctypes.c_int(threads),
        _processors(cpus, threads),
        ctypes.c_double(seconds),
    )
    return float(value) * 1e-9


def footprints(largest: int) -> list[int]:
    """Return the footprints that are measured: powers of two, and the one of cold measurements."""
    found = [SMALLEST_FOOTPRINT]
    while found[-1] * 2 < largest:
        found.append(found[-1] * 2)
    return [*found, largest]


def measure_limits(target: Target, threads: Sequence[int] = ()) -> Limits:
    """Measure this machine: at 1 thread and at the target's cores unless told; about ten seconds.

    Nothing else should run meanwhile.
    """
    counts = list(threads) or sorted({1, target.threads, target.cores})
    largest = cold_footprint(target.l3, target.memory)
    reads: dict[str, float] = {}
    for huge in (True, False):
        meter = ReadMeter(largest, huge)
        for count in counts:
            for footprint in footprints(largest) if huge else [largest]:
                reads[limits_key(count, footprint, huge)] = meter.gbps(footprint, count)
        del meter
    units: dict[str, dict[str, float]] = {}
    for name in _UNITS:
        found = {str(count): unit_gops(name, count) for count in counts}
        units[name] = {count: value for count, value in found.items() if value}
    return Limits(reads, **units)
