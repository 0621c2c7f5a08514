"""Rows of floats as fp32 vectors: how each dtype is read, rounded and written.

bfloat16 is read two values a 32-bit lane, which takes a shift for the lower values (at even places)
and a mask for the upper ones: a unit of 2 x lanes values becomes one vector of even and one of odd
places. Other dtypes have one vector a unit, in natural order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector

Expr = Any
Buffer = Any

_TOP = -0x10000
_INT32_SIGN = 31


def flat(buffer: Buffer, dtype: str = "") -> Buffer:
    """View a buffer as one row, of another dtype of the same width if one is given."""
    count: Any = 1
    for extent in buffer.shape:
        count = count * extent
    kind = dtype or str(buffer.dtype)
    size = T.int64(count) if isinstance(count, int) else T.cast(count, "int64")
    # Rows are only sure to be aligned to an element.
    align = int("".join(c for c in kind if c.isdigit())) // 8
    return T.decl_buffer((size,), kind, data=buffer.data, align=align)


@dataclass(frozen=True)
class Rows:
    """Reads and writes rows of ``width`` values of a dtype, ``lanes`` 32-bit lanes at a time."""

    dtype: str
    width: int
    lanes: int

    @classmethod
    def fitting(cls, dtype: str, width: int, lanes: int) -> Rows:
        """Return rows with so many lanes, or as many fewer as the width needs."""
        while lanes > 1 and width % cls(dtype, width, lanes).unit:
            lanes //= 2
        return cls(dtype, width, lanes)

    @property
    def parts(self) -> int:
        """Vectors of a unit."""
        return 2 if self.dtype == "bfloat16" else 1

    @property
    def unit(self) -> int:
        """Values that are read at once."""
        return self.parts * self.lanes

    @property
    def units(self) -> int:
        """Units of a row."""
        return self.width // self.unit

    @property
    def f32(self) -> str:
        """Name the dtype of a vector."""
        return f"float32x{self.lanes}"

    @property
    def i32(self) -> str:
        """Name the dtype of a vector of bits."""
        return f"int32x{self.lanes}"

    def bits(self, buffer: Buffer) -> Buffer:
        """View a buffer of the dtype as one row of its bits."""
        return flat(buffer, "uint32" if self.dtype == "float32" else "uint16")

    def raw(self, bits: Buffer, at: Expr) -> Expr:
        """Load the bits of a unit, as 32-bit lanes; half-precision values stay 16-bit lanes."""
        if self.dtype == "float16":
            return bits.vload([at], f"uint16x{self.lanes}")
        kind = "uint32" if self.dtype == "float32" else "uint16"
        return T.reinterpret(self.i32, bits.vload([at], f"{kind}x{self.unit}"))

    def widen(self, raw: Expr) -> list[Expr]:
        """Return the fp32 vectors of a unit's bits."""
        if self.dtype == "float32":
            return [T.reinterpret(self.f32, raw)]
        if self.dtype == "float16":
            return [T.cast(T.reinterpret(f"float16x{self.lanes}", raw), self.f32)]
        even = T.shift_left(raw, self._each(16))
        odd = T.bitwise_and(raw, self._each(_TOP))
        return [T.reinterpret(self.f32, even), T.reinterpret(self.f32, odd)]

    def load(self, bits: Buffer, at: Expr) -> list[Expr]:
        """Load a unit."""
        return [T.bind(part) for part in self.widen(T.bind(self.raw(bits, at)))]

    def store(self, bits: Buffer, at: Expr, parts: list[Expr]) -> None:
        """Round a unit to nearest, ties to even, and store it."""
        if self.dtype == "float32":
            vector.store(bits, [at], T.reinterpret(f"uint32x{self.lanes}", parts[0]))
        elif self.dtype == "float16":
            half = T.cast(parts[0], f"float16x{self.lanes}")
            vector.store(bits, [at], T.reinterpret(f"uint16x{self.lanes}", half))
        else:
            even, odd = (math.nearest_bf16(part, self.lanes) for part in parts)
            low = T.shift_right(T.reinterpret(f"uint32x{self.lanes}", even), self._each(16, "u"))
            high = T.bitwise_and(odd, self._each(_TOP))
            packed = T.bitwise_or(T.reinterpret(self.i32, low), high)
            vector.store(bits, [at], T.reinterpret(f"uint16x{self.unit}", packed))

    def _each(self, value: int, sign: str = "") -> Expr:
        return T.broadcast(T.uint32(value) if sign else T.int32(value), self.lanes)

    def load_natural(self, row: Buffer, at: Expr) -> list[Expr]:
        """Load a unit of a float32 row, in the order of `load`."""
        vectors = [T.bind(row.vload([at + i * self.lanes], self.f32)) for i in range(self.parts)]
        if self.parts == 1:
            return vectors
        return [T.bind(T.Shuffle(vectors, list(range(p, self.unit, 2)))) for p in range(2)]

    def store_natural(self, row: Buffer, at: Expr, parts: list[Expr]) -> None:
        """Store a unit into a float32 row, in natural order."""
        if self.parts == 1:
            vector.store(row, [at], parts[0])
            return
        order = [p * self.lanes + i for i in range(self.lanes) for p in range(2)]
        for i in range(2):
            half = order[i * self.lanes : (i + 1) * self.lanes]
            vector.store(row, [at + i * self.lanes], T.Shuffle(parts, half))
