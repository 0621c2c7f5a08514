"""What needs all lanes of a vector at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math
from wattune.schedules.cpu.vector import LANES, Registers

Expr = Any


def across(value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine all 16 lanes; the result is in every lane.

    Each step goes through an array, of which LLVM makes a register: TVM would put the value of a
    step in place of its two uses, four times over.
    """
    held = Registers(1, "float32")
    distance = LANES
    while distance > 1:
        held.store(0, value)
        part = T.bind(held.load(0, "float32x16"))
        distance //= 2
        value = combine(part, T.Shuffle([part], [lane ^ distance for lane in range(LANES)]))
    held.store(0, value)
    return T.bind(held.load(0, "float32x16"))


def fold(values: Sequence[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine vectors pairwise."""
    parts = list(values)
    while len(parts) > 1:
        rest = parts[len(parts) // 2 * 2 :]
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [combine(left, right) for left, right in pairs] + rest
    return parts[0]


def magnitude(value: Expr) -> Expr:
    """Clear the signs of 16 fp32 lanes."""
    bits = T.bitwise_and(math.as_integer(value, LANES), math.integer(0x7FFFFFFF, LANES))
    return math.as_real(bits, LANES)


def first(value: Expr) -> Expr:
    """Return lane 0."""
    return T.Shuffle([value], [0])
