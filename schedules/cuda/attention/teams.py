"""The merge of a block's teams: their sums meet in shared memory, where the rings were."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.output import WIDE
from wattune.schedules.cuda.attention.place import Place
from wattune.schedules.cuda.attention.plan import Shares
from wattune.schedules.cuda.attention.products import Products
from wattune.schedules.cuda.attention.softmax import Softmax
from wattune.schedules.cuda.attention.splits import Splits
from wattune.schedules.cuda.kernel import Shared

Expr = Any


class Teams:
    """Sums [team][row of the block][column] and states [team][row][2] in shared memory."""

    def __init__(self, plan: Shares, place: Place[Any], shared: Shared) -> None:
        """Declare them; the rings must be done with."""
        self.plan, self.place = plan, place
        self.stride = plan.sum_stride
        rows = plan.teams * plan.block_rows
        self.sums = shared.view(0, rows * self.stride, "float32")
        self.state = shared.view(plan.shared.starts["state"], 2 * rows, "float32")

    def spread(self, softmax: Softmax, products: Products) -> None:
        """Store each warp's sums and state in shared memory, where the rings were."""
        place, side, lane = self.place, softmax.side, self.place.lane
        first = T.bind(place.team * self.plan.block_rows + place.warp_row)
        for tile in range(softmax.tiles):
            rows = [T.bind(first + tile * side.rows + side.row(lane, i)) for i in range(2)]
            for number, held in enumerate(products.sums):
                for i, row in enumerate(rows):
                    for j in range(2):
                        column = number * side.columns + side.column(lane, j)
                        value = held[tile][side.element(i, j)]
                        ptx.put(self.sums, row * self.stride + column, value)
            with T.If(side.leads(lane)), T.Then():
                for i, row in enumerate(rows):
                    ptx.put(self.state, row * 2, softmax.m[2 * tile + i])
                    ptx.put(self.state, row * 2 + 1, softmax.l[2 * tile + i])

    def gather(self, chunks: Expr) -> None:
        """Merge the teams, 4 columns of a row a thread, and store what comes out."""
        plan, place = self.plan, self.place
        columns = plan.problem.value_dim // WIDE
        total = plan.block_rows * columns
        for start in range(0, total, plan.threads):
            at = T.bind(start + place.block.thread)
            row = T.bind(at // columns)
            real = place.first_row + row < plan.item_rows
            if start + plan.threads > total:
                real = T.And(real, at < total)
            with T.If(real), T.Then():
                self._unit(chunks, row, T.bind(at % columns * WIDE))

    def _unit(self, chunks: Expr, row: Expr, column: Expr) -> None:
        """Merge and store 4 columns of a row of the block."""
        plan = self.plan
        rows = [T.bind(team * plan.block_rows + row) for team in range(plan.teams)]
        top, total = ptx.registers(1, "float32"), ptx.registers(1, "float32")
        sums = ptx.registers(WIDE, "float32")
        ptx.put(top, 0, self.state[rows[0] * 2])
        for at in rows[1:]:
            ptx.put(top, 0, T.max(top[0], self.state[at * 2]))
        ptx.put(total, 0, T.float32(0))
        for i in range(WIDE):
            ptx.put(sums, i, T.float32(0))
        for at in rows:
            weight = T.bind(ptx.exp2(self.state[at * 2] - top[0]))
            ptx.put(total, 0, total[0] + weight * self.state[at * 2 + 1])
            for i in range(WIDE):
                ptx.put(sums, i, sums[i] + weight * self.sums[at * self.stride + column + i])
        item_row = T.bind(self.place.first_row + row)
        values = [sums[i] for i in range(WIDE)]
        splits = Splits(plan, self.place.block, self.place.item)
        output = splits.output
        if plan.splits == 1:
            output.store(item_row, column, top[0], total[0], values)
            return
        with T.If(chunks == 1):
            with T.Then():
                output.store(item_row, column, top[0], total[0], values)
            with T.Else():
                splits.keep(self.place.split, item_row, column, top[0], total[0], values)
