"""Moves between lanes: reductions of many vectors at once, and transposes.

Both shuffle inside 128-bit parts first, then move whole parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script import tirx as T

Expr = Any

_PART = 4


def fold(combine: Callable[[Expr, Expr], Expr], leaf: Callable[[int], Expr], lanes: int) -> Expr:
    """Return the vector whose lane i combines all lanes of ``leaf(i)``.

    Two vectors become one as soon as both are there, so that few are alive.
    """

    def part(first: int, count: int) -> Expr:
        if count == 1:
            return T.bind(leaf(first))
        pair = [part(first, count // 2), part(first + count // 2, count // 2)]
        # Lanes interleave singly, then in pairs, then whole parts.
        if count > _PART:
            low, high = _parts(pair)
        else:
            low, high = _interleave(pair, lanes, count // 2)
        return T.bind(combine(low, high))

    return part(0, lanes)


def transpose(rows: Sequence[Expr], lanes: int) -> list[Expr]:
    """Return the columns of a square of 32-bit lanes."""
    for run in (1, 2):
        rows = [
            T.bind(half)
            for at in range(0, lanes, 2 * run)
            for i in range(at, at + run)
            for half in _interleave([rows[i], rows[i + run]], lanes, run)
        ]
    # Vector c of four: rows 4 g to 4 g + 3 of column 4 k + c in part k.
    columns: list[Expr] = [None] * lanes
    for c in range(_PART):
        columns[c::_PART] = _transpose_parts(rows[c::_PART])
    return columns


def _transpose_parts(vectors: Sequence[Expr]) -> list[Expr]:
    if len(vectors) == 1:
        return list(vectors)
    halves = [_parts(vectors[i : i + 2]) for i in range(0, len(vectors), 2)]
    found: list[Expr] = [None] * len(vectors)
    for which in range(2):
        found[which::2] = _transpose_parts([T.bind(pair[which]) for pair in halves])
    return found


def _interleave(pair: Sequence[Expr], lanes: int, run: int) -> tuple[Expr, Expr]:
    """Interleave runs of lanes of the lower, and of the upper, half of each part."""
    found = [
        T.Shuffle(
            list(pair),
            [
                base + at + start + offset
                for at in range(0, lanes, _PART)
                for first in range(0, _PART // 2, run)
                for base in (0, lanes)
                for offset in range(first, first + run)
            ],
        )
        for start in (0, _PART // 2)
    ]
    return found[0], found[1]


def _parts(pair: Sequence[Expr]) -> tuple[Expr, Expr]:
    """Return the even, and the odd, parts of two vectors."""
    lanes = int(pair[0].ty.dtype.lanes)
    found = [
        T.Shuffle(
            list(pair),
            [at + i for at in range(start, 2 * lanes, 2 * _PART) for i in range(_PART)],
        )
        for start in (0, _PART)
    ]
    return found[0], found[1]
