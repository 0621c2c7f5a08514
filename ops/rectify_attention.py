"""Rectification: dense attention of the last tokens, whose keys and values are written anew.

Source: ReSA, Rectified Sparse Attention (arXiv 2506.04108): every f tokens of sparse decoding, the
last f are computed again with dense causal attention and overwrite their rows of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.ops.attention import Attention, AttentionOperator, causal
from wattune.ops.dtypes import itemsize, round_to
from wattune.ops.kv_cache import Positions
from wattune.ops.kv_cache_append import written
from wattune.ops.operator import Argument, Array, Work


@dataclass(frozen=True)
class RectifyAttention(Attention):
    """Write the last ``query_tokens`` (up to 64) rows of the cache, then attend densely.

    Fields as in `Attention`; ``k`` and ``v`` [batch, query_tokens, kv_heads, width] go to the
    positions seq_lens - query_tokens up to seq_lens; those before position 0 are left out.
    """

    operator: ClassVar[str] = "rectify_attention"
    most_query_tokens: ClassVar[int] = 64

    query_tokens: int = 32


class RectifyAttentionOperator(AttentionOperator[RectifyAttention]):
    """The operator object of `RectifyAttention`."""

    name = "rectify_attention"
    summary = "overwrite the last rows of a KV cache and attend densely (ReSA)"
    problem = RectifyAttention
    new_rows = ("k", "v")

    def more_arguments(self, problem: RectifyAttention) -> tuple[Argument, ...]:
        """Describe the new rows."""
        shape = ("batch", problem.query_tokens, problem.kv_heads)
        return (
            Argument("k", (*shape, problem.head_dim), problem.dtype, "input"),
            Argument("v", (*shape, problem.value_dim), problem.dtype, "input"),
        )

    def more_inputs(
        self, problem: RectifyAttention, lengths: Array, rng: np.random.Generator, hard: bool
    ) -> dict[str, Array]:
        """Draw new rows."""
        shape = (problem.batch, problem.query_tokens, problem.kv_heads)
        widths = {"k": problem.head_dim, "v": problem.value_dim}
        return {
            name: round_to(rng.standard_normal((*shape, width), dtype=np.float32), problem.dtype)
            for name, width in widths.items()
        }

    def keys(
        self, problem: RectifyAttention, inputs: Mapping[str, Array], request: int, head: int
    ) -> tuple[Positions, NDArray[np.bool_]]:
        """Return every key that some query token sees."""
        length = int(inputs["seq_lens"][request])
        positions = np.arange(max(0, length - problem.visible), length)
        return positions, causal(problem, length, positions)

    def reference(self, problem: RectifyAttention, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Write the rows, then attend; returns the caches too."""
        caches = {
            name: written(problem, inputs, name, source)
            for name, source in (("k_cache", "k"), ("v_cache", "v"))
        }
        return {**caches, **super().reference(problem, {**inputs, **caches})}

    def work(self, problem: RectifyAttention) -> Work:
        """Count the new rows once more: they are read and written."""
        base = super().work(problem)
        rows = problem.batch * problem.query_tokens * problem.kv_heads
        size = itemsize(problem.dtype) * (problem.head_dim + problem.value_dim)
        return Work(base.operations, base.bytes + 2 * rows * size)

    def examples(self) -> tuple[RectifyAttention, ...]:
        """Return ReSA's default of 32 tokens."""
        return (RectifyAttention(1, 32768, 32, 8, 128),)


RECTIFY_ATTENTION = RectifyAttentionOperator()
