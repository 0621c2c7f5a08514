"""Element-wise poolings of rows: greatest, least, mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.rows import Rows

# Rows to pool: a buffer of bits, how many, where row i starts.
Source = tuple[Any, Any, Callable[[Any], Any]]

_START = {"max": float("-inf"), "min": float("inf"), "avg": 0.0}
_STEP: dict[str, Callable[[Any, Any], Any]] = {
    "max": T.max,
    "min": T.min,
    "avg": lambda total, value: total + value,
}


def pool_rows(
    scratch: Any,
    at: Any,
    rows: Rows,
    pools: Sequence[str],
    count: int,
    sources: Sequence[Source],
    units: int,
) -> None:
    """Write the poolings of ``count`` rows one after the other into scratch.

    ``units`` of a row are pooled in one pass over all rows.
    """
    for first in range(0, rows.units, units):
        here = range(first, min(first + units, rows.units))
        places = [(u, p) for u in here for p in range(rows.parts)]
        found = {n: [vector.array(rows.lanes, "float32") for _ in places] for n in pools}
        for name in pools:
            for array in found[name]:
                vector.store(array, [0], T.broadcast(T.float32(_START[name]), rows.lanes))
        for bits, number, row in sources:
            with T.serial(number) as i:
                start = T.bind(row(i))
                keys = [k for u in here for k in rows.load(bits, start + u * rows.unit)]
                for name in pools:
                    for array, key in zip(found[name], keys, strict=True):
                        step = _STEP[name](array.vload([0], rows.f32), key)
                        vector.store(array, [0], step)
        for order, name in enumerate(pools):
            factor = T.broadcast(T.float32(1 / count if name == "avg" else 1), rows.lanes)
            parts = [T.bind(array.vload([0], rows.f32) * factor) for array in found[name]]
            for index, unit in enumerate(here):
                each = parts[index * rows.parts : (index + 1) * rows.parts]
                target = at + order * rows.width + unit * rows.unit
                rows.store_natural(scratch, target, each)
