"""Where the rows of a KV cache lie: contiguous or paged, heads or tokens first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.program import Tensors


class CacheRows:
    """Emits offsets, in elements, of rows of ``width`` in the cache of a problem."""

    def __init__(self, problem: Any, tensors: Tensors, width: int) -> None:
        """Take geometry from the problem and tables from the kernel's arguments."""
        self._problem, self._width = problem, width
        self._table = tensors.get("page_table")
        self._capacity = tensors.sizes.get("capacity")

    def within_block(self, request: Any, head: Any, first: Any) -> Callable[[Any], Any]:
        """Return what gives the row of token i after ``first``, a block's first position.

        One look at the page table serves a block that lies within a page.
        """
        size = self._problem.page_size
        if size and size % self._problem.block_size:
            return lambda i: self._row(request, head, first + i)
        start = T.bind(self._row(request, head, first))
        heads = 1 if self._problem.layout == "HND" else self._problem.kv_heads
        return lambda i: start + T.cast(i, "int64") * (heads * self._width)

    def _row(self, request: Any, head: Any, position: Any) -> Any:
        size, heads = self._problem.page_size, self._problem.kv_heads
        if self._table is None:
            lead, at, extent = request, position, self._capacity
        else:
            lead = self._table[request, T.truncdiv(position, size)]
            at, extent = T.truncmod(position, size), size
        wide = T.cast(lead, "int64")
        if self._problem.layout == "HND":
            row = (wide * heads + head) * extent + at
        else:
            row = (wide * extent + at) * heads + head
        return row * self._width
