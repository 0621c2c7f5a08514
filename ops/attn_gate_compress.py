"""The compressed-key cache of a learned attention gate, kept up to date token by token.

Source: SeerAttention-R (arXiv 2506.08889), AttnGate key branch and K compression cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattune.ops.attention import sizes_of
from wattune.ops.dtypes import FLOATS, itemsize, round_to, unit_roundoff
from wattune.ops.fields import error, integer, one_of
from wattune.ops.gate_inputs import compress_inputs
from wattune.ops.gate_parts import (
    POSITIONS,
    SLOTS,
    Floats,
    block_count,
    gate_row,
    lengths,
    norm_weight,
    rotary_table,
    slots,
)
from wattune.ops.operator import Argument, Array, Operator, Problem, Tolerance, Work

POOLINGS = ("max", "min", "avg", "maxmin", "maxavg", "minavg", "maxminavg")
_POOLS: dict[str, Any] = {"max": np.max, "min": np.min, "avg": np.mean}


@dataclass(frozen=True)
class AttnGateCompress(Problem):
    """Bring k_compressed [batch, kv_heads, score_blocks, gate_dim] up to date with new keys.

    ``k`` [batch, query_tokens, kv_heads, head_dim] holds pre-RoPE keys; row i is at position p =
    seq_lens - query_tokens + i, rows before position 0 are left out. Each is kept in slot p %
    block_size of ``k_remainder`` [batch, kv_heads, block_size, head_dim]. The first token of a
    block clears the block's entry; the last one fills it:

        entry = rope(rms_norm(concatenate(pooling(keys of the block)) @ wk))

    ``wk`` [kv_heads, poolings * head_dim, gate_dim]. ``norm`` (eps 1e-6) and ``rope`` (NeoX halves,
    from ``cos_sin_cache``) are optional. ``position_rule``: a block rotates by the position of its
    "first" token (the paper) or its "last" (upstream's code while decoding). A prefill is one call
    with many query tokens, or several.
    """

    operator: ClassVar[str] = "attn_gate_compress"
    runtime: ClassVar[tuple[str, ...]] = ("batch", "context")
    open_ended: ClassVar[tuple[str, ...]] = ("context",)
    free: ClassVar[tuple[str, ...]] = (SLOTS, POSITIONS)

    batch: int
    context: int
    kv_heads: int
    head_dim: int
    gate_dim: int = 128
    block_size: int = 64
    query_tokens: int = 1
    pooling: str = "maxminavg"
    norm: bool = True
    rope: bool = True
    position_rule: str = "first"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("batch", "context", "kv_heads", "head_dim", "gate_dim"):
            integer(self, name, 1)
        for name in ("block_size", "query_tokens"):
            integer(self, name, 1)
        one_of(self, "pooling", POOLINGS)
        one_of(self, "position_rule", ("first", "last"))
        one_of(self, "dtype", FLOATS)
        for name in ("norm", "rope"):
            one_of(self, name, (False, True))
            object.__setattr__(self, name, bool(getattr(self, name)))
        if self.rope and self.gate_dim % 2:
            raise error(self, "gate_dim", "an even number, as its halves are rotated")

    @property
    def pools(self) -> tuple[str, ...]:
        """Return the poolings in the order of their weights' rows."""
        return tuple(name for name in _POOLS if name in self.pooling)

    @property
    def extents(self) -> dict[str, int]:
        """Return run-time sizes, the slots of the context, and its positions."""
        blocks = block_count(self.context, self.block_size)
        return {**self.sizes, SLOTS: blocks, POSITIONS: self.context}

    def rotated_by(self, block: int) -> int:
        """Return the position that a block is rotated by."""
        first = block * self.block_size
        return first if self.position_rule == "first" else first + self.block_size - 1


class AttnGateCompressOperator(Operator[AttnGateCompress]):
    """The operator object of `AttnGateCompress`."""

    name = "attn_gate_compress"
    summary = "keep the compressed keys of a learned gate up to date (SeerAttention-R)"
    problem = AttnGateCompress

    @property
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order."""
        before = ("k", "wk", "k_norm", "cos_sin_cache", "seq_lens")
        return (*before, "k_remainder", "k_compressed", "workspace")

    def arguments(self, problem: AttnGateCompress) -> tuple[Argument, ...]:
        """Describe every tensor; both caches are changed."""
        heads, dim, dtype = problem.kv_heads, problem.head_dim, problem.dtype
        wide = len(problem.pools) * dim
        ring = ("batch", heads, problem.block_size, dim)
        return (
            Argument("k", ("batch", problem.query_tokens, heads, dim), dtype, "input"),
            Argument("wk", (heads, wide, problem.gate_dim), dtype, "input"),
            *norm_weight(problem, "k_norm"),
            *rotary_table(problem),
            lengths(problem),
            Argument("k_remainder", ring, dtype, "state", updated=True),
            slots(problem, "k_compressed", problem.gate_dim, updated=True),
            Argument("workspace", ("workspace_bytes",), "uint8", "workspace"),
        )

    def make_inputs(self, problem: AttnGateCompress, rng: np.random.Generator) -> dict[str, Array]:
        """Draw full requests whose last token fills a block where the context allows."""
        seq_lens = np.full(problem.batch, problem.context, np.int32)
        return compress_inputs(problem, self.arguments(problem), seq_lens, rng)

    def verification_inputs(
        self, problem: AttnGateCompress, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Draw requests before, at and after a block's end, an empty one; the rest is poison."""
        bounds = rng.integers(0, problem.context // problem.block_size + 1, problem.batch)
        seq_lens = bounds * problem.block_size + np.array([0, 1, -1])[np.arange(len(bounds)) % 3]
        seq_lens = np.clip(seq_lens, 1, problem.context).astype(np.int32)
        if problem.batch > 1:
            seq_lens[-1] = 0
        return compress_inputs(problem, self.arguments(problem), seq_lens, rng, hard=True)

    def reference(self, problem: AttnGateCompress, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Step through the new tokens; entries are computed in float64."""
        ring, entries = inputs["k_remainder"].copy(), inputs["k_compressed"].copy()
        tokens, size = problem.query_tokens, problem.block_size
        for request, length in enumerate(inputs["seq_lens"].astype(np.int64)):
            for position in range(max(0, length - tokens), length):
                new = inputs["k"][request, tokens - length + position]
                ring[request, :, position % size] = new
                block = position // size
                if position % size == 0:
                    entries[request, :, block] = 0
                if position % size == size - 1:
                    found = self._entry(problem, inputs, ring[request], block)
                    entries[request, :, block] = round_to(found, problem.dtype)
        return {"k_remainder": ring, "k_compressed": entries}

    def _entry(
        self, problem: AttnGateCompress, inputs: Mapping[str, Array], keys: Array, block: int
    ) -> Floats:
        """Return the entry of a full block [kv_heads, gate_dim]; keys [kv_heads, tokens, dim]."""
        wide = keys.astype(np.float64)
        pooled = np.concatenate([_POOLS[name](wide, 1) for name in problem.pools], -1)
        rows = np.einsum("hi,hio->ho", pooled, inputs["wk"].astype(np.float64))
        return gate_row(problem, inputs, "k_norm", rows, problem.rotated_by(block))

    def work(self, problem: AttnGateCompress) -> Work:
        """Count the blocks that the new tokens of full requests complete."""
        last, size = problem.context, problem.block_size
        full = last // size - max(0, last - problem.query_tokens) // size
        wide = len(problem.pools) * problem.head_dim
        rows = problem.batch * problem.kv_heads
        weights = problem.kv_heads * wide * problem.gate_dim if full else 0
        keys = 2 * problem.query_tokens * problem.head_dim
        if full:
            keys += max(0, size - problem.query_tokens) * problem.head_dim
        moved = weights + rows * (keys + full * problem.gate_dim)
        operations = 2 * rows * full * wide * (problem.gate_dim + size)
        return Work(operations=operations, bytes=moved * itemsize(problem.dtype))

    def tolerance(self, problem: AttnGateCompress, output: str) -> Tolerance:
        """Keys are copied; an entry is rounded once."""
        if output == "k_remainder":
            return Tolerance(0.0, 0.0, "keys are copied as they are")
        unit = unit_roundoff(problem.dtype)
        reason = "one rounding of the entry, fp32 sums of thousands of products"
        return Tolerance(2 * unit + 1e-5, 2e-5, reason)

    def examples(self) -> tuple[AttnGateCompress, ...]:
        """Return one token, and a prefill, of a Qwen3-8B layer."""
        return (
            AttnGateCompress(1, 32768, 8, 128),
            AttnGateCompress(1, 4096, 8, 128, query_tokens=4096),
        )

    def parse_shape(self, text: str, **fields: Any) -> AttnGateCompress:
        """Read ``BATCHxCONTEXTxKV_HEADSxHEAD_DIM``."""
        names = ("batch", "context", "kv_heads", "head_dim")
        return AttnGateCompress(**sizes_of(self.name, names, text), **fields)


ATTN_GATE_COMPRESS = AttnGateCompressOperator()
