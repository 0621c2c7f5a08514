"""Decode attention: few query tokens of each request against its whole KV cache, or a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wattune.ops.attention import Attention, AttentionOperator, causal
from wattune.ops.kv_cache import Positions
from wattune.ops.operator import Array


@dataclass(frozen=True)
class DecodeAttention(Attention):
    """out = softmax(q K^T) V over all keys, or the last ``window``; fields as in `Attention`."""

    operator: ClassVar[str] = "decode_attention"


class DecodeAttentionOperator(AttentionOperator[DecodeAttention]):
    """The operator object of `DecodeAttention`."""

    name = "decode_attention"
    summary = "softmax(q K^T) V against a KV cache: dense or sliding window, GQA, sinks"
    problem = DecodeAttention

    def keys(
        self, problem: DecodeAttention, inputs: Mapping[str, Array], request: int, head: int
    ) -> tuple[Positions, NDArray[np.bool_]]:
        """Return every key that some query token sees."""
        length = int(inputs["seq_lens"][request])
        first = max(0, length - problem.visible)
        positions = np.arange(first, length)
        return positions, causal(problem, length, positions)

    def examples(self) -> tuple[DecodeAttention, ...]:
        """Return a Llama-3.1-8B layer, and a sliding window with sinks."""
        return (
            DecodeAttention(1, 32768, 32, 8, 128),
            DecodeAttention(1, 32768, 64, 8, 192, value_dim=128, window=128, sinks=True),
        )


DECODE_ATTENTION = DecodeAttentionOperator()
