"""What a kernel of grouped products does, in bytes and instructions."""

from __future__ import annotations

from wattune.schedules.cpu.grouped_gemm.layout import ROWS, VECTOR
from wattune.schedules.cpu.grouped_gemm.plan import ACTIVATION_BYTES, Plan
from wattune.schedules.template import Counts


def count(plan: Plan, touched: int) -> Counts:
    """Count for as many rows of each touched expert as there are on average."""
    jobs = plan.pairs if plan.order == "pair" else touched
    each = plan.pairs / jobs
    row_block = min(stage.row_block for stage in plan.stages)
    blocks = -(-each // row_block)
    packed = float(sum(p.expert_bytes for p in plan.products))
    width = ACTIVATION_BYTES[plan.activation]
    rows = sum(p.padded_columns * width for p in plan.products)
    sums = sum(4 * p.padded_rows for p in plan.products)
    vectors = packed / VECTOR * jobs
    products = 2 if plan.products[0].format == "int4" else 1
    dots = vectors * products * each
    groups = max(stage.groups for stage in plan.stages)
    reread = sum(s.product.padded_columns * width * s.blocks for s in plan.stages)
    # Sums wait in memory from one slice of the columns to the next.
    waiting = sum(8 * s.product.padded_rows * (s.slices - 1) for s in plan.stages)
    tile = min(row_block, max(1.0, each))
    return Counts(
        bytes={
            "memory": packed * touched + plan.pairs * (rows + sums),
            "l3": packed * jobs + plan.pairs * (rows + 2 * sums),
            "l2": packed * jobs * blocks + plan.pairs * (reread + waiting),
            "l1": packed * jobs * blocks + dots * VECTOR / ROWS / groups + plan.pairs * waiting,
        },
        operations={
            "dot": dots,
            "alu": vectors * (2 * products - 2) * blocks + plan.pairs * (rows + sums) / ROWS,
        },
        tiles={"jobs": float(jobs), "row_blocks": blocks, "rows": each},
        parallelism=float(max(1, jobs) * plan.parts),
        registers=groups * (tile + 1.0),
        code=plan.unroll * groups * (row_block + 1.0) * products,
    )
