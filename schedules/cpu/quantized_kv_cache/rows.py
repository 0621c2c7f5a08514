"""Rows of keys or values as fp32 vectors, and a packed block beside the rows it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.math import as_real, integer, kind
from wattune.schedules.cpu.quantized_kv_cache.halves import from_half

Expr = Any
Buffer = Any

# Elements that a copy moves at once: every row is a multiple.
_COPY = 16


def flat(buffer: Buffer, dtype: str) -> Buffer:
    """View a tensor as one row of a dtype of the same width, aligned to an element."""
    count = T.int64(1)
    for extent in buffer.shape:
        count = count * extent
    return T.decl_buffer((count,), dtype, data=buffer.data, align=itemsize(dtype))


@dataclass(frozen=True)
class Rows:
    """Reads rows of a dtype.

    ``pairs``: bfloat16 comes two values a 32-bit lane, the even ones and the odd ones, which takes
    one instruction a vector; ``halves``: float16 is converted in hardware.
    """

    dtype: str
    pairs: bool
    halves: bool

    @classmethod
    def of(cls, dtype: str, packs: bool, halves: bool) -> Rows:
        """Return the rows of a dtype; packs can put even and odd values side by side."""
        return cls(dtype, packs and dtype == "bfloat16", halves)

    def view(self, buffer: Buffer) -> Buffer:
        """View a tensor as one row of what is loaded: bits of 16-bit floats."""
        return flat(buffer, "float32" if self.dtype == "float32" else "uint16")

    def natural(self, view: Buffer, at: Expr, lanes: int) -> Expr:
        """Return a vector of neighbours, to be used once or bound."""
        value = view.vload([at], kind(str(view.dtype), lanes))
        if self.dtype == "bfloat16":
            wide = T.cast(value, kind("int32", lanes))
            value = as_real(T.shift_left(wide, integer(16, lanes)), lanes)
        elif self.dtype == "float16":
            value = from_half(T.bind(value), lanes, self.halves)
        return value

    def several(self, view: Buffer, at: Expr, lanes: int, count: int) -> list[Expr]:
        """Return vectors of neighbours, to be used once or bound.

        Even and odd values alternate where they come so and the count is even.
        """
        if not self.pairs or count % 2:
            return [self.natural(view, at + i * lanes, lanes) for i in range(count)]
        found = []
        for i in range(0, count, 2):
            bits = view.vload([at + i * lanes], kind("uint16", 2 * lanes))
            both = T.bind(T.reinterpret(kind("int32", lanes), bits))
            even = T.shift_left(both, integer(16, lanes))
            odd = T.bitwise_and(both, integer(-0x10000, lanes))
            found += [as_real(part, lanes) for part in (even, odd)]
        return found

    def prefetch(self, view: Buffer, at: Expr, count: int) -> None:
        """Ask for the cache lines of so many elements."""
        step = vector.BYTES // itemsize(self.dtype)
        for i in range(0, count, step):
            vector.prefetch(view, at + i)


@dataclass(frozen=True)
class Block:
    """Rows of one head, ``stride`` elements apart from ``at`` on, and where their codes go.

    Elements that are read for the first time have those ``ahead`` of them prefetched.
    """

    rows: Rows
    source: Buffer
    at: Expr
    stride: Expr
    ahead: Expr | None
    codes: Buffer
    codes_at: Expr
    params: Buffer
    params_at: Expr

    def row(self, token: Expr) -> Expr:
        """Return the first element of a token."""
        return self.at + T.cast(token, "int64") * self.stride

    def prefetch(self, at: Expr, count: int) -> None:
        """Ask for what will be read after so many elements."""
        if self.ahead is not None:
            self.rows.prefetch(self.source, at + self.ahead, count)


def copy_row(source: Buffer, at: Expr, target: Buffer, to: Expr, width: int) -> None:
    """Copy a row of a multiple of 16 elements."""
    with T.serial(width // _COPY) as i:
        value = source.vload([at + i * _COPY], kind(str(source.dtype), _COPY))
        vector.store(target, [to + i * _COPY], value)
