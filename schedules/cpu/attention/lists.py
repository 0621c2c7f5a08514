"""Keys named by lists: blocks of positions, or single ones, in any order, -1 anywhere.

A unit is a run of neighbouring positions that lies in one block, one page and one tile. Tiles
take the units that some query sees in the order of the list; others leave no trace, so that the
cut into tiles and chunks depends on what is seen, not on the length of the list.
"""

from __future__ import annotations

from math import gcd
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.attention import Item, visible
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Plan
from wattune.schedules.cpu.attention.rows import Rows
from wattune.schedules.cpu.attention.streams import (
    HIDDEN,
    Stream,
    Tiles,
    sees_all,
)
from wattune.schedules.program import Tensors

Expr = Any


class Listed(Stream):
    """The keys of ``block_indices`` or ``token_indices``."""

    def __init__(self, plan: Plan, tensors: Tensors, counts: Region) -> None:
        """Choose the unit."""
        super().__init__(plan, tensors, counts)
        self.size = int(getattr(plan.problem, "block_size", 1))
        self.run = gcd(plan.block, self.size)
        if plan.problem.page_size:
            self.run = gcd(self.run, plan.problem.page_size)
        names = ("block_indices", "token_indices")
        self.list = next(tensors[name] for name in names if name in tensors.buffers)
        self.units = plan.block // self.run

    def _first(self, item: Item, unit: Expr) -> Expr:
        """Return the first position of a unit; negative where the list has none."""
        per = self.size // self.run
        at: list[Expr] = [item.request]
        if self.plan.items > 1 or getattr(self.plan.problem, "per_token", False):
            at.append(item.part)
        if len(self.list.shape) - len(at) > 1:
            at.append(item.head)
        block = T.bind(self.list[(*at, unit // per)])
        return T.bind(T.Select(block < 0, T.int32(-1), block * self.size + unit % per * self.run))

    def _total(self) -> Expr:
        """Return the units of a list, seen or not."""
        return T.cast(self.list.shape[-1], "int32") * (self.size // self.run)

    def _seen(self, item: Item, start: Expr) -> Expr:
        """Say whether some query of the item sees a position of a unit."""
        first, end = visible(self.plan, item)
        return T.And(T.And(start >= 0, start < end), start + self.run > first)

    def _place(self, item: Item) -> Expr:
        """Return the number of an item."""
        at = item.request * self.plan.problem.kv_heads + item.head
        return at * self.plan.items + item.part

    def prepare(self) -> None:
        """Count the units that are seen, of each item."""
        heads = self.plan.problem.kv_heads
        count = T.cast(self.tensors.sizes["batch"], "int32") * heads
        loop = T.parallel if self.plan.threads > 1 else T.serial
        with loop(count) as at, T.serial(self.plan.items) as part:
            length = T.bind(self.tensors["seq_lens"][at // heads])
            item = Item(at // heads, at % heads, part, length)
            found = _variable()
            found.store(0, T.int32(0))
            with T.serial(self._total()) as unit:
                seen = self._seen(item, self._first(item, unit))
                found.store(0, found.load(0) + T.cast(seen, "int32"))
            self.counts.store(self._place(item), found.load(0))

    def tiles(self, item: Item) -> Expr:
        """Read the count."""
        return (self.counts.load(self._place(item)) + (self.units - 1)) // self.units

    def begin(self, item: Item, first: Expr) -> None:
        """Skip the units of the tiles before."""
        self.cursor, skipped = _variable(), _variable()
        self.cursor.store(0, T.int32(0))
        if self.plan.splits == 1:
            return
        skipped.store(0, T.int32(0))
        with T.While(skipped.load(0) < first * self.units):
            seen = self._seen(item, self._first(item, self.cursor.load(0)))
            skipped.store(0, skipped.load(0) + T.cast(seen, "int32"))
            self.cursor.store(0, self.cursor.load(0) + 1)

    def build(self, item: Item, tile: Expr, into: Tiles) -> None:
        """Take units from the list until the tile is full, or the list at its end."""
        block = self.plan.block
        total = T.bind(self._total())
        taken = _variable()
        taken.store(0, T.int32(0))
        into.masked.store(1, T.int32(0))
        with T.While(T.And(taken.load(0) < self.units, self.cursor.load(0) < total)):
            start = self._first(item, self.cursor.load(0))
            with T.If(self._seen(item, start)), T.Then():
                self._take(item, start, into, taken.load(0) * self.run)
                partly = T.Not(sees_all(self.plan, item, start, start + self.run))
                into.masked.store(1, into.masked.load(1) + T.cast(partly, "int32"))
                taken.store(0, taken.load(0) + 1)
            self.cursor.store(0, self.cursor.load(0) + 1)
        count = T.bind(taken.load(0) * self.run)
        # Keys that are left out lie between those of other streams.
        into.counts.store(1, count if self.plan.streams == 1 else T.int32(block))
        with T.If(count < block), T.Then():
            self._fill(into, count)

    def _fill(self, into: Tiles, count: Expr) -> None:
        """Fill a tile that ``count`` keys leave open: hidden slots that repeat its first row."""
        block, streams = self.plan.block, self.plan.streams
        into.masked.store(1, T.int32(1))
        row = T.bind(into.rows.load(block))
        part = block // streams
        with T.serial(block - count) as i:
            key = T.bind(count + i)
            at = block + (key % part * streams + key // part if streams > 1 else key)
            into.rows.store(at, row)
            into.positions.store(at, T.int32(HIDDEN))

    def _take(self, item: Item, start: Expr, into: Tiles, key: Expr) -> None:
        """Name the rows of a unit; those that no query sees repeat one that is seen."""
        block, streams = self.plan.block, self.plan.streams
        rows = Rows(self.plan.problem, self.tensors, item.request, item.head)
        first, end = visible(self.plan, item)
        low = T.bind(T.max(first - start, T.int32(0)))
        high = T.bind(T.min(end - start, T.int32(self.run)) - 1)
        base = T.bind(rows.at(start + low))
        # Keys of a unit that stand in one stream.
        part = block // streams
        inner = gcd(self.run, part)
        with T.serial(self.run // inner) as i:
            number = T.bind(key + i * inner)
            at = T.bind(block + number % part * streams + number // part)
            with T.serial(inner) as j:
                inside = T.max(T.min(i * inner + j, high) - low, T.int32(0))
                slot = at + j * streams
                into.rows.store(slot, base + T.cast(inside, "int64") * rows.step)
                into.positions.store(slot, start + i * inner + j)


def _variable() -> Region:
    """Declare an int32 that can be changed."""
    return Region(vector.array(1, "int32"), 0, "int32")
