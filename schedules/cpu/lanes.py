"""Vectors of 32-bit lanes: how wide, comparisons, compression, the order of floats as integers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.space import Knob
from wattune.schedules.target import Target

Expr = Any

INFINITY = float("inf")
_SIGN = -0x80000000
_SIZE = 0x7FFFFFFF


def lane_counts(target: Target) -> tuple[int, ...]:
    """Return the fp32 lanes of the target's vectors, narrow ones included."""
    if target.has("avx512f", "avx512bw", "avx512vl"):
        return (4, 8, 16)
    return (4, 8) if target.has("avx2", "fma") else (4,)


def lanes_knob(target: Target) -> Knob:
    """Return the knob of 32-bit lanes a vector, the widest by default."""
    counts = lane_counts(target)
    return Knob("lanes", counts, counts[-1])


@dataclass(frozen=True)
class Lanes:
    """Emits operations on ``count`` 32-bit lanes.

    Vectors of truth values are never bound to names, which TVM cannot do. ``tables``: without
    vpcompressd, lanes are compressed by permutations that a table holds for every mask.
    """

    count: int
    tables: bool = False

    @classmethod
    def of(cls, target: Target, count: int) -> Lanes:
        """Return vectors of a target: AVX2 has neither mask registers nor compression."""
        masks = target.has("avx512f", "avx512bw", "avx512vl")
        return cls(count, count in (4, 8) and target.has("avx2", "fma") and not masks)

    def functions(self) -> Any:
        """Return the frame in which lanes can be compressed."""
        return vector.order_functions() if self.tables else nullcontext()

    @property
    def f32(self) -> str:
        """Name the dtype of a vector of scores."""
        return f"float32x{self.count}"

    @property
    def i32(self) -> str:
        """Name the dtype of a vector of indices."""
        return f"int32x{self.count}"

    def splat(self, value: Expr) -> Expr:
        """Repeat a scalar in every lane."""
        return T.broadcast(value, self.count)

    def each(self, value: float) -> Expr:
        """Return a float in every lane."""
        return self.splat(T.float32(value))

    def each_int(self, value: int) -> Expr:
        """Return an integer in every lane."""
        return self.splat(T.int32(value))

    def real(self, scores: Expr) -> Expr:
        """Replace NaN by -inf: a maximum takes its second operand where they do not compare."""
        return T.max(scores, self.each(-INFINITY))

    def below(self, count: Expr) -> Expr:
        """Return which lanes lie before a number of them."""
        return T.ramp(T.int32(0), 1, self.count) < self.splat(count)

    def last(self, count: Expr) -> Expr:
        """Return which lanes are the last ``count`` ones."""
        return T.ramp(T.int32(0), 1, self.count) >= self.splat(self.count - count)

    def numbers(self, first: Expr) -> Expr:
        """Return what `listed` makes numbers of lanes of: of all, or with tables of the first."""
        return self.splat(first) if self.tables else T.ramp(first, 1, self.count)

    def listed(self, numbers: Expr, chosen: Expr) -> Expr:
        """Move the numbers of the chosen lanes to the front; the others are anything."""
        return numbers + self._order(chosen) if self.tables else self.compressed(numbers, chosen)

    def _order(self, chosen: Expr) -> Expr:
        return T.bind(vector.order_of(vector.mask_of(chosen, self.count), self.count))

    def compressed(self, values: Expr, chosen: Expr) -> Expr:
        """Move the chosen lanes to the front; the others are anything.

        vpcompressd; with tables vpermd; with neither a store for each lane.
        """
        dtype = str(values.ty.dtype)
        # As integers: without AVX-512, LLVM 22 fails on floats with a passed-through zero.
        bits = values if dtype == self.i32 else T.reinterpret(self.i32, values)
        if self.tables:
            packed = vector.permuted(bits, self._order(chosen))
            return packed if dtype == self.i32 else T.reinterpret(dtype, packed)
        name = "llvm.experimental.vector.compress"
        packed = vector._intrinsic(name, self.i32, bits, chosen, self.each_int(0))
        return packed if dtype == self.i32 else T.reinterpret(dtype, packed)

    def counted(self, chosen: Expr) -> Expr:
        """Count the chosen lanes (popcnt of a mask)."""
        if self.tables:
            return T.popcount(vector.mask_of(chosen, self.count))
        return self.total(T.Select(chosen, self.each_int(1), self.each_int(0)))

    def total(self, values: Expr) -> Expr:
        """Add the lanes of integers."""
        return vector._intrinsic("llvm.vector.reduce.add", "int32", values)

    def total_real(self, values: Expr) -> Expr:
        """Add the lanes of floats."""
        return self._across(values, lambda left, right: left + right)

    def above(self, score: Expr) -> Expr:
        """Return the next greater float; infinity's is NaN, which nothing reaches."""
        return disordered(T.bind(ordered(score) + 1))

    def least(self, values: Expr) -> Expr:
        """Return the least lane."""
        return self._across(values, T.min)

    def greatest(self, values: Expr) -> Expr:
        """Return the greatest lane."""
        return self._across(values, T.max)

    def _across(self, values: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """Combine the lanes, halves with halves."""
        width = self.count
        while width > 1:
            width //= 2
            order = [lane % (2 * width) for lane in range(width, width + self.count)]
            values = T.bind(combine(values, T.Shuffle([values], order)))
        return T.bind(T.Shuffle([values], [0]))


def ordered(score: Expr, lanes: int = 1) -> Expr:
    """Return an integer that orders like a float, or several; that of both zeros is 0."""
    bits = T.bind(math.as_integer(score, lanes))
    size = T.bitwise_and(bits, math.integer(_SIZE, lanes))
    zero = math.integer(0, lanes)
    return T.bind(T.Select(bits >= zero, bits, zero - size))


def disordered(order: Expr, lanes: int = 1) -> Expr:
    """Return the float, or the floats, of such an integer."""
    zero, sign = math.integer(0, lanes), math.integer(_SIGN, lanes)
    negative = T.bitwise_or(zero - order, sign)
    return math.as_real(T.Select(order >= zero, order, negative), lanes)
