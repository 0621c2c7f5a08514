"""Which blocks of the residual are listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.kernel import Block
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import QuantizedPlan

Expr = Any


@dataclass(frozen=True)
class Listed:
    """Looks for blocks in the list of a request's KV head; without lists every block is listed."""

    plan: QuantizedPlan
    place: Place
    block: Block

    def blocks_from(self, start: Expr, count: int) -> Expr:
        """Emit the search for the blocks of ``count`` tokens, at most 16; return a bit for each."""
        size = self.plan.problem.block_size
        found = ptx.registers(1, "uint32")
        ptx.put(found, 0, T.uint32(0))
        if not size:
            return found[0]
        lists = self.block.view("block_indices", "int32")
        entries = T.bind(T.cast(self.block.integers["list_length"], "int32"))
        row = self.place.head_index(self.plan.problem.kv_heads)
        row = T.bind(row * self.block.integers["list_length"])
        first = T.bind(T.truncdiv(start, size))
        with T.serial(T.truncdiv(entries + (WARP - 1), WARP)) as i:
            at = T.bind(i * WARP + self.place.lane)
            with T.If(at < entries), T.Then():
                place = T.bind(lists[row + T.cast(at, "int64")] - first)
                with T.If(T.And(place >= 0, place <= (count - 1) // size + 1)), T.Then():
                    bit = T.shift_left(T.uint32(1), T.cast(place, "uint32"))
                    ptx.put(found, 0, found[0] | bit)
        for distance in (1, 2, 4, 8, 16):
            ptx.put(found, 0, found[0] | ptx.across(found[0], distance))
        return T.bind(found[0])

    def has(self, position: Expr, start: Expr, blocks: Expr) -> Expr:
        """Say whether the block of a position is among those found from ``start`` on."""
        size = self.plan.problem.block_size
        if not size:
            return T.bool(True)
        place = T.truncdiv(position, size) - T.truncdiv(start, size)
        return (T.shift_right(blocks, T.cast(place, "uint32")) & T.uint32(1)) == T.uint32(1)
