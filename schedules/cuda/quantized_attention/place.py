"""Where a thread is in its warp's products: what rows and columns its lane holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda.attention.place import Place as BlockPlace
from wattune.schedules.cuda.quantized_attention.plan import COLUMNS, QuantizedPlan

Expr = Any


@dataclass(frozen=True)
class Place:
    """A thread's place; ``row`` is lane / 4 and ``column`` lane % 4.

    ``first_row`` is the first query row of the block, of those of its KV head.
    """

    plan: QuantizedPlan
    request: Expr
    head: Expr
    first_row: Expr
    warp: Expr
    lane: Expr
    row: Expr
    column: Expr

    @classmethod
    def of(cls, plan: QuantizedPlan, place: BlockPlace[QuantizedPlan]) -> Place:
        """Take the numbers of a block and thread apart."""
        lane = T.bind(place.lane)
        return cls(
            plan,
            request=place.item.request,
            head=place.item.head,
            first_row=T.bind(place.first_row),
            warp=T.bind(place.team),
            lane=lane,
            row=T.bind(lane >> 2),
            column=T.bind(lane & 3),
        )

    def query_row(self, panel: int, column: Expr) -> Expr:
        """Return the row of the KV head that a column of a panel of 8 stands for."""
        return self.first_row + COLUMNS * panel + column

    def head_index(self, heads: int) -> Expr:
        """Return request * heads + head, in 64 bits."""
        return T.cast(self.request, "int64") * heads + self.head
