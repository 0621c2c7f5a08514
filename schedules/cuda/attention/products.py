"""The two products of a tile, by which side keys and query rows are on.

Keys in the long side (`KeysLong`):

    S^T[16 keys, 8 rows] = K[16, D] Q^T[D, 8]
    O^T[16 columns, 8 rows] += V^T[16, 16] P^T[16, 8]

The accumulators of S^T, packed and transposed matrix by matrix, are the operand P^T.

Rows in the long side (`RowsLong`):

    S[16 rows, 8 keys] = Q[16, D] K^T[D, 8]
    O[16 rows, 8 columns] += P[16, 16] V[16, 8]

The accumulators of S, packed, are the operand P. Either way sums have the same rows in the same
lanes as scores, so that they are rescaled without a shuffle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx, warpgroup
from wattune.schedules.cuda.attention.place import Place
from wattune.schedules.cuda.attention.plan import KEYS, Plan
from wattune.schedules.cuda.attention.queries import Queries
from wattune.schedules.cuda.attention.ring import Ring
from wattune.schedules.cuda.attention.sides import SHORT

Expr = Any


class Products(ABC):
    """Scores of a tile and sums of values, of one warp: [column tile][row tile][4]."""

    def __init__(self, plan: Plan, place: Place[Plan], ring: Ring, queries: Queries) -> None:
        """Start with sums of zero."""
        self.plan, self.place, self.ring, self.queries = plan, place, ring, queries
        self.tiles = plan.rows // plan.side.rows
        columns = plan.problem.value_dim // plan.side.columns
        self.sums = self._accumulators(columns)

    def _accumulators(self, columns: int) -> list[list[Any]]:
        found = [[ptx.registers(4, "float32") for _ in range(self.tiles)] for _ in range(columns)]
        for held in (s for column in found for s in column):
            for i in range(4):
                ptx.put(held, i, T.float32(0))
        return found

    def scores(self, row: Expr) -> list[list[Any]]:
        """Emit the scores of the tile whose first row in the ring is ``row``."""
        found = self._accumulators(self.plan.keys // self.plan.side.columns)
        for step in range(self.queries.steps):
            self._score(found, row, step, self.queries.operands(step))
        return found

    def add(self, row: Expr, weights: list[list[Any]], shrink: Any) -> None:
        """Emit sums * shrink + weights * values of the tile."""
        operands = self._operands(weights)
        side = self.plan.side
        # Values are loaded 16 columns at a time.
        for column in range(self.plan.problem.value_dim // KEYS):
            wide = KEYS // side.columns
            held = self.sums[column * wide : (column + 1) * wide]
            self._shrink(held, shrink)
            for key, right in enumerate(operands):
                self._add(held, row + key * KEYS, column, right)

    def _shrink(self, held: list[list[Any]], shrink: Any) -> None:
        side = self.plan.side
        for column in held:
            for tile, sums in enumerate(column):
                for i in range(2):
                    for j in range(2):
                        at = side.element(i, j)
                        ptx.put(sums, at, sums[at] * shrink[2 * tile + i])

    def _load(self, slots: Any, row: Expr, chunk: Expr, turned: bool) -> list[Expr]:
        """Load 16 x 16 elements of keys or values as four matrices."""
        found = ptx.registers(4, "uint32")
        words = [found[i] for i in range(4)]
        load = ptx.load_transposed if turned else ptx.load_matrices
        load(words, slots.pointer(row, chunk, self.place.lane % 8))
        return words

    def _multiply(self, total: Any, left: list[Expr], right: list[Expr]) -> None:
        ptx.multiply_add([total[i] for i in range(4)], left, right, self.plan.problem.dtype)

    @abstractmethod
    def _score(
        self, found: list[list[Any]], row: Expr, step: int, queries: list[list[Expr]]
    ) -> None:
        """Add the products of a step of 16 channels; ``queries``: operands of each 8 rows."""

    @abstractmethod
    def _operands(self, weights: list[list[Any]]) -> list[Any]:
        """Round weights; return operands of each 16 keys."""

    @abstractmethod
    def _add(self, held: list[list[Any]], row: Expr, column: int, weights: Any) -> None:
        """Add the products of 16 keys, from ``row`` on, and the 16 columns ``column``."""


class KeysLong(Products):
    """Keys, then value columns, in the long side; 8 query rows a tile."""

    def _score(
        self, found: list[list[Any]], row: Expr, step: int, queries: list[list[Expr]]
    ) -> None:
        lane = self.place.lane
        for key, tiles in enumerate(found):
            at = row + key * KEYS + lane % 16
            left = self._load(self.ring.k, at, 2 * step + lane // 16, False)
            for tile, right in zip(tiles, queries, strict=True):
                self._multiply(tile, left, right)

    def _operands(self, weights: list[list[Any]]) -> list[Any]:
        return [[self._turned(tile) for tile in key] for key in weights]

    def _turned(self, weights: Any) -> list[Expr]:
        """Round weights [16 keys, 8 rows] and turn them over."""
        packed, turned = ptx.registers(2, "uint32"), ptx.registers(2, "uint32")
        for half in range(2):
            low, high = weights[2 * half], weights[2 * half + 1]
            ptx.pack(packed[half], low, high, self.plan.problem.dtype)
            ptx.transpose(turned[half], packed[half])
        return [turned[0], turned[1]]

    def _add(self, held: list[list[Any]], row: Expr, column: int, weights: Any) -> None:
        lane = self.place.lane
        at = row + lane // 16 * 8 + lane % 8
        left = self._load(self.ring.v, at, 2 * column + lane // 8 % 2, True)
        for tile, right in zip(held[0], weights, strict=True):
            self._multiply(tile, left, right)


class RowsLong(Products):
    """16 query rows in the long side; 8 keys, then 8 value columns, in the short one."""

    def _score(
        self, found: list[list[Any]], row: Expr, step: int, queries: list[list[Expr]]
    ) -> None:
        lane = self.place.lane
        left = [
            [upper[0], lower[0], upper[1], lower[1]]
            for upper, lower in zip(queries[::2], queries[1::2], strict=True)
        ]
        for key in range(0, len(found), 2):
            at = row + key * SHORT + lane // 16 * 8 + lane % 8
            right = self._load(self.ring.k, at, 2 * step + lane // 8 % 2, False)
            for half in range(2):
                for tile, rows in zip(found[key + half], left, strict=True):
                    self._multiply(tile, rows, right[2 * half : 2 * half + 2])

    def _operands(self, weights: list[list[Any]]) -> list[Any]:
        pairs = zip(weights[::2], weights[1::2], strict=True)
        return [
            [self._packed(*tiles) for tiles in zip(first, second, strict=True)]
            for first, second in pairs
        ]

    def _packed(self, first: Any, second: Any) -> list[Expr]:
        """Round weights [16 rows, 8 keys] twice: rows 0 to 7 and 8 to 15 of each."""
        packed = ptx.registers(4, "uint32")
        for word in range(4):
            held, half = (first, second)[word // 2], 2 * (word % 2)
            ptx.pack(packed[word], held[half], held[half + 1], self.plan.problem.dtype)
        return [packed[word] for word in range(4)]

    def _add(self, held: list[list[Any]], row: Expr, column: int, weights: Any) -> None:
        lane = self.place.lane
        right = self._load(self.ring.v, row + lane % 16, 2 * column + lane // 16, True)
        for half in range(2):
            for tile, left in zip(held[half], weights, strict=True):
                self._multiply(tile, left, right[2 * half : 2 * half + 2])


class Warpgroup(RowsLong):
    """64 query rows in the long side, 16 a warp; keys and values are read once for all four.

    Operands: queries and weights from registers, keys and values from slabs of the ring.
    """

    def scores(self, row: Expr) -> list[list[Any]]:
        """Multiply all channels at once."""
        # The first step ignores these zeros, but the compiler takes accumulators for operands that
        # are read, which must have a value.
        found = self._accumulators(self.plan.keys // SHORT)
        keys = T.bind(self.ring.k.descriptor(row))
        warpgroup.group_begins()
        for step in range(self.queries.steps):
            upper, lower = self.queries.operands(step)
            left = [upper[0], lower[0], upper[1], lower[1]]
            right = keys + self.ring.k.further(0, 2 * step)
            self._begin(found, left, right, adds=step > 0, turned=False)
        warpgroup.group_ends()
        return found

    def add(self, row: Expr, weights: list[list[Any]], shrink: Any) -> None:
        """Multiply all columns at once."""
        operands = self._operands(weights)
        self._shrink(self.sums, shrink)
        values = T.bind(self.ring.v.descriptor(row))
        warpgroup.group_begins()
        for number, (left,) in enumerate(operands):
            right = values + self.ring.v.further(number * KEYS, 0)
            self._begin(self.sums, left, right, adds=True, turned=True)
        warpgroup.group_ends()

    def _begin(
        self, total: list[list[Any]], left: list[Expr], right: Expr, adds: bool, turned: bool
    ) -> None:
        places = [tile[i] for (tile,) in total for i in range(4)]
        dtype = self.plan.problem.dtype
        warpgroup.multiply_add_group(places, left, right, dtype, adds=adds, turned=turned)


def products_of(plan: Plan, place: Place[Plan], ring: Ring, queries: Queries) -> Products:
    """Return the products that the schedule asks for."""
    kinds: dict[str, Callable[..., Products]] = {
        "keys": KeysLong,
        "rows": RowsLong,
        "warpgroup": Warpgroup,
    }
    return kinds[plan.long_side](plan, place, ring, queries)
