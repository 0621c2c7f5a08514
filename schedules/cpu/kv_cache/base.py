"""What the templates of this package share: rows are cut into vectors and spread over threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.space import Knob, powers_of_two

Expr = Any
Buffer = Any

_MOST_GRAIN = 1024
# A task moves at least this much by default: about what starting a thread's share costs.
_TASK_BYTES = 32 << 10


def grain_knob(row_bytes: int) -> Knob:
    """Return the knob of rows a task; the default is worth a thread."""
    grains = powers_of_two(1, _MOST_GRAIN)
    enough = (g for g in grains if g * row_bytes >= _TASK_BYTES)
    return Knob("grain", grains, next(enough, _MOST_GRAIN))


def spread(threads: int, most: int, rows: Expr, grain: int, emit: Callable[[Expr], None]) -> None:
    """Emit ``emit(row)`` for every row, ``grain`` rows a task; ``most`` rows in the bucket."""
    count = T.bind(T.cast(rows, "int32"))
    # Starting threads for a single task costs more than most tasks.
    if threads == 1 or most <= grain:
        with T.serial(count) as row:
            emit(row)
        return
    with T.parallel(T.truncdiv(count + grain - 1, grain)) as task:
        first = T.bind(task * grain)
        with T.serial(T.min(count - first, grain)) as row:
            emit(T.bind(first + row))


def flat(buffer: Buffer, dtype: str) -> Buffer:
    """View a tensor as one row of elements of the same width, aligned to an element."""
    count = T.int64(1)
    for extent in buffer.shape:
        count = count * extent
    align = int("".join(c for c in dtype if c.isdigit())) // 8
    return T.decl_buffer((count,), dtype, data=buffer.data, align=align)


def starts(width: int, lanes: int) -> list[int]:
    """Return where vectors of a row start; the last one overlaps its neighbour where it must."""
    found = list(range(0, width - lanes + 1, lanes))
    return found if width % lanes == 0 else [*found, width - lanes]


def fitting(width: int, lanes: int) -> int:
    """Return ``lanes``, or the greatest power of two that a row holds."""
    while lanes > width:
        lanes //= 2
    return lanes
