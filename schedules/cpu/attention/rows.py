"""Which row of a cache holds a position: the one place that knows layouts and pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.attention import Attention
from wattune.schedules.program import Tensors

Expr = Any


@dataclass(frozen=True)
class Rows:
    """Which row of a cache holds a position of one request and KV head.

    A row is ``width`` elements: row number * width is an offset in elements, for keys and for
    values. Numbers are int64.
    """

    problem: Attention
    tensors: Tensors
    request: Expr
    head: Expr

    @property
    def step(self) -> int:
        """Return how far the rows of neighbouring positions (of one page) lie apart."""
        return 1 if self.problem.layout == "HND" else self.problem.kv_heads

    def at(self, position: Expr) -> Expr:
        """Return the row of a position."""
        heads, size = self.problem.kv_heads, self.problem.page_size
        lead: Expr
        if size:
            lead = T.cast(self.tensors["page_table"][self.request, position // size], "int64")
            slots, slot = size, position % size
        else:
            lead = T.cast(self.request, "int64")
            slots, slot = self.tensors.sizes["capacity"], position
        if self.problem.layout == "HND":
            return (lead * heads + self.head) * slots + slot
        return (lead * slots + slot) * heads + self.head
