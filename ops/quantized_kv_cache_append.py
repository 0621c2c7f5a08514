"""Append to a quantised KV cache: new tokens go to the residual, which is packed when it is full.

Source: BitDecoding (arXiv 2503.18773), residual cache. Every token is quantised once, when the last
token of its block arrives; packed blocks are never touched again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops.attention import sizes_of
from wattune.ops.dtypes import itemsize, round_to
from wattune.ops.fields import integer
from wattune.ops.kv_cache_quantize import QuantizedCacheProblem
from wattune.ops.operator import Argument, Array, Operator, Tolerance, Work
from wattune.ops.quantized_kv_cache import ARRAYS


@dataclass(frozen=True)
class QuantizedKVCacheAppend(QuantizedCacheProblem):
    """Write k and v [batch, query_tokens, kv_heads, width] at the end of each request.

    Row i is token seq_lens - query_tokens + i (``seq_lens`` counts the new tokens); rows before
    token 0 are left out. A residual that becomes full is packed and starts again.
    """

    operator: ClassVar[str] = "quantized_kv_cache_append"

    query_tokens: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        integer(self, "query_tokens", 1, self.block_tokens)


class QuantizedKVCacheAppendOperator(Operator[QuantizedKVCacheAppend]):
    """The operator object of `QuantizedKVCacheAppend`."""

    name = "quantized_kv_cache_append"
    summary = "append to an int8, int4 or int2 KV cache, packing full residuals"
    problem = QuantizedKVCacheAppend

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("k", "v", *ARRAYS, "seq_lens")

    def arguments(self, problem: QuantizedKVCacheAppend) -> tuple[Argument, ...]:
        """Describe every tensor; all arrays of the cache are changed."""
        rows = ("batch", problem.query_tokens, problem.kv_heads)
        return (
            Argument("k", (*rows, problem.head_dim), problem.dtype, "input"),
            Argument("v", (*rows, problem.value_dim), problem.dtype, "input"),
            *problem.quantized.arguments(updated=True),
            problem.quantized.lengths(),
        )

    def make_inputs(
        self, problem: QuantizedKVCacheAppend, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw full requests; a context of whole blocks packs one in every call."""
        return self._inputs(problem, np.full(problem.batch, problem.context, np.int32), rng)

    def verification_inputs(
        self, problem: QuantizedKVCacheAppend, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw ragged requests: shorter than the new tokens, just full, crossing a block."""
        block, most = problem.block_tokens, problem.context
        crossing = most // block * block + problem.query_tokens // 2
        wanted = [crossing, most // block * block, problem.query_tokens // 2 + 1, 0]
        lengths = np.array([min(wanted[b % 4], most) for b in range(problem.batch)], np.int32)
        return self._inputs(problem, lengths, rng)

    def _inputs(
        self, problem: QuantizedKVCacheAppend, lengths: Array, rng: np.random.Generator
    ) -> dict[str, Array]:
        inputs = problem.quantized.make(problem.batch, problem.context, rng)
        rows = (problem.batch, problem.query_tokens, problem.kv_heads)
        for name, width in (("k", problem.head_dim), ("v", problem.value_dim)):
            new = rng.standard_normal((*rows, width), dtype=np.float32)
            inputs[name] = round_to(new, problem.dtype)
        return {**inputs, "seq_lens": lengths}

    def reference(
        self, problem: QuantizedKVCacheAppend, inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Append token by token and pack each residual that becomes full."""
        cache = problem.quantized
        found = {name: inputs[name].copy() for name in ARRAYS}
        for request, length in enumerate(inputs["seq_lens"].astype(int)):
            first = length - problem.query_tokens
            for token in range(max(0, first), length):
                block, row = divmod(token, cache.block_tokens)
                for which in ("k", "v"):
                    residual = found[f"{which}_residual"][request]
                    residual[:, row] = inputs[which][request, token - first]
                    if row == cache.block_tokens - 1:
                        codes, params = cache.quantize(which, residual)
                        found[f"{which}_codes"][request, :, block] = codes
                        found[f"{which}_params"][request, :, block] = params
        return found

    def work(self, problem: QuantizedKVCacheAppend) -> Work:
        """Count the new rows, and a block where the context is whole blocks."""
        cache, heads = problem.quantized, problem.batch * problem.kv_heads
        width = problem.head_dim + problem.value_dim
        moved = 2.0 * problem.query_tokens * cache.residual_bytes()
        operations = 0
        if problem.context % cache.block_tokens == 0:
            row = width * itemsize(problem.dtype) + cache.token_bytes()
            moved += cache.block_tokens * row
            operations = 4 * cache.block_tokens * width
        return Work(heads * operations, int(heads * moved))

    def tolerance(self, problem: QuantizedKVCacheAppend, output: str) -> Tolerance:
        """The quantiser is defined to the bit."""
        return Tolerance(0.0, 0.0, "float32 operations in a given order, each rounded once")

    def examples(self) -> tuple[QuantizedKVCacheAppend, ...]:
        """Return a Llama-3.1-8B layer."""
        return (QuantizedKVCacheAppend(1, 32768, 8, 128),)

    def parse_shape(self, text: str, **fields: Any) -> QuantizedKVCacheAppend:
        """Read ``BATCHxCONTEXTxKV_HEADSxHEAD_DIM``."""
        names = ("batch", "context", "kv_heads", "head_dim")
        return QuantizedKVCacheAppend(**sizes_of(self.name, names, text), **fields)


QUANTIZED_KV_CACHE_APPEND = QuantizedKVCacheAppendOperator()
