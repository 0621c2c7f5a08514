"""Decode attention to a quantised KV cache: packed blocks and the residual in one call.

Source: BitDecoding (arXiv 2503.18773): per-channel or per-token keys, per-token values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.ops.attention import Attention, AttentionOperator, causal
from wattune.ops.fields import error, integer, one_of
from wattune.ops.kv_cache import Positions
from wattune.ops.kv_quantization import BITS, LANES
from wattune.ops.operator import Argument, Array, Limit, Tolerance, Values, Work
from wattune.ops.quantized_kv_cache import (
    ARRAYS,
    FREE_SIZES,
    GROUP_SIZES,
    KEY_GROUPS,
    QuantizedKVCache,
)


@dataclass(frozen=True)
class QuantizedDecodeAttention(Attention):
    """Decode attention to an int8, int4 or int2 cache; other fields as in `Attention`.

    ``key_groups``: a scale and zero per "channel" (over ``group_size`` tokens) or per "token"
    (over ``group_size`` channels); values are per token. ``block_tokens`` is how many tokens are
    packed together and how many the residual holds. ``block_size`` 0 is dense; else
    ``block_indices`` [batch, kv_heads, max_blocks] lists the blocks of that many tokens that are
    attended to, -1 anywhere.
    """

    operator: ClassVar[str] = "quantized_decode_attention"
    runtime: ClassVar[tuple[str, ...]] = ("batch", "context", "max_blocks")
    open_ended: ClassVar[tuple[str, ...]] = ("context", "max_blocks")
    free: ClassVar[tuple[str, ...]] = FREE_SIZES

    format: str = "int4"
    key_groups: str = "channel"
    group_size: int = 64
    block_tokens: int = 128
    block_size: int = 0
    max_blocks: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        check_quantized(self)
        integer(self, "block_size", 0)
        integer(self, "max_blocks", min(1, self.block_size))
        if self.layout != "HND" or self.page_size:
            name = "page_size" if self.page_size else "layout"
            raise error(self, name, "0" if self.page_size else "HND")
        if not self.block_size and self.max_blocks:
            raise error(self, "max_blocks", "0 without a block_size")

    @property
    def quantized(self) -> QuantizedKVCache:
        """Return the geometry of the cache."""
        return quantized_cache(self)

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes and those of the cache."""
        return {**self.sizes, **self.quantized.extents(self.context)}

    def shared_data(self) -> str:
        """Name the cache that append writes."""
        return quantized_cache_name(self)


def check_quantized(problem: Any) -> None:
    """Refuse sizes that do not divide each other."""
    one_of(problem, "format", BITS)
    one_of(problem, "key_groups", KEY_GROUPS)
    one_of(problem, "group_size", GROUP_SIZES)
    integer(problem, "block_tokens", problem.group_size)
    if problem.block_tokens % problem.group_size:
        raise error(problem, "block_tokens", f"a multiple of group_size ({problem.group_size})")
    if problem.head_dim % LANES:
        raise error(problem, "head_dim", f"a multiple of {LANES}")
    if problem.value_dim % problem.group_size:
        raise error(problem, "value_dim", f"a multiple of group_size ({problem.group_size})")
    if problem.key_groups == "token" and problem.head_dim % problem.group_size:
        raise error(problem, "head_dim", f"a multiple of group_size ({problem.group_size})")


def quantized_cache(problem: Any) -> QuantizedKVCache:
    """Return the geometry of a problem with a quantised cache's fields."""
    return QuantizedKVCache(
        problem.kv_heads,
        problem.head_dim,
        problem.value_dim,
        problem.format,
        problem.key_groups,
        problem.group_size,
        problem.block_tokens,
        problem.dtype,
    )


def quantized_cache_name(problem: Any) -> str:
    """Name the cache of a problem with a quantised cache's fields."""
    widths = f"{problem.kv_heads}x{problem.head_dim}x{problem.value_dim}"
    groups = f"{problem.key_groups}{problem.group_size}:{problem.block_tokens}"
    return f"quantized_kv_cache:{widths}:{problem.format}:{groups}:{problem.dtype}"


class QuantizedDecodeAttentionOperator(AttentionOperator[QuantizedDecodeAttention]):
    """The operator object of `QuantizedDecodeAttention`."""

    name = "quantized_decode_attention"
    summary = "decode attention to an int8, int4 or int2 KV cache with a residual"
    problem = QuantizedDecodeAttention
    caches = ARRAYS
    lists = ("block_indices",)

    def cache_arguments(self, problem: QuantizedDecodeAttention) -> tuple[Argument, ...]:
        """Describe codes, params, residual and the requests' lengths."""
        return (*problem.quantized.arguments(), problem.quantized.lengths())

    def more_arguments(self, problem: QuantizedDecodeAttention) -> tuple[Argument, ...]:
        """Describe the lists; a block beyond the cache is an error, one beyond a request empty."""
        if not problem.block_size:
            return ()
        cache = problem.quantized
        # One block more than the packed ones: the residual.
        tokens, size = cache.block_tokens, problem.block_size
        high = Limit("packed_blocks", tokens, size, offset=-(-tokens // size) - 1)
        shape = ("batch", problem.kv_heads, "max_blocks")
        values = Values(-1, high, unique=True)
        return (Argument("block_indices", shape, "int32", "input", values=values),)

    def cache_inputs(
        self, problem: QuantizedDecodeAttention, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw codes, params and residual rows."""
        return problem.quantized.make(problem.batch, problem.context, rng)

    def poisoned(
        self, problem: QuantizedDecodeAttention, inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return the arrays with poison in what no query needs."""
        return problem.quantized.poison(inputs, self.live(problem, inputs))

    def more_inputs(
        self,
        problem: QuantizedDecodeAttention,
        lengths: Array,
        rng: np.random.Generator,
        hard: bool,
    ) -> dict[str, Array]:
        """Draw different blocks in ascending order; hard: any order and number, -1 anywhere."""
        if not problem.block_size:
            return {}
        blocks = -(-problem.context // problem.block_size)
        count = min(problem.max_blocks, blocks)
        lists = np.full((problem.batch, problem.kv_heads, problem.max_blocks), -1, np.int32)
        for at, row in enumerate(lists.reshape(-1, problem.max_blocks)):
            chosen = rng.permutation(blocks)[:count]
            if not hard:
                row[:count] = np.sort(chosen)
                continue
            kept = chosen[: (0, 1, count // 2, count)[(at + 3) % 4]]
            row[rng.permutation(problem.max_blocks)[: len(kept)]] = kept
        return {"block_indices": lists}

    def keys(
        self,
        problem: QuantizedDecodeAttention,
        inputs: Mapping[str, Array],
        request: int,
        head: int,
    ) -> tuple[Positions, NDArray[np.bool_]]:
        """Return every key, or those of the listed blocks."""
        length = int(inputs["seq_lens"][request])
        positions = np.arange(max(0, length - problem.visible), length)
        if problem.block_size:
            row = inputs["block_indices"][request, head]
            positions = positions[np.isin(positions // problem.block_size, row[row >= 0])]
        return positions, causal(problem, length, positions)

    def read(
        self,
        problem: QuantizedDecodeAttention,
        inputs: Mapping[str, Array],
        which: str,
        request: int,
        head: int,
        positions: Positions,
    ) -> NDArray[np.float64]:
        """Return dequantised or residual rows."""
        return problem.quantized.read(inputs, which, request, head, positions)

    def keys_read(self, problem: QuantizedDecodeAttention) -> int:
        """Return the keys that a call must read."""
        if not problem.block_size:
            return problem.visible
        return min(problem.visible, problem.max_blocks * problem.block_size)

    def work(self, problem: QuantizedDecodeAttention) -> Work:
        """Count two products a key and query; codes, params and residual rows that are read."""
        rows = problem.batch * problem.query_tokens * problem.query_heads
        widths = problem.head_dim + problem.value_dim
        seen, cache = self.keys_read(problem), problem.quantized
        residual = min(seen, problem.context % problem.block_tokens)
        heads = problem.batch * problem.kv_heads
        packed = cache.token_bytes() * (seen - residual) + cache.residual_bytes() * residual
        size = cache.residual_bytes() // widths
        return Work(2 * rows * widths * seen, int(heads * packed) + rows * widths * size)

    def tolerance(self, problem: QuantizedDecodeAttention, output: str) -> Tolerance:
        """Return that of attention, with queries and weights as 15-bit integers."""
        base = super().tolerance(problem, output)
        reason = f"{base.reason}; queries and weights may be integers of 15 bits"
        return Tolerance(base.rtol + 1e-3, base.atol + 2e-3, reason)

    def formats(self) -> dict[str, float]:
        """Return bits per value, without scales and zeros."""
        return {name: float(bits) for name, bits in BITS.items()}

    def examples(self) -> tuple[QuantizedDecodeAttention, ...]:
        """Return a Llama-3.1-8B layer with int4 and int8."""
        return (
            QuantizedDecodeAttention(1, 32768, 32, 8, 128),
            QuantizedDecodeAttention(1, 32768, 32, 8, 128, format="int8"),
        )


QUANTIZED_DECODE_ATTENTION = QuantizedDecodeAttentionOperator()
