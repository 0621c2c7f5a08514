"""What attention templates of all targets share: lists of keys and who sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.attention import Attention

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
