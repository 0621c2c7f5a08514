"""The main kernel: a block attends to one split of an item's keys.

for tile in the split's keys, of each team:          # fetched `stages` - 1 tiles ahead
    s = K q^T;  mask;  p = softmax so far;  acc = acc * shrink + V^T p
merge the teams;  out = acc / l, or, of several splits, (m, l, acc) to the workspace
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.keys import Dense, Keys, Listed
from wattune.schedules.cuda.attention.place import Place, chunks_of
from wattune.schedules.cuda.attention.plan import Plan
from wattune.schedules.cuda.attention.products import Products, products_of
from wattune.schedules.cuda.attention.queries import Queries
from wattune.schedules.cuda.attention.ring import Ring, ring_of
from wattune.schedules.cuda.attention.softmax import Softmax
from wattune.schedules.cuda.attention.splits import Splits
from wattune.schedules.cuda.attention.teams import Teams
from wattune.schedules.cuda.attention.work import Work
from wattune.schedules.cuda.kernel import Block, Shared

Expr = Any


class Attend:
    """Emits the main kernel of a plan."""

    def __init__(self, plan: Plan) -> None:
        """Keep the plan."""
        self.plan = plan

    def emit(self, block: Block) -> None:
        """Emit the kernel; blocks of splits that an item does not have end at once."""
        plan = self.plan
        self.shared = Shared.of(plan.shared.bytes)
        if plan.dependent and plan.splits > 1 and plan.combine == "kernel":
            ptx.let_next_start()
        if plan.grid:
            self._pieces(block)
            return
        self.place = Place.of(plan, block)
        if plan.listed or plan.splits == 1:
            self._work()
            return
        _, chunks = chunks_of(plan, self.place.first, self.place.end)
        with T.If(self.place.split < chunks), T.Then():
            self._work()

    def _pieces(self, block: Block) -> None:
        """Emit the work of a block that takes one split after the other."""
        work = Work(self.plan, block)
        with T.serial(work.count) as turn:
            self.place = work.place(turn)
            ring = self._work()
            ptx.block_barrier()
            ring.close()

    def _work(self) -> Ring:
        """Emit the work on a split."""
        plan, place = self.plan, self.place
        keys: Keys = (Listed if plan.listed else Dense)(place, self.shared)
        ring = ring_of(place, self.shared)
        queries = Queries(plan, place, self.shared)
        self._begin(keys, ring, queries)
        softmax = Softmax(plan, place)
        products = products_of(plan, place, ring, queries)
        self._stream(keys, ring, softmax, products)
        softmax.finish()
        ring.end()
        ptx.block_barrier()
        teams = Teams(plan, place, self.shared)
        teams.spread(softmax, products)
        ptx.block_barrier()
        teams.gather(keys.chunks)
        if plan.splits > 1 and plan.combine == "last":
            Splits(plan, place.block, place.item).last(place, self.shared, keys.chunks)
        return ring

    def _begin(self, keys: Keys, ring: Ring, queries: Queries) -> None:
        """Emit the first fetches, and the queries."""
        bulk = self.plan.copies == "bulk"
        queries.fetch()
        ptx.copies_end()
        ring.begin()
        if bulk:
            ptx.block_barrier()
        with T.If(keys.count > 0), T.Then():
            keys.name(T.int32(0))
        for slot in range(self.plan.stages - 1):
            with T.If(keys.count > slot), T.Then():
                self._fetch(keys, ring, T.int32(slot), T.int32(slot))
            ring.fetched()
        ptx.copies_wait(0 if bulk else self.plan.stages - 1)
        ptx.block_barrier()
        queries.hold()

    def _fetch(self, keys: Keys, ring: Ring, tile: Expr, slot: Expr) -> None:
        """Begin to fetch the tile that has been named, and name the next one."""
        ring.fetch(slot, keys.row[0], keys.some())
        keys.keep(slot)
        keys.name(tile + 1)

    def _stream(self, keys: Keys, ring: Ring, softmax: Softmax, products: Products) -> None:
        """Emit the loop over tiles: one is fetched into the slot that the last one has left."""
        ahead = self.plan.stages - 1
        with T.serial(keys.count) as tile:
            slot = T.bind(tile % self.plan.stages)
            ring.wait(slot, tile // self.plan.stages % 2)
            ring.barrier()
            with T.If(tile + ahead < keys.count), T.Then():
                following = T.bind((tile + ahead) % self.plan.stages)
                self._fetch(keys, ring, tile + ahead, following)
            ring.fetched()
            keys.begin(tile, slot)
            some = keys.any()
            if some is None:
                self._tile(keys, ring.row(slot), softmax, products)
            else:
                with T.If(some), T.Then():
                    self._tile(keys, ring.row(slot), softmax, products)

    def _tile(self, keys: Keys, row: Expr, softmax: Softmax, products: Products) -> None:
        """Emit one tile of a warp."""
        first = T.bind(row)
        scores = products.scores(first)
        softmax.emit(scores, keys)
        products.add(first, scores, softmax.shrink)
