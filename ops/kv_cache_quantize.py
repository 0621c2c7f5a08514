"""Quantise whole prompts into a KV cache: packed blocks, and the rest in the residual.

Source: BitDecoding (arXiv 2503.18773): prefill packs all whole blocks of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops.attention import sizes_of
from wattune.ops.dtypes import FLOATS, itemsize, round_to
from wattune.ops.fields import integer, one_of
from wattune.ops.operator import (
    Argument,
    Array,
    Limit,
    Operator,
    Problem,
    Tolerance,
    Values,
    Work,
)
from wattune.ops.quantized_decode_attention import (
    check_quantized,
    quantized_cache,
    quantized_cache_name,
)
from wattune.ops.quantized_kv_cache import ARRAYS, FREE_SIZES, QuantizedKVCache


@dataclass(frozen=True)
class QuantizedCacheProblem(Problem):
    """Sizes of operators that write a quantised cache; see `QuantizedDecodeAttention`."""

    runtime: ClassVar[tuple[str, ...]] = ("batch", "context")
    open_ended: ClassVar[tuple[str, ...]] = ("context",)
    free: ClassVar[tuple[str, ...]] = (*FREE_SIZES, "tokens")

    batch: int
    context: int
    kv_heads: int
    head_dim: int
    value_dim: int = 0
    dtype: str = "bfloat16"
    format: str = "int4"
    key_groups: str = "channel"
    group_size: int = 64
    block_tokens: int = 128

    def __post_init__(self) -> None:
        """Check every field and fill what follows from others."""
        for name in ("batch", "context", "kv_heads", "head_dim"):
            integer(self, name, 1)
        integer(self, "value_dim", 0)
        one_of(self, "dtype", FLOATS)
        if not self.value_dim:
            object.__setattr__(self, "value_dim", self.head_dim)
        check_quantized(self)

    @property
    def quantized(self) -> QuantizedKVCache:
        """Return the geometry of the cache."""
        return quantized_cache(self)

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes and those of the cache."""
        return {**self.sizes, **self.quantized.extents(self.context)}

    def shared_data(self) -> str:
        """Name the cache that attention reads."""
        return quantized_cache_name(self)


@dataclass(frozen=True)
class KVCacheQuantize(QuantizedCacheProblem):
    """Fill a quantised cache from k and v [batch, tokens, kv_heads, width].

    The first seq_lens tokens of each request: whole blocks are packed, the rest is copied to the
    residual. Numbers beyond float16's range are clipped. Fields as in `QuantizedDecodeAttention`.
    """

    operator: ClassVar[str] = "kv_cache_quantize"

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes, those of the cache, and the tokens of the longest prompt."""
        return {**super().extents, "tokens": self.context}


class KVCacheQuantizeOperator(Operator[KVCacheQuantize]):
    """The operator object of `KVCacheQuantize`."""

    name = "kv_cache_quantize"
    summary = "quantise prompts into an int8, int4 or int2 KV cache"
    problem = KVCacheQuantize

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        return ("k", "v", *ARRAYS, "seq_lens")

    def arguments(self, problem: KVCacheQuantize) -> tuple[Argument, ...]:
        """Describe every tensor; all arrays of the cache are changed."""
        cache = problem.quantized
        rows = ("batch", "tokens", problem.kv_heads)
        lengths = Values(0, Limit("tokens"), maximum="context", also=cache.most_tokens)
        return (
            Argument("k", (*rows, problem.head_dim), problem.dtype, "input"),
            Argument("v", (*rows, problem.value_dim), problem.dtype, "input"),
            *cache.arguments(updated=True),
            Argument("seq_lens", ("batch",), "int32", "input", values=lengths),
        )

    def make_inputs(self, problem: KVCacheQuantize, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full prompts."""
        return self._inputs(problem, np.full(problem.batch, problem.context, np.int32), rng)

    def verification_inputs(
        self, problem: KVCacheQuantize, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw ragged prompts; constant groups and outliers among the rows, poison after them."""
        lengths = rng.integers(0, problem.context + 1, problem.batch).astype(np.int32)
        lengths[0] = problem.context
        inputs = self._inputs(problem, lengths, rng)
        for name in ("k", "v"):
            rows = inputs[name]
            rows[0, : problem.context // 2, 0, :] = 0.5
            rows[0, :, -1, 0] *= 30
            for request, length in enumerate(lengths):
                rows[request, length:] = np.nan
        return inputs

    def _inputs(
        self, problem: KVCacheQuantize, lengths: Array, rng: np.random.Generator
    ) -> dict[str, Array]:
        inputs = problem.quantized.make(problem.batch, problem.context, rng)
        rows = (problem.batch, problem.context, problem.kv_heads)
        for name, width in (("k", problem.head_dim), ("v", problem.value_dim)):
            new = rng.standard_normal((*rows, width), dtype=np.float32)
            inputs[name] = round_to(new, problem.dtype)
        return {**inputs, "seq_lens": lengths}

    def reference(self, problem: KVCacheQuantize, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return all arrays; what lies beyond a prompt stays as it was."""
        cache = problem.quantized
        found = {a.name: inputs[a.name].copy() for a in cache.arguments()}
        for request, length in enumerate(inputs["seq_lens"].astype(int)):
            blocks = length // cache.block_tokens
            cut = blocks * cache.block_tokens
            for which in ("k", "v"):
                rows = np.swapaxes(inputs[which][request, :length], 0, 1)
                found[f"{which}_residual"][request, :, : length - cut] = rows[:, cut:]
                if blocks:
                    shape = (problem.kv_heads, blocks, cache.block_tokens, cache.width(which))
                    codes, params = cache.quantize(which, rows[:, :cut].reshape(shape))
                    found[f"{which}_codes"][request, :, :blocks] = codes
                    found[f"{which}_params"][request, :, :blocks] = params
        return found

    def work(self, problem: KVCacheQuantize) -> Work:
        """Count rows read once and codes and params written once."""
        rows = problem.batch * problem.context * problem.kv_heads
        width = problem.head_dim + problem.value_dim
        moved = width * itemsize(problem.dtype) + problem.quantized.token_bytes()
        return Work(4 * rows * width, int(rows * moved))

    def tolerance(self, problem: KVCacheQuantize, output: str) -> Tolerance:
        """The quantiser is defined to the bit."""
        return Tolerance(0.0, 0.0, "float32 operations in a given order, each rounded once")

    def examples(self) -> tuple[KVCacheQuantize, ...]:
        """Return a Llama-3.1-8B layer."""
        return (KVCacheQuantize(1, 4096, 8, 128),)

    def parse_shape(self, text: str, **fields: Any) -> KVCacheQuantize:
        """Read ``BATCHxCONTEXTxKV_HEADSxHEAD_DIM``."""
        names = ("batch", "context", "kv_heads", "head_dim")
        return KVCacheQuantize(**sizes_of(self.name, names, text), **fields)


KV_CACHE_QUANTIZE = KVCacheQuantizeOperator()
