"""Template of `select_blocks`: one pass finds a bound, a second one lists what reaches it.

for request, query token, head:                                     # several go side by side
    first, end = the blocks that are not always kept
    inside:     list the best n - forced of first..end
    beside:     list the best n of all; drop the forced ones; keep what there is room for
    threshold:  m = max, sum = sum exp(score - m); list what is above m + log(sum threshold)
    write 0..first, the list, end..blocks, -1 ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wattune.ops.gate_parts import block_count
from wattune.ops.select_blocks import SelectBlocks
from wattune.schedules.cpu.lanes import Lanes, lanes_knob
from wattune.schedules.cpu.selection.base import VectorTemplate
from wattune.schedules.cpu.selection.select_best import Plan
from wattune.schedules.cpu.selection.select_blocks_kernel import Kernel
from wattune.schedules.program import Tensors
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

_GROUPS = (1, 2, 4, 8, 16)
_ROWS = (1, 2, 4, 8)
# Steps of a search for the n-th best.
_STEPS = 6


class SelectBlocksVector(VectorTemplate):
    """Vector comparisons and compression."""

    name = "select_blocks_vector"
    operator = "select_blocks"

    def applies(self, problem: SelectBlocks, target: Target) -> bool:
        """Say yes: LLVM compresses vectors everywhere."""
        return True

    def space(self, problem: SelectBlocks, target: Target) -> Space:
        """Knobs: lanes, scores a chunk, vectors of maxima or of a sample for a bound, rows.

        No vectors of either (0): no bound. ``rows`` are those that go side by side.
        """
        lanes = lanes_knob(target)
        wanted, blocks = wanted_blocks(problem), block_count(problem.context, problem.block_size)
        # A sample is a fourth of the scores at the most.
        sample = 16 if blocks - problem.always >= 4 * 16 * int(lanes.default) else 0
        heads = problem.kv_heads * max(1, problem.query_tokens)
        enough = next((g for g in _GROUPS if g * int(lanes.default) >= wanted), 0)
        knobs = (
            lanes,
            Knob("chunk", (512, 1024, 2048, 4096, 8192), 8192),
            Knob("groups", (0, *_GROUPS), enough if problem.counted and not sample else 0),
            Knob("sample", (0, 16, 32), sample if problem.counted else 0),
            Knob("rows", _ROWS, max(r for r in _ROWS if r == 1 or r * target.threads <= heads)),
        )
        rules = (
            Constraint(
                "groups of maxima must be as many as the blocks that are wanted",
                lambda v: not v["groups"] or int(v["groups"]) * int(v["lanes"]) >= wanted,
            ),
            Constraint(
                "one of groups and sample is 0", lambda v: not v["groups"] or not v["sample"]
            ),
        )
        return Space(self.name, knobs, rules)

    def sizes(
        self, problem: SelectBlocks, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of every thread's list."""
        return {"workspace_bytes": target.threads * self.kernel(problem, target, values).plan.bytes}

    def kernel(self, problem: SelectBlocks, target: Target, values: Mapping[str, Value]) -> Kernel:
        """Return what emits the kernel."""
        lanes, chunk, groups, sample, rows = (
            int(values[name]) for name in ("lanes", "chunk", "groups", "sample", "rows")
        )
        plan = Plan.of(Lanes.of(target, lanes), chunk, groups, sample, problem.max_blocks, rows)
        return Kernel(problem, target.threads, plan)

    def body(
        self, problem: SelectBlocks, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel's statements."""
        return self.kernel(problem, target, values).emit

    def counts(self, problem: SelectBlocks, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count passes over the scores, and searches over what is listed."""
        rows = problem.batch * max(1, problem.query_tokens) * problem.kv_heads
        blocks = block_count(problem.context, problem.block_size)
        lanes, groups, sample = (int(values[name]) for name in ("lanes", "groups", "sample"))
        bounded = bool(groups or sample)
        listed = min(blocks, 2 * wanted_blocks(problem)) if bounded else blocks
        searched = listed + sample * lanes
        exponentials = 0 if problem.counted else 20
        vectors = rows * (blocks * (8 + 2 * bool(groups) + exponentials) + searched * 3 * _STEPS)
        moved = float(4 * rows * (blocks + problem.max_blocks + 1))
        return Counts(
            bytes={"memory": moved, "l2": moved, "l1": moved + 4.0 * rows * listed * _STEPS},
            operations={"alu": float(vectors) / lanes},
            tiles={"chunks": float(-(-blocks // int(values["chunk"])))},
            parallelism=float(rows),
            registers=groups + 4.0,
            code=2.0 * groups + 40,
        )


def wanted_blocks(problem: SelectBlocks) -> int:
    """Return how many blocks a list holds at the most, at whatever context."""
    if problem.method == "budget":
        return min(problem.max_blocks, problem.token_budget // problem.block_size)
    return problem.max_blocks
