"""The shared pool of random valid bytes that cold measurements rotate over.

One region per argument, filled once and viewed in every candidate's layout: a packed copy per
candidate would cost more than the measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.measure.memory import pages

CACHE_LINE = 64
DRAWN_BYTES = 16 << 20
LEAST_FOOTPRINT = 512 << 20
# Regions grow in steps: another layout's copies take a little more or less, and touching memory
# for the first time takes seconds.
REGION_STEP = 64 << 20

Fill = Callable[[int], NDArray[np.uint8]]


def cold_footprint(last_level_cache: int, memory: int) -> int:
    """Return how many bytes a cold measurement rotates over."""
    return min(max(LEAST_FOOTPRINT, 2 * last_level_cache), memory // 4)


def stride_of(size: int) -> int:
    """Return the distance between copies: whole cache lines, an odd number of them.

    Copies a power of two apart would all start in the same sets of the cache.
    """
    lines = max(1, -(-size // CACHE_LINE))
    return (lines | 1) * CACHE_LINE


@dataclass(frozen=True)
class Rotation:
    """``sets`` copies of one argument: copy i starts at ``address + i * stride``."""

    address: int
    stride: int
    sets: int


class Pool:
    """Regions by operator and argument; another operator's regions are given back."""

    def __init__(self) -> None:
        """Start without memory."""
        self._operator = ""
        self._regions: dict[str, NDArray[np.uint8]] = {}

    def rotation(self, operator: str, argument: str, size: int, sets: int, fill: Fill) -> Rotation:
        """Return copies of an argument of ``size`` bytes, filled from ``fill(count)`` tiled."""
        if operator != self._operator:
            self._regions.clear()
            self._operator = operator
        stride = stride_of(size)
        region = self._regions.get(argument)
        if region is None or len(region) < stride * sets:
            self._regions.pop(argument, None)
            del region
            size = stride * sets
            step = REGION_STEP if size > REGION_STEP else 1
            region = self._regions[argument] = _filled(-(-size // step) * step, fill)
        return Rotation(int(region.ctypes.data), stride, sets)


def _filled(size: int, fill: Fill) -> NDArray[np.uint8]:
    region = pages(size, huge=True)
    drawn = fill(min(size, DRAWN_BYTES))
    for start in range(0, size, len(drawn)):
        part = region[start : start + len(drawn)]
        part[:] = drawn[: len(part)]
    return region
