"""A row of scores, walked a vector at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import INFINITY, Lanes

Expr = Any
Buffer = Any
# Of a vector: its scores, its lanes' indices (as `Lanes.numbers` has them), how many of its last
# lanes count (None: all).
Body = Callable[[Expr, Expr, Expr | None], None]
# Vectors of a turn of the loop: with eight lanes one vector is little beside the loop itself.
_TURN = 4


@dataclass(frozen=True)
class Row:
    """Scores ``first`` to ``end`` of those that start at an element of a flat buffer."""

    scores: Buffer
    start: Expr
    first: Expr
    end: Expr

    @property
    def count(self) -> Expr:
        """Return how many scores there are."""
        return T.max(self.end - self.first, T.int32(0))

    def part(self, first: Expr, count: int) -> Row:
        """Return at most ``count`` scores, from index ``first`` on."""
        return Row(self.scores, self.start, first, T.bind(T.min(first + count, self.end)))

    def load(self, lanes: Lanes, at: Expr) -> Expr:
        """Load the vector of scores from index ``at`` on."""
        return self.scores.vload([self.start + at], lanes.f32)

    def each(self, lanes: Lanes, body: Body) -> None:
        """Emit ``body`` for every vector; lanes that do not count hold -inf.

        The last vector starts with scores of the one before, so that it lies within the row.
        """
        count = T.bind(self.count)
        whole = T.bind(T.truncdiv(count, lanes.count))
        # Counted in a register: a broadcast competes with comparisons and compressions.
        indices = vector.array(lanes.count, "int32")
        vector.store(indices, [0], lanes.numbers(self.first))

        def one(step: Expr) -> None:
            index = T.bind(indices.vload([0], lanes.i32))
            score = self.load(lanes, self.first + step * lanes.count)
            body(T.bind(lanes.real(score)), index, None)
            vector.store(indices, [0], index + lanes.each_int(lanes.count))

        # rewrite: for step: one(step) -> for turn: one(0) ... one(3); for the rest: one(step)
        turn = _TURN if lanes.tables else 1
        with T.serial(T.truncdiv(whole, turn)) as step:
            for i in range(turn):
                one(step * turn + i)
        if turn > 1:
            done = T.bind(T.truncdiv(whole, turn) * turn)
            with T.serial(whole - done) as step:
                one(done + step)
        rest = T.bind(count - whole * lanes.count)
        with T.If(rest > 0), T.Then():
            scores = T.bind(self._tail(lanes, count, rest))
            body(scores, lanes.numbers(self.end - lanes.count), rest)

    def _tail(self, lanes: Lanes, count: Expr, rest: Expr) -> Expr:
        """Return the ``rest`` last scores in the last lanes of a vector, -inf in the others."""
        tail = vector.array(lanes.count, "float32")
        with T.If(count >= lanes.count):
            with T.Then():
                scores = T.bind(self.load(lanes, self.end - lanes.count))
                kept = T.Select(lanes.last(rest), scores, lanes.each(-INFINITY))
                vector.store(tail, [0], lanes.real(kept))
            with T.Else():
                vector.store(tail, [0], lanes.each(-INFINITY))
                with T.serial(rest) as i:
                    score = self.scores[self.start + self.first + i]
                    vector.store(tail, [lanes.count - rest + i], score)
                vector.store(tail, [0], lanes.real(tail.vload([0], lanes.f32)))
        return tail.vload([0], lanes.f32)
