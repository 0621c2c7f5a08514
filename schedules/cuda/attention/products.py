"""The two products of a tile, keys in the long side of the matrices.

    S^T[16 keys, 8 rows] = K[16, D] Q^T[D, 8]
    O^T[16 columns, 8 rows] += V^T[16, 16] P^T[16, 8]

Few query rows fill the short side: a group of 8 heads wastes nothing. The accumulators of S^T,
packed and transposed matrix by matrix, are the operand P^T; both accumulators have the same rows
in the same lanes, so that sums are rescaled without a shuffle.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.place import Place
from wattune.schedules.cuda.attention.plan import CHUNK, KEYS, ROWS, Plan
from wattune.schedules.cuda.attention.ring import Ring, Slots
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


class Products:
    """Scores of a tile and sums of values, of one warp."""

    def __init__(self, plan: Plan, place: Place[Plan], ring: Ring, queries: Queries) -> None:
        """Start with sums of zero: [16 columns][8 rows][4]."""
        self.plan, self.place, self.ring, self.queries = plan, place, ring, queries
        self.tiles = plan.rows // ROWS
        self.columns = plan.problem.value_dim // KEYS
        self.sums = [
            [ptx.registers(4, "float32") for _ in range(self.tiles)] for _ in range(self.columns)
        ]
        for held in (s for column in self.sums for s in column):
            _clear(held)

    def scores(self, row: Expr) -> list[list[Any]]:
        """Emit the scores of the tile whose first row in the ring is ``row``."""
        lane, keys = self.place.lane, range(self.plan.keys // KEYS)
        found = [[ptx.registers(4, "float32") for _ in range(self.tiles)] for _ in keys]
        for held in (s for key in found for s in key):
            _clear(held)
        for step in range(self.queries.steps):
            right = self.queries.operands(step)
            for key in keys:
                left = ptx.registers(4, "uint32")
                words = [left[i] for i in range(4)]
                at = row + key * KEYS + lane % 16
                pointer = self.ring.k.pointer(at, 2 * step + lane // 16, lane % 8)
                ptx.load_matrices(words, pointer)
                for tile in range(self.tiles):
                    self._multiply(found[key][tile], words, right[tile])
        return found

    def add(self, row: Expr, weights: list[list[Any]], shrink: Any) -> None:
        """Emit sums * shrink + weights * values of the tile."""
        lane = self.place.lane
        operands = [[self._operand(w) for w in key] for key in weights]
        for column, held in enumerate(self.sums):
            for tile in range(self.tiles):
                for i in range(4):
                    ptx.put(held[tile], i, held[tile][i] * shrink[2 * tile + i % 2])
            for key, right in enumerate(operands):
                left = ptx.registers(4, "uint32")
                words = [left[i] for i in range(4)]
                at = row + key * KEYS + lane // 16 * 8 + lane % 8
                pointer = self.ring.v.pointer(at, 2 * column + lane // 8 % 2, lane % 8)
                ptx.load_transposed(words, pointer)
                for tile in range(self.tiles):
                    self._multiply(held[tile], words, right[tile])

    def _operand(self, weights: Any) -> list[Expr]:
        """Round weights [16 keys, 8 rows] and turn them over."""
        packed, turned = ptx.registers(2, "uint32"), ptx.registers(2, "uint32")
        for half in range(2):
            low, high = weights[2 * half], weights[2 * half + 1]
            ptx.pack(packed[half], low, high, self.plan.problem.dtype)
            ptx.transpose(turned[half], packed[half])
        return [turned[0], turned[1]]

    def _multiply(self, total: Any, left: list[Expr], right: list[Expr]) -> None:
        ptx.multiply_add([total[i] for i in range(4)], left, right, self.plan.problem.dtype)


def _clear(held: Any) -> None:
    for i in range(4):
        ptx.put(held, i, T.float32(0))
