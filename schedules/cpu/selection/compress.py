"""Template of `attn_gate_compress`; its kernel is in `compress_kernel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wattune.ops.attn_gate_compress import AttnGateCompress
from wattune.schedules.cpu.lanes import lanes_knob
from wattune.schedules.cpu.rows import Rows
from wattune.schedules.cpu.selection.base import VectorTemplate
from wattune.schedules.cpu.selection.compress_kernel import Kernel, slice_floats, touched_blocks
from wattune.schedules.cpu.selection.gate_parts import FLOAT
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts


class AttnGateCompressVector(VectorTemplate):
    """Gate columns side by side in the lanes of vectors."""

    name = "attn_gate_compress_vector"
    operator = "attn_gate_compress"

    def space(self, problem: AttnGateCompress, target: Target) -> Space:
        """Knobs: lanes, vectors of gate columns at once, vectors of a key that are pooled."""
        knobs = (
            lanes_knob(target),
            Knob("vectors", (4, 8, 16), 8),
            Knob("pooled", (2, 4, 8), 8),
        )
        return Space(self.name, knobs)

    def sizes(
        self, problem: AttnGateCompress, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the workspace: a pooled key and a gate row for each thread."""
        return {"workspace_bytes": FLOAT * target.threads * slice_floats(problem)}

    def body(
        self, problem: AttnGateCompress, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        lanes = int(values["lanes"])
        return Kernel(
            problem=problem,
            threads=target.threads,
            keys=Rows.fitting(problem.dtype, problem.head_dim, lanes),
            gates=Rows.fitting(problem.dtype, problem.gate_dim, lanes),
            vectors=int(values["vectors"]),
            pooled=int(values["pooled"]),
        ).emit

    def counts(
        self, problem: AttnGateCompress, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count one full block a request and head, at the rate at which new tokens fill them."""
        rows = float(problem.batch * problem.kv_heads)
        full = problem.query_tokens / problem.block_size
        wide = len(problem.pools) * problem.head_dim
        moved = rows * (2 * problem.query_tokens * problem.head_dim + full * wide)
        lanes = int(values["lanes"])
        work = rows * full * wide * (problem.gate_dim * 2 + problem.block_size) / lanes
        return Counts(
            bytes={"memory": 2 * moved, "l2": 2 * moved + 2 * rows * full * wide},
            operations={"alu": work},
            tiles={"full": rows * full, "depth": float(wide)},
            parallelism=rows * touched_blocks(problem),
            registers=float(int(values["vectors"])) + 4,
            code=2.0 * int(values["vectors"]),
        )
