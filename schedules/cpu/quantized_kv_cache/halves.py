"""float32 to float16 and back: one instruction where there is one, else integer arithmetic.

LLVM calls functions of the compiler's run-time library on x86 without F16C, and those may be
missing where a library is linked.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.math import as_integer, as_real, integer, kind, real

Expr = Any

_SIGN = -0x80000000
# The exponent's bias changes by 127 - 15, its place by 23 - 10 bits.
_BIAS, _PLACES, _MANTISSA = 127 - 15, 23 - 10, 23
_SMALLEST_NORMAL = (_BIAS + 1) << _MANTISSA
# Adding 0.5 leaves a subnormal's bits, rounded, in the low bits of the sum.
_HALF_BITS = 126 << _MANTISSA
_INFINITE = 31 << _MANTISSA


def to_half(value: Expr, lanes: int, native: bool) -> Expr:
    """Return the float16 bits nearest to finite fp32 values of float16's range, ties to even."""
    if native:
        return T.reinterpret(kind("uint16", lanes), T.cast(value, kind("float16", lanes)))
    bits = kept(as_integer(value, lanes))
    sign = T.bitwise_and(bits, integer(_SIGN, lanes))
    size = kept(T.bitwise_and(bits, integer(~_SIGN, lanes)))
    small = as_integer(as_real(size, lanes) + real(0.5, lanes), lanes) - integer(_HALF_BITS, lanes)
    odd = T.bitwise_and(T.shift_right(size, integer(_PLACES, lanes)), integer(1, lanes))
    nearest = (1 << (_PLACES - 1)) - 1 - (_BIAS << _MANTISSA)
    normal = T.shift_right(size + integer(nearest, lanes) + odd, integer(_PLACES, lanes))
    found = T.Select(size < integer(_SMALLEST_NORMAL, lanes), small, normal)
    signed = T.bitwise_or(found, T.shift_right(sign, integer(16, lanes)))
    return T.cast(signed, kind("uint16", lanes))


def from_half(bits: Expr, lanes: int, native: bool) -> Expr:
    """Return the fp32 values of float16 bits."""
    if native:
        return T.cast(T.reinterpret(kind("float16", lanes), bits), kind("float32", lanes))
    wide = kept(T.cast(bits, kind("int32", lanes)))
    sign = T.shift_left(T.bitwise_and(wide, integer(0x8000, lanes)), integer(16, lanes))
    size = T.shift_left(T.bitwise_and(wide, integer(0x7FFF, lanes)), integer(_PLACES, lanes))
    size = kept(size)
    # The product is exact, subnormals included.
    scaled = as_integer(as_real(size, lanes) * real(2.0**_BIAS, lanes), lanes)
    exponent = integer(255 << _MANTISSA, lanes)
    infinite = size >= integer(_INFINITE, lanes)
    found = T.Select(infinite, T.bitwise_or(size, exponent), scaled)
    return as_real(T.bitwise_or(found, sign), lanes)


def kept(value: Expr) -> Expr:
    """Keep a vector in an array, which LLVM turns into registers, and return what loads it.

    TVM's passes look behind names that are bound: they take seconds for chains of them.
    """
    dtype = str(value.ty.dtype)
    scalar, lanes = dtype.rsplit("x", 1)
    buffer = vector.array(int(lanes), scalar)
    vector.store(buffer, [0], value)
    return buffer.vload([0], dtype)
