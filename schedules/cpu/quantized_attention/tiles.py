"""Which tiles an item attends to, in order: those of its visible keys, or of listed blocks.

Tile g holds the positions g * tile to (g + 1) * tile, of which ``low`` to ``high`` are attended
to. It lies in a packed block, or in the residual, which starts at a tile. Tiles of a list are
described a few ahead of the one in work, in a ring, so that any of them can be prefetched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.attention import Item
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.quantized_attention.plan import RING, QuantizedPlan
from wattune.schedules.program import Tensors

Expr = Any


@dataclass(frozen=True)
class Tile:
    """A tile's number, and the positions that are attended to."""

    number: Expr
    low: Expr
    high: Expr


class TileStream(ABC):
    """The tiles of items."""

    def __init__(self, plan: QuantizedPlan, tensors: Tensors, counts: Region) -> None:
        """Keep what tiles are made of; ``counts`` are for the tiles of each item."""
        self.plan = plan
        self.tensors = tensors
        self.counts = counts

    def _first(self, item: Item) -> Expr:
        """Return the first position that some query sees."""
        problem = self.plan.problem
        if not problem.window:
            return T.int32(0)
        return T.max(item.length - (problem.window + problem.query_tokens - 1), T.int32(0))

    @abstractmethod
    def prepare(self) -> None:
        """Emit what must run before `tiles`."""

    @abstractmethod
    def tiles(self, item: Item) -> Expr:
        """Return how many tiles an item has."""

    @abstractmethod
    def begin(self, item: Item, first: Expr, end: Expr) -> None:
        """Emit what must run before `tile` is called for ``first`` to ``end`` in order."""

    @abstractmethod
    def tile(self, item: Item, at: Expr) -> Tile:
        """Return a tile by its place in the item."""

    def ahead(self, item: Item, at: Expr, tiles: int) -> Expr:
        """Return the number of the tile so many (at most the plan's) behind the one at a place.

        One of the cache, where nothing else may be prefetched.
        """
        number = self._behind(item, at, tiles)
        if not self.plan.inside:
            return number
        blocks = T.cast(self.tensors.sizes["packed_blocks"], "int32")
        last = blocks * (self.plan.problem.block_tokens // self.plan.tile) - 1
        return T.max(T.min(number, last), T.int32(0))

    @abstractmethod
    def _behind(self, item: Item, at: Expr, tiles: int) -> Expr:
        """Return the number of a tile further on, which may lie beyond the packed blocks."""


class DenseTiles(TileStream):
    """All keys that some query sees."""

    def prepare(self) -> None:
        """Do nothing: a length says it all."""

    def tiles(self, item: Item) -> Expr:
        """Count whole tiles and parts."""
        size = self.plan.tile
        first = self._first(item) // size
        return (item.length + (size - 1)) // size - first

    def begin(self, item: Item, first: Expr, end: Expr) -> None:
        """Do nothing: a tile's place says where it is."""

    def tile(self, item: Item, at: Expr) -> Tile:
        """Return the tile at a place."""
        first = T.bind(self._first(item))
        return Tile(T.bind(first // self.plan.tile + at), first, item.length)

    def _behind(self, item: Item, at: Expr, tiles: int) -> Expr:
        """Return a tile further on."""
        return self._first(item) // self.plan.tile + at + tiles


class ListedTiles(TileStream):
    """The keys of listed blocks that some query sees."""

    def __init__(self, plan: QuantizedPlan, tensors: Tensors, counts: Region) -> None:
        """Keep the lists."""
        super().__init__(plan, tensors, counts)
        self.lists = tensors["block_indices"]
        self.entries = T.cast(tensors.sizes["max_blocks"], "int32")

    def prepare(self) -> None:
        """Count the tiles of each list."""
        heads = self.plan.problem.kv_heads
        batch = T.cast(self.tensors.sizes["batch"], "int32")
        with T.grid(batch, heads) as (request, head):
            item = Item(request, head, 0, T.bind(self.tensors["seq_lens"][request]))
            total = Region(vector.array(1, "int32"), 0, "int32")
            total.store(0, T.int32(0))
            with T.serial(self.entries) as entry:
                *_, first, end = self._entry(item, entry)
                total.store(0, total.load(0) + T.max(end - first, T.int32(0)))
            self.counts.store(request * heads + head, total.load(0))

    def tiles(self, item: Item) -> Expr:
        """Return the count."""
        return self.counts.load(item.request * self.plan.problem.kv_heads + item.head)

    def _entry(self, item: Item, entry: Expr) -> tuple[Expr, Expr, Expr, Expr]:
        """Return the positions of a listed block that are seen, and its tiles."""
        size, tile = self.plan.problem.block_size, self.plan.tile
        block = T.bind(self.lists[item.request, item.head, entry])
        # In 64 bits: a block may lie far beyond the request.
        start = T.bind(T.cast(block, "int64") * size)
        visible = T.cast(self._first(item), "int64")
        length = T.cast(item.length, "int64")
        low = T.bind(T.cast(T.min(T.max(start, visible), length), "int32"))
        high = T.bind(T.cast(T.max(T.min(start + size, length), T.int64(0)), "int32"))
        some = T.And(block >= 0, low < high)
        end = T.bind(T.Select(some, (high + (tile - 1)) // tile, low // tile))
        return low, high, T.bind(low // tile), end

    def begin(self, item: Item, first: Expr, end: Expr) -> None:
        """Find the first tile and describe the next ones."""
        # Entry and place within it of the next tile to describe, how many are described.
        self.cursor = Region(vector.array(4, "int32"), 0, "int32")
        self.ring = Region(vector.array(3 * RING, "int32"), 0, "int32")
        cursor, skip = self.cursor, first
        cursor.store(0, T.int32(0))
        cursor.store(1, skip)
        cursor.store(2, first)
        cursor.store(3, end)
        with T.serial(T.min(T.int32(self.plan.ahead), end - first)):
            self._describe(item)

    def _describe(self, item: Item) -> None:
        """Describe the next tile; there is one."""
        cursor, ring = self.cursor, self.ring
        found = Region(vector.array(1, "int32"), 0, "int32")
        found.store(0, T.int32(0))
        with T.While(found.load(0) == 0):
            low, high, first, end = self._entry(item, cursor.load(0))
            at = T.bind(first + cursor.load(1))
            with T.If(at < end):
                with T.Then():
                    slot = T.bind(cursor.load(2) % RING * 3)
                    for i, value in enumerate((at, low, high)):
                        ring.store(slot + i, value)
                    cursor.store(1, cursor.load(1) + 1)
                    cursor.store(2, cursor.load(2) + 1)
                    found.store(0, T.int32(1))
                with T.Else():
                    cursor.store(1, T.bind(at - end))
                    cursor.store(0, cursor.load(0) + 1)

    def tile(self, item: Item, at: Expr) -> Tile:
        """Return the tile at a place, and describe another one."""
        with T.If(self.cursor.load(2) < self.cursor.load(3)), T.Then():
            self._describe(item)
        slot = T.bind(at % RING * 3)
        return Tile(*(T.bind(self.ring.load(slot + i)) for i in range(3)))

    def _behind(self, item: Item, at: Expr, tiles: int) -> Expr:
        """Return a tile that is described already."""
        last = self.cursor.load(2) - 1
        return self.ring.load(T.min(at + tiles, last) % RING * 3)
