"""What an attention kernel does, from its plan alone: instructions are those of warps."""

from __future__ import annotations

from typing import Any

from wattune.ops import operator
from wattune.schedules.cuda.attention.plan import CHUNK, KEYS, ROWS, Plan
from wattune.schedules.cuda.base import WARP
from wattune.schedules.template import BlockUse, Counts

# Instructions of 4 scores of a lane: mask, scale, maximum, sum, rounding; beside them exponentials.
_SOFTMAX, _EXPONENTIALS = 32, 4
# Those of an exponential without ex2.
_POLYNOMIAL = 10
# Warps of a warpgroup read its operands once; its products take so much of the time of warps'.
_GROUP, _GROUP_TIME = 4, 0.6
# Shuffles of a lane's two rows of a tile for each doubling of lanes that share them; matrices of 16
# keys and 8 rows that are turned over.
_REDUCED, _TURNED = 2, 2


def counts(plan: Plan, registers: int, room: int) -> Counts:
    """Count bytes and instructions, those of whole tiles of full requests."""
    problem: Any = plan.problem
    op: Any = operator(problem.operator)
    items = problem.batch * problem.kv_heads * plan.items
    seen = op.keys_read(problem) // plan.items
    tiles = -(-seen // plan.block_keys) * plan.teams
    blocks = items * plan.row_tiles
    width = problem.head_dim + problem.value_dim
    # Tiles that some warp multiplies, and those that some team loads.
    warps, loads = blocks * tiles * plan.row_warps, blocks * tiles
    readers, slower = (_GROUP, _GROUP_TIME) if plan.grouped else (1, 1.0)
    parts = plan.keys // KEYS * (plan.rows // ROWS)
    steps = width // KEYS
    splits = plan.splits if plan.listed else min(plan.splits, -(-seen // max(1, plan.split_keys)))
    kept = 8.0 * items * plan.item_rows * (problem.value_dim + 2) * splits if splits > 1 else 0.0
    tile_bytes = 2.0 * plan.keys * width
    again = 2.0 * plan.rows * problem.head_dim if plan.queries == "shared" else 0.0
    copies = plan.keys * width / CHUNK / WARP if plan.copies == "async" else plan.keys / WARP
    side = plan.side
    rows = _REDUCED * (plan.rows // side.rows)
    shuffles = rows * len(side.apart) + (0 if side.long_rows else parts * _TURNED)
    special = parts * _EXPONENTIALS
    replaced = special * plan.polynomial / 4
    alu = _POLYNOMIAL * replaced + _SOFTMAX * parts + 2 * steps
    alu += 4 * (plan.rows // ROWS) * (problem.value_dim // KEYS)
    grid = min(plan.grid or blocks * splits, blocks * splits)
    return Counts(
        bytes={
            "memory": float(op.work(problem).bytes),
            "l2": loads * tile_bytes + kept,
            "l1": loads * tile_bytes + warps * (tile_bytes / readers + again),
        },
        operations={
            "matrix": warps * parts * steps * slower,
            "shuffle": float(warps * shuffles),
            "alu": float(warps * alu + loads * 4 * copies),
            "special": float(warps * (special - replaced + rows)),
        },
        tiles={
            "keys": plan.block_keys,
            "rows": plan.block_rows,
            "warps": plan.threads / WARP,
            "room": room,
            # Bytes on their way to an SM while its warps are at work.
            "ahead": room * (plan.stages - 1) * plan.teams * tile_bytes,
            "splits": splits,
            "launches": 1 + (splits > 1),
        },
        parallelism=float(blocks * splits) / room,
        registers=float(registers),
        code=float(parts * steps),
        block=BlockUse(float(grid), plan.threads, registers, plan.shared.bytes),
    )
