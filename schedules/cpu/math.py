"""Exponential, logarithm and hyperbolic tangent of fp32 vectors, by polynomials.

LLVM makes one call a lane of its own intrinsics. Each function takes a vector of ``lanes`` (1: a
scalar) and emits statements that bind intermediate results. The errors are tested over the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector

Expr = Any

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

# Stands for "no key yet" where -inf would make NaN: exp2(NOTHING - m) is 0 for every score m.
NOTHING = -1e38

# (2^f - 1) / f for |f| <= 1/2: relative error of 2^f below 2^-23.3.
_EXP2 = (
    0.6931469775914949,
    0.24022242080363418,
    0.05550733754247189,
    0.009671512869548933,
    0.001326472389306632,
)
# The same for small results of 2^f - 1: their relative error is below 2^-23.
_EXP2_LESS_ONE = (
    0.6931472028559705,
    0.24022647913499023,
    0.05550332469694037,
    0.00961843736642027,
    0.0013398874866545792,
    0.00015353360628678377,
)
# log2(1 + t) / t for 2^-1/2 <= 1 + t <= 2^1/2: relative error below 2^-25.
_LOG2 = (
    1.4426950036519144,
    -0.7213473468742737,
    0.4809106431051792,
    -0.36070367674632214,
    0.2879162375276051,
    -0.23894495136611646,
    0.21571584489793086,
    -0.2072689412146336,
    0.125835373906712,
)
# 1.5 * 2^23: added to a small number it leaves the nearest integer in the low bits.
_ROUNDER = 12582912.0
_ROUNDER_BITS = 0x4B400000
_ONE_BITS = 0x3F800000
_MANTISSA = 23
# The least normal power of two: results below are 0.
_LEAST = -126.0


def kind(dtype: str, lanes: int) -> str:
    """Return the name of a vector type, of a scalar type for one lane."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def as_lanes(dtype: str, value: Expr, lanes: int) -> Expr:
    """Read the bits of a value as lanes of another type."""
    return T.reinterpret(kind(dtype, lanes), value)


def real(value: float, lanes: int) -> Expr:
    """Return a constant in every lane."""
    return T.float32(value) if lanes == 1 else T.broadcast(T.float32(value), lanes)


def integer(value: int, lanes: int) -> Expr:
    """Return an int32 constant in every lane."""
    return T.int32(value) if lanes == 1 else T.broadcast(T.int32(value), lanes)


def as_real(bits: Expr, lanes: int) -> Expr:
    """Read int32 bits as fp32."""
    return as_lanes("float32", bits, lanes)


def as_integer(value: Expr, lanes: int) -> Expr:
    """Read fp32 as int32 bits."""
    return as_lanes("int32", value, lanes)


def nearest_bf16(value: Expr, lanes: int) -> Expr:
    """Return int32 bits whose upper half is the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = T.bind(as_integer(value, lanes))
    odd = T.bitwise_and(T.shift_right(bits, integer(16, lanes)), integer(1, lanes))
    quiet = T.bitwise_or(bits, integer(1 << 22, lanes))
    return T.bind(T.Select(value.equal(value), bits + odd + integer(0x7FFF, lanes), quiet))


def exp2(x: Expr, lanes: int) -> Expr:
    """Return 2^x for x <= 0, relative error below 2^-22; exactly 1 at 0, 0 below -126.

    NaN gives NaN.
    """
    found, rounded = _exp2_fraction(x, lanes)
    exponent = T.shift_left(as_integer(rounded, lanes), integer(_MANTISSA, lanes))
    whole = T.bind(as_real(exponent + integer(_ONE_BITS, lanes), lanes))
    # A product, not a sum of bits: NaN stays NaN. Where x is too small nothing else is right.
    return T.bind(T.Select(x < real(_LEAST, lanes), real(0.0, lanes), found * whole))


def exp2_between(x: Expr, lanes: int) -> Expr:
    """Return 2^x for -126 <= x <= 126, without a look at x: relative error below 2^-22.

    Fewer operations than `exp2`: the exponent is added to the bits. NaN may give anything.
    """
    found, rounded = _exp2_fraction(x, lanes)
    exponent = T.shift_left(as_integer(rounded, lanes), integer(_MANTISSA, lanes))
    return T.bind(as_real(as_integer(found, lanes) + exponent, lanes))


def _exp2_fraction(x: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Return 2^f of x = r + f, r the nearest integer, and a number whose low bits are r.

    For -126 <= x <= 126; others give anything, NaN gives NaN.
    """
    # A fused sum, as TVM takes (x + c) - c for x.
    rounded = T.bind(x + real(_ROUNDER, lanes))
    n = vector.multiply_add(rounded, real(1.0, lanes), real(-_ROUNDER, lanes))
    f = T.bind(x - T.bind(n))
    found = T.bind(vector.multiply_add(_polynomial(_EXP2, f, lanes), f, real(1.0, lanes)))
    return found, rounded


def _exp2_parts(x: Expr, coefficients: Sequence[float], lanes: int) -> tuple[Expr, Expr]:
    """Return 2^r and 2^f - 1 of x = r + f, r the nearest integer, for -126 <= x <= 127."""
    clamped = T.bind(_at_least(x, _LEAST, lanes))
    # In integers, as TVM takes (x + c) - c for x.
    rounded = T.bind(as_integer(clamped + real(_ROUNDER, lanes), lanes))
    n = T.bind(rounded - integer(_ROUNDER_BITS, lanes))
    f = T.bind(clamped - T.cast(n, kind("float32", lanes)))
    exponent = T.shift_left(n, integer(_MANTISSA, lanes))
    whole = T.bind(as_real(exponent + integer(_ONE_BITS, lanes), lanes))
    return whole, T.bind(_polynomial(coefficients, f, lanes) * f)


def _at_least(x: Expr, least: float, lanes: int) -> Expr:
    """Return max(x, least), but NaN for NaN."""
    return T.Select(x < real(least, lanes), real(least, lanes), x)


def log2(x: Expr, lanes: int) -> Expr:
    """Return log2(x) of normal x > 0: absolute error below 2^-21 (1 + |log2 x|)."""
    bits = T.bind(as_integer(x, lanes))
    # Splits at 2^-1/2: the mantissa that is left lies between 2^-1/2 and 2^1/2.
    half = integer(0x3F3504F3, lanes)
    exponent = T.bind(T.shift_right(bits - half, integer(_MANTISSA, lanes)))
    scaled = T.shift_left(exponent, integer(_MANTISSA, lanes))
    t = T.bind(as_real(bits - scaled, lanes) - real(1.0, lanes))
    whole = T.cast(exponent, kind("float32", lanes))
    return T.bind(vector.multiply_add(_polynomial(_LOG2, t, lanes), t, whole))


def tanh(x: Expr, lanes: int) -> Expr:
    """Return tanh(x), relative error below 2^-21."""
    mask = integer(0x7FFFFFFF, lanes)
    size = T.bind(as_real(T.bitwise_and(as_integer(x, lanes), mask), lanes))
    # Beyond 20 the result is 1 in fp32. With e = exp(-2 |x|) - 1: tanh |x| = -e / (e + 2).
    power = T.bind(_at_least(T.bind(size * real(-2.0 * LOG2_E, lanes)), -40.0 * LOG2_E, lanes))
    whole, less_one = _exp2_parts(power, _EXP2_LESS_ONE, lanes)
    e = T.bind(vector.multiply_add(whole, less_one, whole - real(1.0, lanes)))
    found = T.bind((real(0.0, lanes) - e) / (e + real(2.0, lanes)))
    sign = T.bitwise_and(as_integer(x, lanes), integer(-0x80000000, lanes))
    return T.bind(as_real(T.bitwise_or(as_integer(found, lanes), sign), lanes))


def _polynomial(coefficients: Sequence[float], x: Expr, lanes: int) -> Expr:
    """Return c0 + c1 x + c2 x^2 + ... by Horner's scheme."""
    found = real(coefficients[-1], lanes)
    for coefficient in reversed(coefficients[:-1]):
        found = T.bind(vector.multiply_add(found, x, real(coefficient, lanes)))
    return found
