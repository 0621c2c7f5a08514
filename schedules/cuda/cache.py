"""Where the rows of a KV cache lie."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.program import Tensors

Expr = Any


def cache_row(problem: Any, tensors: Tensors, request: Expr, head: Expr, position: Expr) -> Expr:
    """Return which row of a cache a request's position is, as an int64; caches may be huge.

    ``problem`` has a cache's fields (``kv_heads``, ``layout``, ``page_size``); the pages are those
    of ``page_table``, where the cache is paged.
    """
    if problem.page_size:
        size = problem.page_size
        line = T.cast(request, "int64") * tensors.sizes["max_pages"]
        page = tensors["page_table"][line + T.truncdiv(position, size)]
        lead, at, extent = T.cast(page, "int64"), T.truncmod(position, size), T.int64(size)
    else:
        lead, at, extent = T.cast(request, "int64"), position, tensors.sizes["capacity"]
    if problem.layout == "HND":
        return (lead * problem.kv_heads + head) * extent + at
    return (lead * extent + at) * problem.kv_heads + head
