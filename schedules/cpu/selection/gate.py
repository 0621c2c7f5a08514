"""Template of `attn_gate`; its kernel is in `gate_kernel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wattune.ops.attn_gate import AttnGate
from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import block_count
from wattune.schedules.cpu.lanes import lanes_knob
from wattune.schedules.cpu.rows import Rows
from wattune.schedules.cpu.selection.base import VectorTemplate
from wattune.schedules.cpu.selection.gate_kernel import Kernel
from wattune.schedules.cpu.selection.gate_parts import FLOAT
from wattune.schedules.cpu.selection.ranges import range_knob
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts


class AttnGateVector(VectorTemplate):
    """Gate columns, then blocks, side by side in the lanes of vectors."""

    name = "attn_gate_vector"
    operator = "attn_gate"

    def space(self, problem: AttnGate, target: Target) -> Space:
        """Knobs: lanes, columns and requests projected at once, blocks a task."""
        rows = problem.batch * problem.kv_heads
        blocks = block_count(problem.context, problem.block_size)
        requests = tuple(r for r in (1, 2, 4) if r <= problem.batch)
        knobs = (
            lanes_knob(target),
            range_knob(rows, blocks, target.threads),
            Knob("vectors", (2, 4, 8, 16), 8 if problem.batch == 1 else 4),
            Knob("requests", requests, requests[-1]),
        )
        return Space(self.name, knobs)

    def sizes(
        self, problem: AttnGate, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the workspace: projected queries, then scratch for each thread."""
        plan = self._kernel(problem, target, values)
        return {"workspace_bytes": FLOAT * plan.floats}

    def _kernel(self, problem: AttnGate, target: Target, values: Mapping[str, Value]) -> Kernel:
        lanes = int(values["lanes"])
        return Kernel(
            problem=problem,
            threads=target.threads,
            queries=Rows.fitting(problem.dtype, problem.head_dim, lanes),
            gates=Rows.fitting(problem.dtype, problem.gate_dim, lanes),
            grain=int(values["grain"]),
            vectors=int(values["vectors"]),
            requests=int(values["requests"]),
        )

    def body(
        self, problem: AttnGate, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        return self._kernel(problem, target, values).emit

    def counts(self, problem: AttnGate, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count the projection, whose weight is read once a block of requests, and the stream."""
        size, lanes = itemsize(problem.dtype), int(values["lanes"])
        blocks = block_count(problem.context, problem.block_size)
        rows = float(problem.batch * problem.kv_heads)
        weights = float(problem.kv_heads * problem.projected * problem.gate_dim)
        passes = -(-problem.batch // int(values["requests"]))
        entries = rows * blocks * problem.gate_dim
        products = rows * problem.gate_dim * (problem.projected + blocks)
        return Counts(
            bytes={
                "memory": size * (weights + entries),
                "l2": size * (weights * passes + entries),
                "l1": size * (weights * passes + entries) + 4 * products / lanes,
            },
            operations={"alu": (products + weights * passes + entries) / lanes},
            tiles={"blocks": rows * blocks, "depth": float(problem.projected), "passes": passes},
            parallelism=rows * -(-blocks // int(values["grain"])),
            registers=int(values["vectors"]) * int(values["requests"]) + 4.0,
            code=float(int(values["vectors"]) * (int(values["requests"]) + 2)),
        )
