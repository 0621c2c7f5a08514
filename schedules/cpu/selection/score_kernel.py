"""The kernel of `block_score`: bounds are streamed once, the mean query stays in registers.

    for request, head, range of blocks:
        m = mean of the queries * scale                       # fp32, in registers
        mask = all ones where m < 0
        for L blocks at once:                                 # L lanes
            bound = (k_min ^ k_max) & mask ^ k_max            # max(m k_min, m k_max) = m bound
            score of block i = sum of the lanes of m * bound  # transposed: lane i is block i

With k_min <= k_max the sign of m decides which product is the greater: the bits of the two bounds
are blended before they become fp32, so only half of them are converted and multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.block_score import BlockScore
from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import SLOTS
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.rows import Rows, flat
from wattune.schedules.cpu.selection.base import length_of
from wattune.schedules.cpu.selection.ranges import block_ranges, fill_rest, score_blocks
from wattune.schedules.cpu.tasks import ceildiv, spread
from wattune.schedules.program import Tensors


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel."""

    problem: BlockScore
    threads: int
    rows: Rows
    grain: int
    ahead: int

    def emit(self, tensors: Tensors) -> None:
        """Score every range of every request and head."""
        problem = self.problem
        buffers = {
            "q": self.rows.bits(tensors["q"]),
            "low": self.rows.bits(tensors["k_min"]),
            "high": self.rows.bits(tensors["k_max"]),
            "scores": flat(tensors["scores"]),
        }

        def task(request: Any, head: Any, first: Any, end: Any) -> None:
            blocks = ceildiv(length_of(tensors, request), problem.block_size)
            used = T.bind(T.max(T.min(blocks, end), first))
            row = (T.cast(request, "int64") * problem.kv_heads + head) * tensors.sizes[SLOTS]
            row = T.bind(row)
            with T.If(first < used), T.Then():
                Scorer(self, buffers, request, head).emit(row, first, used)
            fill_rest(buffers["scores"], row, used, end, self.rows.lanes)

        def one(worker: Any, index: Any) -> None:
            block_ranges(tensors, problem.kv_heads, self.grain, index, task)

        count = ceildiv(tensors.sizes[SLOTS], self.grain) * problem.kv_heads
        spread(self.threads, tensors.sizes["batch"] * count, one)


class Scorer:
    """Scores ranges of blocks of one request and head."""

    def __init__(self, kernel: Kernel, buffers: Mapping[str, Any], request: Any, head: Any) -> None:
        """Emit the mean query and its masks."""
        self.kernel, self.rows, self.buffers = kernel, kernel.rows, buffers
        problem, rows = kernel.problem, kernel.rows
        sums = vector.Registers(-(-problem.head_dim // vector.LANES), "float32")
        for at in range(0, problem.head_dim, rows.lanes):
            sums.store(at, T.broadcast(T.float32(0), rows.lanes))
        with T.serial(problem.query_tokens * problem.group) as i:
            token = T.cast(request, "int64") * problem.query_tokens + i // problem.group
            query = head * problem.group + T.truncmod(i, problem.group)
            start = T.bind((token * problem.query_heads + query) * problem.head_dim)
            for unit in range(rows.units):
                parts = rows.load(buffers["q"], start + unit * rows.unit)
                for p, part in enumerate(parts):
                    at = (unit * rows.parts + p) * rows.lanes
                    sums.store(at, sums.load(at, rows.f32) + part)
        factor = problem.scale / (problem.query_tokens * problem.group)
        each = T.broadcast(T.float32(factor), rows.lanes)
        self.mean = [
            [
                T.bind(sums.load((u * rows.parts + p) * rows.lanes, rows.f32) * each)
                for p in range(rows.parts)
            ]
            for u in range(rows.units)
        ]
        self.masks = [T.bind(self._mask(parts)) for parts in self.mean]

    def _mask(self, parts: list[Any]) -> Any:
        """Return all ones in the places of a unit's bits where the mean is negative."""
        rows = self.rows

        def each(value: int) -> Any:
            return T.broadcast(T.int32(value), rows.lanes)

        signs = [T.shift_right(T.reinterpret(rows.i32, part), each(31)) for part in parts]
        if rows.parts == 2:
            even, odd = T.bitwise_and(signs[0], each(0xFFFF)), T.bitwise_and(signs[1], each(-65536))
            return T.bitwise_or(even, odd)
        return T.cast(signs[0], f"uint16x{rows.lanes}") if rows.dtype == "float16" else signs[0]

    def emit(self, row: Any, first: Any, end: Any) -> None:
        """Score the blocks from ``first`` up to ``end`` of a row of slots."""
        width = self.kernel.problem.head_dim
        score_blocks(self.buffers["scores"], row, first, end, width, self.rows, self._products)

    def _products(self, start: Any) -> Any:
        """Return a vector whose lanes add up to a block's score."""
        rows, ahead = self.rows, self.kernel.ahead
        totals: list[Any] = [None] * rows.parts
        for unit in range(rows.units):
            at = start + unit * rows.unit
            low = rows.raw(self.buffers["low"], at)
            high = rows.raw(self.buffers["high"], at)
            mask = self.masks[unit]
            high = T.bind(high)
            differ = T.bitwise_and(T.bitwise_xor(low, high), mask)
            bound = T.bind(T.bitwise_xor(differ, high))
            for p, part in enumerate(rows.widen(bound)):
                mean, total = self.mean[unit][p], totals[p]
                product = part * mean if total is None else vector.multiply_add(part, mean, total)
                totals[p] = T.bind(product)
        if ahead:
            step = ahead // itemsize(rows.dtype)
            for at in range(0, rows.width, vector.BYTES // itemsize(rows.dtype)):
                vector.prefetch(self.buffers["low"], start + at + step)
                vector.prefetch(self.buffers["high"], start + at + step)
        return totals[0] if len(totals) == 1 else totals[0] + totals[1]
