"""Load rows of a cache as fp32 vectors, store fp32 vectors as rows of an output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import groups_of

Expr = Any


@dataclass(frozen=True)
class Loader:
    """Loads ``width`` elements as ``vectors`` vectors of ``lanes``.

    bfloat16 comes in pairs where a row is long enough: one load, a vector of the even elements
    and one of the odd ones, one instruction each. Sums keep that order until they are stored.
    """

    dtype: str
    lanes: int
    pairs: bool

    @classmethod
    def of(cls, dtype: str, lanes: int, *totals: int) -> Loader:
        """Return the loader of rows of these lengths."""
        return cls(dtype, lanes, dtype == "bfloat16" and min(totals) >= 2 * lanes)

    @property
    def vectors(self) -> int:
        """Return the vectors of a group."""
        return 2 if self.pairs else 1

    @property
    def width(self) -> int:
        """Return the elements of a group."""
        return self.lanes * self.vectors

    def count(self, total: int) -> int:
        """Return the vectors of a row."""
        return self.vectors * len(groups_of(total, self.width))

    def load(self, rows: Region, at: Expr) -> list[Expr]:
        """Load a group that starts at an element."""
        lanes = self.lanes
        if self.pairs:
            both = T.bind(math.as_lanes("int32", rows.load(at, 2 * lanes), lanes))
            even = T.shift_left(both, math.integer(16, lanes))
            odd = T.bitwise_and(both, math.integer(-0x10000, lanes))
            return [T.bind(math.as_real(part, lanes)) for part in (even, odd)]
        value = rows.load(at, lanes)
        if self.dtype == "bfloat16":
            wide = T.cast(value, math.kind("int32", lanes))
            return [T.bind(math.as_real(T.shift_left(wide, math.integer(16, lanes)), lanes))]
        return [T.bind(T.cast(value, math.kind("float32", lanes)))]

    def columns(self, part: int) -> list[int]:
        """Return which column of the group each lane of a vector holds."""
        return [lane * self.vectors + part for lane in range(self.lanes)]

    def natural(self, parts: Sequence[Expr]) -> list[Expr]:
        """Return a group's vectors in the order of columns."""
        return in_order(parts, [self.columns(part) for part in range(self.vectors)], self.lanes)


def in_order(parts: Sequence[Expr], columns: Sequence[Sequence[int]], lanes: int) -> list[Expr]:
    """Return the vectors of one or two, whose lanes hold these columns, in ascending order."""
    if len(parts) == 1:
        return list(parts)
    where = {
        c: lane + lanes * part for part, held in enumerate(columns) for lane, c in enumerate(held)
    }
    order = [where[column] for column in range(len(parts) * lanes)]
    return [
        T.bind(T.Shuffle(list(parts), order[at : at + lanes])) for at in range(0, len(order), lanes)
    ]


# Rows of two keys that meet in pairs of bfloat16: columns stay within 128-bit blocks.
_WIDTH, _BLOCK = 32, 8


def _joined_columns() -> list[list[int]]:
    """Return the columns that the lanes of the two vectors of a joined group hold."""
    half = _BLOCK // 2
    return [
        [block + first + i for block in range(0, _WIDTH, _BLOCK) for i in range(half)]
        for first in (0, half)
    ]


def join_rows(rows: Sequence[Expr]) -> list[Expr]:
    """Return 32 columns of two rows as two vectors of pairs (vpunpcklwd, vpunpckhwd)."""
    found = []
    for columns in _joined_columns():
        order = [column + _WIDTH * row for column in columns for row in (0, 1)]
        pairs = T.Shuffle(list(rows), order)
        found.append(T.bind(T.reinterpret(f"int32x{_WIDTH // 2}", pairs)))
    return found


def joined_order(sums: Region, at: Expr, group: int) -> list[Expr]:
    """Return a group of 32 columns of a row's sums, which lie as `join_rows` gives them."""
    lanes = _WIDTH // 2
    parts = [T.bind(sums.load(at + (2 * group + half) * lanes, lanes)) for half in (0, 1)]
    return in_order(parts, _joined_columns(), lanes)
