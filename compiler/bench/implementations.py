"""Which implementations are measured for each operator, ours first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wattune.compiler.bench.case import Case, Setup
from wattune.errors import UnknownNameError

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


_PEERS: dict[str, Callable[[], dict[str, Maker]]] = {"ternary_gemm": _ternary_gemm}


def implementations(operator: str) -> dict[str, Maker]:
    """Return the makers of all implementations of an operator, by name."""
    from wattune.compiler.bench.ours import Ours

    peers = _PEERS.get(operator)
    return {"wattune": Ours, **(peers() if peers else {})}


def make_case(operator: str, implementation: str, setup: Setup) -> Case:
    """Build one implementation."""
    known = implementations(operator)
    if implementation not in known:
        raise UnknownNameError("implementation", implementation, known)
    return known[implementation](setup)
