"""What an attention kernel does, from its plan alone."""

from __future__ import annotations

from typing import Any

from wattune.ops import operator
from wattune.schedules.areas import LINE
from wattune.schedules.cpu.attention.plan import Plan
from wattune.schedules.cpu.attention.scores import RegisterScores
from wattune.schedules.cpu.attention.values import RegisterValues
from wattune.schedules.template import Counts

# Instructions of a weight's exponential, its maximum and its sum.
_SOFTMAX = 22


def counts(plan: Plan, scores: RegisterScores, values: RegisterValues) -> Counts:
    """Count bytes and instructions, those of whole tiles of full requests."""
    problem: Any = plan.problem
    op: Any = operator(problem.operator)
    items = problem.batch * problem.kv_heads * plan.items
    seen = op.keys_read(problem) // plan.items
    tiles = -(-seen // plan.block)
    keys = items * tiles * plan.block
    vectors = keys * scores.row_vectors
    value_vectors = keys * (values.total_lanes // plan.lanes) / values.keys
    rows = plan.item_rows
    dots = rows * (vectors + value_vectors)
    # Merging 16 registers takes 15 steps of two shuffles and an addition.
    merged = keys * sum(fold.slots * groups for fold, _, groups in plan.folds)
    convert = {"fma": 0 if problem.dtype == "float32" else 1, "dot": 0, "amx": 0}
    alu = plan.groups * (convert[plan.scores] * vectors + convert[plan.values] * value_vectors)
    alu += merged + _SOFTMAX * merged / plan.lanes
    shuffles = 2 * merged + (plan.groups * value_vectors if plan.values == "dot" else 0)
    row_bytes = plan.size * (problem.head_dim + problem.value_dim)
    prefetches = keys * row_bytes / LINE if plan.prefetch else 0
    sums = 8.0 * rows * values.total_lanes * (-(-plan.block // min(plan.stretch, plan.block)))
    chunks = min(plan.splits, -(-tiles // plan.split_tiles))
    fold = plan.folds[0][0]
    return Counts(
        bytes={
            "memory": float(op.work(problem).bytes),
            "l2": float(keys * row_bytes),
            "l1": plan.groups * keys * row_bytes
            + items * tiles * sums
            + 4.0 * plan.lanes * dots / max(1, fold.keys),
        },
        operations={
            "dot": float(dots),
            "shuffle": float(shuffles),
            "alu": float(alu),
            "prefetch": float(prefetches),
        },
        tiles={"tiles": items * tiles, "groups": plan.groups, "passes": values.passes},
        parallelism=float(items * chunks),
        registers=float(max(fold.rows * plan.columns, fold.rows * fold.keys * plan.unroll)),
        code=float(fold.rows * (fold.keys * scores.row_vectors * plan.unroll + 4 * plan.columns)),
    )


def tile_counts(plan: Plan) -> Counts:
    """Count bytes and instructions of the kernel on AMX tiles, of whole tiles of full requests."""
    problem: Any = plan.problem
    op: Any = operator(problem.operator)
    items = problem.batch * problem.kv_heads * plan.items
    tiles = -(-(op.keys_read(problem) // plan.items) // plan.block)
    keys = items * tiles * plan.block
    products = keys * (problem.head_dim / (16 * 32) + problem.value_dim / (32 * 16))
    scores = keys * sum(fold.slots * groups for fold, _, groups in plan.folds) / plan.lanes
    row_bytes = plan.size * (problem.head_dim + problem.value_dim)
    sums = 8.0 * plan.item_rows * problem.value_dim
    joined = keys * plan.size * problem.value_dim
    chunks = min(plan.splits, -(-tiles // plan.split_tiles))
    return Counts(
        bytes={
            "memory": float(op.work(problem).bytes),
            "l2": float(keys * row_bytes),
            "l1": float(plan.groups * keys * row_bytes + 2 * joined + items * tiles * sums),
        },
        operations={
            "tile": float(plan.groups * products),
            "shuffle": float(joined / LINE + scores),
            "alu": float(_SOFTMAX * scores),
            "prefetch": float(keys * row_bytes / LINE if plan.prefetch else 0),
        },
        tiles={"tiles": items * tiles, "groups": plan.groups},
        parallelism=float(items * chunks),
        registers=8.0,
        code=float(problem.head_dim / 32 + problem.value_dim / 16),
    )
