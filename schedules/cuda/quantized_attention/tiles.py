"""Which tiles of packed tokens a request has, and which of their tokens are attended to.

A tile lies in one packed block. Tiles of lists are made a place each, as many for each entry as a
listed block may overlap; places that nothing is at are empty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.kernel import Block
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import ROWS, QuantizedPlan

Expr = Any


@dataclass(frozen=True)
class Request:
    """A request's tokens: ``packed`` of ``length`` are packed; those before ``first`` unseen."""

    plan: QuantizedPlan
    length: Expr
    packed: Expr
    first: Expr

    @classmethod
    def of(cls, plan: QuantizedPlan, length: Expr, first: Expr) -> Request:
        """Take a request's length apart; no query sees tokens before ``first``."""
        size = plan.problem.block_tokens
        return cls(plan, length, T.bind(T.truncdiv(length, size) * size), first)

    def residual(self) -> tuple[Expr, Expr]:
        """Return the first residual tile that is seen, and how many there are."""
        rows = self.length - self.packed
        first = T.truncdiv(T.max(self.first - self.packed, 0), ROWS)
        return T.bind(first), T.bind(T.truncdiv(rows + (ROWS - 1), ROWS) - first)


@dataclass(frozen=True)
class Tile:
    """A tile of packed tokens from ``start`` on, ``offset`` tokens into ``block``.

    The tokens ``low`` to ``high`` are attended to, none where ``low`` >= ``high``.
    """

    block: Expr
    offset: Expr
    start: Expr
    low: Expr
    high: Expr


def tile_at(plan: QuantizedPlan, number: Expr, low: Expr, high: Expr) -> Tile:
    """Return the tile of this number of a request, of which low to high is attended to."""
    block = T.bind(T.truncdiv(number, plan.block_tiles))
    offset = T.bind(T.truncmod(number, plan.block_tiles) * plan.tile)
    start = T.bind(number * plan.tile)
    return Tile(block, offset, start, low, T.bind(T.min(high, start + plan.tile)))


class Tiles(ABC):
    """The tiles of a request's KV head, by their places."""

    def __init__(self, plan: QuantizedPlan, place: Place, block: Block, request: Request) -> None:
        """Keep what tiles are made of."""
        self.plan, self.place, self.block, self.request = plan, place, block, request

    @abstractmethod
    def count(self) -> Expr:
        """Return how many places there are."""

    @abstractmethod
    def look_ahead(self, at: Expr) -> None:
        """Ask for what `next` needs of the place ``at``."""

    @abstractmethod
    def next(self, at: Expr) -> Tile:
        """Return the tile at the place that was asked for."""


class DenseTiles(Tiles):
    """All packed tokens that some query sees."""

    def count(self) -> Expr:
        """Count the tiles from the first seen token on."""
        self.first = T.bind(T.truncdiv(self.request.first, self.plan.tile))
        return T.bind(T.max(T.truncdiv(self.request.packed, self.plan.tile) - self.first, 0))

    def look_ahead(self, at: Expr) -> None:
        """Do nothing: a number says it all."""

    def next(self, at: Expr) -> Tile:
        """Return a tile."""
        return tile_at(self.plan, T.bind(self.first + at), self.request.first, self.request.packed)


class ListedTiles(Tiles):
    """The packed tokens of listed blocks that some query sees."""

    def count(self) -> Expr:
        """Count places, a few for each entry."""
        self.lists = self.block.view("block_indices", "int32")
        self.entries = T.cast(self.block.integers["list_length"], "int32")
        row = self.place.head_index(self.plan.problem.kv_heads)
        self.row = T.bind(row * self.block.integers["list_length"])
        self.ahead = ptx.registers(1, "int32")
        return T.bind(self.entries * self.plan.entry_tiles)

    def look_ahead(self, at: Expr) -> None:
        """Load an entry while other work goes on."""
        entry = T.truncdiv(at, self.plan.entry_tiles)
        entry = T.cast(T.min(entry, self.entries - 1), "int64")
        ptx.put(self.ahead, 0, self.lists[self.row + entry])

    def next(self, at: Expr) -> Tile:
        """Return the tile, an empty one where the entry has none at this place."""
        plan, request, size = self.plan, self.request, self.plan.problem.block_size
        entry = self.ahead[0]
        # A block may lie far beyond the request.
        entry = T.bind(T.min(entry, T.truncdiv(request.length, size) + 1))
        start = T.bind(entry * size)
        low = ptx.hold(T.max(start, request.first))
        high = ptx.hold(T.min(start + size, request.packed))
        some = T.And(entry >= 0, low < high)
        number = ptx.hold(T.truncdiv(low, plan.tile) + T.truncmod(at, plan.entry_tiles))
        some = T.And(some, number * plan.tile < high)
        return tile_at(plan, number, low, T.bind(T.Select(some, high, low)))
