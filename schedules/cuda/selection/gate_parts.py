"""What the learned gate's kernels share: mean queries, and the end of a gate's branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from wattune.ops.gate_parts import EPSILON, POSITIONS
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Buffer, Expr, for_each
from wattune.schedules.cuda.values import reduce_block
from wattune.schedules.program import Tensors


def mean(rows: int, value: Callable[[Expr], Expr]) -> Expr:
    """Return the mean of ``value(row)`` over a few rows, in float32."""
    total = ptx.registers(1, "float32")
    ptx.put(total, 0, T.float32(0))
    with T.serial(rows) as row:
        ptx.put(total, 0, total[0] + T.cast(value(row), "float32"))
    return total[0] * T.float32(1 / rows)


def finish_row(
    problem: Any,
    tensors: Tensors,
    norm: str,
    row: Buffer,
    position: Expr,
    thread: Expr,
    threads: int,
    scale: float = 1.0,
) -> None:
    """Norm and rotate a row of floats in shared memory, where the problem does, and scale it.

    Each value was written by the thread that `for_each` gives it; when this ends, all threads may
    read it.
    """
    width = problem.gate_dim
    if problem.norm:
        total = ptx.registers(1, "float32")
        scratch = T.alloc_shared((threads // WARP,), "float32")
        ptx.put(total, 0, T.float32(0))

        def square(at: Expr) -> None:
            ptx.put(total, 0, row[at] * row[at] + total[0])

        for_each(thread, threads, width, square)
        reduce_block(total, scratch, thread, threads, lambda a, b: a + b)
        factor = T.bind(T.rsqrt(total[0] * T.float32(1 / width) + T.float32(EPSILON)))

        def weigh(at: Expr) -> None:
            weight = T.cast(tensors[norm][at], "float32")
            ptx.put(row, at, row[at] * factor * weight)

        for_each(thread, threads, width, weigh)
    ptx.block_barrier()
    if problem.rope:
        _rotate(tensors, row, width, position, thread, threads, scale)
    elif scale != 1.0:

        def stretch(at: Expr) -> None:
            ptx.put(row, at, row[at] * T.float32(scale))

        for_each(thread, threads, width, stretch)
    ptx.block_barrier()


def _rotate(
    tensors: Tensors,
    row: Buffer,
    width: int,
    position: Expr,
    thread: Expr,
    threads: int,
    scale: float,
) -> None:
    """Rotate the halves of a row against each other (NeoX)."""
    half = width // 2
    last = tensors.sizes[POSITIONS] - 1
    start = T.bind(T.min(T.cast(position, "int64"), last) * width)
    angles = tensors["cos_sin_cache"]

    def turn(at: Expr) -> None:
        cos = T.bind(angles[start + at] * T.float32(scale))
        sin = T.bind(angles[start + half + at] * T.float32(scale))
        low, high = T.bind(row[at]), T.bind(row[at + half])
        ptx.put(row, at, low * cos - high * sin)
        ptx.put(row, at + half, high * cos + low * sin)

    for_each(thread, threads, half, turn)
