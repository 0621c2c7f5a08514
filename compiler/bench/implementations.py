"""Which implementations are measured for each operator, ours first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from wattune.compiler.bench.case import Case, Setup
from wattune.errors import UnknownNameError
from wattune.ops import DecodeAttention, Problem

Maker = Callable[[Setup], Case]


def _ternary_gemm() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_ggml import TernaryMatMul
    from wattune.compiler.bench.peers_torch import Int4, IntMm, Linear

    return {
        "torch_linear_bf16": partial(Linear, dtype="bfloat16"),
        "torch_linear_fp32": partial(Linear, dtype="float32"),
        "torch_int_mm": IntMm,
        "torch_int4pack": Int4,
        "ggml_tq2_0": partial(TernaryMatMul, type_name="tq2_0"),
        "ggml_tq1_0": partial(TernaryMatMul, type_name="tq1_0"),
    }


def _decode_attention() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_attention import Attend
    from wattune.compiler.bench.peers_ggml_attention import FlashAttention

    return {
        "torch_sdpa_gqa": partial(Attend, way="gqa"),
        "torch_sdpa_folded": partial(Attend, way="folded"),
        "torch_matmul_softmax": partial(Attend, way="matmul"),
        "ggml_flash_f16": partial(FlashAttention, type_name="f16"),
        "ggml_flash_q8_0": partial(FlashAttention, type_name="q8_0"),
    }


def _block_sparse() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_attention import Gather
    from wattune.compiler.bench.peers_flex import Flex

    return {"torch_gather_sdpa": Gather, "torch_flex": Flex}


def _token_sparse() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_attention import Gather

    return {"torch_gather_sdpa": Gather}


def _quantized() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_ggml_attention import FlashAttention
    from wattune.compiler.bench.peers_quantized import Dequantize

    return {
        "torch_dequantize_sdpa": Dequantize,
        "ggml_flash_f16": partial(FlashAttention, type_name="f16"),
        "ggml_flash_q8_0": partial(FlashAttention, type_name="q8_0"),
    }


def _select_blocks() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_selection import TopK

    return {"torch_topk": TopK}


def _block_score() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_selection import Score

    return {"torch_score": Score}


def _fused_moe() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_experts import GroupedMm, PerExpert

    return {"torch_grouped_mm": GroupedMm, "torch_linear": PerExpert}


def _moe_gate() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_routing import GateLinear

    return {
        "torch_linear_fp32": partial(GateLinear, dtype="float32"),
        "torch_linear_bf16": partial(GateLinear, dtype="bfloat16"),
    }


def _moe_topk() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_routing import Router, ScoresTopk

    return {"torch_scores_topk": ScoresTopk, "torch_router": Router}


def _moe_align() -> dict[str, Maker]:
    from wattune.compiler.bench.peers_routing import StableSort

    return {"torch_stable_sort": StableSort}


_PEERS: dict[str, Callable[[], dict[str, Maker]]] = {
    "ternary_gemm": _ternary_gemm,
    "decode_attention": _decode_attention,
    "block_sparse_decode_attention": _block_sparse,
    "token_sparse_decode_attention": _token_sparse,
    "quantized_decode_attention": _quantized,
    "block_score": _block_score,
    "select_blocks": _select_blocks,
    "fused_moe": _fused_moe,
    "moe_gate": _moe_gate,
    "moe_topk": _moe_topk,
    "moe_align_block_size": _moe_align,
}

# Operators that our dense attention to the same context is a peer of.
_SPARSER = (
    "block_sparse_decode_attention",
    "token_sparse_decode_attention",
    "quantized_decode_attention",
)


def implementations(operator: str) -> dict[str, Maker]:
    """Return the makers of all implementations of an operator, by name."""
    from wattune.compiler.bench.ours import Ours

    peers = _PEERS.get(operator)
    return {"wattune": Ours, **(peers() if peers else {})}


def companions(problem: Problem) -> dict[str, Problem]:
    """Return our own problems that are measured beside this one, by the name of their rows.

    Each is compared with its own reference, and serves the same step of a model in another way.
    """
    if problem.operator not in _SPARSER:
        return {}
    names = [field.name for field in dataclasses.fields(DecodeAttention)]
    return {"wattune_dense": DecodeAttention(**{n: getattr(problem, n) for n in names})}


def maker_of(operator: str, implementation: str) -> Maker:
    """Return what builds one implementation."""
    known = implementations(operator)
    if implementation not in known:
        raise UnknownNameError("implementation", implementation, known)
    return known[implementation]
