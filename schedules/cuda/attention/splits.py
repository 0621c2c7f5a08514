"""What the splits of an item leave in the workspace, and how it becomes an output.

The second kernel merges, or the block of an item that is done last: then counters say which one
it is, which a small kernel before sets to zero, so that a call finds any workspace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.attention import Item, visible
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.output import WIDE, Output
from wattune.schedules.cuda.attention.place import Place, chunks_of, item_of
from wattune.schedules.cuda.attention.plan import Shares
from wattune.schedules.cuda.attention.softmax import NOTHING
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.kernel import Block, Shared

Expr = Any


@dataclass(frozen=True)
class Splits:
    """Keeps and merges the states (m, l, acc) of an item's splits."""

    plan: Shares
    block: Block
    item: Item

    @property
    def output(self) -> Output:
        """Return what stores the item's rows."""
        return Output(self.plan, self.block, self.item)

    def _kept(self, split: Expr, row: Expr) -> Expr:
        """Return the number of a row of a split in the workspace."""
        plan = self.plan
        at = T.cast(self.item.request, "int64") * plan.problem.kv_heads + self.item.head
        at = (at * plan.items + self.item.part) * plan.splits + split
        return at * plan.item_rows + row

    def _area(self, name: str) -> tuple[Any, int]:
        """Return the workspace as fp32, and where an area starts in it."""
        return self.block.view("workspace", "float32"), self.plan.scratch.starts[name] // 4

    def keep(
        self, split: Expr, row: Expr, column: Expr, m: Expr, total: Expr, sums: list[Expr]
    ) -> None:
        """Store 4 columns of a row of a split in the workspace, and its state."""
        number = T.bind(self._kept(split, row))
        area, start = self._area("sums")
        at = start + number * self.plan.problem.value_dim + column
        ptx.store_wide_real(area.ptr_to([at]), sums)
        with T.If(column == 0), T.Then():
            state, first = self._area("state")
            ptx.put(state, first + 2 * number, m)
            ptx.put(state, first + 2 * number + 1, total)

    def merge(self, chunks: Expr, row: Expr, lane: Expr) -> None:
        """Store the output of a row from all its splits; a warp's work.

        Lane i weighs split i; then all lanes add up columns, split after split.
        """
        plan = self.plan
        parts = -(-plan.splits // WARP)
        m, total = ptx.registers(parts, "float32"), ptx.registers(parts, "float32")
        top, whole = ptx.registers(1, "float32"), ptx.registers(1, "float32")
        ptx.put(top, 0, T.float32(NOTHING))
        ptx.put(whole, 0, T.float32(0))
        state, first = self._area("state")
        for part in range(parts):
            ptx.put(m, part, T.float32(NOTHING))
            ptx.put(total, part, T.float32(0))
            with T.If(part * WARP + lane < chunks), T.Then():
                at = T.bind(first + 2 * self._kept(part * WARP + lane, row))
                ptx.load_word_shared_by_all(m[part], state.ptr_to([at]))
                ptx.load_word_shared_by_all(total[part], state.ptr_to([at + 1]))
            ptx.put(top, 0, T.max(top[0], m[part]))
        for distance in (1, 2, 4, 8, 16):
            ptx.put(top, 0, T.max(top[0], ptx.across(top[0], distance)))
        for part in range(parts):
            # From here on a split's weight.
            ptx.put(m, part, ptx.exp2(m[part] - top[0]))
            ptx.put(whole, 0, whole[0] + m[part] * total[part])
        for distance in (1, 2, 4, 8, 16):
            ptx.put(whole, 0, whole[0] + ptx.across(whole[0], distance))
        columns = plan.problem.value_dim // WIDE
        for start in range(0, columns, WARP):
            column = T.bind((start + lane) * WIDE)
            self._add(chunks, row, column, top[0], whole[0], m)

    def _add(self, chunks: Expr, row: Expr, column: Expr, m: Expr, total: Expr, w: Any) -> None:
        """Store 4 columns of a row: the sum of its splits by their weights."""
        plan = self.plan
        area, start = self._area("sums")
        found, sums = ptx.registers(WIDE, "float32"), ptx.registers(WIDE, "float32")
        within = column < plan.problem.value_dim
        for i in range(WIDE):
            ptx.put(sums, i, T.float32(0))
            ptx.put(found, i, T.float32(0))
        for part in range(-(-plan.splits // WARP)):
            count = T.min(chunks - part * WARP, T.int32(WARP))
            with T.serial(T.bind(T.max(count, T.int32(0)))) as split:
                weight = T.bind(ptx.from_lane(w[part], split))
                number = self._kept(part * WARP + split, row)
                with T.If(within), T.Then():
                    at = start + number * plan.problem.value_dim + column
                    ptx.load_shared_by_all([found[i] for i in range(WIDE)], area.ptr_to([at]))
                for i in range(WIDE):
                    ptx.put(sums, i, sums[i] + weight * found[i])
        with T.If(within), T.Then():
            self.output.store(row, column, m, total, [sums[i] for i in range(WIDE)])

    def last(self, place: Place[Any], shared: Shared, chunks: Expr) -> None:
        """Have the last block of an item's rows merge its splits."""
        plan, thread = self.plan, self.block.thread
        flag = shared.view(plan.shared.starts["last"], 1, "int32")
        self._arrive(place, flag, chunks)
        with T.If(flag[0] != 0), T.Then():
            warps = plan.threads // WARP
            end = T.bind(T.min(place.first_row + plan.block_rows, T.int32(plan.item_rows)))
            for start in range(0, plan.block_rows, warps):
                row = T.bind(place.first_row + start + thread // WARP)
                with T.If(row < end), T.Then():
                    self.merge(chunks, row, place.lane)

    def _arrive(self, place: Place[Any], flag: Any, chunks: Expr) -> None:
        """Count the block; ``flag`` says whether all others had been counted."""
        plan = self.plan
        items = plan.problem.kv_heads * plan.items
        number = self.item.head * plan.items + self.item.part
        number = (self.item.request * items + number) * plan.row_tiles + place.row_tile
        counters = self.block.view("workspace", "int32")
        at = T.cast(number, "int64") + plan.scratch.starts["counters"] // 4
        ptx.fence()
        ptx.block_barrier()
        with T.If(self.block.thread == 0), T.Then():
            if plan.dependent:
                # The counters' zeros are written by the kernel before.
                ptx.wait_for_previous()
            before = T.bind(ptx.add_to(counters.ptr_to([at]), T.int32(1)))
            ptx.put(flag, 0, T.cast(T.And(before == chunks - 1, chunks > 1), "int32"))
            ptx.fence()
        ptx.block_barrier()


def combine(plan: Shares, block: Block) -> None:
    """Emit the kernel that merges splits: a warp a row."""
    item = item_of(plan, block, block.z, block.y)
    if plan.dependent:
        ptx.wait_for_previous()
    first, end = visible(plan, item)
    chunks = T.int32(plan.splits) if plan.listed else chunks_of(plan, first, end)[1]
    row = T.bind(block.x * (block.threads // WARP) + block.thread // WARP)
    with T.If(T.And(chunks > 1, row < plan.item_rows)), T.Then():
        Splits(plan, block, item).merge(chunks, row, block.thread % WARP)


def reset(plan: Shares, block: Block) -> None:
    """Emit the kernel that sets counters to zero."""
    at = T.bind(T.cast(block.x, "int64") * block.threads + block.thread)
    if plan.dependent:
        ptx.let_next_start()
    with T.If(at < block.integers["counters"]), T.Then():
        start = plan.scratch.starts["counters"] // 4
        ptx.put(block.view("workspace", "int32"), at + start, T.int32(0))
