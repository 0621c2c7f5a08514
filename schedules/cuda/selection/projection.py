"""Products of a few vectors in shared memory with a weight matrix that is read once.

# a thread block has some columns: thread (row r of R, piece c of 16 bytes) of it
for row = r, r + R, ...:                                 # several loads at once
    for request: sum[request, c] += x[request, row] * weight[row, c]
y[request, c] = sum over the R threads: lanes by shuffles, warps in shared memory
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import block_count
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Buffer, Expr
from wattune.schedules.cuda.selection.base import power_of_two
from wattune.schedules.cuda.values import WORD, WORDS, load, values_of, widened
from wattune.schedules.space import Knob, powers_of_two
from wattune.schedules.template import Counts

# What takes a result: request, column among those of the thread block, value.
Take = Callable[[int, Expr, Expr], None]


@dataclass(frozen=True)
class Projection:
    """Products with a weight [depth, width]: ``pieces`` of its columns, ``loads`` rows at once."""

    dtype: str
    depth: int
    width: int
    threads: int
    pieces: int
    loads: int
    requests: int = 1

    @property
    def each(self) -> int:
        """Return the values of a piece."""
        return values_of(self.dtype)

    @property
    def columns(self) -> int:
        """Return the columns of one emission."""
        return self.pieces * self.each

    @property
    def parts(self) -> int:
        """Return how many emissions cover the weight."""
        return self.width // self.columns

    @property
    def shared(self) -> int:
        """Return the bytes of shared memory that warps exchange, and those of the vectors."""
        return 4 * (self.warps * self.columns + self.floats)

    @property
    def warps(self) -> int:
        """Return the warps, whose sums are joined in shared memory."""
        return self.threads // WARP

    @property
    def floats(self) -> int:
        """Return the floats of the vectors."""
        return self.requests * self.depth

    def emit(
        self, x: Buffer, weight: Buffer, start: Expr, part: Expr, thread: Expr, take: Take
    ) -> None:
        """Multiply vectors x [requests, depth] with one part of the weight's columns.

        ``weight`` is a row of words, the matrix begins at word ``start`` (an int64).
        """
        sums = ptx.registers(self.requests * self.each, "float32")
        for i in range(self.requests * self.each):
            ptx.put(sums, i, T.float32(0))
        rows = self.threads // self.pieces
        row, piece = T.truncdiv(thread, self.pieces), T.truncmod(thread, self.pieces)
        read = ptx.registers(self.loads * WORDS, "uint32")
        whole = self.width // self.each
        first = T.bind(start + (part * self.pieces + piece) * WORDS)
        with T.serial(block_count(self.depth, rows * self.loads)) as turn:
            at = [T.bind((turn * self.loads + i) * rows + row) for i in range(self.loads)]
            for i, place in enumerate(at):
                near = T.cast(T.min(place, self.depth - 1), "int64")
                load(read, i * WORDS, WORDS, weight, first + near * (whole * WORDS))
            for i, place in enumerate(at):
                self._add(sums, x, read, i, place)
        self._join(sums, thread, take)

    def _add(self, sums: Buffer, x: Buffer, read: Buffer, i: int, row: Expr) -> None:
        """Add the products of one row; rows behind the last count as nothing."""
        near = T.min(row, self.depth - 1)
        factors = [
            T.bind(T.Select(row < self.depth, x[near + r * self.depth], T.float32(0)))
            for r in range(self.requests)
        ]
        at = 0
        for word in range(WORDS):
            for value in widened(read[i * WORDS + word], self.dtype):
                wide = T.bind(value)
                for r, factor in enumerate(factors):
                    place = r * self.each + at
                    ptx.put(sums, place, factor * wide + sums[place])
                at += 1

    def _join(self, sums: Buffer, thread: Expr, take: Take) -> None:
        """Sum over threads with the same piece."""
        count = self.requests * self.each
        step = WARP // 2
        while step >= self.pieces:
            for i in range(count):
                ptx.put(sums, i, sums[i] + ptx.across(sums[i], step))
            step //= 2
        shared = T.alloc_shared((self.warps * self.columns,), "float32")
        warp, lane = T.truncdiv(thread, WARP), T.truncmod(thread, WARP)
        piece, writes = T.truncmod(lane, self.pieces), lane < self.pieces
        for r in range(self.requests):
            with T.If(writes), T.Then():
                for i in range(self.each):
                    at = warp * self.columns + piece * self.each + i
                    ptx.put(shared, at, sums[r * self.each + i])
            ptx.block_barrier()
            with T.serial(block_count(self.columns, self.threads)) as turn:
                column = T.bind(turn * self.threads + thread)
                with T.If(column < self.columns), T.Then():
                    total = sum(shared[column + g * self.columns] for g in range(self.warps))
                    take(r, column, total)
            ptx.block_barrier()

    def counts(self, rest: Counts, weight_bytes: float, passes: float) -> Counts:
        """Add what the projection costs: a weight of so many bytes, read ``passes`` times."""
        words = weight_bytes * passes / (WORD * WARP)
        each = 1 + WORD // itemsize(self.dtype) * (1 + self.requests)
        again = weight_bytes * passes
        added = {"memory": weight_bytes, "l2": again, "l1": again * (1 + self.requests)}
        return dataclasses.replace(
            rest,
            bytes={level: amount + added[level] for level, amount in rest.bytes.items()},
            operations={"alu": rest.operations["alu"] + words * each},
            tiles={**rest.tiles, "columns": float(self.columns), "depth": float(self.depth)},
        )


def projection_knobs(dtype: str, width: int, pieces: int) -> tuple[Knob, ...]:
    """Return the knobs of a projection; ``pieces`` of a thread block by default, if they divide."""
    most = min(WARP, power_of_two(width // values_of(dtype)))
    return (
        Knob("columns", powers_of_two(1, most), min(pieces, most)),
        Knob("loads", (2, 4, 8), 8),
    )
