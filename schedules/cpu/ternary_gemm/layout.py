"""Layouts of packed ternary weights: 64-byte vectors of 16 rows by 4 columns a digit.

    W[out, in] -> blob[block, step, group, row, column]

A vector holds, for 16 rows, ``4 * digits`` consecutive columns: byte ``4 * row + c`` carries the
columns ``c, c + 4, ...`` as its digits. ``groups`` vectors (16 rows each) of one block follow each
other, so that a block of ``16 * groups`` rows is read as one sequential stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.ternary_formats import FORMATS, RadixFormat
from wattune.ops.ternary_gemm import TERNARY_GEMM, TernaryGemm
from wattune.schedules.program import Tensors, tensor_program

ROWS = 16
QUAD = 4
VECTOR = ROWS * QUAD


@dataclass(frozen=True)
class VectorLayout:
    """Sizes of a blob of 64-byte vectors in a radix format."""

    out_features: int
    in_features: int
    radix: int
    digits: int
    groups: int

    @classmethod
    def of(cls, problem: TernaryGemm, format: str, groups: int) -> VectorLayout:
        """Return the layout of a problem's weights."""
        coding = FORMATS[format]
        assert isinstance(coding, RadixFormat)
        n, k = problem.out_features, problem.in_features
        return cls(n, k, coding.radix, coding.group, groups)

    @property
    def columns(self) -> int:
        """Columns that one vector covers."""
        return QUAD * self.digits

    @property
    def steps(self) -> int:
        """Vectors along the columns."""
        return -(-self.in_features // self.columns)

    @property
    def padded_columns(self) -> int:
        """Columns with padding: what the quantised activations are padded to."""
        return self.steps * self.columns

    @property
    def block_rows(self) -> int:
        """Rows of one block."""
        return ROWS * self.groups

    @property
    def blocks(self) -> int:
        """Blocks along the rows."""
        return -(-self.out_features // self.block_rows)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.steps * self.groups * VECTOR

    @property
    def bytes(self) -> int:
        """Bytes of the blob."""
        return self.blocks * self.block_bytes

    def pack_program(self, problem: TernaryGemm) -> Any:
        """Return the PrimFunc (weights int8 [out, in], blob uint8 [bytes]); padding is zero."""
        return pack_program(problem, self.bytes, self._emit_pack)

    def _emit_pack(self, tensors: Tensors) -> None:
        weights, blob = tensors["weights"], tensors["weight"]
        with (
            T.serial(self.blocks) as block,
            T.grid(self.steps, self.groups, ROWS, QUAD) as (step, group, row, column),
        ):
            at = ((block * self.steps + step) * self.groups + group) * VECTOR + row * QUAD + column
            first = (block * self.groups + group) * ROWS + row
            T.buffer_store(blob, self._code(weights, first, step * self.columns + column), [at])

    def _code(self, weights: Any, row: Any, column: Any) -> Any:
        """Return the byte of a row that starts at a column."""
        total = self._digit(weights, row, column)
        for i in range(1, self.digits):
            total = total + self._digit(weights, row, column + QUAD * i) * self.radix**i
        return T.cast(total, "uint8")

    def _digit(self, weights: Any, row: Any, column: Any) -> Any:
        """Return w + 1; beyond the weights w is zero."""
        n, k = self.out_features, self.in_features
        inside = T.And(row < n, column < k)
        value = weights[T.min(row, n - 1), T.min(column, k - 1)]
        return T.Select(inside, T.cast(value, "int32") + 1, T.int32(1))


def pack_program(problem: TernaryGemm, size: int, body: Callable[[Tensors], None]) -> Any:
    """Return the PrimFunc (weights int8 [out, in], blob uint8 [size]) that ``body`` emits."""
    arguments = {a.name: a for a in TERNARY_GEMM.arguments(problem)}
    weight = arguments["weight"]
    assert weight.source is not None
    return tensor_program((weight.source, weight), {"weight_bytes": size}, body)
