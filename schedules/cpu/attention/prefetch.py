"""Asking for rows of a cache ahead of their use, so that memory never rests.

A core waits for few lines of its first cache at once, while the prefetcher of the second cache
fetches up to 20 lines ahead in each 4 KiB page that is read in order. It wants to be woken: by
whole rows some keys ahead, and by the first lines of rows still farther ahead. Rows that are asked
for into the second cache alone do not queue for the first one's lines: on Zen 4, nearly twice the
bandwidth (results of `benchmarks/bandwidth.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.areas import LINE
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Plan

Expr = Any

# Lines of a page that the prefetcher must see.
WAKE_LINES = 2
# Rows of 128 bfloat16 values in a page.
WAKE_KEYS = 16


@dataclass(frozen=True)
class Operand:
    """A tile of keys or values: the cache, its rows, and those to prefetch, if any; row width."""

    cache: Region
    table: Region
    next: Region | None
    width: int


def prefetch_row(plan: Plan, operand: Operand, key: Expr) -> None:
    """Ask for the columns of the key that is ahead of a key, if there is to be one."""
    if operand.next is not None:
        _lines(plan, operand, key, operand.width)


def wake_row(plan: Plan, operand: Operand, key: Expr, step: int = WAKE_KEYS) -> None:
    """Ask for the first lines of the row ``wake`` keys beyond those that are asked for whole.

    Of ``step`` keys from ``key`` on, only those that begin `WAKE_KEYS` keys of a stream have such
    a row.
    """
    if operand.next is None or not plan.wake:
        return
    streams = plan.streams
    with T.If(key % (WAKE_KEYS * streams) < max(step, streams)), T.Then():
        for stream in range(min(step, streams)):
            _lines(plan, operand, key + plan.wake + stream, WAKE_LINES * LINE // plan.size)


def ahead_of_pair(plan: Plan, operands: Sequence[Operand], first: Expr, pair: int) -> None:
    """Ask for rows beside the pair of keys ``pair`` of those from ``first`` on.

    Rows of the next tile are left to `ahead_of_sums`, which runs when memory would rest; all but
    half of them, where it is the whole tile that is asked for ahead.
    """
    if plan.prefetch == plan.block:
        for operand in operands:
            prefetch_row(plan, operand, first // 2 + pair)
    else:
        with T.If(first + plan.prefetch < plan.block), T.Then():
            for operand in operands:
                for i in range(2):
                    prefetch_row(plan, operand, first + 2 * pair + i)


def ahead_of_sums(plan: Plan, operands: Sequence[Operand], part: int, parts: int) -> None:
    """Ask for a share of the next tile's first ``prefetch`` rows."""
    asked = plan.block // 2 if plan.prefetch == plan.block else 0
    left = plan.prefetch - asked
    for key in range(asked + part * left // parts, asked + (part + 1) * left // parts):
        for operand in operands:
            prefetch_row(plan, operand, plan.block - plan.prefetch + key)


def _lines(plan: Plan, operand: Operand, key: Expr, columns: int) -> None:
    assert operand.next is not None
    at = T.bind(operand.next.load(key) * operand.width)
    for column in range(0, columns, LINE // plan.size):
        vector.prefetch(operand.cache.buffer, operand.cache.base + at + column, plan.level)
