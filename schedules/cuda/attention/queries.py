"""The query rows of a block: in shared memory, and as operands of a warp's products."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.place import Place
from wattune.schedules.cuda.attention.plan import CHUNK, KEYS, ROWS, Plan
from wattune.schedules.cuda.attention.ring import Slots
from wattune.schedules.cuda.kernel import Shared

Expr = Any


class Queries:
    """The query rows of a block in shared memory, and those of a warp as operands."""

    def __init__(self, plan: Plan, place: Place[Plan], shared: Shared) -> None:
        """Declare the rows."""
        self.plan, self.place = plan, place
        width = plan.problem.head_dim
        self.steps = width // KEYS
        self.tiles = plan.rows // ROWS
        self.slots = Slots.of(plan, shared, "queries", plan.block_rows, width)
        self.source = place.block.view("q", "uint16")

    def fetch(self) -> None:
        """Begin to copy the block's rows; those beyond the item's are zero."""
        plan, place, width = self.plan, self.place, self.plan.problem.head_dim
        chunks = width // CHUNK
        total = plan.block_rows * chunks
        for start in range(0, total, plan.threads):
            at = T.bind(start + place.block.thread)
            row, chunk = at // chunks, at % chunks
            if start + plan.threads <= total:
                self._chunk(row, chunk)
            else:
                with T.If(at < total), T.Then():
                    self._chunk(row, chunk)

    def _chunk(self, row: Expr, chunk: Expr) -> None:
        plan, place, problem = self.plan, self.place, self.plan.problem
        number = T.bind(place.first_row + row)
        real = T.bind(T.min(number, T.int32(plan.item_rows - 1)))
        token = T.cast(place.item.request, "int64") * problem.query_tokens + place.item.part
        head = place.item.head * problem.group + real % problem.group
        at = (token + real // problem.group) * problem.query_heads + head
        source = self.source.ptr_to([at * problem.head_dim + chunk * CHUNK])
        into = self.slots.pointer(row, chunk, row % 8)
        ptx.copy_or_zero(into, source, T.Select(number < plan.item_rows, 16, 0))

    def hold(self) -> None:
        """Load the operands into registers, where they stay."""
        if self.plan.queries == "registers":
            self.held = [self.load(step) for step in range(0, self.steps, 2)]

    def operands(self, step: int) -> list[list[Expr]]:
        """Return, for each 8 rows, the operand of a step of 16 columns."""
        pairs = (
            self.held[step // 2] if self.plan.queries == "registers" else self.load(step // 2 * 2)
        )
        return [pair[step % 2] for pair in pairs]

    def load(self, step: int) -> list[list[list[Expr]]]:
        """Load the operands of two steps, of one at the end: [8 rows][step][2]."""
        count = min(2, self.steps - step)
        lane, found = self.place.lane, []
        for tile in range(self.tiles):
            words = ptx.registers(2 * count, "uint32")
            row = self.place.warp_row + tile * ROWS + lane % 8
            chunk = 2 * step + lane // 8 % (2 * count)
            pointer = self.slots.pointer(row, chunk, lane % 8)
            ptx.load_matrices([words[i] for i in range(2 * count)], pointer)
            found.append([[words[2 * i], words[2 * i + 1]] for i in range(count)])
        return found
