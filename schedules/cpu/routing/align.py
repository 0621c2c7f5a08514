"""Template of `moe_align_block_size`: a stable counting sort."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wattune.ops.moe_align_block_size import SLOTS, MoeAlignBlockSize
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.plain import PlainTemplate
from wattune.schedules.cpu.routing.align_kernel import Kernel
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

# Pairs that take about as long as starting threads.
_GRAIN = 4096


class MoeAlignCount(PlainTemplate):
    """Plain loops, for any target."""

    name = "moe_align_count"
    operator = "moe_align_block_size"

    def applies(self, problem: MoeAlignBlockSize, target: Target) -> bool:
        """Say yes."""
        return True

    def space(self, problem: MoeAlignBlockSize, target: Target) -> Space:
        """Knobs: ranges that a thread counts side by side, pairs for one thread."""
        knobs = (
            Knob("ranges", (1, 2, 4), 2),
            Knob("grain", (1024, 4096, 16384), _GRAIN),
        )
        return Space(self.name, knobs)

    def sizes(
        self, problem: MoeAlignBlockSize, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the counters."""
        return {"workspace_bytes": self.kernel(problem, target, values).bytes}

    def kernel(
        self, problem: MoeAlignBlockSize, target: Target, values: Mapping[str, Value]
    ) -> Kernel:
        """Return what emits the kernel."""
        return Kernel(problem, target.threads, int(values["ranges"]), int(values["grain"]))

    def body(
        self, problem: MoeAlignBlockSize, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel's statements."""
        return self.kernel(problem, target, values).emit

    def counts(
        self, problem: MoeAlignBlockSize, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count two passes over the pairs and one over the counters."""
        kernel = self.kernel(problem, target, values)
        pairs = float(problem.tokens * problem.top_k)
        slots = float(problem.extents[SLOTS])
        counters = float(kernel.workers * problem.experts)
        return Counts(
            bytes={"memory": 4 * (pairs + slots), "l1": 24 * pairs + 4 * slots + 8 * counters},
            operations={"alu": 12 * pairs + 4 * counters + slots / vector.LANES},
            tiles={"ranges": float(kernel.ranges)},
            parallelism=max(1.0, pairs // kernel.grain),
            registers=4.0 * kernel.ranges,
            code=12.0 * kernel.ranges,
        )
