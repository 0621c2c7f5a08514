"""Ranks in a short row: how many entries come before each, the first of equal ones first."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import Lanes
from wattune.schedules.cpu.routing.plan import Rows

Expr = Any


def ranks(
    rows: Rows, name: str, vectors: int, lanes: Lanes, ties: bool = True, entries: int = 0
) -> list[Expr]:
    """Return the ranks of all entries of a row, a vector after the other.

    Without ``ties`` equal entries have the rank of the first of them. Where ``entries`` are given,
    those behind them come last.
    """
    width = entries or vectors * lanes.count
    mine = [T.bind(rows.numbers(name, at * lanes.count, lanes.f32)) for at in range(vectors)]
    found = [vector.array(lanes.count, "int32") for _ in mine]
    for rank in found:
        vector.store(rank, [0], lanes.each_int(0))
    zero, one = lanes.each_int(0), lanes.each_int(1)
    for entry in range(width):
        other = T.bind(lanes.splat(rows.numbers(name, entry, "float32")))
        for at, (value, rank) in enumerate(zip(mine, found, strict=True)):
            first = at * lanes.count
            greater, reaches = other > value, other >= value
            if not ties:
                before = greater
            elif entry < first:
                before = reaches
            elif entry >= first + lanes.count - 1:
                before = greater
            else:
                later = T.ramp(T.int32(first), 1, lanes.count) > lanes.each_int(entry)
                before = T.bitwise_or(greater, T.bitwise_and(later, other.equal(value)))
            vector.store(rank, [0], rank.vload([0], lanes.i32) + T.Select(before, one, zero))
    return [T.bind(rank.vload([0], lanes.i32)) for rank in found]
