"""Ranges of block slots: the tasks of kernels that write one score a slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from wattune.ops.gate_parts import SLOTS
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.rows import Rows
from wattune.schedules.cpu.selection.across import PART, fold, sum_lanes
from wattune.schedules.cpu.tasks import ceildiv
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob

_GRAINS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
# Tasks a thread: enough that ragged requests even out.
_TASKS = 4


def range_knob(rows: int, blocks: int, threads: int) -> Knob:
    """Return the knob of blocks a task; by default the largest that leaves every thread a few."""
    wanted = threads * _TASKS if threads > 1 else 1
    fitting = [g for g in _GRAINS if rows * -(-blocks // g) >= wanted]
    return Knob("grain", _GRAINS, fitting[-1] if fitting else _GRAINS[0])


def block_ranges(
    tensors: Tensors,
    kv_heads: int,
    grain: int,
    index: Any,
    task: Callable[[Any, Any, Any, Any], None],
) -> None:
    """Emit ``task(request, head, first, end)`` for one range of slots."""
    slots = T.cast(tensors.sizes[SLOTS], "int32")
    ranges = T.bind(ceildiv(slots, grain))
    row = T.bind(T.truncdiv(index, ranges))
    first = T.bind((index - row * ranges) * grain)
    end = T.bind(T.min(first + grain, slots))
    request = T.bind(T.truncdiv(row, kv_heads))
    task(request, T.bind(row - request * kv_heads), first, end)


def fill_rest(scores: Any, row: Any, first: Any, end: Any, lanes: int) -> None:
    """Write -inf into the slots from ``first`` up to ``end`` of a row."""
    least = T.float32(float("-inf"))
    whole = T.bind(T.truncdiv(end - first, lanes))
    with T.serial(whole) as i:
        vector.store(scores, [row + first + i * lanes], T.broadcast(least, lanes))
    with T.serial(end - first - whole * lanes) as i:
        vector.store(scores, [row + first + whole * lanes + i], least)


def score_blocks(
    scores: Any,
    row: Any,
    first: Any,
    end: Any,
    width: int,
    rows: Rows,
    products: Callable[[Any], Any],
) -> None:
    """Score the slots from ``first`` up to ``end`` of a row, as many at once as there are lanes.

    ``products(start)`` emits a vector whose lanes add up to the score of the ``width`` values that
    start there.
    """
    lanes = rows.lanes
    whole = T.bind(T.truncdiv(end - first, lanes))
    folded = vector.array(lanes // PART * lanes, "float32")
    with T.serial(whole) as step:
        at = T.bind(row + first + step * lanes)
        # A loop: LLVM moves the loads of unrolled blocks to the front and runs out of registers.
        with T.serial(lanes // PART) as part:
            start = T.bind((at + part * PART) * width)
            four = fold(lambda i: products(start + i * width), lanes, PART)
            vector.store(folded, [part * lanes], four)
        found = fold(lambda i: folded.vload([i * lanes], rows.f32), lanes, lanes // PART, PART)
        vector.store(scores, [at], found)
    with T.serial(end - first - whole * lanes) as i:
        at = T.bind(row + first + whole * lanes + i)
        vector.store(scores, [at], sum_lanes(products(T.bind(at * width)), lanes))
