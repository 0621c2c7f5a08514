"""Operators: what is computed, apart from how and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattune.errors import ProblemError, UnknownNameError
from wattune.ops.attn_gate import ATTN_GATE, AttnGate
from wattune.ops.attn_gate_compress import ATTN_GATE_COMPRESS, AttnGateCompress
from wattune.ops.block_minmax import BLOCK_MINMAX, BlockMinmax
from wattune.ops.block_score import BLOCK_SCORE, BlockScore
from wattune.ops.block_sparse_decode_attention import (
    BLOCK_SPARSE_DECODE_ATTENTION,
    BlockSparseDecodeAttention,
)
from wattune.ops.decode_attention import DECODE_ATTENTION, DecodeAttention
from wattune.ops.fused_moe import FUSED_MOE, FusedMoe
from wattune.ops.grouped_gemm import GROUPED_GEMM, GroupedGemm
from wattune.ops.kv_cache_append import KV_CACHE_APPEND, KVCacheAppend
from wattune.ops.kv_cache_quantize import KV_CACHE_QUANTIZE, KVCacheQuantize
from wattune.ops.merge_states import MERGE_STATES, MergeStates
from wattune.ops.moe_align_block_size import MOE_ALIGN_BLOCK_SIZE, MoeAlignBlockSize
from wattune.ops.moe_gate import MOE_GATE, MoeGate
from wattune.ops.moe_topk import MOE_TOPK, MoeTopk
from wattune.ops.operator import Argument, Operator, Problem, Tolerance, Values, Work
from wattune.ops.quantized_decode_attention import (
    QUANTIZED_DECODE_ATTENTION,
    QuantizedDecodeAttention,
)
from wattune.ops.quantized_kv_cache_append import (
    QUANTIZED_KV_CACHE_APPEND,
    QuantizedKVCacheAppend,
)
from wattune.ops.rectify_attention import RECTIFY_ATTENTION, RectifyAttention
from wattune.ops.select_blocks import SELECT_BLOCKS, SelectBlocks
from wattune.ops.select_union import SELECT_UNION, SelectUnion
from wattune.ops.ternary_gemm import TERNARY_GEMM, TernaryGemm
from wattune.ops.token_sparse_decode_attention import (
    TOKEN_SPARSE_DECODE_ATTENTION,
    TokenSparseDecodeAttention,
)

__all__ = [
    "Argument",
    "AttnGate",
    "AttnGateCompress",
    "BlockMinmax",
    "BlockScore",
    "BlockSparseDecodeAttention",
    "DecodeAttention",
    "FusedMoe",
    "GroupedGemm",
    "KVCacheAppend",
    "KVCacheQuantize",
    "MergeStates",
    "MoeAlignBlockSize",
    "MoeGate",
    "MoeTopk",
    "Operator",
    "Problem",
    "QuantizedDecodeAttention",
    "QuantizedKVCacheAppend",
    "RectifyAttention",
    "SelectBlocks",
    "SelectUnion",
    "TernaryGemm",
    "TokenSparseDecodeAttention",
    "Tolerance",
    "Values",
    "Work",
    "operator",
    "operator_names",
    "problem_from_json",
]

_ALL: tuple[Operator[Any], ...] = (
    TERNARY_GEMM,
    DECODE_ATTENTION,
    BLOCK_SPARSE_DECODE_ATTENTION,
    TOKEN_SPARSE_DECODE_ATTENTION,
    RECTIFY_ATTENTION,
    MERGE_STATES,
    KV_CACHE_APPEND,
    QUANTIZED_DECODE_ATTENTION,
    QUANTIZED_KV_CACHE_APPEND,
    KV_CACHE_QUANTIZE,
    BLOCK_MINMAX,
    BLOCK_SCORE,
    ATTN_GATE_COMPRESS,
    ATTN_GATE,
    SELECT_BLOCKS,
    SELECT_UNION,
    MOE_GATE,
    MOE_TOPK,
    MOE_ALIGN_BLOCK_SIZE,
    GROUPED_GEMM,
    FUSED_MOE,
)
_OPERATORS: dict[str, Operator[Any]] = {op.name: op for op in _ALL}


def operator_names() -> tuple[str, ...]:
    """Return the names of all operators."""
    return tuple(_OPERATORS)


def operator(name: str) -> Operator[Any]:
    """Return the operator of this name."""
    try:
        return _OPERATORS[name]
    except KeyError:
        raise UnknownNameError("operator", name, _OPERATORS) from None


def problem_from_json(data: Mapping[str, Any]) -> Problem:
    """Build the problem that `Problem.to_json` wrote."""
    if not isinstance(data, Mapping) or "operator" not in data:
        raise ProblemError(f"a problem is an object with an 'operator' field, not {data!r}")
    problem: Problem = operator(str(data["operator"])).problem.from_json(data)
    return problem
