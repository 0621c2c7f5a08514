"""What attention templates of all targets share: lists of keys, who sees them, rows of caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.attention import Attention
from wattune.schedules.program import Tensors

Expr = Any


@dataclass(frozen=True)
class Items:
    """The lists of keys that a problem's query rows read; plans are this and more."""

    problem: Attention

    @property
    def items(self) -> int:
        """Return how many lists of keys a request's KV head has."""
        return self.problem.query_tokens if getattr(self.problem, "per_token", False) else 1

    @property
    def item_tokens(self) -> int:
        """Return how many query tokens read one list."""
        return self.problem.query_tokens // self.items

    @property
    def item_rows(self) -> int:
        """Return the query rows of an item: row = token * group + head."""
        return self.problem.group * self.item_tokens


@dataclass(frozen=True)
class Item:
    """A list of keys of a request's KV head, and the queries that read it."""

    request: Expr
    head: Expr
    part: Expr
    length: Expr


def visible(plan: Items, item: Item) -> tuple[Expr, Expr]:
    """Return the first position that some query of an item sees, and the one after the last."""
    problem = plan.problem
    if plan.items == 1:
        end = item.length
    else:
        end = T.bind(item.length - problem.query_tokens + item.part + plan.item_tokens)
    if not problem.window:
        return T.int32(0), end
    first = end - (problem.window + plan.item_tokens - 1)
    return T.bind(T.max(first, T.int32(0))), end


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
