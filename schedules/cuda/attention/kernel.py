"""The main kernel: a block attends to one split of an item's keys.

for tile in the split's keys, of each team:          # fetched `stages` - 1 tiles ahead, or by
    s = K q^T;  mask;  p = softmax so far;           # a producer as slots become free
    acc = acc * shrink + V^T p
merge the teams;  out = acc / l, or, of several splits, (m, l, acc) to the workspace
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.keys import Dense, Keys, Listed
from wattune.schedules.cuda.attention.place import Place, chunks_of
from wattune.schedules.cuda.attention.plan import SWIZZLED, Plan
from wattune.schedules.cuda.attention.products import Products, products_of
from wattune.schedules.cuda.attention.queries import Queries
from wattune.schedules.cuda.attention.ring import Bulk, Ring, ring_of
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
        self.shared = Shared.of(plan.shared.bytes, SWIZZLED if plan.grouped else 128)
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
        teams = Teams(plan, place, self.shared)
        if isinstance(ring, Bulk) and plan.producer:
            self._apart(keys, ring, queries, softmax, products)
        else:
            queries.hold()
            self._stream(keys, ring, softmax, products)
            softmax.finish()
        ring.end()
        ptx.block_barrier()
        with self._consumers():
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
        if bulk and not self.plan.producer:
            ptx.block_barrier()
        if not self.plan.producer:
            self._first(keys, ring)
        ptx.copies_wait(0 if bulk else self.plan.stages - 1)
        ptx.block_barrier()

    def _first(self, keys: Keys, ring: Ring) -> None:
        """Emit the fetches of a team's first tiles."""
        with T.If(keys.count > 0), T.Then():
            keys.name(T.int32(0), self.place.team)
        for slot in range(self.plan.stages - 1):
            with T.If(keys.count > slot), T.Then():
                self._fetch(keys, ring, T.int32(slot), T.int32(slot))
            ring.fetched()

    def _fetch(self, keys: Keys, ring: Ring, tile: Expr, slot: Expr) -> None:
        """Begin to fetch the tile that has been named, and name the next one."""
        team = self.place.team
        ring.fetch(slot, team, keys.row[0], keys.some())
        keys.keep(slot, team)
        keys.name(tile + 1, team)

    @contextmanager
    def _consumers(self) -> Iterator[None]:
        """Emit what a producer has no part in."""
        if not self.plan.producer:
            yield
            return
        with T.If(self.place.team < self.plan.teams), T.Then():
            yield

    def _apart(
        self, keys: Keys, ring: Bulk, queries: Queries, softmax: Softmax, products: Products
    ) -> None:
        """Emit the loops of the teams and of the producer."""
        with T.If(self.place.team < self.plan.teams):
            with T.Then():
                queries.hold()
                self._consume(keys, ring, softmax, products)
                softmax.finish()
            with T.Else():
                self._produce(keys, ring)

    def _produce(self, keys: Keys, ring: Bulk) -> None:
        """Emit the loop over tiles of all teams; the next one is named while slots are waited for.

        A tile's positions are stored before its barrier is arrived at, which shows them.
        """
        teams, stages = self.plan.teams, self.plan.stages
        with T.If(keys.count > 0), T.Then():
            keys.name(T.int32(0), T.int32(0))
        with T.serial(keys.count * teams) as number:
            tile, team = T.bind(number // teams), T.bind(number % teams)
            slot, turn = T.bind(tile % stages), T.bind(tile // stages)
            with T.If(turn > 0), T.Then():
                ring.wait_left(slot, team, (turn + 1) % 2)
            keys.keep(slot, team)
            ptx.warp_barrier()
            ring.fetch(slot, team, keys.row[0], keys.some())
            keys.name(T.bind((number + 1) // teams), T.bind((number + 1) % teams))

    def _consume(self, keys: Keys, ring: Bulk, softmax: Softmax, products: Products) -> None:
        """Emit a team's loop over its tiles."""
        with T.serial(keys.count) as tile:
            slot = T.bind(tile % self.plan.stages)
            ring.wait(slot, tile // self.plan.stages % 2)
            self._tile(keys, ring, tile, slot, softmax, products)
            ring.leave(slot)

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
            self._tile(keys, ring, tile, slot, softmax, products)

    def _tile(
        self,
        keys: Keys,
        ring: Ring,
        tile: Expr,
        slot: Expr,
        softmax: Softmax,
        products: Products,
    ) -> None:
        """Emit one tile of a warp; nothing where no query sees a key of it."""
        keys.begin(tile, slot)
        row = ring.row(slot, self.place.team)
        some = keys.any()
        if some is None:
            self._multiply(keys, row, softmax, products)
        else:
            with T.If(some), T.Then():
                self._multiply(keys, row, softmax, products)

    def _multiply(self, keys: Keys, row: Expr, softmax: Softmax, products: Products) -> None:
        """Emit the products of a tile from a row of the ring on, and the softmax between them."""
        first = T.bind(row)
        scores = products.scores(first)
        softmax.emit(scores, keys)
        products.add(first, scores, softmax.shrink)
