"""The packed form of expert weights: blocks of ``groups`` times 16 rows, read as one stream.

    [expert][block][step][group]: vectors of 64 bytes, a 32-bit lane for each of 16 rows

    bf16  a lane is 2 columns
    int8  a lane is 4 columns, bytes of code + 128; after a block the rows' float32 scales
    int4  a lane is 8 columns: byte c holds column c in its low half and column c + 4 in its high
          half; before each 128 columns, for each group, 16 float16 scales and 16 zeros

One expert follows the other without a gap, so that a thread's share of an expert is one stream. Of
gate and up each begins with a block, so that both can be read side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.expert_weights import GROUP, GROUP_BYTES
from wattune.ops.operator import Argument
from wattune.schedules.areas import round_up
from wattune.schedules.cpu import vector
from wattune.schedules.program import Tensors, tensor_program

Expr = Any

ROWS = 16
LANE = 4
VECTOR = ROWS * LANE
# Columns of a lane.
COLUMNS = {"bf16": 2, "int8": 4, "int4": 8}
INT8_OFFSET = 128


@dataclass(frozen=True)
class ExpertLayout:
    """Sizes of the packed weights [experts, rows, columns] of one product.

    ``halves``: 2 where the rows are those of gate, then as many of up.
    """

    format: str
    experts: int
    rows: int
    columns: int
    groups: int
    halves: int = 1

    @property
    def lane_columns(self) -> int:
        """Columns of a vector."""
        return COLUMNS[self.format]

    @property
    def steps(self) -> int:
        """Vectors along the columns."""
        return -(-self.columns // self.lane_columns)

    @property
    def scale_groups(self) -> int:
        """Groups of columns with scales of their own; 0 where there are none."""
        return self.columns // GROUP if self.format == "int4" else 0

    @property
    def group_steps(self) -> int:
        """Vectors of a group of columns."""
        return GROUP // self.lane_columns

    @property
    def step_bytes(self) -> int:
        """Bytes from one step to the next."""
        return self.groups * VECTOR

    @property
    def group_bytes(self) -> int:
        """Bytes from one group of columns to the next, with its scales and zeros."""
        return (self.group_steps + 1) * self.step_bytes

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return self.groups * ROWS

    @property
    def half_blocks(self) -> int:
        """Blocks along the rows of a half."""
        return -(-self.rows // (self.halves * self.block_rows))

    @property
    def blocks(self) -> int:
        """Blocks along the rows."""
        return self.halves * self.half_blocks

    @property
    def half_rows(self) -> int:
        """Rows of a half with padding: where up begins in a row of sums."""
        return self.half_blocks * self.block_rows

    @property
    def padded_rows(self) -> int:
        """Rows with padding: the width of a row of sums."""
        return self.blocks * self.block_rows

    @property
    def codes_bytes(self) -> int:
        """Bytes of a block before the scales at its end."""
        if self.scale_groups:
            return self.scale_groups * self.group_bytes
        return self.steps * self.step_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return self.codes_bytes + (self.step_bytes if self.format == "int8" else 0)

    @property
    def expert_bytes(self) -> int:
        """Bytes of an expert."""
        return self.blocks * self.block_bytes

    @property
    def bytes(self) -> int:
        """Bytes of all experts."""
        return self.experts * self.expert_bytes

    @property
    def padded_columns(self) -> int:
        """Columns of an activation row: whole vectors of every kind."""
        return round_up(self.columns, VECTOR)

    def pack_program(self, argument: Argument) -> Any:
        """Return the PrimFunc (source, packed); padding is zero."""
        assert argument.source is not None
        source = argument.source
        emit = {"bf16": self._pack_bf16, "int8": self._pack_int8, "int4": self._pack_int4}

        def body(tensors: Tensors) -> None:
            rows = _flat(tensors[source.name])
            blob = tensors[argument.name]
            half_rows = self.rows // self.halves
            with (
                T.serial(self.experts) as expert,
                T.grid(self.blocks, self.groups, ROWS) as (block, group, lane),
            ):
                half = T.bind(T.truncdiv(block, self.half_blocks))
                inner = T.bind(block - half * self.half_blocks)
                row = T.bind((inner * self.groups + group) * ROWS + lane)
                inside = T.bind(row < half_rows)
                width = source.shape[-1]
                first = T.cast(expert, "int64") * self.rows + half * half_rows
                at = first + T.min(row, half_rows - 1)
                to = T.cast(expert, "int64") * self.expert_bytes + block * self.block_bytes
                emit[self.format](
                    rows, T.bind(at * width), inside, blob, T.bind(to + group * VECTOR), lane
                )

        return tensor_program((source, argument), {f"{argument.name}_bytes": self.bytes}, body)

    def _pack_bf16(
        self, rows: Any, at: Expr, inside: Expr, blob: Any, to: Expr, lane: Expr
    ) -> None:
        with T.grid(self.steps, self.lane_columns) as (step, column):
            place = step * self.lane_columns + column
            bits = rows[at + T.min(place, self.columns - 1)]
            kept = T.Select(T.And(inside, place < self.columns), bits, T.uint16(0))
            byte = to + step * self.step_bytes + lane * LANE + 2 * column
            vector.store(blob, [byte], T.cast(T.bitwise_and(kept, T.uint16(255)), "uint8"))
            vector.store(blob, [byte + 1], T.cast(T.shift_right(kept, T.uint16(8)), "uint8"))

    def _pack_int8(
        self, rows: Any, at: Expr, inside: Expr, blob: Any, to: Expr, lane: Expr
    ) -> None:
        with T.grid(self.steps, self.lane_columns) as (step, column):
            place = step * self.lane_columns + column
            code = rows[at + T.min(place, self.columns - 1)]
            kept = T.Select(T.And(inside, place < self.columns), code, T.uint8(0))
            byte = to + step * self.step_bytes + lane * LANE + column
            vector.store(blob, [byte], T.bitwise_xor(kept, T.uint8(INT8_OFFSET)))
        with T.serial(4) as i:
            kept = T.Select(inside, rows[at + self.columns + i], T.uint8(0))
            vector.store(blob, [to + self.codes_bytes + lane * 4 + i], kept)

    def _pack_int4(
        self, rows: Any, at: Expr, inside: Expr, blob: Any, to: Expr, lane: Expr
    ) -> None:
        with T.serial(self.scale_groups) as group:
            first = T.bind(at + group * GROUP_BYTES)
            start = T.bind(to + group * self.group_bytes)
            with T.grid(2, 2) as (which, i):
                kept = T.Select(inside, rows[first + which * 2 + i], T.uint8(0))
                vector.store(blob, [start + which * 2 * ROWS + lane * 2 + i], kept)
            with T.grid(self.group_steps, LANE) as (step, column):
                low, high = (
                    self._nibble(rows, first, step * self.lane_columns + column + more)
                    for more in (0, LANE)
                )
                both = T.bitwise_or(low, T.shift_left(high, T.uint8(4)))
                byte = start + (step + 1) * self.step_bytes + lane * LANE + column
                vector.store(blob, [byte], T.Select(inside, both, T.uint8(0)))

    @staticmethod
    def _nibble(rows: Any, first: Expr, column: Expr) -> Expr:
        """Return the code of a column of a group that starts at a byte."""
        byte = rows[first + 4 + T.truncdiv(column, 2)]
        shift = T.cast(T.truncmod(column, 2) * 4, "uint8")
        return T.bitwise_and(T.shift_right(byte, shift), T.uint8(15))


def _flat(buffer: Any) -> Any:
    """View a source as one row; bfloat16 as its bits."""
    count = T.int64(1)
    for extent in buffer.shape:
        count = count * extent
    kind = "uint16" if str(buffer.dtype) == "bfloat16" else str(buffer.dtype)
    return T.decl_buffer((count,), kind, data=buffer.data, align=2 if kind == "uint16" else 1)
