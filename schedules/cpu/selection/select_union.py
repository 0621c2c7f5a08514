"""Template of `select_union`: every head's best tokens, sorted; then one list for all heads.

for request, head:                                              # in parallel
    list the best n_mid logits between the first and the last tokens; sort them, stably
for request, union:                                             # in parallel
    for rank, head: take the token unless a hash table has it, until n_mid are taken
    sort the tokens; write the first ones, these, the last ones
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wattune.ops.select_union import SelectUnion
from wattune.schedules.cpu.lanes import Lanes, lanes_knob
from wattune.schedules.cpu.selection.base import VectorTemplate
from wattune.schedules.cpu.selection.select_best import Plan
from wattune.schedules.cpu.selection.select_sort import PASSES
from wattune.schedules.cpu.selection.select_union_kernel import Kernel, Scratch
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

_BISECTIONS = 16


class SelectUnionSort(VectorTemplate):
    """Bisection, radix sorts, a hash table."""

    name = "select_union_sort"
    operator = "select_union"

    def applies(self, problem: SelectUnion, target: Target) -> bool:
        """Say yes: LLVM compresses vectors everywhere."""
        return True

    def space(self, problem: SelectUnion, target: Target) -> Space:
        """Knobs: lanes, logits a chunk, vectors of a sample that bounds the best (0: no bound)."""
        knobs = (
            lanes_knob(target),
            Knob("chunk", (1024, 2048, 4096, 8192, 16384), 16384),
            Knob("sample", (0, 16, 32), 32),
        )
        return Space(self.name, knobs)

    def scratch(self, problem: SelectUnion, target: Target, values: Mapping[str, Value]) -> Scratch:
        """Return the workspace."""
        lanes, chunk, sample = (int(values[name]) for name in ("lanes", "chunk", "sample"))
        plan = Plan.of(Lanes.of(target, lanes), chunk, 0, sample, problem.middle, 1)
        return Scratch.of(problem, target.threads, plan)

    def sizes(
        self, problem: SelectUnion, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the workspace."""
        return {"workspace_bytes": self.scratch(problem, target, values).bytes}

    def body(
        self, problem: SelectUnion, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel's statements."""
        return Kernel(problem, self.scratch(problem, target, values)).emit

    def counts(self, problem: SelectUnion, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count the passes over logits, bisections over lists, and what sorting moves."""
        rows, middle = problem.batch * problem.query_heads, problem.middle
        chunks = -(-problem.context // int(values["chunk"]))
        listed = chunks * middle + problem.context
        sorted_pairs = (rows + problem.batch * problem.unions) * middle * PASSES
        vectors = rows * (8 * problem.context + 3 * _BISECTIONS * listed) / int(values["lanes"])
        moved = 4.0 * (rows * problem.context + problem.batch * problem.token_budget)
        return Counts(
            bytes={"memory": moved, "l2": moved, "l1": moved + 16.0 * sorted_pairs},
            operations={"alu": vectors + 8.0 * sorted_pairs + 6.0 * rows * middle},
            tiles={"chunks": float(chunks)},
            parallelism=float(rows),
            registers=6.0,
            code=60.0,
        )
