"""What a kernel of grouped products does, in bytes and instructions."""

from __future__ import annotations

from wattune.schedules.cpu.grouped_gemm.layout import ROWS, VECTOR
from wattune.schedules.cpu.grouped_gemm.plan import ACTIVATION_BYTES, Plan, Stage
from wattune.schedules.template import Counts


def count(plan: Plan, touched: int) -> Counts:
    """Count for as many rows of each touched expert as there are on average."""
    jobs = plan.pairs if plan.order == "pair" else touched
    each = plan.pairs / jobs

    def blocks(stage: Stage) -> float:
        """Count how often an expert's weights are read."""
        return -(-each // stage.row_block)

    packed = float(sum(p.expert_bytes for p in plan.products))
    read = float(sum(s.product.expert_bytes * blocks(s) for s in plan.stages)) * jobs
    width = ACTIVATION_BYTES[plan.activation]
    rows = sum(p.padded_columns * width for p in plan.products)
    sums = sum(4 * p.padded_rows for p in plan.products)
    products = 2 if plan.products[0].format == "int4" else 1
    dots = packed / VECTOR * jobs * products * each
    # A row of activations is read once for all vectors of weights beside each other.
    lanes = sum(s.product.expert_bytes / s.groups for s in plan.stages)
    broadcast = lanes / ROWS * jobs * products * each
    reread = sum(s.product.padded_columns * width * s.blocks for s in plan.stages)
    # Sums wait in memory from one slice of the columns to the next.
    waiting = sum(8 * s.product.padded_rows * (s.slices - 1) for s in plan.stages)
    return Counts(
        bytes={
            "memory": packed * touched + plan.pairs * (rows + sums),
            "l3": packed * jobs + plan.pairs * (rows + 2 * sums),
            "l2": read + plan.pairs * (reread + waiting),
            "l1": read + broadcast + plan.pairs * waiting,
        },
        operations={
            "dot": dots,
            "alu": read / VECTOR * (2 * products - 2) + plan.pairs * (rows + sums) / ROWS,
        },
        tiles={"jobs": float(jobs), "row_blocks": max(map(blocks, plan.stages)), "rows": each},
        parallelism=float(max(1, jobs) * plan.parts),
        registers=max(s.groups * (min(s.row_block, max(1.0, each)) + 1.0) for s in plan.stages),
        code=plan.unroll * products * max(s.groups * (s.row_block + 1.0) for s in plan.stages),
    )
