"""Template of `select_blocks`: a thread block finds a bound, then lists what reaches it, in order.

for request, query token, head:                          # a thread block each
    first, end = the blocks that are not always kept
    inside:     bound of the best n - forced of first..end
    beside:     bound of the best n of all
    threshold:  m = max, sum = sum exp(score - m); bound = m + log(sum threshold)
    where more of first..end reach it than there is room for: bound of the best of first..end
    write 0..first, what reaches the bound, end..blocks, -1 ...
"""

from __future__ import annotations

from collections.abc import Mapping

from wattune.ops.gate_parts import block_count
from wattune.ops.select_blocks import SelectBlocks
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Kernel, PlainTemplate
from wattune.schedules.cuda.selection.base import STATIC_SHARED
from wattune.schedules.cuda.selection.radix import Radix
from wattune.schedules.cuda.selection.select_blocks_kernel import Select
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

_THREADS = (128, 256, 512, 1024)
_KEPT = (0, 2048, 4096, 8192)
# Scores of a thread in a pass: about what hides the latency of shared memory.
_SCORES = 8


class SelectBlocksGpu(PlainTemplate):
    """Radix selection, a thread block a row of scores."""

    name = "select_blocks_gpu"
    operator = "select_blocks"

    def applies(self, problem: SelectBlocks, target: Target) -> bool:
        """Say yes."""
        return True

    def space(self, problem: SelectBlocks, target: Target) -> Space:
        """Knobs: threads, bits of a digit, histograms, scores kept in shared memory."""
        blocks = block_count(problem.context, problem.block_size)
        threads = next((t for t in _THREADS if t * _SCORES >= blocks), _THREADS[-1])
        knobs = (
            Knob("threads", _THREADS, threads),
            Knob("digit_bits", (8, 11), 8),
            Knob("histograms", (1, 2, 4), 2),
            Knob("kept", _KEPT, next((k for k in _KEPT if k >= blocks), _KEPT[-1])),
        )
        rule = Constraint(
            f"scores and histograms must fit in {STATIC_SHARED} bytes of shared memory",
            lambda v: Select.of(problem, v).shared <= STATIC_SHARED,
        )
        return Space(self.name, knobs, (rule,))

    def sizes(
        self, problem: SelectBlocks, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """No workspace."""
        return {"workspace_bytes": 0}

    def kernels(
        self, problem: SelectBlocks, target: Target, values: Mapping[str, Value]
    ) -> dict[str, Kernel]:
        """Return the only kernel."""
        select = Select.of(problem, values)
        return {
            "select": Kernel(select.radix.threads, select.blocks, select.emit, shared=select.shared)
        }

    def kernel_counts(
        self, problem: SelectBlocks, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count passes over the scores: one to read, one a digit, two to list."""
        radix = Radix(int(values["threads"]), int(values["digit_bits"]), int(values["histograms"]))
        rows = float(problem.batch * max(1, problem.query_tokens) * problem.kv_heads)
        blocks = block_count(problem.context, problem.block_size)
        passes = 3 + radix.passes
        moved = 4.0 * rows * (blocks + problem.max_blocks + 1)
        again = max(0, blocks - int(values["kept"])) * (passes - 1)
        bins = radix.bins * (radix.copies + 1) * radix.passes
        return Counts(
            bytes={
                "memory": moved,
                "l2": moved + 4.0 * rows * again,
                "l1": 4.0 * rows * (blocks * passes + bins),
            },
            operations={"alu": rows * (10.0 * blocks * passes + bins) / WARP},
            tiles={"threads": float(radix.threads), "scores": blocks / radix.threads},
            parallelism=rows,
            registers=56.0,
            code=300.0,
        )
