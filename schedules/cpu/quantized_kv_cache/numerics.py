"""The quantiser in vectors, bit for bit that of `wattune.ops.kv_quantization`.

No product meets a sum before it is rounded: LLVM would contract the two into one instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import LARGEST
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.math import as_integer, integer, kind, real
from wattune.schedules.cpu.quantized_kv_cache.halves import from_half, kept, to_half
from wattune.schedules.cpu.quantized_kv_cache.packs import pack_quads, to_nearest

Expr = Any

# 1.5 * 2^23: added to 0 <= t < 2^22 it leaves the nearest integer in the low bits.
_ROUNDER = 12582912.0
_ROUNDER_BITS = 0x4B400000


@dataclass(frozen=True)
class Params:
    """Scale and zero of groups, a lane each: float16 bits, and what quantising takes."""

    scale_bits: Expr
    zero_bits: Expr
    zero: Expr
    inverse: Expr


@dataclass(frozen=True)
class Quantizer:
    """Quantises fp32 vectors to codes of ``bits``.

    ``packs``: with the saturating packs of x86, which clip at 0 and put codes side by side.
    ``halves``: float16 is converted in hardware.
    """

    bits: int
    packs: bool
    halves: bool

    @property
    def levels(self) -> int:
        """Return the largest code."""
        return int(2**self.bits - 1)

    @property
    def fields(self) -> int:
        """Return the codes of a byte."""
        return 8 // self.bits

    def params(self, low: Expr, high: Expr, lanes: int) -> Params:
        """Return the params of groups with these extremes."""
        least, most = real(-LARGEST, lanes), real(LARGEST, lanes)
        low = kept(T.min(T.max(low, least), most))
        high = T.min(T.max(high, least), most)
        steps = (high - low) / real(float(self.levels), lanes)
        scale_bits = kept(to_half(steps, lanes, self.halves))
        zero_bits = kept(to_half(low, lanes, self.halves))
        scale = kept(from_half(scale_bits, lanes, self.halves))
        zero = kept(from_half(zero_bits, lanes, self.halves))
        none = real(0.0, lanes)
        inverse = kept(T.Select(scale > none, real(1.0, lanes) / scale, none))
        return Params(scale_bits, zero_bits, zero, inverse)

    def codes(self, x: Expr, zero: Expr, inverse: Expr, lanes: int) -> Expr:
        """Return int32 codes; `narrow` clips those that are negative where it packs.

        An infinity times the 0 of an empty range is NaN, and must become 0.
        """
        steps = (x - zero) * inverse
        most = real(float(self.levels), lanes)
        if self.packs:
            return to_nearest(T.min(most, steps), lanes)
        clipped = T.min(T.max(steps, real(0.0, lanes)), most)
        rounded = as_integer(clipped + real(_ROUNDER, lanes), lanes)
        return rounded - integer(_ROUNDER_BITS, lanes)

    def narrow(self, codes: Sequence[Expr], lanes: int) -> Expr:
        """Return the bytes of four vectors of codes.

        Packs work in 128-bit parts: part k holds lanes 4 k to 4 k + 3 of the four vectors in turn.
        Otherwise the vectors follow each other.
        """
        if self.packs:
            return pack_quads(codes, lanes)
        parts = [T.cast(code, kind("uint8", lanes)) for code in codes]
        return T.Shuffle(parts, list(range(lanes * len(parts))))

    def merge(self, fields: Sequence[Expr], count: int) -> Expr:
        """Join the fields of ``count`` bytes."""
        # There is no shift of bytes in x86; codes are too small to reach the neighbour.
        half = kind("uint16", count // 2)
        total = T.reinterpret(half, fields[0])
        for i, field in enumerate(fields[1:], 1):
            shift = vector.splat(T.uint16(self.bits * i), count // 2)
            total = T.bitwise_or(total, T.shift_left(T.reinterpret(half, field), shift))
        return T.reinterpret(kind("uint8", count), total)


# What the search for the least and the greatest value may begin with: both are clipped later.
LIMITS = (LARGEST, -LARGEST)
