"""The kernel of `attn_gate_compress`: a task is one head and one block that new tokens touch.

    for request, head, touched block:
        full:    pool the block's keys, old ones from the ring, new ones from k   # fp32, scratch
                 project, norm, rotate; round into the entry
        opened:  entry = 0
    for request, head, token of the last block_size new ones:
        k_remainder[token % block_size] = k

The ring is written last: a block may still need the slots that a later one takes over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.attn_gate_compress import AttnGateCompress
from wattune.ops.gate_parts import SLOTS
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.rows import Rows
from wattune.schedules.cpu.selection.base import length_of
from wattune.schedules.cpu.selection.gate_parts import (
    Finisher,
    Projection,
    aligned,
    scratch_of,
    zero_row,
)
from wattune.schedules.cpu.selection.pooling import pool_rows
from wattune.schedules.cpu.tasks import spread
from wattune.schedules.program import Tensors


def touched_blocks(problem: AttnGateCompress) -> int:
    """Return the most blocks that the new tokens of a request touch."""
    return (problem.query_tokens + problem.block_size - 2) // problem.block_size + 1


def slice_floats(problem: AttnGateCompress) -> int:
    """Return the floats of a worker's scratch: the pooled key, then the gate row."""
    return aligned(len(problem.pools) * problem.head_dim) + aligned(problem.gate_dim)


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel."""

    problem: AttnGateCompress
    threads: int
    keys: Rows
    gates: Rows
    vectors: int
    pooled: int

    def emit(self, tensors: Tensors) -> None:
        """Fill or clear entries, then write the ring."""
        problem = self.problem
        touched = touched_blocks(problem)
        emitter = _Emitter(self, tensors)
        tasks = tensors.sizes["batch"] * problem.kv_heads

        def block(worker: Any, index: Any) -> None:
            row = T.bind(T.truncdiv(index, touched))
            emitter.block(worker, row, index - row * touched)
            if touched == 1:
                emitter.ring(row)

        spread(self.threads, tasks * touched, block)
        if touched > 1:
            spread(self.threads, tasks, lambda _, row: emitter.ring(row))


class _Emitter:
    """Emits the tasks of one kernel; a row is a request and head."""

    def __init__(self, kernel: Kernel, tensors: Tensors) -> None:
        self.kernel, self.problem, self.tensors = kernel, kernel.problem, tensors
        keys, gates = kernel.keys, kernel.gates
        self.new, self.kept = keys.bits(tensors["k"]), keys.bits(tensors["k_remainder"])
        self.entries, self.weight = gates.bits(tensors["k_compressed"]), gates.bits(tensors["wk"])
        self.scratch = scratch_of(tensors, kernel.threads * slice_floats(self.problem))
        self.finisher = Finisher(self.problem, tensors, "k_norm", gates)

    def _place(self, row: Any) -> tuple[Any, Any, Any, Any]:
        """Return a row's request and head, its length, and the first new position."""
        request = T.bind(T.truncdiv(row, self.problem.kv_heads))
        length = length_of(self.tensors, request)
        since = T.bind(T.max(length - self.problem.query_tokens, 0))
        return request, T.bind(row - request * self.problem.kv_heads), length, since

    def _new_row(self, request: Any, head: Any, length: Any, position: Any) -> Any:
        """Return where the key of a new position lies in k."""
        problem = self.problem
        token = position - length + problem.query_tokens
        line = T.cast(request, "int64") * problem.query_tokens + token
        return (line * problem.kv_heads + head) * problem.head_dim

    def _kept_row(self, row: Any, position: Any) -> Any:
        """Return where the key of a position lies in the ring."""
        size = self.problem.block_size
        slot = T.truncmod(position, size)
        return (T.cast(row, "int64") * size + slot) * self.problem.head_dim

    def ring(self, row: Any) -> None:
        """Keep the last new keys."""
        keys = self.kernel.keys
        request, head, length, since = self._place(row)
        first = T.bind(T.max(since, length - self.problem.block_size))
        with T.serial(length - first) as i:
            source = T.bind(self._new_row(request, head, length, first + i))
            target = T.bind(self._kept_row(row, first + i))
            kind = f"{self.new.dtype}x{keys.unit}"
            for at in range(0, keys.width, keys.unit):
                vector.store(self.kept, [target + at], self.new.vload([source + at], kind))

    def block(self, worker: Any, row: Any, number: Any) -> None:
        """Fill or clear the entry of one of the blocks that new tokens touch."""
        problem, gates = self.problem, self.kernel.gates
        request, head, length, since = self._place(row)
        size = problem.block_size
        block = T.bind(T.truncdiv(since, size) + number)
        first = T.bind(block * size)
        slot = T.cast(row, "int64") * self.tensors.sizes[SLOTS] + block
        entry = T.bind(slot * problem.gate_dim)
        with T.If(first + size <= length):
            with T.Then():
                old = T.bind(T.max(since - first, 0))
                at = T.bind(worker * slice_floats(problem))
                self._pool(at, row, request, head, length, first, old)
                self._fill(at, head, entry, problem.rotated_by(block))
            with T.Else(), T.If(T.And(first < length, first >= since)), T.Then():
                zero_row(self.entries, entry, gates)

    def _pool(
        self, at: Any, row: Any, request: Any, head: Any, length: Any, first: Any, old: Any
    ) -> None:
        """Pool a full block whose first ``old`` keys are in the ring."""
        sources = [
            (self.kept, old, lambda i: self._kept_row(row, first + i)),
            (
                self.new,
                self.problem.block_size - old,
                lambda i: self._new_row(request, head, length, first + old + i),
            ),
        ]
        problem, keys = self.problem, self.kernel.keys
        pool_rows(self.scratch, at, keys, problem.pools, problem.block_size, sources, self._step)

    @property
    def _step(self) -> int:
        return max(1, self.kernel.pooled // self.kernel.keys.parts)

    def _fill(self, at: Any, head: Any, entry: Any, position: Any) -> None:
        """Project a pooled key and write it as an entry."""
        problem, gates = self.problem, self.kernel.gates
        wide = len(problem.pools) * problem.head_dim
        result = T.bind(at + aligned(wide))
        projection = Projection(wide, gates, self.kernel.vectors, tokens=1)
        start = T.bind(T.cast(head, "int64") * (wide * problem.gate_dim))
        with T.serial(projection.pieces) as piece:
            projection.emit(self.scratch, [at], self.weight, start, piece, [result])
        self.finisher.emit(self.scratch, result, position)
        for column in range(0, gates.width, gates.unit):
            parts = gates.load_natural(self.scratch, result + column)
            gates.store(self.entries, entry + column, parts)
