"""Decode vectors of packed digits into codes: w + 1 in every byte, one vector a digit.

``shifted`` digits lie in the low bits. Otherwise digit i < 4 is left in its place, 4^i times too
large, which saves the shifts where every digit has an accumulator of its own.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector

Expr = Any


def decode_i2(code: Expr, shifted: bool, lanes: int = vector.BYTES) -> list[Expr]:
    """Mask the four 2-bit fields of each byte."""
    if not shifted:
        return [T.bitwise_and(code, vector.splat_u8(3 << 2 * i, lanes)) for i in range(4)]
    mask = vector.splat_u8(3, lanes)
    parts = [code, *(vector.shift_fields(code, 2 * i, lanes) for i in range(1, 4))]
    return [T.bitwise_and(part, mask) for part in parts]


def decode_t5(code: Expr, shifted: bool) -> list[Expr]:
    """Look four base-3 digits of 64 bytes up in a table of 81; the fifth follows from the range.

    byte = 81 * d4 + index. Subtracting 81 or 162 too often wraps to a big number, so the index is
    the least of (byte, byte - 81, byte - 162). What is left, 0, 81 or 162, has d4 in its top two
    bits: the fifth digit is one more 2-bit field.
    """
    once = code - vector.splat_u8(81)
    twice = code - vector.splat_u8(162)
    index = T.min(T.min(code, once), twice)
    entries = [sum(i // 3**d % 3 << 2 * d for d in range(4)) % 256 for i in range(128)]
    low, high = vector.constant(entries[:64]), vector.constant(entries[64:])
    looked = vector.lookup128(low, T.reinterpret("int8x64", index), high)
    return [
        *decode_i2(T.reinterpret("uint8x64", looked), shifted),
        *decode_i2(code - index, shifted)[3:],
    ]
