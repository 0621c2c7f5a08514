"""The kernels of `attn_gate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.attn_gate import AttnGate
from wattune.ops.dtypes import itemsize
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Buffer, Expr, Place, ceildiv, for_each, view
from wattune.schedules.cuda.selection.gate_parts import finish_row, mean
from wattune.schedules.cuda.selection.projection import Projection
from wattune.schedules.cuda.selection.stream import Stream, Stretch
from wattune.schedules.cuda.values import WORD, widened
from wattune.schedules.program import Tensors


@dataclass(frozen=True)
class Gate:
    """Emits both kernels; the workspace is projected queries [batch, kv_heads, gate_dim]."""

    problem: AttnGate
    stream: Stream
    projection: Projection | None

    def projections(self, sizes: Mapping[str, Expr]) -> Expr:
        """Return the thread blocks of the projection."""
        projection = self.projection
        assert projection is not None
        each = self.problem.kv_heads * projection.parts
        return ceildiv(sizes["batch"], projection.requests) * each

    @property
    def stream_shared(self) -> int:
        """Return the bytes of shared memory of the stream: a query, and sums of its warps."""
        return WORD * (self.problem.gate_dim + self.stream.threads // WARP)

    def project(self, tensors: Tensors, place: Place) -> None:
        """Project the queries of some requests with some columns of a head's weight."""
        problem, projection = self.problem, self.projection
        assert projection is not None
        wide = projection.depth
        batch = T.bind(T.cast(tensors.sizes["batch"], "int32"))
        groups = T.bind(ceildiv(batch, projection.requests))
        piece = T.bind(T.truncdiv(place.block, groups))
        head = T.bind(T.truncdiv(piece, projection.parts))
        part = T.bind(piece - head * projection.parts)
        first = T.bind((place.block - piece * groups) * projection.requests)
        x = T.alloc_shared((projection.floats,), "float32")
        for r in range(projection.requests):
            request = T.bind(T.min(first + r, batch - 1))

            def copy(at: Expr, request: Expr = request, start: int = r * wide) -> None:
                ptx.put(x, start + at, self._value(tensors, request, head, at))

            for_each(place.thread, projection.threads, wide, copy)
        ptx.block_barrier()
        weight = view(tensors["wq"], "uint32")
        words = wide * problem.gate_dim * itemsize(problem.dtype) // WORD
        start = T.bind(T.cast(head, "int64") * words)
        projected = view(tensors["workspace"], "float32")

        def take(r: int, column: Expr, value: Expr) -> None:
            line = T.cast(first + r, "int64") * problem.kv_heads + head
            at = line * problem.gate_dim + part * projection.columns + column
            with T.If(first + r < batch), T.Then():
                ptx.put(projected, at, value)

        projection.emit(x, weight, start, part, place.thread, take)

    def _value(self, tensors: Tensors, request: Expr, head: Expr, at: Expr) -> Expr:
        """Return a value of what is projected: the group's queries, or their mean."""
        problem, q = self.problem, tensors["q"]
        group = T.cast(request, "int64") * problem.query_heads + head * problem.group
        start = T.bind(group * problem.head_dim)
        if problem.query_mode == "qproj":
            return T.cast(q[start + at], "float32")
        return mean(problem.group, lambda i: q[start + i * problem.head_dim + at])

    def stream_slots(self, tensors: Tensors, place: Place) -> None:
        """Compute the logits of a stretch of slots."""
        problem, stream = self.problem, self.stream
        stretch = stream.stretch(problem, tensors, place)
        row = T.alloc_shared((problem.gate_dim,), "float32")
        with T.If(stretch.first < stretch.used), T.Then():
            self._query(tensors, row, stretch, place.thread)
        ptx.block_barrier()
        query = stream.query(row, place)
        each = WORD // itemsize(problem.dtype)

        def fold(total: Expr, word: int, bits: Sequence[Expr]) -> Expr:
            for i, value in enumerate(widened(bits[0], problem.dtype)):
                total = value * query[word * each + i] + total
            return total

        entries = [view(tensors["k_compressed"], "uint32")]
        stream.emit(entries, tensors["logits"], stretch, place, fold)

    def _query(self, tensors: Tensors, row: Buffer, stretch: Stretch, thread: Expr) -> None:
        """Bring a request's gate query into shared memory."""
        problem, threads = self.problem, self.stream.threads
        line = T.cast(stretch.request, "int64") * problem.kv_heads + stretch.head

        def copy(at: Expr) -> None:
            if self.projection is None:
                value = self._value(tensors, stretch.request, stretch.head, at)
            else:
                value = view(tensors["workspace"], "float32")[line * problem.gate_dim + at]
            ptx.put(row, at, value)

        for_each(thread, threads, problem.gate_dim, copy)
        scale = problem.gate_dim**-0.5
        position = stretch.length - 1
        finish_row(problem, tensors, "q_norm", row, position, thread, threads, scale)
