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
from wattune.schedules.cpu.routing.plan import Plan, Rows
from wattune.schedules.cpu.routing.ranks import ranks
from wattune.schedules.cpu.selection.base import ceildiv
from wattune.schedules.cpu.selection.select_lanes import INFINITY, Lanes

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
        return (self._group, self._list, self._rank, self._place)

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
        found = ranks(self.rows, "maxima", self.plan.groups, lanes)
        least = lanes.each(INFINITY)
        for at, rank in enumerate(found):
            value = self.rows.numbers("maxima", at * lanes.count, lanes.f32)
            among = T.Select(rank < lanes.each_int(top_k), value, lanes.each(INFINITY))
            least = T.bind(T.min(least, among))
        return lanes.least(least)

    def _list(self) -> None:
        """List the choices that reach the bound and their ids."""
        lanes, size = self.lanes, vector.array(1, "int32")
        vector.store(size, [0], T.int32(0))
        every = T.bind(lanes.splat(self._bound()))
        ids = vector.array(lanes.count, "int32")
        vector.store(ids, [0], T.ramp(T.int32(0), 1, lanes.count))
        for at in range(self.plan.vectors):
            values, names = T.bind(self._choice(at)), T.bind(ids.vload([0], lanes.i32))
            reached = values >= every
            rest = self.plan.routing.num_experts - at * lanes.count
            if rest < lanes.count:
                # Lanes beyond the last expert hold -inf, which a bound may be.
                reached = T.bitwise_and(reached, lanes.below(T.int32(rest)))
            self.rows.put("values", size[0], lanes.compressed(values, reached))
            self.rows.put("ids", size[0], lanes.compressed(names, reached))
            vector.store(size, [0], size[0] + lanes.counted(reached))
            vector.store(ids, [0], names + lanes.each_int(lanes.count))
        self.rows.put("size", 0, size[0])

    def _rank(self) -> None:
        """Rank the entries of a short list; those beyond its end come last."""
        lanes, plan = self.lanes, self.plan
        size = T.bind(self._size())
        with T.If(size <= plan.ranked), T.Then():
            for at in range(0, plan.ranked, lanes.count):
                values = self.rows.numbers("values", at, lanes.f32)
                within = lanes.below(size - at)
                self.rows.put("values", at, T.Select(within, values, lanes.each(-INFINITY)))
            found = ranks(self.rows, "values", plan.ranked // lanes.count, lanes)
            for at, rank in enumerate(found):
                self.rows.put("places", at * lanes.count, rank)

    def _size(self) -> Expr:
        return self.rows.integers("size", 0, "int32")

    def _place(self) -> None:
        """Put the entries of a short list in their places; search a longer one."""
        size = T.bind(self._size())
        with T.If(size <= self.plan.ranked):
            with T.Then():
                for entry in range(self.plan.ranked):
                    place = T.bind(self.rows.integers("places", entry, "int32"))
                    self.rows.put("best", place, self.rows.numbers("values", entry, "float32"))
                    self.rows.put("best_ids", place, self._id(entry))
            with T.Else():
                self._search("values", size, listed=True)

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
            self.rows.put("best", place, lanes.disordered(key))
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
