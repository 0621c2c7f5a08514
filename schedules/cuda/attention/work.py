"""The work of a persistent grid: as many blocks as the device holds take pieces in turn.

A piece is a split of an item for some of its rows, what is a block otherwise. Pieces are numbered
request after request, by their lengths, so that there are no empty ones; block b takes b, b + grid
and so on. Who takes a piece changes nothing in it: results are those of the other grid, bit by bit.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from tvm.script import tirx as T

from wattune.schedules.attention import visible
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.place import Place, chunks_of, item_of
from wattune.schedules.cuda.attention.plan import Shares
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.kernel import Block

Expr = Any

P = TypeVar("P", bound=Shares)


class Work(Generic[P]):
    """Finds the pieces of a block; every warp does so by itself.

    Lane i knows the pieces of request ``group`` + i and of those of the group before it; ``before``
    counts those of earlier groups.
    """

    def __init__(self, plan: P, block: Block) -> None:
        """Count the pieces of all requests."""
        self.plan, self.block = plan, block
        self.lane = block.thread % WARP
        self.batch = T.bind(T.cast(block.integers["batch"], "int32"))
        self.group, self.before = ptx.registers(1, "int32"), ptx.registers(1, "int32")
        self.own, self.until = ptx.registers(1, "int32"), ptx.registers(1, "int32")
        self.count = T.bind(self._turns())
        ptx.put(self.before, 0, T.int32(0))
        ptx.put(self.group, 0, T.int32(0))
        self._look()

    def _turns(self) -> Expr:
        """Return how many pieces the block takes."""
        total = ptx.registers(1, "int32")
        ptx.put(total, 0, T.int32(0))
        with T.serial((self.batch + (WARP - 1)) // WARP) as number:
            ptx.put(self.group, 0, number * WARP)
            self._look()
            ptx.put(total, 0, total[0] + self._all())
        return T.max(total[0] - self.block.x + (self.plan.grid - 1), 0) // self.plan.grid

    def _look(self) -> None:
        """Count the pieces of the group's requests."""
        ptx.put(self.own, 0, T.int32(0))
        request = T.bind(self.group[0] + self.lane)
        with T.If(request < self.batch), T.Then():
            ptx.put(self.own, 0, self._pieces(request))
        ptx.put(self.until, 0, self.own[0])
        for distance in (1, 2, 4, 8, 16):
            below = T.bind(ptx.from_below(self.until[0], distance))
            ptx.put(
                self.until, 0, self.until[0] + T.Select(self.lane >= distance, below, T.int32(0))
            )

    def _pieces(self, request: Expr) -> Expr:
        """Return the pieces of a request."""
        plan = self.plan
        each = plan.row_tiles * plan.problem.kv_heads * plan.items
        if plan.listed or plan.splits == 1:
            return T.int32(each * plan.splits)
        first, end = visible(plan, item_of(plan, self.block, request, T.int32(0)))
        return chunks_of(plan, first, end)[1] * each

    def _all(self) -> Expr:
        """Return the pieces of the group."""
        return ptx.from_lane(self.until[0], T.int32(WARP - 1))

    def place(self, turn: Expr) -> Place[P]:
        """Find the block's next piece: pieces must be asked for in order."""
        plan = self.plan
        piece = T.bind(self.block.x + turn * plan.grid)
        end = ptx.registers(1, "int32")
        ptx.put(end, 0, self.before[0] + self._all())
        with T.While(piece >= end[0]):
            ptx.put(self.before, 0, end[0])
            ptx.put(self.group, 0, self.group[0] + WARP)
            self._look()
            ptx.put(end, 0, end[0] + self._all())
        within = T.bind(piece - self.before[0])
        lane = T.bind(ptx.first_lane(ptx.ballot(within < self.until[0])))
        number = T.bind(within - ptx.from_lane(self.until[0] - self.own[0], lane))
        items = plan.problem.kv_heads * plan.items
        row_tile = T.bind(number % plan.row_tiles)
        item = item_of(
            plan, self.block, T.bind(self.group[0] + lane), T.bind(number // plan.row_tiles % items)
        )
        split = T.bind(number // (plan.row_tiles * items))
        first, last = visible(plan, item)
        return Place(plan, self.block, item, split, row_tile, first, last)
