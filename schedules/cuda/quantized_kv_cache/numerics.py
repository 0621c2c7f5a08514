"""The quantiser of a thread, bit for bit that of `wattune.ops.kv_quantization`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import LARGEST
from wattune.schedules.cuda import ptx

Expr = Any
Buffer = Any

# 1.5 * 2^23: added to 0 <= t < 2^22 it leaves the nearest integer in the low bits, ties to even.
_ROUNDER = 12582912.0
_ROUNDER_BITS = 0x4B400000


@dataclass(frozen=True)
class Params:
    """Scale and zero of a group as float16, and what quantising takes, in registers."""

    scale: Expr
    zero: Expr
    reals: Buffer

    @property
    def real_zero(self) -> Expr:
        """Return the zero in fp32."""
        return self.reals[0]

    @property
    def inverse(self) -> Expr:
        """Return 1 / scale, 0 of an empty range."""
        return self.reals[1]


def params_of(low: Expr, high: Expr, levels: int) -> Params:
    """Emit the params of a group with these extremes."""
    reals = ptx.registers(4, "float32")
    least, most = T.float32(-LARGEST), T.float32(LARGEST)
    ptx.put(reals, 2, T.min(T.max(low, least), most))
    ptx.put(reals, 3, T.min(T.max(high, least), most) - reals[2])
    ptx.divide(reals[3], reals[3], T.float32(levels))
    scale = T.bind(T.cast(reals[3], "float16"))
    zero = T.bind(T.cast(reals[2], "float16"))
    ptx.put(reals, 0, T.cast(zero, "float32"))
    ptx.put(reals, 3, T.cast(scale, "float32"))
    some = T.bind(reals[3] > T.float32(0))
    ptx.divide(reals[1], T.float32(1), T.Select(some, reals[3], T.float32(1)))
    ptx.put(reals, 1, T.Select(some, reals[1], T.float32(0)))
    return Params(scale, zero, reals)


def code_of(x: Expr, zero: Expr, inverse: Expr, levels: int) -> Expr:
    """Return a code as a word; an infinity times the 0 of an empty range is NaN, and becomes 0."""
    steps = T.min(T.max((x - zero) * inverse, T.float32(0)), T.float32(levels))
    bits = T.reinterpret("uint32", T.bind(steps + T.float32(_ROUNDER)))
    return bits - T.uint32(_ROUNDER_BITS)
