"""Which keys an item of work attends to, cut into tiles: tables of their rows and positions.

A tile's table names the row of each of ``block`` keys, so that the inner loops serve contiguous,
paged and listed keys alike, and know what to prefetch. Keys that no query sees are never named:
their slots repeat a row that is seen, and their positions hide them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.attention import Item, visible
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Plan
from wattune.schedules.cpu.attention.rows import Rows
from wattune.schedules.program import Tensors

Expr = Any

# A position that no query sees.
HIDDEN = 0x7FFFFFFF


@dataclass(frozen=True)
class Tiles:
    """Two tables one behind the other: the tile that is worked on, and the next one.

    Each has ``block`` rows and positions, the number of keys, and whether some must be masked.
    """

    block: int
    rows: Region
    positions: Region
    counts: Region
    masked: Region

    def advance(self) -> None:
        """Emit the step to the next tile."""
        block, lanes = self.block, 8
        with T.serial(block // lanes) as i:
            self.rows.store(i * lanes, self.rows.load(block + i * lanes, lanes))
            self.positions.store(i * lanes, self.positions.load(block + i * lanes, lanes))
        for flag in (self.counts, self.masked):
            flag.store(0, flag.load(1))


def sees_all(plan: Plan, item: Item, first: Expr, end: Expr) -> Expr:
    """Say whether every query of an item sees all positions from ``first`` up to ``end``."""
    problem = plan.problem
    least = item.length - problem.query_tokens + 1 + item.part
    found = end <= least
    if problem.window:
        found = T.And(found, first >= least + plan.item_tokens - 1 - problem.window)
    return found


class Stream(ABC):
    """Cuts the keys of an item into tiles."""

    def __init__(self, plan: Plan, tensors: Tensors, counts: Region) -> None:
        """Keep what the tables are made of; ``counts`` has a place for each item."""
        self.plan = plan
        self.tensors = tensors
        self.counts = counts

    @abstractmethod
    def prepare(self) -> None:
        """Emit what must run before `tiles` is asked for."""

    @abstractmethod
    def tiles(self, item: Item) -> Expr:
        """Return how many tiles an item has."""

    @abstractmethod
    def begin(self, item: Item, first: Expr) -> None:
        """Emit what must run before the tiles from ``first`` on are built, in order."""

    @abstractmethod
    def build(self, item: Item, tile: Expr, into: Tiles) -> None:
        """Emit one tile's table, as the next one."""


class Dense(Stream):
    """All keys that some query sees."""

    def prepare(self) -> None:
        """Do nothing: a length says it all."""

    def tiles(self, item: Item) -> Expr:
        """Count the visible keys."""
        block = self.plan.block
        first, end = visible(self.plan, item)
        return (end - first + (block - 1)) // block

    def begin(self, item: Item, first: Expr) -> None:
        """Do nothing: a tile's number says where it is."""

    def build(self, item: Item, tile: Expr, into: Tiles) -> None:
        """Name the rows of ``block`` positions; the last ones repeat the request's last row."""
        block, problem = self.plan.block, self.plan.problem
        first, end = visible(self.plan, item)
        start = T.bind(first + tile * block)
        count = T.bind(T.min(T.int32(block), end - start))
        rows = Rows(problem, self.tensors, item.request, item.head)
        # Positions of a run lie in one page.
        run = block
        if problem.page_size:
            run = 1 if problem.window else gcd(block, problem.page_size)
        with T.serial(block // run) as unit:
            offset = T.bind(T.min(unit * run, count - 1)) if run < block else T.int32(0)
            base = T.bind(rows.at(start + offset))
            with T.serial(run) as i:
                inside = T.min(i, count - 1 - offset)
                into.rows.store(block + unit * run + i, base + T.cast(inside, "int64") * rows.step)
        with T.serial(block) as i:
            into.positions.store(block + i, start + i)
        into.counts.store(1, count)
        masked = T.Not(sees_all(self.plan, item, start, start + block))
        into.masked.store(1, T.cast(masked, "int32"))
