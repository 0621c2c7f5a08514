"""The kernel of `select_blocks`: lists of blocks, made by `Best`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.gate_parts import SLOTS
from wattune.ops.select_blocks import MILLION, SelectBlocks
from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.lanes import INFINITY
from wattune.schedules.cpu.rows import flat
from wattune.schedules.cpu.selection.base import length_of
from wattune.schedules.cpu.selection.select_best import Best, Plan
from wattune.schedules.cpu.selection.select_rows import Row
from wattune.schedules.cpu.tasks import ceildiv, spread
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any

# The greatest finite number, the least normal one.
_MOST = 3.4028234663852886e38
_NORMAL = 2.0**-126


@dataclass(frozen=True)
class Place:
    """A row: its number, its scores that are not always kept, how many blocks it has."""

    row: Expr
    others: Row
    blocks: Expr

    @property
    def every(self) -> Row:
        """Return all scores of the row."""
        return Row(self.others.scores, self.others.start, T.int32(0), self.blocks)


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel."""

    problem: SelectBlocks
    threads: int
    plan: Plan

    def emit(self, tensors: Tensors) -> None:
        """Select for every request, query token and head."""
        problem, plan = self.problem, self.plan
        scores = flat(tensors["scores"])
        outputs = [flat(tensors[name]) for name in ("block_indices", "block_counts")]
        rows = T.cast(tensors.sizes["batch"], "int32") * (self.tokens * problem.kv_heads)

        def task(worker: Expr, group: Expr) -> None:
            best = Best(plan, tensors["workspace"], self.threads, worker)
            first = T.bind(group * plan.rows)
            count = T.bind(T.min(T.int32(plan.rows), rows - first))
            with T.serial(count) as i:
                self._begin(best, i, self._place(tensors, scores, first + i))
            best.fill(scores, count)
            if problem.forced == "beside" and problem.counted:
                with T.serial(count) as i:
                    place = self._place(tensors, scores, first + i)
                    best.within(i, place.others.first, place.others.end)
                    best.put("most", i, self._room(place))
                best.trim(count)
            with T.serial(count) as i:
                self._write(best, i, self._place(tensors, scores, first + i), outputs)

        with plan.lanes.functions():
            spread(self.threads, ceildiv(rows, plan.rows), task)

    @property
    def tokens(self) -> int:
        """Return the query tokens of a request."""
        return max(1, self.problem.query_tokens)

    def _place(self, tensors: Tensors, scores: Buffer, row: Expr) -> Place:
        """Return where the scores of a row lie."""
        problem, tokens = self.problem, self.tokens
        token = T.bind(T.truncdiv(row, problem.kv_heads))
        request = T.bind(T.truncdiv(token, tokens))
        later = tokens - 1 - (token - request * tokens)
        seen = T.bind(T.max(length_of(tensors, request) - later, 0))
        blocks = T.bind(ceildiv(seen, problem.block_size))
        start = T.bind(T.cast(row, "int64") * tensors.sizes[SLOTS])
        # Blocks that are not always kept.
        first = T.bind(T.min(blocks, problem.sink_blocks))
        end = T.bind(T.max(first, blocks - problem.local_blocks))
        return Place(T.bind(row), Row(scores, start, first, end), blocks)

    def _room(self, place: Place) -> Expr:
        """Return how many blocks can be chosen beside those that are always kept."""
        always = place.others.first + place.blocks - place.others.end
        return T.bind(self.problem.max_blocks - always)

    def _begin(self, best: Best, i: Expr, place: Place) -> None:
        """Say which blocks of a row are listed."""
        problem, room = self.problem, self._room(place)
        if problem.method == "threshold":
            best.begin(i, place.others, room, self._floor(best, place))
            return
        wanted, lowest = self._wanted(place.blocks), T.float32(-INFINITY)
        if problem.forced == "inside":
            most = T.bind(T.max(T.min(wanted - (problem.max_blocks - room), room), 0))
            best.begin(i, place.others, most, lowest)
        else:
            most = T.bind(T.min(wanted, problem.max_blocks))
            best.begin(i, place.every, most, lowest)

    def _wanted(self, blocks: Expr) -> Expr:
        """Return n of `SelectBlocks`."""
        problem = self.problem
        if problem.method == "budget":
            return T.int32(problem.token_budget // problem.block_size)
        part = ceildiv(T.cast(blocks, "int64") * problem.parts, MILLION)
        return T.bind(T.max(T.cast(part, "int32"), T.min(blocks, problem.min_blocks)))

    def _floor(self, best: Best, place: Place) -> Expr:
        """Return the least score above max + log(threshold sum exp(score - max))."""
        lanes, every = best.lanes, place.every
        top = vector.array(lanes.count, "float32")
        vector.store(top, [0], lanes.each(-_MOST))

        def greater(scores: Expr, first: Expr, count: Expr | None) -> None:
            vector.store(top, [0], T.max(scores, top.vload([0], lanes.f32)))

        every.each(lanes, greater)
        greatest = T.bind(T.min(lanes.greatest(top.vload([0], lanes.f32)), T.float32(_MOST)))
        total = vector.array(lanes.count, "float32")
        vector.store(total, [0], lanes.each(0.0))

        def add(scores: Expr, first: Expr, count: Expr | None) -> None:
            less = T.min(scores, lanes.each(_MOST)) - lanes.splat(greatest)
            weight = math.exp2(T.bind(less * lanes.each(math.LOG2_E)), lanes.count)
            vector.store(total, [0], total.vload([0], lanes.f32) + weight)

        every.each(lanes, add)
        weights = T.bind(lanes.total_real(total.vload([0], lanes.f32)))
        share = T.bind(T.max(weights * T.float32(self.problem.threshold), T.float32(_NORMAL)))
        below = T.bind(math.log2(share, 1) * T.float32(math.LN_2))
        # Where not even the greatest one has so great a share, nothing has.
        floor = T.bind(T.Select(below < T.float32(0), greatest + below, T.float32(INFINITY)))
        # Great scores lie far apart: a sum that was rounded up passes itself.
        rounded = T.And(below < T.float32(0), floor - greatest > below)
        return T.bind(T.Select(rounded, floor, lanes.above(floor)))

    def _write(self, best: Best, i: Expr, place: Place, outputs: list[Buffer]) -> None:
        """Write the blocks that are always kept around the listed ones, and the count."""
        indices, counts = outputs
        most, first, end = self.problem.max_blocks, place.others.first, place.others.end
        start, listed = T.bind(T.cast(place.row, "int64") * most), best.get("size", i)
        last = T.bind(first + listed)
        count = T.bind(last + place.blocks - end)
        source = T.bind(best.index_base(i) + best.get("passed", i))
        with T.serial(first) as block:
            vector.store(indices, [start + block], block)
        self._copy(best, source, indices, T.bind(start + first), listed)
        with T.serial(place.blocks - end) as block:
            vector.store(indices, [start + last + block], end + block)
        with T.serial(most - count) as block:
            vector.store(indices, [start + count + block], T.int32(-1))
        vector.store(counts, [T.cast(place.row, "int64")], count)

    def _copy(self, best: Best, source: Expr, into: Buffer, at: Expr, count: Expr) -> None:
        """Copy a list; its last vector is copied with entries of the one before."""
        lanes = best.lanes

        def move(offset: Expr) -> None:
            entries = best.indices.vload([source + offset], lanes.i32)
            vector.store(into, [at + offset], entries)

        with T.If(count >= lanes.count):
            with T.Then():
                with T.serial(T.truncdiv(count, lanes.count)) as step:
                    move(step * lanes.count)
                move(T.bind(count - lanes.count))
            with T.Else(), T.serial(count) as entry:
                vector.store(into, [at + entry], best.indices[source + entry])
