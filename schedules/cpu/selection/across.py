"""Sums across the lanes of fp32 vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

Expr = Any

# fp32 lanes of a 128-bit part: cheap shuffles stay inside one, or move whole ones.
PART = 4


def sum_lanes(value: Expr, lanes: int) -> Expr:
    """Return the sum of a vector's lanes, by halves."""
    while lanes > 1:
        lanes //= 2
        value = T.bind(value)
        low = T.Shuffle([value], list(range(lanes)))
        high = T.Shuffle([value], list(range(lanes, 2 * lanes)))
        value = low + high
    return T.bind(value)


def fold(leaf: Callable[[int], Expr], lanes: int, count: int, folded: int = 1) -> Expr:
    """Return ``count`` leaves folded into one vector, each having ``folded`` sums in it already.

    Where all ``lanes`` sums meet, lane i is the sum of the lanes of leaf i. Two vectors are folded
    as soon as both are there, so that few are alive:

        step 1, 2  within 128-bit parts:  [a b a b], then [a b c d] in each part
        step 3, 4  between them:          [abcd abcd efgh efgh], then [abcd efgh ijkl mnop]
    """

    def half(first: int, size: int) -> Expr:
        if size == 1:
            return T.bind(leaf(first))
        pair = [half(first, size // 2), half(first + size // 2, size // 2)]
        low, high = _halves(size * folded, lanes)
        return T.bind(T.Shuffle(pair, low) + T.Shuffle(pair, high))

    return half(0, count)


def _halves(count: int, lanes: int) -> tuple[list[int], list[int]]:
    """Return which lanes of two vectors are added to which, when ``count`` leaves meet."""
    if count > PART:
        low = [at for at in range(2 * lanes) if at // PART % 2 == 0]
        return low, [at + PART for at in low]
    # The two sums of either vector interleave singly at first, then in pairs.
    runs = [(0, 1), (1, 2)] if count == 2 else [(0, 2)]
    halves = []
    for start in (0, 2):
        places = [
            base + at + start + offset
            for at in range(0, lanes, PART)
            for begin, end in runs
            for base in (0, lanes)
            for offset in range(begin, end)
        ]
        halves.append(places)
    return halves[0], halves[1]
