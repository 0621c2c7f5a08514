"""Template of `block_score`; its kernel is in `score_kernel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wattune.ops.block_score import BlockScore
from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import block_count
from wattune.schedules.cpu.lanes import lanes_knob
from wattune.schedules.cpu.rows import Rows
from wattune.schedules.cpu.selection.base import VectorTemplate
from wattune.schedules.cpu.selection.ranges import range_knob
from wattune.schedules.cpu.selection.score_kernel import Kernel
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts


class BlockScoreVector(VectorTemplate):
    """Blocks side by side in the lanes of a vector."""

    name = "block_score_vector"
    operator = "block_score"

    def space(self, problem: BlockScore, target: Target) -> Space:
        """Knobs: lanes, blocks a task, how far ahead bounds are asked for."""
        rows = problem.batch * problem.kv_heads
        blocks = block_count(problem.context, problem.block_size)
        knobs = (
            lanes_knob(target),
            range_knob(rows, blocks, target.threads),
            Knob("prefetch", (0, 1024, 2048, 4096, 8192), 4096),
        )
        return Space(self.name, knobs)

    def body(
        self, problem: BlockScore, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        rows = Rows.fitting(problem.dtype, problem.head_dim, int(values["lanes"]))
        grain, ahead = int(values["grain"]), int(values["prefetch"])
        return Kernel(problem, target.threads, rows, grain, ahead).emit

    def counts(self, problem: BlockScore, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count a blend, a conversion and a product a vector, and the folding of sums."""
        rows = Rows.fitting(problem.dtype, problem.head_dim, int(values["lanes"]))
        blocks = block_count(problem.context, problem.block_size)
        all_blocks = float(problem.batch * problem.kv_heads * blocks)
        moved = all_blocks * (2 * problem.head_dim * itemsize(problem.dtype) + 4)
        each = rows.units * (1 + 2 * rows.parts) + 3
        return Counts(
            bytes={"memory": moved, "l2": moved, "l1": moved},
            operations={"alu": all_blocks * each},
            tiles={"blocks": all_blocks, "units": rows.units},
            parallelism=problem.batch * problem.kv_heads * -(-blocks // int(values["grain"])),
            registers=rows.units * (rows.parts + 1) + 8.0,
            code=float(rows.lanes * each),
        )
