"""The best of a row of scores, in order of index: what the templates of selection are made of.

    bound = least of the maxima of many groups of scores            # at least n scores reach it
         or what n scores should reach, judged by a sample          # if they do not: -inf
    for chunk of the row:
        list += the indices and scores that reach the bound
        if the list has more than n: keep its n best, bound = the least of them

The n-th best is found by interpolation over the bits of floats, which order like integers. The list
stays in ascending order of indices, so of equal scores the first ones are kept. NaN counts as -inf.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.selection.select_lanes import INFINITY, Lanes
from wattune.schedules.cpu.tasks import ceildiv

Expr = Any
Buffer = Any
_LINE = 16
_WIDEST = 0xFFFFFFFF
# Of a vector: its scores, its lanes' indices, how many lanes count (None: all of them).
Body = Callable[[Expr, Expr, Expr | None], None]


@dataclass(frozen=True)
class Row:
    """Scores ``first`` to ``end`` of those that start at an element of a flat buffer."""

    scores: Buffer
    start: Expr
    first: Expr
    end: Expr

    def until(self, count: int) -> Row:
        """Return at most the first ``count`` scores."""
        return Row(self.scores, self.start, self.first, T.min(self.first + count, self.end))


@dataclass(frozen=True)
class Plan:
    """Sizes: lanes of a vector, scores of a chunk, vectors of maxima or of a sample for a bound.

    ``room`` is the elements of a list's scores, and as many of its indices.
    """

    lanes: int
    chunk: int
    groups: int
    sample: int
    room: int

    @classmethod
    def of(cls, lanes: int, chunk: int, groups: int, sample: int, most: int) -> Plan:
        """Return a plan for lists of ``most`` entries: a chunk and a vector fit in beside them."""
        entries = most + chunk + 2 * lanes
        return cls(lanes, chunk, groups, sample, -(-entries // _LINE) * _LINE)

    @property
    def bytes(self) -> int:
        """Return the bytes of a list."""
        return 8 * self.room


class Best:
    """A list of scores and indices in the workspace; emits the statements that fill it."""

    def __init__(self, plan: Plan, workspace: Buffer, lists: int, which: Expr) -> None:
        """Declare the state of list ``which`` of the ``lists`` in a workspace."""
        self.plan, self.lanes, self.chunk = plan, Lanes(plan.lanes), plan.chunk
        entries = (2 * lists * plan.room,)
        self.values = T.decl_buffer(entries, "float32", data=workspace.data)
        self.indices = T.decl_buffer(entries, "int32", data=workspace.data)
        # Scores, then indices.
        self.base = T.bind(T.cast(which, "int64") * (2 * plan.room))
        self.index_base = T.bind(self.base + plan.room)
        self.size = vector.array(1, "int32")
        self.bound = vector.array(1, "float32")
        self.tail = vector.array(plan.lanes, "float32")

    def fill(self, row: Row, most: Expr, floor: Expr) -> None:
        """List the best ``most`` scores of a row that are not below ``floor``."""
        vector.store(self.size, [0], T.int32(0))
        vector.store(self.bound, [0], floor)
        if self.plan.groups:
            self._raise_bound(row.until(self.chunk))
        if self.plan.sample:
            self._guess_bound(row.until(self.chunk), most)
        with T.serial(ceildiv(T.max(row.end - row.first, 0), self.chunk)) as step:
            first = T.bind(row.first + step * self.chunk)
            part = Row(row.scores, row.start, first, row.end).until(self.chunk)
            self._append(part)
            if self.plan.sample:
                guessed = self.bound[0] > floor
                with T.If(T.And(T.And(step.equal(0), guessed), self.size[0] < most)), T.Then():
                    # The guess was too high.
                    vector.store(self.size, [0], T.int32(0))
                    vector.store(self.bound, [0], floor)
                    self._append(part)
            with T.If(self.size[0] > most), T.Then():
                vector.store(self.bound, [0], self.keep(T.int32(0), most))

    def each(self, row: Row, body: Body) -> None:
        """Emit ``body`` for every vector of a row; lanes beyond its end hold -inf."""
        lanes, count = self.lanes, T.bind(T.max(row.end - row.first, 0))
        whole = T.bind(T.truncdiv(count, lanes.count))
        # Counted in a register: a broadcast competes with comparisons and compressions.
        indices = vector.array(lanes.count, "int32")
        vector.store(indices, [0], T.ramp(row.first, 1, lanes.count))
        with T.serial(whole) as step:
            score = row.scores.vload([row.start + row.first + step * lanes.count], lanes.f32)
            index = T.bind(indices.vload([0], lanes.i32))
            body(T.bind(lanes.real(score)), index, None)
            vector.store(indices, [0], index + lanes.each_int(lanes.count))
        rest = T.bind(count - whole * lanes.count)
        with T.If(rest > 0), T.Then():
            at = T.bind(row.first + whole * lanes.count)
            vector.store(self.tail, [0], lanes.each(-INFINITY))
            with T.serial(rest) as i:
                vector.store(self.tail, [i], row.scores[row.start + at + i])
            index = T.bind(indices.vload([0], lanes.i32))
            body(T.bind(lanes.real(self.tail.vload([0], lanes.f32))), index, rest)

    def within(self, first: Expr, end: Expr) -> Expr:
        """Drop indices outside of first..end from both ends; return where the list begins."""
        dropped = vector.array(1, "int32")
        vector.store(dropped, [0], T.int32(0))
        at = self.index_base
        with T.While(T.And(dropped[0] < self.size[0], self.indices[at + dropped[0]] < first)):
            vector.store(dropped, [0], dropped[0] + 1)
        with T.While(T.And(dropped[0] < self.size[0], self.indices[at + self.size[0] - 1] >= end)):
            vector.store(self.size, [0], self.size[0] - 1)
        vector.store(self.size, [0], self.size[0] - dropped[0])
        return T.bind(dropped[0])

    def _raise_bound(self, row: Row) -> None:
        """Raise the bound to the least maximum of groups of a lane's scores each."""
        lanes, width = self.lanes, self.plan.groups * self.lanes.count
        maxima = [vector.array(lanes.count, "float32") for _ in range(self.plan.groups)]
        for maximum in maxima:
            vector.store(maximum, [0], lanes.each(-INFINITY))
        with T.serial(T.truncdiv(T.max(row.end - row.first, 0), width)) as step:
            at = T.bind(row.start + row.first + step * width)
            for i, maximum in enumerate(maxima):
                score = T.bind(row.scores.vload([at + i * lanes.count], lanes.f32))
                vector.store(maximum, [0], T.max(score, maximum.vload([0], lanes.f32)))
        found = [maximum.vload([0], lanes.f32) for maximum in maxima]
        while len(found) > 1:
            found = [T.bind(T.min(*found[i : i + 2])) for i in range(0, len(found), 2)]
        vector.store(self.bound, [0], T.max(self.bound[0], lanes.least(found[0])))

    def _guess_bound(self, row: Row, most: Expr) -> None:
        """Raise the bound to what rather more than ``most`` scores reach, to judge by a sample."""
        lanes, sample = self.lanes, self.plan.sample
        count = T.bind(row.end - row.first)
        stride = T.bind(T.truncdiv(count, sample * lanes.count) * lanes.count)
        # No guess where the list would hold the half of the scores, or the sample a fourth.
        with T.If(T.And(stride >= 4 * lanes.count, count >= 2 * most)), T.Then():
            with T.serial(sample) as i:
                score = row.scores.vload([row.start + row.first + i * stride], lanes.f32)
                vector.store(self.values, [self.base + i * lanes.count], lanes.real(score))
            share = T.cast(most, "float32") / T.cast(count, "float32") * (sample * lanes.count)
            # Three standard deviations, and some for small numbers.
            rank = T.bind(T.cast(share + T.sqrt(share) * T.float32(3) + T.float32(3), "int32"))
            size = T.int32(sample * lanes.count)
            low, high = self._extremes(self.base, size, T.int32(sample))
            # Some more do no harm.
            slack = T.truncdiv(rank, 8)
            found, _ = self._nth(self.base, size, low, high, rank, slack)
            vector.store(self.bound, [0], T.max(self.bound[0], found))

    def _append(self, row: Row) -> None:
        """List what reaches the bound."""
        lanes, bound = self.lanes, T.bind(self.bound[0])

        def body(scores: Expr, indices: Expr, count: Expr | None) -> None:
            reached = scores >= lanes.splat(bound)
            if count is not None:
                reached = T.bitwise_and(reached, lanes.below(count))
            self._list(scores, indices, reached, T.int32(0))

        self.each(row, body)

    def _list(self, scores: Expr, indices: Expr, chosen: Expr, first: Expr) -> None:
        """Append the chosen lanes to the list that starts at ``first``."""
        lanes = self.lanes
        at = T.bind(T.cast(first + self.size[0], "int64"))
        vector.store(self.values, [self.base + at], lanes.compressed(scores, chosen))
        vector.store(self.indices, [self.index_base + at], lanes.compressed(indices, chosen))
        vector.store(self.size, [0], self.size[0] + lanes.counted(chosen))

    def keep(self, first: Expr, most: Expr) -> Expr:
        """Keep the ``most`` best of the list from ``first`` on; return the least score of these.

        There must be more than that.
        """
        lanes = self.lanes
        size, start = T.bind(self.size[0]), T.bind(self.base + first)
        vectors = T.bind(ceildiv(size, lanes.count))
        low, high = self._extremes(start, size, vectors)
        vector.store(self.values, [start + size], lanes.each(-INFINITY))
        least, above = self._nth(start, size, low, high, most, T.int32(0))
        spare = vector.array(1, "int32")
        vector.store(spare, [0], most - above)
        vector.store(self.size, [0], T.int32(0))
        with T.serial(vectors) as step:
            at = T.bind(first + step * lanes.count)
            scores = T.bind(self.values.vload([self.base + at], lanes.f32))
            indices = T.bind(self.indices.vload([self.index_base + at], lanes.i32))
            # Lanes beyond the end may equal -inf, but come when no place is left.
            equal = scores.equal(lanes.splat(least))
            ties = T.bind(lanes.counted(equal))
            with T.If(T.And(spare[0] > 0, spare[0] < ties)):
                with T.Then():
                    self._list_some(scores, indices, least, spare, first)
                with T.Else():
                    taken = T.bind(T.Select(spare[0] > 0, T.int32(1), T.int32(0)))
                    tied = T.bitwise_and(equal, lanes.splat(taken) > lanes.each_int(0))
                    chosen = T.bitwise_or(scores > lanes.splat(least), tied)
                    self._list(scores, indices, chosen, first)
                    vector.store(spare, [0], spare[0] - taken * ties)
        return least

    def _list_some(
        self, scores: Expr, indices: Expr, least: Expr, spare: Buffer, first: Expr
    ) -> None:
        """Append the lanes above ``least`` and as many of its equals as there is room for."""
        lanes = self.lanes
        chosen = vector.array(lanes.count, "int32")
        vector.store(self.tail, [0], scores)
        with T.serial(lanes.count) as i:
            score = T.bind(self.tail[i])
            tied = T.And(score.equal(least), spare[0] > 0)
            vector.store(chosen, [i], T.Select(T.Or(score > least, tied), T.int32(1), T.int32(0)))
            vector.store(spare, [0], spare[0] - T.Select(tied, T.int32(1), T.int32(0)))
        mask = chosen.vload([0], lanes.i32) > lanes.each_int(0)
        self._list(scores, indices, mask, first)

    def _extremes(self, start: Expr, size: Expr, vectors: Expr) -> tuple[Expr, Expr]:
        """Return the least and the greatest score of the list."""
        lanes = self.lanes
        # Lanes beyond the end repeat the first score.
        vector.store(self.values, [start + size], lanes.splat(T.bind(self.values[start])))
        low, high = (vector.array(lanes.count, "float32") for _ in range(2))
        for extreme in (low, high):
            vector.store(extreme, [0], self.values.vload([start], lanes.f32))
        with T.serial(vectors - 1) as step:
            scores = T.bind(self.values.vload([start + (step + 1) * lanes.count], lanes.f32))
            vector.store(low, [0], T.min(scores, low.vload([0], lanes.f32)))
            vector.store(high, [0], T.max(scores, high.vload([0], lanes.f32)))
        return (
            lanes.least(low.vload([0], lanes.f32)),
            lanes.greatest(high.vload([0], lanes.f32)),
        )

    def _nth(
        self, start: Expr, size: Expr, least: Expr, greatest: Expr, most: Expr, slack: Expr
    ) -> tuple[Expr, Expr]:
        """Return the greatest score that ``most`` scores reach, and how many are known above it.

        Or one that at most ``slack`` more scores reach. Steps go where the score would lie if all
        were spread evenly, but to the middle after a step that did not halve the interval.
        """
        lanes = self.lanes
        low, high, above = (vector.array(1, "int32") for _ in range(3))
        # How many reach the lower end; the width before the last step.
        below, before = vector.array(1, "int32"), vector.array(1, "uint32")
        vector.store(low, [0], lanes.ordered(least))
        vector.store(high, [0], lanes.ordered(greatest))
        vector.store(above, [0], T.int32(0))
        vector.store(below, [0], size)
        vector.store(before, [0], T.uint32(_WIDEST))
        vectors = T.bind(ceildiv(size, lanes.count))
        with T.While(low[0] < high[0]):
            width = T.bind(T.reinterpret("uint32", high[0]) - T.reinterpret("uint32", low[0]))
            share = T.cast(below[0] - most, "float32") / T.cast(below[0] - above[0], "float32")
            part = T.cast(T.cast(T.cast(width, "float32") * share, "int64"), "uint32")
            half = T.shift_right(width, T.uint32(1))
            slow = width > T.shift_right(before[0], T.uint32(1))
            step = T.bind(T.min(T.Select(slow, half, part), width - T.uint32(1)) + T.uint32(1))
            vector.store(before, [0], width)
            middle = T.bind(T.reinterpret("int32", T.reinterpret("uint32", low[0]) + step))
            reaching = T.bind(self._count(start, vectors, T.bind(lanes.disordered(middle))))
            with T.If(reaching >= most):
                with T.Then():
                    vector.store(low, [0], middle)
                    vector.store(below, [0], reaching)
                    # Just so many: no need to know how close the next one is.
                    with T.If(reaching - most <= slack), T.Then():
                        vector.store(high, [0], middle)
                with T.Else():
                    vector.store(high, [0], middle - 1)
                    vector.store(above, [0], reaching)
        return T.bind(lanes.disordered(T.bind(low[0]))), T.bind(above[0])

    def _count(self, start: Expr, vectors: Expr, least: Expr) -> Expr:
        """Return how many scores of the list reach ``least``."""
        lanes = self.lanes
        total = vector.array(1, "int32")
        vector.store(total, [0], T.int32(0))
        with T.serial(vectors) as step:
            scores = self.values.vload([start + step * lanes.count], lanes.f32)
            reached = lanes.counted(scores >= lanes.splat(least))
            vector.store(total, [0], total[0] + reached)
        return T.bind(total[0])
