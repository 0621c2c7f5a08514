"""Token-sparse decode attention: each request, or each KV head, attends to a list of tokens.

Source: LessIsMore (arXiv 2508.07101): one list for all heads of a request.
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
class TokenSparseDecodeAttention(Attention):
    """Decode attention to listed tokens; other fields as in `Attention`.

    ``token_indices`` int32 holds positions in any order, -1 anywhere: [batch, max_tokens] with
    ``lists`` "request", [batch, kv_heads, max_tokens] with "head".
    """

    operator: ClassVar[str] = "token_sparse_decode_attention"
    runtime: ClassVar[tuple[str, ...]] = ("batch", "context", "max_tokens")
    open_ended: ClassVar[tuple[str, ...]] = ("context", "max_tokens")

    max_tokens: int = 2048
    lists: str = "request"

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        integer(self, "max_tokens", 1)
        one_of(self, "lists", ("request", "head"))


class TokenSparseDecodeAttentionOperator(AttentionOperator[TokenSparseDecodeAttention]):
    """The operator object of `TokenSparseDecodeAttention`."""

    name = "token_sparse_decode_attention"
    summary = "decode attention to listed tokens, one list a request or a KV head"
    problem = TokenSparseDecodeAttention
    lists = ("token_indices",)
    shape_names = (*AttentionOperator.shape_names, "max_tokens")

    def more_arguments(self, problem: TokenSparseDecodeAttention) -> tuple[Argument, ...]:
        """Describe the lists; a token beyond the cache is an error, one beyond a request empty."""
        high = (
            Limit("max_pages", times=problem.page_size, offset=-1)
            if problem.page_size
            else Limit("capacity", offset=-1)
        )
        heads = (problem.kv_heads,) if problem.lists == "head" else ()
        values = Values(-1, high, unique=True)
        shape = ("batch", *heads, "max_tokens")
        return (Argument("token_indices", shape, "int32", "input", values=values),)

    def more_inputs(
        self,
        problem: TokenSparseDecodeAttention,
        lengths: Array,
        rng: np.random.Generator,
        hard: bool,
    ) -> dict[str, Array]:
        """Draw different tokens in ascending order; hard: any order and number, -1 anywhere."""
        heads = problem.kv_heads if problem.lists == "head" else 1
        lists = np.full((problem.batch, heads, problem.max_tokens), -1, np.int32)
        count = min(problem.max_tokens, problem.context)
        for at, row in enumerate(lists.reshape(-1, problem.max_tokens)):
            chosen = rng.permutation(problem.context)[:count]
            if not hard:
                row[:count] = np.sort(chosen)
                continue
            # None, one, half and all of them, in turn.
            kept = chosen[: (0, 1, count // 2, count)[(at + 3) % 4]]
            row[rng.permutation(problem.max_tokens)[: len(kept)]] = kept
        return {"token_indices": lists if problem.lists == "head" else lists[:, 0]}

    def keys(
        self,
        problem: TokenSparseDecodeAttention,
        inputs: Mapping[str, Array],
        request: int,
        head: int,
    ) -> tuple[Positions, NDArray[np.bool_]]:
        """Return the listed tokens."""
        length = int(inputs["seq_lens"][request])
        lists = inputs["token_indices"][request]
        row = lists[head] if problem.lists == "head" else lists
        positions = np.unique(row[(row >= 0) & (row < length)]).astype(np.int64)
        visible = causal(problem, length, positions)
        seen = visible.any(0)
        return positions[seen], visible[:, seen]

    def keys_read(self, problem: TokenSparseDecodeAttention) -> int:
        """Return the tokens of a full list."""
        return min(problem.visible, problem.max_tokens)

    def examples(self) -> tuple[TokenSparseDecodeAttention, ...]:
        """Return a layer of Qwen3-8B with a budget of 2048 tokens."""
        return (TokenSparseDecodeAttention(1, 32768, 32, 8, 128),)

    def parse_shape(self, text: str, **fields: Any) -> TokenSparseDecodeAttention:
        """Read ``BATCHxCONTEXTxQUERY_HEADSxKV_HEADSxHEAD_DIMxMAX_TOKENS``."""
        return super().parse_shape(text, **fields)


TOKEN_SPARSE_DECODE_ATTENTION = TokenSparseDecodeAttentionOperator()
