"""Template of `attn_gate`: one kernel projects the queries, one streams the entries.

# project: a thread block for a head, some gate columns, some requests
projected[request, head, columns] = queries of the head's group @ wq
# stream: a thread block for a stretch of a request and head's slots
query = rope(rms_norm(projected)) / sqrt(gate_dim)           # fp32, in shared memory
for slot: logit = sum query * entry
"""

from __future__ import annotations

from collections.abc import Mapping

from wattune.ops.attn_gate import AttnGate
from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import block_count
from wattune.schedules.cuda.plain import Kernel, overlap_knob
from wattune.schedules.cuda.selection.base import STATIC_SHARED, RowTemplate
from wattune.schedules.cuda.selection.gate_kernel import Gate
from wattune.schedules.cuda.selection.projection import Projection, projection_knobs
from wattune.schedules.cuda.selection.stream import Stream, stream_knobs, stream_rules
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

_FLOAT = 4


class AttnGateGpu(RowTemplate):
    """A projection, then a stream."""

    name = "attn_gate_gpu"
    operator = "attn_gate"

    def applies(self, problem: AttnGate, target: Target) -> bool:
        """Say whether rows are whole accesses, and a request's queries fit in shared memory."""
        if not super().applies(problem, target) or not problem.projected:
            return super().applies(problem, target)
        least = {knob.name: knob.values[0] for knob in self._knobs(problem, target)}
        return self._projection(problem, least).shared <= STATIC_SHARED

    def space(self, problem: AttnGate, target: Target) -> Space:
        """Knobs of the stream; of the projection: columns, loads and requests at once, overlap."""
        rules = list(stream_rules(problem, problem.gate_dim, 1))
        if problem.projected:
            rules.append(
                Constraint(
                    f"queries and sums must fit in {STATIC_SHARED} bytes of shared memory",
                    lambda v: self._projection(problem, v).shared <= STATIC_SHARED,
                )
            )
        return Space(self.name, self._knobs(problem, target), tuple(rules))

    def _knobs(self, problem: AttnGate, target: Target) -> tuple[Knob, ...]:
        knobs = stream_knobs(problem, problem.gate_dim, 1, target)
        if not problem.projected:
            return knobs
        requests = tuple(r for r in (1, 2, 4) if r <= problem.batch)
        return (
            *knobs,
            *projection_knobs(problem.dtype, problem.gate_dim, 4),
            Knob("requests", requests, requests[-1]),
            overlap_knob(target),
        )

    def _projection(self, problem: AttnGate, values: Mapping[str, Value]) -> Projection:
        names = ("threads", "columns", "loads", "requests")
        shape = problem.dtype, problem.projected, problem.gate_dim
        return Projection(*shape, *(int(values[name]) for name in names))

    def sizes(
        self, problem: AttnGate, target: Target, values: Mapping[str, Value]
    ) -> dict[str, int]:
        """Bytes of the projected queries."""
        rows = problem.batch * problem.kv_heads if problem.projected else 0
        return {"workspace_bytes": _FLOAT * rows * problem.gate_dim}

    def kernels(
        self, problem: AttnGate, target: Target, values: Mapping[str, Value]
    ) -> dict[str, Kernel]:
        """Return the projection, where there is one, and the stream."""
        stream = Stream.of(problem, problem.gate_dim, 1, values)
        projection = self._projection(problem, values) if problem.projected else None
        gate = Gate(problem, stream, projection)
        found = {}
        if projection is not None:
            found["project"] = Kernel(
                projection.threads, gate.projections, gate.project, shared=projection.shared
            )
        found["stream"] = Kernel(
            stream.threads,
            stream.blocks(problem.kv_heads),
            gate.stream_slots,
            resident=stream.resident,
            overlaps=projection is not None and bool(values["overlap"]),
            shared=gate.stream_shared,
        )
        return found

    def kernel_counts(
        self, problem: AttnGate, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count the stream, and the projection, whose weight is read once for some requests."""
        stream = Stream.of(problem, problem.gate_dim, 1, values)
        blocks = block_count(problem.context, problem.block_size)
        rows = problem.batch * problem.kv_heads
        queries = float(rows * block_count(blocks, stream.span) * problem.gate_dim)
        found = stream.counts(problem, queries)
        if not problem.projected:
            return found
        projection = self._projection(problem, values)
        weights = float(problem.kv_heads * problem.projected * problem.gate_dim)
        passes = block_count(problem.batch, projection.requests)
        return projection.counts(found, weights * itemsize(problem.dtype), passes)
