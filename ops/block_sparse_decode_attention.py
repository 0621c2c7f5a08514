"""Block-sparse decode attention: each KV head attends to its own list of key blocks.

Sources: SeerAttention-R (arXiv 2506.08889) section on sparse decoding; ReSA (arXiv 2506.04108).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.ops.attention import Attention, AttentionOperator, causal
from wattune.ops.fields import integer, one_of
from wattune.ops.kv_cache import Positions
from wattune.ops.operator import Argument, Array, Limit, Values


@dataclass(frozen=True)
class BlockSparseDecodeAttention(Attention):
    """Decode attention to the keys of listed blocks; other fields as in `Attention`.

    ``block_indices`` int32 [batch, kv_heads, max_blocks] holds block numbers in any order, -1
    anywhere; ``per_token`` adds a list for each query token: [batch, query_tokens, kv_heads,
    max_blocks]. Block j is the keys j * block_size up to the request's length.
    """

    operator: ClassVar[str] = "block_sparse_decode_attention"
    runtime: ClassVar[tuple[str, ...]] = ("batch", "context", "max_blocks")
    open_ended: ClassVar[tuple[str, ...]] = ("context", "max_blocks")

    max_blocks: int = 64
    block_size: int = 64
    per_token: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        integer(self, "max_blocks", 1)
        integer(self, "block_size", 1)
        one_of(self, "per_token", (False, True))
        object.__setattr__(self, "per_token", bool(self.per_token))

    @property
    def blocks(self) -> int:
        """Return how many blocks the context has."""
        return -(-self.context // self.block_size)


class BlockSparseDecodeAttentionOperator(AttentionOperator[BlockSparseDecodeAttention]):
    """The operator object of `BlockSparseDecodeAttention`."""

    name = "block_sparse_decode_attention"
    summary = "decode attention to listed blocks of keys, one list a KV head"
    problem = BlockSparseDecodeAttention
    lists = ("block_indices",)
    shape_names = (*AttentionOperator.shape_names, "max_blocks")

    def more_arguments(self, problem: BlockSparseDecodeAttention) -> tuple[Argument, ...]:
        """Describe the lists; a block beyond the cache is an error, one beyond a request empty."""
        size = problem.block_size
        high = (
            Limit("max_pages", times=problem.page_size, per=size, offset=-1)
            if problem.page_size
            else Limit("capacity", per=size, offset=-1)
        )
        tokens = (problem.query_tokens,) if problem.per_token else ()
        shape = ("batch", *tokens, problem.kv_heads, "max_blocks")
        values = Values(-1, high, unique=True)
        return (Argument("block_indices", shape, "int32", "input", values=values),)

    def more_inputs(
        self,
        problem: BlockSparseDecodeAttention,
        lengths: Array,
        rng: np.random.Generator,
        hard: bool,
    ) -> dict[str, Array]:
        """Draw different blocks in ascending order; hard: any order and number, -1 anywhere."""
        tokens = problem.query_tokens if problem.per_token else 1
        shape = (problem.batch, tokens, problem.kv_heads, problem.max_blocks)
        lists = np.full(shape, -1, np.int32)
        count = min(problem.max_blocks, problem.blocks)
        for at, row in enumerate(lists.reshape(-1, problem.max_blocks)):
            chosen = rng.permutation(problem.blocks)[:count]
            if not hard:
                row[:count] = np.sort(chosen)
                continue
            # None, one, half and all of them, in turn.
            kept = chosen[: (0, 1, count // 2, count)[(at + 3) % 4]]
            row[rng.permutation(problem.max_blocks)[: len(kept)]] = kept
        return {"block_indices": lists if problem.per_token else lists[:, 0]}

    def keys(
        self,
        problem: BlockSparseDecodeAttention,
        inputs: Mapping[str, Array],
        request: int,
        head: int,
    ) -> tuple[Positions, NDArray[np.bool_]]:
        """Return the keys of the listed blocks."""
        length = int(inputs["seq_lens"][request])
        lists = inputs["block_indices"][request]
        rows = lists[:, head] if problem.per_token else lists[None, head]
        blocks = np.unique(rows[rows >= 0]).astype(np.int64)
        positions = (blocks[:, None] * problem.block_size + np.arange(problem.block_size)).ravel()
        positions = positions[positions < length]
        listed = np.array([np.isin(positions // problem.block_size, row) for row in rows])
        visible = causal(problem, length, positions) & listed
        seen = visible.any(0)
        return positions[seen], visible[:, seen]

    def keys_read(self, problem: BlockSparseDecodeAttention) -> int:
        """Return the keys of full lists; different tokens' lists may be disjoint."""
        lists = problem.query_tokens if problem.per_token else 1
        return min(problem.visible, lists * problem.max_blocks * problem.block_size)

    def examples(self) -> tuple[BlockSparseDecodeAttention, ...]:
        """Return 90 % sparsity at 32K and 128K."""
        return (
            BlockSparseDecodeAttention(1, 32768, 32, 8, 128, max_blocks=52),
            BlockSparseDecodeAttention(1, 131072, 32, 8, 128, max_blocks=205),
        )

    def parse_shape(self, text: str, **fields: Any) -> BlockSparseDecodeAttention:
        """Read ``BATCHxCONTEXTxQUERY_HEADSxKV_HEADSxHEAD_DIMxMAX_BLOCKS``."""
        return super().parse_shape(text, **fields)


BLOCK_SPARSE_DECODE_ATTENTION = BlockSparseDecodeAttentionOperator()
