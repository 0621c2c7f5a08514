"""The kernel of `select_blocks`: lists of blocks, made by `Best`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.gate_parts import SLOTS
from wattune.ops.select_blocks import MILLION, SelectBlocks
from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.selection.base import length_of
from wattune.schedules.cpu.selection.select_best import Best, Plan, Row
from wattune.schedules.cpu.selection.select_lanes import INFINITY
from wattune.schedules.cpu.selection.values import flat
from wattune.schedules.cpu.tasks import ceildiv, spread
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any

# The greatest finite number, the least normal one.
_MOST = 3.4028234663852886e38
_NORMAL = 2.0**-126


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel."""

    problem: SelectBlocks
    threads: int
    plan: Plan

    def emit(self, tensors: Tensors) -> None:
        """Select for every request, query token and head."""
        problem = self.problem
        tokens = max(1, problem.query_tokens)
        scores = flat(tensors["scores"])
        outputs = [flat(tensors[name]) for name in ("block_indices", "block_counts")]
        slots = tensors.sizes[SLOTS]

        def task(worker: Expr, row: Expr) -> None:
            token = T.bind(T.truncdiv(row, problem.kv_heads))
            request = T.bind(T.truncdiv(token, tokens))
            later = tokens - 1 - (token - request * tokens)
            seen = T.bind(T.max(length_of(tensors, request) - later, 0))
            blocks = T.bind(ceildiv(seen, problem.block_size))
            start = T.bind(T.cast(row, "int64") * slots)
            best = Best(self.plan, tensors["workspace"], self.threads, worker)
            # Blocks that are not always kept.
            first = T.bind(T.min(blocks, problem.sink_blocks))
            end = T.bind(T.max(first, blocks - problem.local_blocks))
            dropped = self._fill(best, Row(scores, start, first, end), blocks)
            self._write(best, dropped, first, end, blocks, outputs, row)

        spread(self.threads, tensors.sizes["batch"] * (tokens * problem.kv_heads), task)

    def _fill(self, best: Best, others: Row, blocks: Expr) -> Expr:
        """List the chosen blocks that are not always kept; return where the list begins."""
        problem = self.problem
        always = T.bind(others.first + blocks - others.end)
        room = T.bind(problem.max_blocks - always)
        if problem.method == "threshold":
            best.fill(others, room, self._floor(best, others, blocks))
            return T.int32(0)
        wanted = self._wanted(blocks)
        if problem.forced == "inside":
            most = T.bind(T.max(T.min(wanted - always, room), 0))
            best.fill(others, most, T.float32(-INFINITY))
            return T.int32(0)
        every = Row(others.scores, others.start, T.int32(0), blocks)
        best.fill(every, T.bind(T.min(wanted, problem.max_blocks)), T.float32(-INFINITY))
        dropped = best.within(others.first, others.end)
        with T.If(best.size[0] > room), T.Then():
            best.keep(dropped, room)
        return dropped

    def _wanted(self, blocks: Expr) -> Expr:
        """Return n of `SelectBlocks`."""
        problem = self.problem
        if problem.method == "budget":
            return T.int32(problem.token_budget // problem.block_size)
        part = ceildiv(T.cast(blocks, "int64") * problem.parts, MILLION)
        return T.bind(T.max(T.cast(part, "int32"), T.min(blocks, problem.min_blocks)))

    def _floor(self, best: Best, others: Row, blocks: Expr) -> Expr:
        """Return the least score above max + log(threshold sum exp(score - max))."""
        lanes = best.lanes
        every = Row(others.scores, others.start, T.int32(0), blocks)
        top = vector.array(lanes.count, "float32")
        vector.store(top, [0], lanes.each(-_MOST))

        def greater(scores: Expr, first: Expr, count: Expr | None) -> None:
            vector.store(top, [0], T.max(scores, top.vload([0], lanes.f32)))

        best.each(every, greater)
        greatest = T.bind(T.min(lanes.greatest(top.vload([0], lanes.f32)), T.float32(_MOST)))
        total = vector.array(lanes.count, "float32")
        vector.store(total, [0], lanes.each(0.0))

        def add(scores: Expr, first: Expr, count: Expr | None) -> None:
            less = T.min(scores, lanes.each(_MOST)) - lanes.splat(greatest)
            weight = math.exp2(T.bind(less * lanes.each(math.LOG2_E)), lanes.count)
            vector.store(total, [0], total.vload([0], lanes.f32) + weight)

        best.each(every, add)
        weights = T.bind(lanes.total_real(total.vload([0], lanes.f32)))
        share = T.bind(T.max(weights * T.float32(self.problem.threshold), T.float32(_NORMAL)))
        below = T.bind(math.log2(share, 1) * T.float32(math.LN_2))
        # Where not even the greatest one has so great a share, nothing has.
        floor = T.bind(T.Select(below < T.float32(0), greatest + below, T.float32(INFINITY)))
        return T.bind(lanes.above(floor))

    def _write(
        self,
        best: Best,
        dropped: Expr,
        first: Expr,
        end: Expr,
        blocks: Expr,
        outputs: list[Buffer],
        row: Expr,
    ) -> None:
        """Write the blocks that are always kept around the listed ones, and the count."""
        indices, counts = outputs
        most = self.problem.max_blocks
        start, listed = T.bind(T.cast(row, "int64") * most), T.bind(best.size[0])
        last = T.bind(first + listed)
        count = T.bind(last + blocks - end)
        source = T.bind(best.index_base + dropped)
        with T.serial(first) as i:
            vector.store(indices, [start + i], i)
        with T.serial(listed) as i:
            vector.store(indices, [start + first + i], best.indices[source + i])
        with T.serial(blocks - end) as i:
            vector.store(indices, [start + last + i], end + i)
        with T.serial(most - count) as i:
            vector.store(indices, [start + count + i], T.int32(-1))
        vector.store(counts, [T.cast(row, "int64")], count)
