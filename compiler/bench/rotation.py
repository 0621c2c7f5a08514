"""The copies of data that calls take in turn, so that each finds its own in memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.measure.memory import pages
from wattune.compiler.measure.pool import MOST_VIEWS, PARTLY_READ, golden_starts, stride_of
from wattune.ops.operator import Array


def rotate(arrays: Mapping[str, Array], footprint: int, moved: int) -> list[dict[str, Array]]:
    """Return sets of the arrays to call with in turn, one where ``footprint`` is 0.

    Of arrays that a call reads whole there are as many copies as fill the footprint. Where it
    reads only ``moved`` bytes, far less than there are (a window, listed blocks), the sets overlap:
    they start at different places of one region of the arrays' size plus the footprint. The first
    set holds the arrays as they are; the others hold the same bytes, from another place on.
    """
    if not arrays:
        return [{}]
    sizes = {name: array.nbytes for name, array in arrays.items()}
    starts = places(sizes, footprint, moved)
    regions = {name: _region(array, starts[name]) for name, array in arrays.items()}
    return [
        {
            name: region[start : start + sizes[name]]
            .view(arrays[name].dtype)
            .reshape(arrays[name].shape)
            for name, region in regions.items()
            for start in (starts[name][at],)
        }
        for at in range(len(next(iter(starts.values()))))
    ]


def places(sizes: Mapping[str, int], footprint: int, moved: int) -> dict[str, NDArray[np.int64]]:
    """Return where each array's copies start: the same number of each, the first at 0."""
    one_set = sum(stride_of(size) for size in sizes.values())
    if footprint and moved < PARTLY_READ * one_set:
        sets = min(MOST_VIEWS, max(1, footprint // max(1, moved)))
        return {
            name: golden_starts(sets, footprint * size // one_set) for name, size in sizes.items()
        }
    copies = np.arange(max(1, -(-footprint // max(1, one_set))), dtype=np.int64)
    return {name: copies * stride_of(size) for name, size in sizes.items()}


def _region(array: Array, starts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return memory on huge pages that holds the array at its first place and goes on with it."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    region = pages(int(starts.max()) + data.size, huge=True)
    tile(region, data)
    return region


def tile(region: NDArray[np.uint8], data: NDArray[np.uint8]) -> None:
    """Fill a region with copies a stride apart, as far as they go.

    Where sets overlap, the few bytes between copies, zeros, are as good as any.
    """
    for start in range(0, region.size, stride_of(data.size)):
        part = region[start : start + data.size]
        part[:] = data[: part.size]
