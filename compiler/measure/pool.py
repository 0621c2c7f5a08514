"""The shared pool of random valid bytes that cold measurements rotate over.

One region per argument, filled once and viewed in every candidate's layout: a packed copy per
candidate would cost more than the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.measure.place import Fill, Host, Place, Region

CACHE_LINE = 64
LEAST_FOOTPRINT = 512 << 20
# Regions grow in steps: another layout's copies take a little more or less, and touching memory
# for the first time takes seconds.
REGION_STEP = 64 << 20
GOLDEN = 0.6180339887498949
# Where a call reads less than this share of the arguments (sparse attention), their copies overlap.
PARTLY_READ = 0.5
MOST_VIEWS = 1 << 14


def cold_footprint(last_level_cache: int, memory: int) -> int:
    """Return how many bytes a cold measurement rotates over."""
    return min(max(LEAST_FOOTPRINT, 2 * last_level_cache), memory // 4)


def stride_of(size: int) -> int:
    """Return the distance between copies: whole cache lines, an odd number of them.

    Copies a power of two apart would all start in the same sets of the cache.
    """
    lines = max(1, -(-size // CACHE_LINE))
    return (lines | 1) * CACHE_LINE


def golden_starts(sets: int, spread: int) -> NDArray[np.int64]:
    """Return places in ``spread`` bytes, the first at 0, far from each other in any order."""
    share = np.arange(sets) * GOLDEN % 1.0
    return CACHE_LINE * (share * (spread // CACHE_LINE)).astype(np.int64)


@dataclass(frozen=True)
class Rotation:
    """The addresses of one argument's copies, which a measurement uses in turn."""

    addresses: NDArray[np.int64]


class Pool:
    """Regions by operator and argument; another operator's regions are given back."""

    def __init__(self, place: Place | None = None) -> None:
        """Start without memory; it will be this machine's unless told."""
        self._place = place or Host()
        self._operator = ""
        self._regions: dict[str, Region] = {}

    def copies(self, operator: str, argument: str, size: int, sets: int, fill: Fill) -> Rotation:
        """Return copies of an argument of ``size`` bytes, filled from ``fill(count)`` tiled."""
        stride = stride_of(size)
        base = self._region(operator, argument, stride * sets, fill)
        return Rotation(base + stride * np.arange(sets, dtype=np.int64))

    def views(
        self, operator: str, argument: str, size: int, sets: int, spread: int, fill: Fill
    ) -> Rotation:
        """Return overlapping copies that start anywhere in ``spread`` bytes.

        For arguments of which a call reads a small part: the same bytes of different copies lie
        in different places, at much less cost than whole copies. The places follow the golden
        ratio, so that no regular distance of the kernel's own meets them again.
        """
        base = self._region(operator, argument, size + spread, fill)
        return Rotation(base + golden_starts(sets, spread))

    def _region(self, operator: str, argument: str, size: int, fill: Fill) -> int:
        """Return the address of at least ``size`` bytes."""
        if operator != self._operator:
            self._regions.clear()
            self._operator = operator
        region = self._regions.get(argument)
        if region is None or region.size < size:
            self._regions.pop(argument, None)
            del region
            step = REGION_STEP if size > REGION_STEP else 1
            region = self._place.region(-(-size // step) * step, fill)
            self._regions[argument] = region
        return region.address
