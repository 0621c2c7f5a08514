"""Layout of look-up weights: index vectors of rows, each run of four with the signs it needs.

    W[out, in] -> blob[block][chunk]( signs[vector, row, lane]  index[4, vector, row, lane] )

The bytes are those of `LookupFormat`: an index byte holds the codes of two groups. One index
vector holds ``lanes`` index bytes of each of its rows, so a *step* covers ``2 * lanes`` groups.
Bit ``2 * i + nibble`` of a sign byte belongs to step i of its chunk of four steps. The last chunk
ends where the columns do. With ``sign_sums`` a block ends with the sum of the signs of each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.ternary_formats import LookupFormat
from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.layout import pack_program
from wattune.schedules.program import Tensors

CHUNK = 4
Expr = Any


@dataclass(frozen=True)
class LookupLayout:
    """Sizes of a blob: vectors of ``width`` bytes, ``vectors`` of them interleaved in a block."""

    out_features: int
    in_features: int
    coding: LookupFormat
    width: int
    lanes: int
    vectors: int
    sign_sums: bool

    @property
    def rows(self) -> int:
        """Rows of one vector."""
        return self.width // self.lanes

    @property
    def steps(self) -> int:
        """Index vectors along the columns."""
        groups = -(-self.in_features // self.coding.group)
        return -(-groups // (2 * self.lanes))

    @property
    def groups(self) -> int:
        """Groups along the columns, with padding."""
        return self.steps * 2 * self.lanes

    @property
    def padded_columns(self) -> int:
        """Columns with padding: what the quantised activations are padded to."""
        return self.groups * self.coding.group

    @property
    def block_rows(self) -> int:
        """Rows of one block."""
        return self.rows * self.vectors

    @property
    def blocks(self) -> int:
        """Blocks along the rows."""
        return -(-self.out_features // self.block_rows)

    @property
    def chunks(self) -> int:
        """Runs of four steps, the last one perhaps shorter."""
        return -(-self.steps // CHUNK)

    @property
    def block_vectors(self) -> int:
        """Vectors of one block's codes."""
        signs = self.chunks if self.coding.mirror else 0
        return (self.steps + signs) * self.vectors

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        sums = 4 * self.block_rows if self.sign_sums else 0
        return self.block_vectors * self.width + sums

    @property
    def bytes(self) -> int:
        """Bytes of the blob."""
        return self.blocks * self.block_bytes

    def index_at(self, block: Expr, chunk: Expr, step: Expr, vec: Expr) -> Expr:
        """Return the offset of an index vector; ``step`` counts within the chunk."""
        signs = chunk + 1 if self.coding.mirror else 0
        return block * self.block_bytes + self._vector(chunk * CHUNK + step + signs, vec)

    def signs_at(self, block: Expr, chunk: Expr, vec: Expr) -> Expr:
        """Return the offset of a chunk's sign vector."""
        return block * self.block_bytes + self._vector(chunk * (CHUNK + 1), vec)

    def sign_sums_at(self, block: Expr, row: Expr) -> Expr:
        """Return the offset of the sum of signs of a row of the block."""
        return block * self.block_bytes + self.block_vectors * self.width + 4 * row

    def _vector(self, slot: Expr, vec: Expr) -> Expr:
        return (slot * self.vectors + vec) * self.width

    def pack_program(self, problem: TernaryGemm) -> Any:
        """Return the PrimFunc (weights int8 [out, in], blob uint8 [bytes]); padding is zero."""
        return pack_program(problem, self.bytes, self._emit_pack)

    def _emit_pack(self, tensors: Tensors) -> None:
        """Walk the rows; each is read once for its indices, once for its signs."""
        weights, blob = tensors["weights"], tensors["weight"]
        with T.grid(self.blocks, self.vectors, self.rows) as (block, vec, row):
            source = (block * self.vectors + vec) * self.rows + row
            with T.grid(self.steps, self.lanes) as (step, lane):
                at = self.index_at(block, step // CHUNK, step % CHUNK, vec)
                vector.store(
                    blob, [at + row * self.lanes + lane], self._index(weights, source, step, lane)
                )
            if self.coding.mirror:
                with T.grid(self.chunks, self.lanes) as (chunk, lane):
                    at = self.signs_at(block, chunk, vec) + row * self.lanes + lane
                    first = (chunk * CHUNK * self.lanes + lane) * 2
                    self._emit_signs(weights, blob, at, source, first)
            if self.sign_sums:
                self._emit_sign_sum(weights, blob, block, vec * self.rows + row, source)

    def _emit_sign_sum(self, weights: Any, blob: Any, block: Expr, row: Expr, source: Expr) -> None:
        total = vector.array(1, "int32")
        vector.store(total, [0], T.int32(self.groups))
        with T.serial(self.groups) as group:
            negative = T.cast(self._value(weights, source, group) < 0, "int32")
            vector.store(total, [0], total[0] - 2 * negative)
        vector.store_as(blob, self.sign_sums_at(block, row), total[0])

    def _index(self, weights: Any, row: Expr, step: Expr, lane: Expr) -> Expr:
        """Return an index byte: the even group in the low half."""
        first = (step * self.lanes + lane) * 2
        low, high = (self._code(self._value(weights, row, first + i)) for i in range(2))
        return T.cast(low + high * 16, "uint8")

    def _code(self, value: Expr) -> Expr:
        if self.coding.mirror:
            return T.max(value, -value)
        return value + self.coding.levels**self.coding.group // 2

    def _emit_signs(self, weights: Any, blob: Any, at: Expr, row: Expr, first: Expr) -> None:
        """Emit one sign byte; ``first`` is its first group.

        Steps beyond the columns read as zero weights, so their bits are clear.
        """
        byte = vector.array(1, "uint8")
        vector.store(byte, [0], T.uint8(0))
        with T.serial(2 * CHUNK) as bit:
            group = first + bit // 2 * (2 * self.lanes) + bit % 2
            negative = T.cast(self._value(weights, row, group) < 0, "int32")
            set_bit = T.cast(T.shift_left(negative, bit), "uint8")
            vector.store(byte, [0], T.bitwise_or(byte[0], set_bit))
        vector.store(blob, [at], byte[0])

    def _value(self, weights: Any, row: Expr, group: Expr) -> Expr:
        """Return the group's weights as one number, the first weight most significant."""
        size = self.coding.group
        total: Expr = T.int32(0)
        for i in range(size):
            total = total * self.coding.levels + self._weight(weights, row, group * size + i)
        return total

    def _weight(self, weights: Any, row: Expr, column: Expr) -> Expr:
        """Return a weight; beyond the matrix it is zero."""
        n, k = self.out_features, self.in_features
        inside = T.And(row < n, column < k)
        value = weights[T.min(row, n - 1), T.min(column, k - 1)]
        return T.Select(inside, T.cast(value, "int32"), T.int32(0))
