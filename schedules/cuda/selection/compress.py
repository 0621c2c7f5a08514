"""Template of `attn_gate_compress`: a thread block brings one block of keys up to date.

    # entries: for request, head, block that the new tokens touch
    full:   pooled = max, min, mean of the block's keys          # old ones from the ring
            entry = rope(rms_norm(pooled @ wk))
    fresh:  entry = 0
    # ring: for request, head, the last new tokens
    k_remainder[position % block_size] = k

The ring is written when all entries are made: of several blocks, one's old keys lie where another's
new ones go. A single new token touches one block, which keeps it itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from wattune.ops.attn_gate_compress import AttnGateCompress
from wattune.ops.dtypes import itemsize
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Kernel, overlap_knob
from wattune.schedules.cuda.selection.base import STATIC_SHARED, RowTemplate
from wattune.schedules.cuda.selection.compress_kernel import Compress, touched_blocks
from wattune.schedules.cuda.selection.projection import Projection, projection_knobs
from wattune.schedules.cuda.values import WORDS
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts


class AttnGateCompressGpu(RowTemplate):
    """Pooling and projection in one thread block."""

    name = "attn_gate_compress_gpu"
    operator = "attn_gate_compress"

    def applies(self, problem: AttnGateCompress, target: Target) -> bool:
        """Say whether rows are whole accesses, and some schedule fits in shared memory."""
        if not super().applies(problem, target):
            return False
        knobs = self._knobs(problem, target)
        return self._fits(problem, {knob.name: knob.values[0] for knob in knobs})

    def space(self, problem: AttnGateCompress, target: Target) -> Space:
        """Knobs: threads; of the projection: columns and loads at once; overlap of two kernels."""
        rules = (
            Constraint(
                f"keys and sums must fit in {STATIC_SHARED} bytes of shared memory",
                lambda v: self._fits(problem, v),
            ),
            Constraint(
                "a thread block must have a thread for each 16 bytes of a key",
                lambda v: self._compress(problem, v).lanes > 0,
            ),
        )
        return Space(self.name, self._knobs(problem, target), rules)

    def _knobs(self, problem: AttnGateCompress, target: Target) -> tuple[Knob, ...]:
        overlap = (overlap_knob(target),) if touched_blocks(problem) > 1 else ()
        return (
            Knob("threads", (128, 256, 512), 256),
            *projection_knobs(problem.dtype, problem.gate_dim, WARP),
            *overlap,
        )

    def _fits(self, problem: AttnGateCompress, values: Mapping[str, Value]) -> bool:
        return self._compress(problem, values).shared <= STATIC_SHARED

    def _compress(self, problem: AttnGateCompress, values: Mapping[str, Value]) -> Compress:
        wide = len(problem.pools) * problem.head_dim
        names = ("threads", "columns", "loads")
        shape = problem.dtype, wide, problem.gate_dim
        return Compress(problem, Projection(*shape, *(int(values[name]) for name in names)))

    def sizes(
        self, problem: AttnGateCompress, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """No workspace."""
        return {"workspace_bytes": 0}

    def kernels(
        self, problem: AttnGateCompress, target: Target, values: Mapping[str, Value]
    ) -> dict[str, Kernel]:
        """Return the entries' kernel, and the ring's where that is one of its own."""
        compress = self._compress(problem, values)
        found = {
            "entries": Kernel(
                compress.threads, compress.entries, compress.emit, shared=compress.shared
            )
        }
        if touched_blocks(problem) > 1:
            found["ring"] = Kernel(
                compress.threads,
                compress.keeps,
                compress.emit_ring,
                overlaps=bool(values["overlap"]),
            )
        return found

    def kernel_counts(
        self, problem: AttnGateCompress, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count full blocks a request and head, at the rate at which new tokens fill them."""
        projection = self._compress(problem, values).projection
        rows = float(problem.batch * problem.kv_heads)
        full = rows * problem.query_tokens / problem.block_size
        size = itemsize(problem.dtype)
        keys = (2 * rows * problem.query_tokens + full * problem.block_size) * problem.head_dim
        moved = size * (keys + full * problem.gate_dim)
        pooled = full * problem.block_size * problem.head_dim * (2 + 2 * len(problem.pools))
        rest = Counts(
            bytes={"memory": moved, "l2": moved, "l1": moved},
            operations={"alu": pooled / WARP},
            tiles={"full": full},
            parallelism=rows * touched_blocks(problem),
            registers=float(projection.each * len(problem.pools) + WORDS * projection.loads + 32),
            code=float(projection.each * (projection.loads * 4)),
        )
        weight = float(projection.depth * problem.gate_dim * size * problem.kv_heads)
        # A weight is read once at the most, and again by each full block.
        return projection.counts(rest, min(1.0, full) * weight, max(1.0, full / problem.kv_heads))
