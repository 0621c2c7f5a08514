"""Lists of selected places, in order: each warp has a stretch of the places of its own.

every warp counts what it has above the bound, and what equals it
barrier
every warp knows what lies before it: how much of its ties is taken, and where its list starts
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Buffer, Expr, ceildiv
from wattune.schedules.cuda.selection.keys import KeyOf
from wattune.schedules.cuda.selection.radix import Selection


class Listing:
    """Counts and lists what a selection took of a range of places."""

    def __init__(self, threads: int, thread: Expr, key: KeyOf, selection: Selection) -> None:
        """Allocate shared memory: counts of each warp, and of ties before the range."""
        self.threads, self.key = threads, key
        self._selection, self._warps = selection, threads // WARP
        self._warp, self._lane = T.truncdiv(thread, WARP), T.truncmod(thread, WARP)
        self._above = T.alloc_shared((self._warps,), "int32")
        self._equal = T.alloc_shared((self._warps,), "int32")
        self._before = T.alloc_shared((1,), "int32")

    def count(self, first: Expr, end: Expr, since: Expr | None = None) -> None:
        """Count the selected places from ``first`` up to ``end``.

        ``since``: the selection started there, before ``first``; ties up to ``first`` come first.
        """
        counts = T.alloc_local((2,), "int32")
        for i in range(2):
            ptx.put(counts, i, T.int32(0))
        start, stop = self._stretch(first, end)
        bound = T.bind(self._selection.bound)
        self._walk(counts, bound, start, stop)
        with T.If(self._lane == 0), T.Then():
            ptx.put(self._above, self._warp, counts[0])
            ptx.put(self._equal, self._warp, counts[1])
        with T.If(self._warp == 0), T.Then():
            ptx.put(counts, 1, T.int32(0))
            if since is not None:
                self._walk(counts, bound, since, first)
            with T.If(self._lane == 0), T.Then():
                ptx.put(self._before, 0, counts[1])
        ptx.block_barrier()

    def _walk(self, counts: Buffer, bound: Expr, start: Expr, stop: Expr) -> None:
        """Count what lies above and at the bound, a warp's width at a time."""
        with T.serial(T.truncdiv(stop - start + WARP - 1, WARP)) as turn:
            above, equal = self._votes(T.bind(start + turn * WARP + self._lane), stop, bound)
            ptx.put(counts, 0, counts[0] + ptx.ones(above))
            ptx.put(counts, 1, counts[1] + ptx.ones(equal))

    def _stretch(self, first: Expr, end: Expr) -> tuple[Expr, Expr]:
        """Return the places of a warp."""
        each = T.bind(ceildiv(end - first, WARP * self._warps) * WARP)
        start = T.bind(T.min(end, first + self._warp * each))
        return start, T.bind(T.min(end, start + each))

    def _votes(self, place: Expr, stop: Expr, bound: Expr) -> tuple[Expr, Expr]:
        """Return which lanes' places are above the bound, and which equal it."""
        found = T.alloc_local((1,), "uint32")
        ptx.put(found, 0, T.uint32(0))
        with T.If(place < stop), T.Then():
            ptx.put(found, 0, self.key(place))
        above = votes(found[0] > bound)
        return above, votes(T.And(found[0] == bound, place < stop))

    @property
    def total(self) -> Expr:
        """Return how many places of the range are selected; after `count`."""
        above = sum(self._above[w] for w in range(self._warps))
        equal = sum(self._equal[w] for w in range(self._warps))
        return T.bind(above + T.min(self._ties, equal))

    @property
    def _ties(self) -> Expr:
        """Return how many places at the bound are selected in the range, where there are."""
        return T.bind(T.max(self._selection.left - self._before[0], 0))

    def write(self, take: Callable[[Expr, Expr], None], first: Expr, end: Expr) -> None:
        """Emit ``take(at, place)`` for the selected places, in order; ``at`` counts from 0."""
        start, stop = self._stretch(first, end)
        state = T.alloc_local((2,), "int32")
        for i in range(2):
            ptx.put(state, i, T.int32(0))
        for warp in range(self._warps - 1):
            with T.If(self._warp > warp), T.Then():
                ptx.put(state, 0, state[0] + self._above[warp])
                ptx.put(state, 1, state[1] + self._equal[warp])
        ties = self._ties
        ptx.put(state, 0, state[0] + T.min(ties, state[1]))
        ptx.put(state, 1, ties - state[1])
        bound, below = T.bind(self._selection.bound), T.bind(ptx.lanes_below(self._lane))
        with T.serial(T.truncdiv(stop - start + WARP - 1, WARP)) as turn:
            place = T.bind(start + turn * WARP + self._lane)
            above, equal = self._votes(place, stop, bound)
            mine = T.shift_left(T.uint32(1), T.cast(self._lane, "uint32"))
            rank = ptx.ones(T.bitwise_and(equal, below))
            tie = T.And(T.bitwise_and(equal, mine) != T.uint32(0), rank < state[1])
            taken = T.bind(T.Or(T.bitwise_and(above, mine) != T.uint32(0), tie))
            all_taken = votes(taken)
            with T.If(taken), T.Then():
                take(T.bind(state[0] + ptx.ones(T.bitwise_and(all_taken, below))), place)
            ptx.put(state, 0, state[0] + ptx.ones(all_taken))
            ptx.put(state, 1, state[1] - ptx.ones(equal))


def votes(condition: Expr) -> Expr:
    """Return which lanes' conditions hold."""
    return T.bind(ptx.ballot(condition))
