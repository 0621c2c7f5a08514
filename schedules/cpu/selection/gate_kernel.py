"""The kernel of `attn_gate`: project queries against weights read once, then stream the entries.

for head, piece of gate columns, block of requests:
    x = queries of the head's group                       # fp32, scratch of the worker
    projected[request, head, piece] = x @ wq
for request, head, range of blocks:
    query = rope(rms_norm(projected)) / sqrt(gate_dim)    # fp32, in registers
    for L blocks at once:                                 # L lanes, as in `score`
        logit of block i = sum of the lanes of query * entry
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.attn_gate import AttnGate
from wattune.ops.gate_parts import SLOTS
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.rows import Rows, flat
from wattune.schedules.cpu.selection.base import length_of
from wattune.schedules.cpu.selection.gate_parts import (
    Finisher,
    Projection,
    aligned,
    mean_rows,
    scratch_of,
)
from wattune.schedules.cpu.selection.ranges import block_ranges, fill_rest, score_blocks
from wattune.schedules.cpu.tasks import ceildiv, spread
from wattune.schedules.program import Tensors


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel; the workspace is projected queries, then a slice for each worker."""

    problem: AttnGate
    threads: int
    queries: Rows
    gates: Rows
    grain: int
    vectors: int
    requests: int

    @property
    def projection(self) -> Projection:
        """Return how queries are projected."""
        return Projection(self.problem.projected, self.gates, self.vectors, self.requests)

    @property
    def slices(self) -> int:
        """Return where the workers' slices start."""
        problem = self.problem
        rows = problem.batch * problem.kv_heads if problem.projected else 0
        return aligned(rows * problem.gate_dim)

    @property
    def slice(self) -> int:
        """Return the floats of a worker: queries to project, or one finished gate row."""
        return aligned(max(self.requests * self.problem.projected, self.problem.gate_dim))

    @property
    def floats(self) -> int:
        """Return the floats of the workspace."""
        return self.slices + self.threads * self.slice

    def emit(self, tensors: Tensors) -> None:
        """Project, then stream."""
        emitter = _Emitter(self, tensors)
        batch, heads = tensors.sizes["batch"], self.problem.kv_heads
        if self.problem.projected:
            blocks = T.bind(T.cast(ceildiv(batch, self.requests), "int32"))
            pieces = self.projection.pieces
            tasks = heads * pieces * blocks
            spread(self.threads, tasks, lambda worker, at: emitter.project(worker, at, blocks))
        ranges = ceildiv(tensors.sizes[SLOTS], self.grain)
        spread(self.threads, batch * heads * ranges, emitter.stream)


class _Emitter:
    """Emits the tasks of one kernel."""

    def __init__(self, kernel: Kernel, tensors: Tensors) -> None:
        self.kernel, self.problem, self.tensors = kernel, kernel.problem, tensors
        self.q = kernel.queries.bits(tensors["q"])
        self.weight = kernel.gates.bits(tensors["wq"]) if self.problem.projected else None
        self.entries, self.logits = kernel.gates.bits(tensors["k_compressed"]), tensors["logits"]
        self.scratch = scratch_of(tensors, kernel.floats)
        self.finisher = Finisher(self.problem, tensors, "q_norm", kernel.gates)

    def _query(self, request: Any, head: Any, member: int) -> Any:
        """Return where the query of a member of a head's group lies."""
        problem = self.problem
        query = request * problem.query_heads + head * problem.group + member
        return T.cast(query, "int64") * problem.head_dim

    def _worker(self, worker: Any) -> Any:
        return T.bind(worker * self.kernel.slice + self.kernel.slices)

    def project(self, worker: Any, index: Any, blocks: Any) -> None:
        """Project one block of requests with one piece of a head's weight."""
        kernel, problem = self.kernel, self.problem
        projection, wide = kernel.projection, problem.projected
        part = T.bind(T.truncdiv(index, blocks))
        head = T.bind(T.truncdiv(part, projection.pieces))
        first = T.bind((index - part * blocks) * kernel.requests)
        last = T.cast(self.tensors.sizes["batch"], "int32") - 1
        # A last block that is not full does its last request again.
        requests = [T.bind(T.min(first + r, last)) for r in range(kernel.requests)]
        x = [T.bind(self._worker(worker) + r * wide) for r in range(kernel.requests)]
        for request, at in zip(requests, x, strict=True):
            self._copy(request, head, at)
        rows = [(request * problem.kv_heads + head) * problem.gate_dim for request in requests]
        start = T.bind(T.cast(head, "int64") * (wide * problem.gate_dim))
        piece = part - head * projection.pieces
        y = [T.bind(row) for row in rows]
        projection.emit(self.scratch, x, self.weight, start, piece, y)

    def _copy(self, request: Any, head: Any, at: Any) -> None:
        """Copy a group's queries, or their mean, into scratch as fp32."""
        problem, rows = self.problem, self.kernel.queries
        if problem.query_mode == "qproj":
            for member in range(problem.group):
                start = T.bind(self._query(request, head, member))
                for column in range(0, rows.width, rows.unit):
                    parts = rows.load(self.q, start + column)
                    target = at + member * rows.width + column
                    rows.store_natural(self.scratch, target, parts)
            return
        starts = [T.bind(self._query(request, head, i)) for i in range(problem.group)]
        mean_rows(self.scratch, at, rows, self.q, problem.group, starts.__getitem__)

    def stream(self, worker: Any, index: Any) -> None:
        """Compute the logits of one range of blocks."""
        block_ranges(
            self.tensors,
            self.problem.kv_heads,
            self.kernel.grain,
            index,
            lambda *place: self._range(worker, *place),
        )

    def _range(self, worker: Any, request: Any, head: Any, first: Any, end: Any) -> None:
        problem, gates = self.problem, self.kernel.gates
        logits = flat(self.logits)
        length = length_of(self.tensors, request)
        used = T.bind(T.max(T.min(ceildiv(length, problem.block_size), end), first))
        line = T.cast(request, "int64") * problem.kv_heads + head
        row = T.bind(line * self.tensors.sizes[SLOTS])
        with T.If(first < used), T.Then():
            query = self._finished(self._worker(worker), request, head, length)
            score_blocks(logits, row, first, used, gates.width, gates, self._products(query))
        fill_rest(logits, row, used, end, gates.lanes)

    def _finished(self, at: Any, request: Any, head: Any, length: Any) -> list[list[Any]]:
        """Return the units of a request's gate query."""
        problem, gates = self.problem, self.kernel.gates
        if problem.projected:
            source = T.bind((request * problem.kv_heads + head) * problem.gate_dim)
            plain = Rows.fitting("float32", gates.width, gates.lanes)
            for column in range(0, gates.width, plain.lanes):
                value = self.scratch.vload([source + column], plain.f32)
                vector.store(self.scratch, [at + column], value)
        else:
            self._copy(request, head, at)
        self.finisher.emit(self.scratch, at, length - 1, problem.gate_dim**-0.5)
        starts = range(0, gates.width, gates.unit)
        return [gates.load_natural(self.scratch, at + start) for start in starts]

    def _products(self, query: list[list[Any]]) -> Callable[[Any], Any]:
        gates = self.kernel.gates

        def products(start: Any) -> Any:
            totals: list[Any] = [T.broadcast(T.float32(0), gates.lanes)] * gates.parts
            for unit, values in enumerate(query):
                for p, part in enumerate(gates.load(self.entries, start + unit * gates.unit)):
                    totals[p] = T.bind(vector.multiply_add(part, values[p], totals[p]))
            return totals[0] if len(totals) == 1 else totals[0] + totals[1]

        return products
