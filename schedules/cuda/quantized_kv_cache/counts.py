"""What packing does: bytes, operations, parallelism."""

from __future__ import annotations

from wattune.ops.dtypes import itemsize
from wattune.ops.kv_cache_quantize import QuantizedCacheProblem
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.quantized_kv_cache.plan import PackPlan
from wattune.schedules.template import Counts

# Instructions of a value: conversion and extremes; then conversion, code, insertion, addresses.
_INSTRUCTIONS = 14


def packing_counts(
    problem: QuantizedCacheProblem, plan: PackPlan, packed: float, copied: float
) -> Counts:
    """Count for ``packed`` rows that are packed and ``copied`` ones, of keys and values each."""
    width = problem.head_dim + problem.value_dim
    row = width * itemsize(problem.dtype)
    written = packed * problem.quantized.token_bytes()
    pieces = 2 * max(packed, copied) / plan.tokens
    return Counts(
        bytes={
            "memory": packed * row + written + 2 * copied * row,
            "l2": 2 * packed * row + written + 2 * copied * row,
        },
        operations={"alu": packed * width * _INSTRUCTIONS / WARP},
        tiles={"pieces": pieces},
        parallelism=max(1.0, pieces * plan.threads / WARP),
        registers=64.0,
        code=float(plan.fields * 64),
    )
