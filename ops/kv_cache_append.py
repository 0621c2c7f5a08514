"""Append: write the keys and values of new tokens into a KV cache.

The counterpart of FlashInfer's ``append_paged_kv_cache`` and vLLM's ``reshape_and_cache``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops.attention import cache_name, sizes_of
from wattune.ops.dtypes import FLOATS, itemsize, round_to
from wattune.ops.fields import integer, one_of
from wattune.ops.kv_cache import FREE_SIZES, LAYOUTS, KVCache
from wattune.ops.operator import Argument, Array, Operator, Problem, Tolerance, Work


@dataclass(frozen=True)
class KVCacheAppend(Problem):
    """Write k and v [batch, query_tokens, kv_heads, width] at the end of each request.

    Row i goes to position seq_lens - query_tokens + i (``seq_lens`` counts the new tokens); rows
    before position 0 are left out. The cache's fields are those of `Attention`.
    """

    operator: ClassVar[str] = "kv_cache_append"
    runtime: ClassVar[tuple[str, ...]] = ("batch", "context")
    open_ended: ClassVar[tuple[str, ...]] = ("context",)
    free: ClassVar[tuple[str, ...]] = FREE_SIZES

    batch: int
    context: int
    kv_heads: int
    head_dim: int
    value_dim: int = 0
    query_tokens: int = 1
    dtype: str = "bfloat16"
    layout: str = "HND"
    page_size: int = 0

    def __post_init__(self) -> None:
        """Check every field and fill what follows from others."""
        for name in ("batch", "context", "kv_heads", "head_dim", "query_tokens"):
            integer(self, name, 1)
        for name in ("value_dim", "page_size"):
            integer(self, name, 0)
        one_of(self, "dtype", FLOATS)
        one_of(self, "layout", LAYOUTS)
        if not self.value_dim:
            object.__setattr__(self, "value_dim", self.head_dim)

    @property
    def cache(self) -> KVCache:
        """Return the geometry of the cache."""
        return KVCache(self.kv_heads, self.layout, self.page_size, self.dtype)

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes and those of the cache."""
        return {**self.sizes, **self.cache.extents(self.batch, self.context)}

    def shared_data(self) -> str:
        """Name the cache that attention reads."""
        return cache_name(self)


class KVCacheAppendOperator(Operator[KVCacheAppend]):
    """The operator object of `KVCacheAppend`."""

    name = "kv_cache_append"
    summary = "write the keys and values of new tokens into a KV cache"
    problem = KVCacheAppend

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("k", "v", "k_cache", "v_cache", "seq_lens", "page_table")

    def arguments(self, problem: KVCacheAppend) -> tuple[Argument, ...]:
        """Describe every tensor; the caches are changed."""
        rows = ("batch", problem.query_tokens, problem.kv_heads)
        cache = problem.cache
        return (
            Argument("k", (*rows, problem.head_dim), problem.dtype, "input"),
            Argument("v", (*rows, problem.value_dim), problem.dtype, "input"),
            cache.argument("k_cache", problem.head_dim, updated=True),
            cache.argument("v_cache", problem.value_dim, updated=True),
            cache.lengths(),
            *cache.page_table(),
        )

    def make_inputs(self, problem: KVCacheAppend, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full requests."""
        return self._inputs(problem, np.full(problem.batch, problem.context, np.int32), rng)

    def verification_inputs(
        self, problem: KVCacheAppend, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw ragged requests, some shorter than the new tokens."""
        lengths = rng.integers(0, problem.context + 1, problem.batch).astype(np.int32)
        lengths[::2] = np.minimum(problem.query_tokens // 2 + 1, problem.context)
        return self._inputs(problem, lengths, rng)

    def _inputs(
        self, problem: KVCacheAppend, lengths: Array, rng: np.random.Generator
    ) -> dict[str, Array]:
        cache, batch, context = problem.cache, problem.batch, problem.context
        rows = (batch, problem.query_tokens, problem.kv_heads)
        inputs: dict[str, Array] = {
            "seq_lens": lengths,
            **cache.make_page_table(batch, context, rng),
        }
        for name, width in (("k", problem.head_dim), ("v", problem.value_dim)):
            new = rng.standard_normal((*rows, width), dtype=np.float32)
            inputs[name] = round_to(new, problem.dtype)
            inputs[f"{name}_cache"] = cache.make(batch, context, width, rng)
        return inputs

    def reference(self, problem: KVCacheAppend, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return both caches with the new rows."""
        return {
            f"{name}_cache": written(problem, inputs, f"{name}_cache", name) for name in ("k", "v")
        }

    def work(self, problem: KVCacheAppend) -> Work:
        """Count no operations; every new row is read and written."""
        rows = problem.batch * problem.query_tokens * problem.kv_heads
        width = problem.head_dim + problem.value_dim
        return Work(0, 2 * rows * width * itemsize(problem.dtype))

    def tolerance(self, problem: KVCacheAppend, output: str) -> Tolerance:
        """Rows are copied."""
        return Tolerance(0.0, 0.0, "rows are copied as they are")

    def examples(self) -> tuple[KVCacheAppend, ...]:
        """Return a Llama-3.1-8B layer."""
        return (KVCacheAppend(1, 32768, 8, 128),)

    def parse_shape(self, text: str, **fields: Any) -> KVCacheAppend:
        """Read ``BATCHxCONTEXTxKV_HEADSxHEAD_DIM``."""
        names = ("batch", "context", "kv_heads", "head_dim")
        return KVCacheAppend(**sizes_of(self.name, names, text), **fields)


def written(problem: Any, inputs: Mapping[str, Array], cache: str, source: str) -> Array:
    """Return a cache with the rows of ``source`` at the end of each request."""
    found = inputs[cache].copy()
    tokens = problem.query_tokens
    for request, length in enumerate(inputs["seq_lens"].astype(np.int64)):
        positions = np.arange(max(0, length - tokens), length)
        rows = inputs[source][request, tokens - len(positions) :]
        for head in range(problem.kv_heads):
            slot = problem.cache.slot(inputs, request, head, positions)
            found[slot] = rows[:, head]
    return found


KV_CACHE_APPEND = KVCacheAppendOperator()
