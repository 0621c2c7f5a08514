"""The tile vocabulary of CPU templates: each function names what one AMX instruction does.

A tile is a register of up to 16 rows of 64 bytes, named by its number 0..7. How many rows and
bytes of each are in use is the configuration of the thread. All functions emit statements; tile
instructions keep their order among each other and among accesses to memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.script import tirx as T

# A tensor program's expression or buffer: TVM ships no types.
Expr = Any
Buffer = Any

TILES = 8
TILE_ROWS = 16
ROW_BYTES = 64
TILE_BYTES = TILE_ROWS * ROW_BYTES
CONFIGURATION_BYTES = 64


def _emit(name: str, *operands: Expr) -> None:
    intrinsic = T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}")
    T.evaluate(T.call_llvm_intrin(intrinsic, *operands, dtype="void"))


def configuration(rows: Mapping[int, int], widths: Mapping[int, int] | None = None) -> list[int]:
    """Return the 64 bytes that `configure` reads: tile number -> rows, and -> bytes of a row.

    Tiles without a width have rows of 64 bytes. Byte 0 is the palette, 16.. hold the bytes of a
    row (16 bits a tile), 48.. the rows.
    """
    entries = [0] * CONFIGURATION_BYTES
    entries[0] = 1
    for tile, count in rows.items():
        entries[16 + 2 * tile] = (widths or {}).get(tile, ROW_BYTES)
        entries[48 + tile] = count
    return entries


def configure(buffer: Buffer, at: Expr) -> None:
    """Take this thread's tile configuration from 64 bytes of memory (ldtilecfg)."""
    _emit("ldtilecfg", T.address_of(buffer[at]))


def release() -> None:
    """Give the tiles back: the thread's state is smaller to save again (tilerelease)."""
    _emit("tilerelease")


def zero(tile: int) -> None:
    """Clear a tile (tilezero)."""
    _emit("tilezero", T.int8(tile))


def load(tile: int, buffer: Buffer, at: Expr, stride: Expr) -> None:
    """Load a tile whose rows lie ``stride`` bytes apart (tileloadd)."""
    _emit("tileloadd64", T.int8(tile), T.address_of(buffer[at]), _stride(stride))


def store(tile: int, buffer: Buffer, at: Expr, stride: Expr) -> None:
    """Store a tile with its rows ``stride`` bytes apart (tilestored)."""
    _emit("tilestored64", T.int8(tile), T.address_of(buffer[at]), _stride(stride))


def _stride(value: Expr) -> Expr:
    return T.int64(value) if isinstance(value, int) else T.cast(value, "int64")


def dot_bf16(total: int, left: int, right: int) -> None:
    """Add products of bfloat16 to fp32 lanes (tdpbf16ps).

    total[m, n] += sum over k, c of left[m, 2 k + c] * right[k, 2 n + c]
    """
    _emit("tdpbf16ps", T.int8(total), T.int8(left), T.int8(right))


def dot_s8u8(total: int, signed: int, unsigned: int) -> None:
    """Add products of signed and unsigned bytes to int32 lanes (tdpbsud).

    total[m, n] += sum over k, c of signed[m, 4 k + c] * unsigned[k, 4 n + c]
    """
    _emit("tdpbsud", T.int8(total), T.int8(signed), T.int8(unsigned))
