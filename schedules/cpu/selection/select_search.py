"""The n-th best of several lists at once, by false position, in step.

    while some list is open:                                            # a lane for each list:
        middle = low + (high - low) * lead / (lead + lag)
        for list: reaching = how many of its scores reach middle
        lead = reaching - n;  lead >= 0: low = middle;  else: high = middle - 1, lag = -lead

Where scores are the best ones already, their number falls about exponentially with the bound: its
`magnitude` is interpolated instead, about its logarithm, which takes fewer steps.

An end that stays twice in a row weighs half as much (the Illinois rule): a handful of steps for
most lists. Three steps in a row that do not halve the interval are followed by one to the middle
of the integers that order like floats, so that any list ends. A step is a chain of some twenty
dependent instructions and a count: lists one after the other would wait for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.lanes import INFINITY, Lanes, disordered, ordered
from wattune.schedules.cpu.tasks import ceildiv

Expr = Any
Buffer = Any
Scale = Callable[[Expr, int], Expr]

_WIDEST = 0xFFFFFFFF
# The fewest lists' lanes of a vector.
_LEAST = 4
# Steps that may be slow before one to the middle.
_SLOW = 3
# Vectors of a list are counted in multiples of this: loops of as many turns are well foretold.
UNROLL = 4
# A lane of each for a list; ``side`` is the end that the last step moved: 1 for low, 2 for high.
_STATE = ("low", "high", "above", "most", "slack", "vectors", "side", "slow")
_INTEGERS = (*_STATE, "counted", "middle", "reaching", "excess")
_FLOATS = ("lead", "lag", "bound")
_LOW, _HIGH = 1, 2
# The bits of 1.0.
_ONE = 0x3F800000


def number(count: Expr, lanes: int) -> Expr:
    """Return a count as a float."""
    return T.bind(T.cast(count, math.kind("float32", lanes)))


def magnitude(count: Expr, lanes: int) -> Expr:
    """Return a multiple of about log2 of a count above 0: the bits of the float it is."""
    bits = math.as_integer(number(count, lanes), lanes)
    return number(T.bind(bits - math.integer(_ONE, lanes)), lanes)


class Search:
    """Emits the search in up to ``count`` lists of a buffer of scores."""

    def __init__(self, values: Buffer, lanes: Lanes, count: int) -> None:
        """Declare the state."""
        self.values, self.lanes = values, lanes
        self._scale: Scale = number
        self.state = state = Lanes(max(count, _LEAST), lanes.tables)
        self._held = {name: vector.array(state.count, "int32") for name in _INTEGERS}
        self._held.update({name: vector.array(state.count, "float32") for name in _FLOATS})
        self._before = vector.array(state.count, "uint32")
        self._starts = vector.array(state.count, "int64")

    def clear(self, scale: Scale) -> None:
        """Emit that nothing is searched; what is, is found by interpolating scaled counts."""
        self._scale = scale
        for name in ("low", "high", "vectors", "side", "slow"):
            self._store(name, self.state.each_int(0))

    def open(self, which: Expr, start: Expr, size: Expr, most: Expr, slack: Expr) -> None:
        """Emit that list ``which`` is searched: ``size`` scores from ``start`` on.

        For the greatest score that ``most`` <= size scores reach, or one that at most ``slack``
        more scores reach. `UNROLL` vectors after the list are overwritten.
        """
        lanes = self.lanes
        vectors, end = T.bind(ceildiv(size, lanes.count)), T.bind(start + size)
        # Lanes beyond the end repeat the first score, but do not count.
        vector.store(self.values, [end], lanes.splat(T.bind(self.values[start])))
        low, high = (ordered(extreme) for extreme in self._extremes(start, vectors))
        for i in range(UNROLL):
            vector.store(self.values, [end + i * lanes.count], lanes.each(-INFINITY))
        enough = size - most <= slack
        entries = {"low": low, "high": T.Select(enough, low, high), "above": T.int32(0)}
        entries.update(most=most, slack=slack, vectors=ceildiv(vectors, UNROLL) * UNROLL)
        wanted = self._scale(most, 1)
        if self.lanes.tables:
            entries.update(excess=size - most)
        entries.update(lead=self._scale(size, 1) - wanted, lag=wanted)
        for name, value in entries.items():
            vector.store(self._held[name], [which], value)
        vector.store(self._starts, [which], start)

    def run(self, lists: Expr) -> None:
        """Emit the search in all that are open, of the first ``lists`` ones."""
        state, remaining = self.state, vector.array(1, "int32")
        vector.store(self._before, [0], T.broadcast(T.uint32(_WIDEST), state.count))
        vector.store(remaining, [0], self._open())
        with T.While(remaining[0] > 0):
            self._aim()
            with T.serial(lists) as which:
                vector.store(self._held["reaching"], [which], self._reaching(which))
            self._narrow()
            vector.store(remaining, [0], self._open())

    def found(self, which: Expr) -> Expr:
        """Return the score that was found."""
        return T.bind(disordered(T.bind(self._held["low"][which])))

    def above(self, which: Expr) -> Expr:
        """Return how many scores are known to lie above it."""
        return T.bind(self._held["above"][which])

    def exact(self, which: Expr) -> Expr:
        """Say whether no more scores reach it than were asked for; known with tables only."""
        return self._held["excess"][which].equal(0)

    def used(self, which: Expr) -> Expr:
        """Say whether a list was searched."""
        return self._held["vectors"][which] > 0

    def _load(self, name: str) -> Expr:
        kind = self.state.f32 if name in _FLOATS else self.state.i32
        return T.bind(self._held[name].vload([0], kind))

    def _store(self, name: str, value: Expr) -> None:
        vector.store(self._held[name], [0], value)

    def _open(self) -> Expr:
        """Return how many lists are open."""
        return self.state.counted(self._load("low") < self._load("high"))

    def _aim(self) -> None:
        """Emit where the next step goes, and which lists are counted."""
        state, none = self.state, self.state.each_int(0)
        u32, count = f"uint32x{state.count}", state.count
        low, high, lead = (self._load(name) for name in ("low", "high", "lead"))
        least, share = T.bind(disordered(low, count)), lead / (lead + self._load("lag"))
        spread = T.bind(disordered(high, count) - least)
        guess = ordered(T.bind(vector.multiply_add(spread, T.bind(share), least)), count)
        width = T.bind(T.reinterpret(u32, high) - T.reinterpret(u32, low))
        one = T.broadcast(T.uint32(1), count)
        half = T.bind(T.reinterpret(state.i32, T.shift_right(width, one)))
        before = T.bind(T.shift_right(self._before.vload([0], u32), one))
        slow = T.bind(T.Select(width > before, self._load("slow") + state.each_int(1), none))
        vector.store(self._before, [0], width)
        self._store("slow", T.Select(slow > state.each_int(_SLOW), none, slow))
        middle = T.bind(T.Select(slow > state.each_int(_SLOW), low + half, guess))
        # A guess is anything where scores are infinite.
        middle = T.bind(T.min(T.max(middle, low + state.each_int(1)), high))
        self._store("middle", middle)
        self._store("bound", disordered(middle, count))
        self._store("counted", T.Select(low < high, self._load("vectors"), none))

    def _narrow(self) -> None:
        """Emit the step, in lists that are open."""
        state = self.state
        low, high, middle = (self._load(name) for name in ("low", "high", "middle"))
        reaching, side = self._load("reaching"), self._load("side")
        most, zero = self._load("most"), state.each_int(0)
        excess = T.bind(reaching - most)
        distance = T.bind(self._scale(reaching, state.count) - self._scale(most, state.count))

        def raised() -> Expr:
            return T.bitwise_and(low < high, excess >= zero)

        def lowered() -> Expr:
            return T.bitwise_and(low < high, excess < zero)

        def weight(name: str, stayed: int) -> Expr:
            again = side.equal(state.each_int(stayed))
            return self._load(name) * T.Select(again, state.each(0.5), state.each(1.0))

        self._store("lead", T.Select(excess >= zero, distance, weight("lead", _HIGH)))
        self._store("lag", T.Select(excess < zero, state.each(0.0) - distance, weight("lag", _LOW)))
        sides = T.Select(excess >= zero, state.each_int(_LOW), state.each_int(_HIGH))
        self._store("side", sides)
        # Just so many: no need to know how close the next one is.
        enough = T.bitwise_and(raised(), excess <= self._load("slack"))
        lower = T.Select(lowered(), middle - state.each_int(1), high)
        self._store("high", T.Select(enough, middle, lower))
        self._store("above", T.Select(lowered(), reaching, self._load("above")))
        self._store("low", T.Select(raised(), middle, low))
        if self.lanes.tables:
            self._store("excess", T.Select(raised(), excess, self._load("excess")))

    def _reaching(self, which: Expr) -> Expr:
        """Return how many scores of a list reach the middle."""
        if self.lanes.tables:
            return self._reaching_in_lanes(which)
        lanes, total = self.lanes, vector.array(1, "int32")
        bound, start = T.bind(self._held["bound"][which]), T.bind(self._starts[which])
        vector.store(total, [0], T.int32(0))
        # One at a time: LLVM would count the bits of several masks in vectors, which is slower.
        with T.serial(self._held["counted"][which]) as step:
            scores = self.values.vload([start + step * lanes.count], lanes.f32)
            vector.store(total, [0], total[0] + lanes.counted(scores >= lanes.splat(bound)))
        return T.bind(total[0])

    def _reaching_in_lanes(self, which: Expr) -> Expr:
        """Return the same; truth is -1 in a lane: two instructions a vector instead of four."""
        lanes = self.lanes
        bound, start = T.bind(self._held["bound"][which]), T.bind(self._starts[which])
        sums = [vector.array(lanes.count, "int32") for _ in range(UNROLL)]
        for each in sums:
            vector.store(each, [0], lanes.each_int(0))
        with T.serial(T.truncdiv(self._held["counted"][which], UNROLL)) as step:
            for i, each in enumerate(sums):
                at = T.bind(start + (step * UNROLL + i) * lanes.count)
                reached = self.values.vload([at], lanes.f32) >= lanes.splat(bound)
                one = T.Select(reached, lanes.each_int(-1), lanes.each_int(0))
                vector.store(each, [0], each.vload([0], lanes.i32) - one)
        parts = [each.vload([0], lanes.i32) for each in sums]
        return T.bind(lanes.total(T.bind((parts[0] + parts[1]) + (parts[2] + parts[3]))))

    def _extremes(self, start: Expr, vectors: Expr) -> tuple[Expr, Expr]:
        """Return the least and the greatest score of a list."""
        lanes = self.lanes
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
