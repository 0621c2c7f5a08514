"""What a schedule of quantised attention does: instructions, bytes, registers."""

from __future__ import annotations

from wattune.ops import operator
from wattune.schedules.cpu.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cpu.quantized_attention.product import QUAD
from wattune.schedules.cpu.vector import BYTES, LANES
from wattune.schedules.template import Counts

# Vector instructions of 16 numbers: of a weight's exponential and mask, of writing numbers.
_SOFTMAX = 22
_NUMBERS = 7
# Vector instructions of a row and tile, or group of tokens: maxima and sums across lanes.
_ACROSS = 24


def counts(plan: QuantizedPlan) -> Counts:
    """Count instructions by key, times the keys of all requests and heads."""
    problem, product = plan.problem, plan.product
    work = operator(problem.operator).work(problem)
    rows = plan.base.item_rows
    listed = problem.max_blocks * problem.block_size
    seen = min(problem.visible, listed) if listed else problem.visible
    keys = float(problem.batch * problem.kv_heads * seen)
    passes = len([r for _, _, count in plan.passes() for r in range(count)])
    # Registers of codes of a key, of both tensors, and products with each.
    registers = (problem.head_dim + problem.value_dim) / (QUAD * product.lanes)
    adds = product.adds
    dots = keys * registers * rows * product.terms * adds
    unpacking = 0 if plan.fields == 1 else (2 * plan.fields - 1) / plan.fields
    unpacking += product.widening
    vectors = LANES / product.lanes
    channels = problem.head_dim / LANES
    span = problem.group_size if plan.per_channel else seen
    queries = rows * (channels * _NUMBERS + _ACROSS) / max(1, min(span, seen))
    weights = rows * plan.value_groups * (_NUMBERS / LANES + _ACROSS / plan.tile)
    softmax = rows * (_SOFTMAX / LANES + _ACROSS / plan.tile)
    sums = rows * 7 * problem.value_dim / LANES / plan.tile
    vector_work = (queries + weights + softmax + sums) * vectors
    # Products that are not summed by the instruction that makes them.
    alu = keys * (registers * passes * unpacking + vector_work) + dots * product.sums_apart
    held = max(plan.rows * plan.unroll, plan.rows * plan.columns) * plan.parts * product.terms
    chunks = min(plan.base.splits, -(-seen // (plan.base.split_tiles * plan.tile)))
    return Counts(
        bytes={
            "memory": float(work.bytes),
            "l1": dots * 4 / max(1, plan.columns) + work.bytes * passes,
        },
        operations={"dot": dots, "alu": alu} if product.dtype == "int32" else {"alu": dots + alu},
        tiles={"tiles": keys / plan.tile},
        parallelism=float(problem.batch * problem.kv_heads * chunks),
        registers=held + plan.unroll * plan.parts + 1.0,
        code=float(plan.tile * product.terms * plan.rows * BYTES / LANES),
    )
