"""The best choices of a token, in order.

    bound = the top_k-th greatest of the maxima of some groups     # top_k choices reach it
    list = what reaches the bound, in order of experts             # without a bound: all
    a short list: rank every entry, put it in its place
    a longer one: top_k times, take the first of the greatest

Order is by value, then by the lowest id. A row is never sorted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import INFINITY, Lanes, disordered
from wattune.schedules.cpu.routing import bits
from wattune.schedules.cpu.routing.plan import Plan, Rows
from wattune.schedules.cpu.routing.ranks import ranks
from wattune.schedules.cpu.tasks import ceildiv

Expr = Any

_TAKEN = -0x80000000
_NO_LANE = 0x7FFFFFFF


@dataclass(frozen=True)
class Best:
    """Emits the search for a token's best choices: ``best`` and ``best_ids`` of its rows."""

    plan: Plan
    rows: Rows

    @property
    def lanes(self) -> Lanes:
        """Return the vectors of experts."""
        return Lanes(self.plan.lanes)

    def steps(self) -> tuple[Callable[[], None], ...]:
        """Return what emits the steps of the search, each for a token."""
        if not self.plan.groups:
            return (self._search_all,)
        return (self._group, self._list, self._rank)

    def _search_all(self) -> None:
        self._search("choices", T.int32(self.plan.routing.num_experts), listed=False)

    def _choice(self, at: int) -> Expr:
        return self.rows.numbers("choices", at * self.lanes.count, self.lanes.f32)

    def _group(self) -> None:
        """Write the maxima of groups of choices."""
        lanes, groups = self.lanes, self.plan.groups
        for group in range(groups):
            members = [T.bind(self._choice(at)) for at in range(group, self.plan.vectors, groups)]
            while len(members) > 1:
                pairs = [members[i : i + 2] for i in range(0, len(members), 2)]
                members = [T.bind(T.max(*pair)) if len(pair) > 1 else pair[0] for pair in pairs]
            self.rows.put("maxima", group * lanes.count, members[0])

    def _bound(self) -> Expr:
        """Return what at least ``top_k`` choices reach."""
        lanes, top_k = self.lanes, self.plan.routing.top_k
        found = ranks(self.rows, "maxima", self.plan.groups, lanes, ties=False)
        least = lanes.each(INFINITY)
        for at, rank in enumerate(found):
            value = self.rows.numbers("maxima", at * lanes.count, lanes.f32)
            among = T.Select(rank < lanes.each_int(top_k), value, lanes.each(INFINITY))
            least = T.bind(T.min(least, among))
        return lanes.least(least)

    def _list(self) -> None:
        """List the choices that reach the bound and their ids."""
        bound = T.bind(self.lanes.splat(self._bound()))
        size = vector.array(1, "int32")
        vector.store(size, [0], T.int32(0))
        if self.plan.compress:
            self._compress(bound, size)
        else:
            self._one_by_one(bound, size)
        self.rows.put("size", 0, size[0])

    def _compress(self, bound: Expr, size: Any) -> None:
        """Put what reaches the bound to the front of each vector; no branch to be guessed."""
        lanes, experts = self.lanes, self.plan.routing.num_experts
        for at in range(self.plan.vectors):
            first, choices = at * lanes.count, T.bind(self._choice(at))

            def reached(first: int = first, choices: Expr = choices) -> Expr:
                found = choices >= bound
                # Lanes beyond the last expert hold -inf, which a bound may be.
                inside = lanes.below(T.int32(experts - first))
                return found if first + lanes.count <= experts else T.bitwise_and(found, inside)

            here = T.bind(size[0])
            ids = T.ramp(T.int32(first), 1, lanes.count)
            self.rows.put("values", here, T.bind(lanes.compressed(choices, reached())))
            self.rows.put("ids", here, T.bind(lanes.compressed(ids, reached())))
            word = bits.reaching(choices, bound)
            if first + lanes.count > experts:
                word = T.bitwise_and(word, T.int64((1 << experts - first) - 1))
            vector.store(size, [0], here + T.cast(T.popcount(word), "int32"))

    def _one_by_one(self, bound: Expr, size: Any) -> None:
        """Take the lowest bit of what reaches the bound until none is left."""
        lanes, word = self.lanes, vector.array(1, "int64")
        for first in range(0, self.plan.vectors * lanes.count, bits.WORD):
            found = T.int64(0)
            for at in range(
                0, min(bits.WORD, self.plan.vectors * lanes.count - first), lanes.count
            ):
                reached = bits.reaching(self._choice((first + at) // lanes.count), bound)
                found = T.bitwise_or(found, T.shift_left(reached, T.int64(at)))
            if (rest := self.plan.routing.num_experts - first) < bits.WORD:
                # Lanes beyond the last expert hold -inf, which a bound may be.
                found = T.bitwise_and(found, T.int64((1 << rest) - 1))
            vector.store(word, [0], found)
            with T.While(word[0] != T.int64(0)):
                expert = T.bind(bits.first_bit(word[0]) + first)
                value = self.rows.numbers("choices", expert, "float32")
                self.rows.put("values", size[0], value)
                self.rows.put("ids", size[0], expert)
                vector.store(size, [0], size[0] + 1)
                vector.store(word, [0], T.bitwise_and(word[0], word[0] - T.int64(1)))

    def _rank(self) -> None:
        """Put every entry of a short list in its place; search a longer one."""
        size = T.bind(self.rows.integers("size", 0, "int32"))
        with T.If(size <= self.plan.ranked):
            with T.Then():
                self._place(size)
            with T.Else():
                self._search("values", size, listed=True)

    def _place(self, size: Expr) -> None:
        """Put entries in their places: as many come before as are greater, or equal and earlier."""
        lanes, parts = self.lanes, range(0, self.plan.ranked, self.lanes.count)
        # Entries beyond the end come last.
        listed = []
        for at in parts:
            values = self.rows.numbers("values", at, lanes.f32)
            listed.append(T.Select(lanes.below(size - at), values, lanes.each(-INFINITY)))
        listed = [T.bind(values) for values in listed]
        with T.serial(size) as entry:
            value = T.bind(self.rows.numbers("values", entry, "float32"))
            earlier = T.bind(T.shift_left(T.int64(1), T.cast(entry, "int64")) - T.int64(1))
            place = T.int32(0)
            for at, values in zip(parts, listed, strict=True):
                every = T.bind(lanes.splat(value))
                greater, reaching = bits.above(values, every), bits.reaching(values, every)
                equal = T.bitwise_and(reaching, T.shift_right(earlier, T.int64(at)))
                before = T.popcount(T.bitwise_or(greater, equal))
                place = place + T.cast(before, "int32")
            place = T.bind(place)
            self.rows.put("best", place, value)
            self.rows.put("best_ids", place, self._id(entry))

    def _search(self, name: str, size: Expr, listed: bool) -> None:
        """Take the first of the greatest entries of a row, ``top_k`` times."""
        lanes = self.lanes
        vectors = T.bind(ceildiv(size, lanes.count))
        taken = lanes.each_int(_TAKEN)
        # Integers in the order of the choices: one is left for what is taken.
        with T.serial(vectors) as step:
            at = T.bind(step * lanes.count)
            bits = T.bind(self.rows.integers(name, at, lanes.i32))
            less = lanes.each_int(0) - T.bitwise_and(bits, lanes.each_int(0x7FFFFFFF))
            keys = T.bind(T.Select(bits >= lanes.each_int(0), bits, less))
            self.rows.put(name, at, T.Select(lanes.below(size - at), keys, taken))
        with T.serial(self.plan.routing.top_k) as place:
            found, key = self._greatest(name, vectors)
            self.rows.put("best", place, disordered(key))
            self.rows.put("best_ids", place, self._id(found) if listed else found)
            self.rows.put(name, found, T.int32(_TAKEN))

    def _id(self, at: Expr) -> Expr:
        return self.rows.integers("ids", at, "int32")

    def _greatest(self, name: str, vectors: Expr) -> tuple[Expr, Expr]:
        """Return where the first of the greatest keys is, and the key."""
        lanes = self.lanes
        best, where = (vector.array(lanes.count, "int32") for _ in range(2))
        vector.store(best, [0], lanes.each_int(_TAKEN))
        vector.store(where, [0], lanes.each_int(0))
        with T.serial(vectors) as step:
            at = T.bind(step * lanes.count)
            keys, old = T.bind(self.rows.integers(name, at, lanes.i32)), best.vload([0], lanes.i32)
            here = T.bind(T.ramp(at, 1, lanes.count))
            places = T.Select(keys > old, here, where.vload([0], lanes.i32))
            vector.store(where, [0], places)
            vector.store(best, [0], T.max(keys, best.vload([0], lanes.i32)))
        keys = T.bind(best.vload([0], lanes.i32))
        key = T.bind(vector._intrinsic("llvm.vector.reduce.smax", "int32", keys))
        equal = keys.equal(lanes.splat(key))
        places = T.Select(equal, where.vload([0], lanes.i32), lanes.each_int(_NO_LANE))
        return T.bind(vector._intrinsic("llvm.vector.reduce.smin", "int32", places)), key
