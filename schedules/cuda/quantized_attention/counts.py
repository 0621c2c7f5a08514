"""What a schedule of quantised attention does: instructions of warps, bytes."""

from __future__ import annotations

from typing import Any

from wattune.ops import operator
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.quantized_attention.knobs import registers_of, room, under_way
from wattune.schedules.cuda.quantized_attention.plan import PART, WIDE, QuantizedPlan
from wattune.schedules.target import Target
from wattune.schedules.template import BlockUse, Counts

# Instructions of the 8 scores of a lane: unit, maximum, sums, rounding; beside them exponentials.
_SOFTMAX, _EXPONENTIALS = 52, 8
# Those of an exponential without ex2.
_POLYNOMIAL = 10
# Those of each group of value channels: scales, zeros, rounding, bytes.
_GROUP = 40
# Of each step of keys with params per channel: scales and zeros in the order of codes.
_SCALING = 8
# Shuffles and transposes of 8 rows.
_SHUFFLES = 6


def counts(plan: QuantizedPlan, target: Target) -> Counts:
    """Count bytes and instructions, those of whole tiles of full requests."""
    problem = plan.problem
    op: Any = operator(problem.operator)
    items = problem.batch * problem.kv_heads
    seen = op.keys_read(problem)
    size = problem.block_size
    tiles = problem.max_blocks * plan.entry_tiles if size else -(-seen // plan.tile)
    splits = plan.splits if plan.listed else min(plan.splits, -(-seen // plan.split_keys))
    kept = 8.0 * items * plan.item_rows * (problem.value_dim + 2) * splits if splits > 1 else 0.0
    # Tiles that warps take, of all blocks; parts of 32 tokens, panels of 8 rows.
    taken = float(items * plan.row_tiles * tiles)
    parts = taken * plan.tile / PART
    # Loads of four words: a shift each, masks of both halves of each field that is taken.
    values = 2 // plan.value_fields * plan.value_loads
    unpacking = plan.key_loads * (5 + 8 * plan.cache.fields) + values * (5 + 8 * plan.value_fields)
    scaling = len(plan.steps) * (_SCALING + plan.panels) * plan.token_groups
    weights = _SOFTMAX + _GROUP * plan.cache.groups("v") + _GROUP * plan.cache.groups("k")
    matrix = 2 * (len(plan.steps) + 2 * plan.value_loads) * plan.panels
    blocks, registers = items * plan.row_tiles * splits, registers_of(plan)
    exponentials = parts * plan.panels * _EXPONENTIALS
    replaced = exponentials * plan.polynomial / 4
    return Counts(
        bytes={
            "memory": float(op.work(problem).bytes),
            "l2": taken * plan.slot_bytes + kept,
            "l1": 2 * taken * plan.slot_bytes,
        },
        operations={
            "matrix": parts * matrix,
            "shuffle": parts * plan.panels * (_SHUFFLES + 4 * plan.cache.groups("v")),
            "special": exponentials - replaced,
            "alu": parts * (unpacking + plan.panels * weights)
            + _POLYNOMIAL * replaced
            + taken * (scaling * plan.cache.per_channel("k") + 2 * plan.slot_bytes / WIDE / WARP),
        },
        tiles={
            "keys": plan.block_keys,
            "rows": plan.rows,
            "warps": plan.teams,
            "room": room(plan, target),
            "ahead": under_way(plan, target),
            "splits": splits,
            "launches": 1 + (splits > 1),
        },
        parallelism=float(blocks) / room(plan, target),
        registers=float(registers),
        code=float(matrix * plan.step // PART),
        block=BlockUse(
            float(min(plan.grid or blocks, blocks)), plan.threads, registers, plan.shared.bytes
        ),
    )
