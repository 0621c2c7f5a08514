"""KV caches: shapes and checks that the attention operators share, and numpy access for references.

A cache holds keys or values of ``batch`` requests. Contiguous: one row of ``capacity`` tokens a
request. Paged: pages of ``page_size`` tokens; ``page_table`` [batch, max_pages] int32 names the
page of each stretch of a request's tokens. Layout HND has the heads before the tokens, NHD the
tokens before the heads (FlashInfer's names):

    HND [batch, kv_heads, capacity, width]     paged [num_pages, kv_heads, page_size, width]
    NHD [batch, capacity, kv_heads, width]     paged [num_pages, page_size, kv_heads, width]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.ops.dtypes import numpy_dtype, round_to
from wattune.ops.operator import Argument, Array, Limit, Used, Values

LAYOUTS = ("HND", "NHD")
# Names of sizes that shapes of caches have beside `batch`.
FREE_SIZES = ("capacity", "num_pages", "max_pages")

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class KVCache:
    """The geometry of a cache; ``page_size`` 0 is contiguous.

    ``window``: rows that a sliding window has left behind may be freed, so their page table
    entries may hold -1.
    """

    kv_heads: int
    layout: str
    page_size: int
    dtype: str
    window: int = 0

    def argument(self, name: str, width: int, updated: bool = False) -> Argument:
        """Return a cache as a state with ``width`` elements a row."""
        lead, rows = ("num_pages", self.page_size) if self.page_size else ("batch", "capacity")
        inner = (self.kv_heads, rows) if self.layout == "HND" else (rows, self.kv_heads)
        return Argument(name, (lead, *inner, width), self.dtype, "state", updated=updated)

    def lengths(self) -> Argument:
        """Return ``seq_lens``: tokens of each request in the cache, the queries' own included."""
        most = Limit("max_pages", times=self.page_size) if self.page_size else Limit("capacity")
        values = Values(0, most, maximum="context")
        return Argument("seq_lens", ("batch",), "int32", "input", values=values)

    def page_table(self) -> tuple[Argument, ...]:
        """Return ``page_table`` where the cache is paged."""
        if not self.page_size:
            return ()
        low = -1 if self.window else 0
        used = Used("seq_lens", self.page_size)
        values = Values(low, Limit("num_pages", offset=-1), used=used)
        return (Argument("page_table", ("batch", "max_pages"), "int32", "input", values=values),)

    def extents(self, batch: int, context: int) -> dict[str, int]:
        """Return the free sizes of a cache with room for ``context`` tokens a request."""
        if not self.page_size:
            return {"capacity": context}
        pages = -(-context // self.page_size)
        return {"num_pages": batch * pages, "max_pages": pages}

    def make(self, batch: int, context: int, width: int, rng: np.random.Generator) -> Array:
        """Draw a cache of normal values."""
        sizes = {"batch": batch, **self.extents(batch, context)}
        shape = self.argument("cache", width).concrete(sizes)
        found = np.empty(shape, numpy_dtype(self.dtype))
        for part in found:
            part[...] = round_to(rng.standard_normal(part.shape, dtype=np.float32), self.dtype)
        return found

    def make_page_table(self, batch: int, context: int, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the pages of each request in random order; nothing where the cache is contiguous."""
        if not self.page_size:
            return {}
        sizes = self.extents(batch, context)
        pages = rng.permutation(sizes["num_pages"]).astype(np.int32)
        return {"page_table": pages.reshape(batch, sizes["max_pages"])}

    def slot(
        self, inputs: Any, request: int, head: int | slice, positions: Positions
    ) -> tuple[Any, ...]:
        """Return the index that selects rows of a request and head in a cache array."""
        if not self.page_size:
            lead: Any = request
            rows = positions
        else:
            table = inputs["page_table"][request].astype(np.int64)
            lead, rows = table[positions // self.page_size], positions % self.page_size
        return (lead, head, rows) if self.layout == "HND" else (lead, rows, head)

    def read(
        self, cache: Array, inputs: Any, request: int, head: int, positions: Positions
    ) -> NDArray[np.float64]:
        """Return rows [positions, width] of one head in float64."""
        rows: NDArray[np.float64] = cache[self.slot(inputs, request, head, positions)].astype(
            np.float64
        )
        return rows

    def poison(self, cache: Array, inputs: Any, live: Iterator[tuple[int, Positions]]) -> Array:
        """Return the cache with NaN and infinities in all rows but the live ones."""
        found = np.full_like(cache, np.nan)
        flat = found.reshape(-1)
        flat[::3] = np.inf
        flat[1::3] = -np.inf
        for request, positions in live:
            for head in range(self.kv_heads):
                slot = self.slot(inputs, request, head, positions)
                found[slot] = cache[slot]
        return found
