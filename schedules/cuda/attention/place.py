"""Where a block is: its item, its split, its rows; its warps and their teams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tvm.script import tirx as T

from wattune.schedules.attention import Item, visible
from wattune.schedules.cuda.attention.plan import Shares
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.cache import cache_row
from wattune.schedules.cuda.kernel import Block
from wattune.schedules.program import Tensors

Expr = Any

P = TypeVar("P", bound=Shares)


@dataclass(frozen=True)
class Place(Generic[P]):
    """What the numbers of a block and of a thread mean; all int32.

    ``first`` and ``end`` bound the positions that some query of the item sees.
    """

    plan: P
    block: Block
    item: Item
    split: Expr
    row_tile: Expr
    first: Expr
    end: Expr

    @classmethod
    def of(cls, plan: P, block: Block) -> Place[P]:
        """Read the block's numbers and its request's length."""
        item = item_of(plan, block, block.z, block.y)
        first, end = visible(plan, item)
        row_tile = T.bind(block.x % plan.row_tiles)
        return cls(plan, block, item, T.bind(block.x // plan.row_tiles), row_tile, first, end)

    @property
    def lane(self) -> Expr:
        """Return the number of the thread in its warp."""
        return self.block.thread % WARP

    @property
    def team(self) -> Expr:
        """Return the number of the thread's team."""
        return self.block.thread // self.plan.team_threads

    @property
    def in_team(self) -> Expr:
        """Return the number of the thread in its team."""
        return self.block.thread % self.plan.team_threads

    @property
    def first_row(self) -> Expr:
        """Return the first query row of the block in its item."""
        return self.row_tile * self.plan.block_rows

    @property
    def warp_row(self) -> Expr:
        """Return the first query row of the warp in its block."""
        return self.in_team // WARP * self.plan.rows

    def cache_row(self, position: Expr) -> Expr:
        """Return the row of the caches that holds a position of the item."""
        return row_of(self.plan, self.block, self.item, position)


def row_of(plan: Shares, block: Block, item: Item, position: Expr) -> Expr:
    """Return the row of the caches that holds a position of an item."""
    pages = {}
    if plan.problem.page_size:
        pages["page_table"] = block.view("page_table", "int32")
    tensors = Tensors(pages, block.integers)
    return cache_row(plan.problem, tensors, item.request, item.head, position)


def item_of(plan: Shares, block: Block, request: Expr, number: Expr) -> Item:
    """Return an item by the number of its head and list in its request."""
    length = T.bind(block.view("seq_lens", "int32")[T.cast(request, "int64")])
    return Item(request, number // plan.items, number % plan.items, length)


def chunks_of(plan: Shares, first: Expr, end: Expr) -> tuple[Expr, Expr]:
    """Return the tiles of a dense item, and into how many splits they are cut.

    Both depend on the request's own length alone, so its result does not depend on the batch.
    """
    tiles = T.bind(T.max(end - first + (plan.block_keys - 1), T.int32(0)) // plan.block_keys)
    if plan.splits == 1:
        return tiles, T.int32(1)
    least = (tiles + (plan.split_tiles - 1)) // plan.split_tiles
    return tiles, T.bind(T.max(T.min(least, T.int32(plan.splits)), T.int32(1)))
