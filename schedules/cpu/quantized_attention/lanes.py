"""What needs all lanes of a vector at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math
from wattune.schedules.cpu.vector import LANES

Expr = Any


def across(value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine all 16 lanes; the result is in every lane."""
    distance = LANES // 2
    while distance:
        value = T.bind(value)
        order = [lane ^ distance for lane in range(LANES)]
        value = combine(value, T.Shuffle([value], order))
        distance //= 2
    return T.bind(value)


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
