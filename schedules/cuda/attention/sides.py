"""Which way round a tile's products are: keys or query rows in the long side of the matrices.

A product of a warp has a long side of 16 and a short one of 8. With few query rows they belong in
the short side, where 8 heads of a group waste nothing; from 16 rows on they can take the long one:
weights become operands as they are, where otherwise they must be turned over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Expr = Any

LONG, SHORT = 16, 8


@dataclass(frozen=True)
class Side:
    """Where the four accumulators of a lane are in a tile of query rows and columns.

    Columns are keys, of scores, or channels, of sums. A lane has two rows and two columns:
    neighbours in the short side, 8 apart in the long one. ``apart``: how far from each other the
    lanes are that have the same rows.
    """

    long_rows: bool
    apart: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Return the query rows of a tile."""
        return LONG if self.long_rows else SHORT

    @property
    def columns(self) -> int:
        """Return the columns of a tile."""
        return SHORT if self.long_rows else LONG

    def row(self, lane: Expr, i: int) -> Expr:
        """Return which row of a tile the lane's row ``i`` is."""
        return lane // 4 + 8 * i if self.long_rows else lane % 4 * 2 + i

    def column(self, lane: Expr, j: int) -> Expr:
        """Return which column of a tile the lane's column ``j`` is."""
        return lane % 4 * 2 + j if self.long_rows else lane // 4 + 8 * j

    def element(self, i: int, j: int) -> int:
        """Return which of the lane's accumulators is in row ``i`` and column ``j``."""
        return 2 * i + j if self.long_rows else 2 * j + i

    def leads(self, lane: Expr) -> Expr:
        """Say whether the lane is the first of those that have its rows."""
        return lane % 4 == 0 if self.long_rows else lane < 4


KEYS_LONG = Side(False, (4, 8, 16))
ROWS_LONG = Side(True, (1, 2))
