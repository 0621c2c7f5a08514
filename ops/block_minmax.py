"""Least and greatest keys of blocks: the element-wise bounds that ReSA and Quest select by.

Source: ReSA, Rectified Sparse Attention (arXiv 2506.04108), block representation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops.attention import cache_name, sizes_of
from wattune.ops.dtypes import FLOATS, itemsize, round_to
from wattune.ops.fields import integer, one_of
from wattune.ops.gate_parts import SLOTS, block_count, ragged, slots
from wattune.ops.kv_cache import FREE_SIZES, LAYOUTS, KVCache
from wattune.ops.operator import Argument, Array, Operator, Problem, Tolerance, Work


@dataclass(frozen=True)
class BlockMinmax(Problem):
    """Bring k_min and k_max [batch, kv_heads, score_blocks, head_dim] up to date with a cache.

    Recomputed are the blocks with a token at or after seq_lens - ``query_tokens``; 0 recomputes
    all blocks (after a prefill or a rectification). An incomplete last block counts its tokens
    only. Other slots are left alone, and blocks beyond the slots are left out. The cache's fields
    are those of `Attention`.
    """

    operator: ClassVar[str] = "block_minmax"
    runtime: ClassVar[tuple[str, ...]] = ("batch", "context")
    open_ended: ClassVar[tuple[str, ...]] = ("context",)
    free: ClassVar[tuple[str, ...]] = (*FREE_SIZES, SLOTS)

    batch: int
    context: int
    kv_heads: int
    head_dim: int
    block_size: int = 16
    query_tokens: int = 1
    dtype: str = "bfloat16"
    layout: str = "HND"
    page_size: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("batch", "context", "kv_heads", "head_dim", "block_size"):
            integer(self, name, 1)
        for name in ("query_tokens", "page_size"):
            integer(self, name, 0)
        one_of(self, "dtype", FLOATS)
        one_of(self, "layout", LAYOUTS)

    @property
    def cache(self) -> KVCache:
        """Return the geometry of the cache."""
        return KVCache(self.kv_heads, self.layout, self.page_size, self.dtype)

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes, those of the cache, and the slots of the context."""
        cache = self.cache.extents(self.batch, self.context)
        return {**self.sizes, **cache, SLOTS: block_count(self.context, self.block_size)}

    def shared_data(self) -> str:
        """Name the cache that attention reads."""
        return cache_name(self)

    def changed(self, length: int) -> range:
        """Return the blocks of a request that are recomputed."""
        first = max(0, length - self.query_tokens) if self.query_tokens else 0
        return range(first // self.block_size, block_count(length, self.block_size))


class BlockMinmaxOperator(Operator[BlockMinmax]):
    """The operator object of `BlockMinmax`."""

    name = "block_minmax"
    summary = "least and greatest keys of the blocks that changed (ReSA, Quest)"
    problem = BlockMinmax

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("k_cache", "seq_lens", "page_table", "k_min", "k_max")

    def arguments(self, problem: BlockMinmax) -> tuple[Argument, ...]:
        """Describe every tensor; the bounds are changed."""
        cache = problem.cache
        return (
            cache.argument("k_cache", problem.head_dim),
            cache.lengths(),
            *cache.page_table(),
            slots(problem, "k_min", problem.head_dim, updated=True),
            slots(problem, "k_max", problem.head_dim, updated=True),
        )

    def make_inputs(self, problem: BlockMinmax, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full requests and any old bounds."""
        return self._inputs(problem, np.full(problem.batch, problem.context, np.int32), rng)

    def verification_inputs(
        self, problem: BlockMinmax, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw ragged requests; keys that no recomputed block holds are poison."""
        inputs = self._inputs(problem, ragged(problem.batch, problem.context, rng), rng)
        inputs["k_cache"] = problem.cache.poison(
            inputs["k_cache"], inputs, self._live(problem, inputs)
        )
        return inputs

    def _live(self, problem: BlockMinmax, inputs: Mapping[str, Array]) -> Iterator[tuple[int, Any]]:
        for request, length in enumerate(inputs["seq_lens"].astype(np.int64)):
            first = problem.changed(length).start * problem.block_size
            yield request, np.arange(min(first, length), length)

    def _inputs(
        self, problem: BlockMinmax, lengths: Array, rng: np.random.Generator
    ) -> dict[str, Array]:
        cache, batch, context = problem.cache, problem.batch, problem.context
        inputs: dict[str, Array] = {
            "k_cache": cache.make(batch, context, problem.head_dim, rng),
            "seq_lens": lengths,
            **cache.make_page_table(batch, context, rng),
        }
        shape = slots(problem, "k_min", problem.head_dim).concrete(problem.extents)
        for name in ("k_min", "k_max"):
            old = rng.standard_normal(shape, dtype=np.float32)
            inputs[name] = round_to(old, problem.dtype)
        return inputs

    def reference(self, problem: BlockMinmax, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return both bounds; they are keys as they are, so nothing is rounded."""
        low, high = inputs["k_min"].copy(), inputs["k_max"].copy()
        for request, length in enumerate(inputs["seq_lens"].astype(np.int64)):
            for block in problem.changed(length):
                if block >= low.shape[2]:
                    continue
                first = block * problem.block_size
                positions = np.arange(first, min(first + problem.block_size, length))
                for head in range(problem.kv_heads):
                    rows = inputs["k_cache"][problem.cache.slot(inputs, request, head, positions)]
                    low[request, head, block] = rows.min(0)
                    high[request, head, block] = rows.max(0)
        return {"k_min": low, "k_max": high}

    def work(self, problem: BlockMinmax) -> Work:
        """Count two comparisons a value; keys are read and bounds written once."""
        changed = problem.changed(problem.context)
        keys = problem.context - changed.start * problem.block_size
        rows = problem.batch * problem.kv_heads * problem.head_dim
        moved = rows * (keys + 2 * len(changed)) * itemsize(problem.dtype)
        return Work(operations=2 * rows * keys, bytes=moved)

    def tolerance(self, problem: BlockMinmax, output: str) -> Tolerance:
        """Bounds are copies of keys."""
        return Tolerance(0.0, 0.0, "bounds are elements of keys as they are")

    def examples(self) -> tuple[BlockMinmax, ...]:
        """Return one token, and a rebuild, of a Llama-3.1-8B layer."""
        return (BlockMinmax(1, 32768, 8, 128), BlockMinmax(1, 32768, 8, 128, query_tokens=0))

    def parse_shape(self, text: str, **fields: Any) -> BlockMinmax:
        """Read ``BATCHxCONTEXTxKV_HEADSxHEAD_DIM``."""
        names = ("batch", "context", "kv_heads", "head_dim")
        return BlockMinmax(**sizes_of(self.name, names, text), **fields)


BLOCK_MINMAX = BlockMinmaxOperator()
