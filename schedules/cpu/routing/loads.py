"""Rows of each dtype as fp32 vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector

Expr = Any
Buffer = Any


def stored(dtype: str) -> str:
    """Name what a buffer of the dtype is viewed as: bfloat16 as its bits."""
    return "uint16" if dtype == "bfloat16" else dtype


@dataclass(frozen=True)
class Loads:
    """Loads from rows of ``width`` values in a flat buffer of `stored`, a vector of ``lanes``."""

    buffer: Buffer
    dtype: str
    width: int
    lanes: int

    def load(self, row: Expr, at: Expr) -> Expr:
        """Load vector ``at`` of a row; lanes beyond its end, known by number, repeat its last."""
        start, first = T.cast(row, "int64") * self.width, at * self.lanes
        if not isinstance(at, int) or first + self.lanes <= self.width:
            return self.vector(start + first)
        last = vector.array(self.lanes, stored(self.dtype))
        for lane in range(self.lanes):
            vector.store(last, [lane], self.buffer[start + min(first + lane, self.width - 1)])
        return self._widened(last.vload([0], f"{stored(self.dtype)}x{self.lanes}"))

    def vector(self, start: Expr) -> Expr:
        """Load the vector that starts at a value of the buffer."""
        return self._widened(self.buffer.vload([start], f"{stored(self.dtype)}x{self.lanes}"))

    def _widened(self, values: Expr) -> Expr:
        if self.dtype != "bfloat16":
            return T.cast(values, f"float32x{self.lanes}")
        bits = T.cast(values, f"uint32x{self.lanes}")
        wide = T.shift_left(bits, T.broadcast(T.uint32(16), self.lanes))
        return T.reinterpret(f"float32x{self.lanes}", wide)
