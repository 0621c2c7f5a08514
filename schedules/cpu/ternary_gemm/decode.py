"""Decode vectors of packed digits into codes: w + 1 in every byte, one vector a digit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector

Expr = Any


@dataclass(frozen=True)
class Digits:
    """How the digits of a vector reach the accumulators of a sum.

    ``chain`` is the accumulator of each digit, ``shift`` the bits by which the digits of an
    accumulator are too large. ``operations`` counts the vector instructions of ``decode``.
    """

    decode: Callable[[Expr], list[Expr]]
    chain: tuple[int, ...]
    shift: tuple[int, ...]
    operations: int

    @property
    def accumulators(self) -> int:
        """Count the accumulators of a sum."""
        return len(self.shift)

    def steps_in_int16(self) -> int:
        """Return how many vectors int16 accumulators can add without overflow.

        A lane gets two products of a code, at most 2 << shift, with -128..127 a digit: at worst
        -512 << shift of -32768. Upwards it is 508 << shift, so 64 >> shift of them always fit.
        """
        return min(
            (64 >> shift) // self.chain.count(chain) for chain, shift in enumerate(self.shift)
        )


# Where the digits of an accumulator lie, by how many accumulators there are. Digits left in their
# places save shifts: with two accumulators a shift by 4 serves two digits, with four none is left.
_PLACES = {1: (0,), 2: (0, 2), 4: (0, 2, 4, 6)}


def digits_i2(accumulators: int) -> Digits:
    """Decode four 2-bit fields into accumulators that take turns."""
    shift = _PLACES[accumulators]
    chain = tuple(d % accumulators for d in range(4))
    places = [shift[c] for c in chain]
    shifts = {2 * i - place for i, place in enumerate(places)} - {0}
    return Digits(lambda code: decode_fields(code, places), chain, shift, 4 + len(shifts))


def digits_t5(accumulators: int) -> Digits:
    """Decode five base-3 digits by a table of 81 entries that gives 2-bit fields."""
    fields = digits_i2(accumulators)
    # The fifth digit can lie in bits 0, 4 or 6.
    last = 3 if accumulators == 4 else 0
    places = [fields.shift[c] for c in (*fields.chain, last)]
    return Digits(
        lambda code: decode_t5(code, places),
        (*fields.chain, last),
        fields.shift,
        7 + fields.operations,
    )


def decode_fields(code: Expr, places: Sequence[int]) -> list[Expr]:
    """Extract the four 2-bit fields of each byte; field i keeps ``places[i]`` bits below it."""
    lanes = code.ty.dtype.lanes
    found = []
    for i, place in enumerate(places):
        shift = 2 * i - place
        part = vector.shift_fields(code, shift, lanes) if shift else code
        found.append(T.bitwise_and(part, vector.splat_u8(3 << place, lanes)))
    return found


def decode_t5(code: Expr, places: Sequence[int]) -> list[Expr]:
    """Look four base-3 digits of 64 bytes up in a table of 81; the fifth follows from the range.

    byte = 81 * d4 + index. Subtracting 81 or 162 too often wraps to a big number, so the index is
    the least of (byte, byte - 81, byte - 162). What is left is 0, 81 or 162, in binary 01010001
    and 10100010: d4 is in its bits 0 and 1, 4 and 5, and 6 and 7.
    """
    once = code - vector.splat_u8(81)
    twice = code - vector.splat_u8(162)
    index = T.min(T.min(code, once), twice)
    entries = [sum(i // 3**d % 3 << 2 * d for d in range(4)) % 256 for i in range(128)]
    low, high = vector.constant(entries[:64]), vector.constant(entries[64:])
    looked = vector.lookup128(low, T.reinterpret("int8x64", index), high)
    fields = decode_fields(T.reinterpret("uint8x64", looked), places[:4])
    return [*fields, T.bitwise_and(code - index, vector.splat_u8(3 << places[4]))]


def decode_t5_in_lanes(code: Expr) -> list[Expr]:
    """Decode five base-3 digits with tables of 16 bytes, shifted (19 operations).

    With h and l the nibbles of a byte, (16 h mod 27) + l is below 54, so one subtraction of 27
    leaves low = byte mod 27: the digits 0 to 2. What is left is 27 j with j in 0..8, known from its
    low nibble because 27 is odd: the digits 3 and 4. In the same way low - low mod 9 is 0, 9 or 18.
    """
    lanes = code.ty.dtype.lanes

    def look(table: dict[int, int], index: Expr) -> Expr:
        entries = [table.get(i, 0) for i in range(16)] * (lanes // 16)
        keys = T.reinterpret(f"int8x{lanes}", index)
        found = vector.lookup16(vector.constant(entries), keys, lanes * 8)
        return T.reinterpret(f"uint8x{lanes}", found)

    nibble = vector.splat_u8(15, lanes)
    high = T.bitwise_and(vector.shift_fields(code, 4, lanes), nibble)
    folded = look({h: 16 * h % 27 for h in range(16)}, high) + T.bitwise_and(code, nibble)
    low = T.min(folded, folded - vector.splat_u8(27, lanes))
    rest = T.bitwise_and(code - low, nibble)
    nine = low - vector.splat_u8(9, lanes)
    lowest = T.min(T.min(low, nine), low - vector.splat_u8(18, lanes))
    # One table for digit 0 and digit 2: the keys 0, 9 and 18 (low nibble 2) do not collide.
    thirds = {**{i: i % 3 for i in range(9)}, 9: 1}
    return [
        look(thirds, lowest),
        look({i: i // 3 for i in range(9)}, lowest),
        look(thirds, low - lowest),
        look({27 * j % 16: j % 3 for j in range(9)}, rest),
        look({27 * j % 16: j // 3 for j in range(9)}, rest),
    ]
