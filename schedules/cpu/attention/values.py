"""Weighted sums of a tile's values: sums[row] += p[row, key] * v[key].

Sums are fp32 in memory between tiles and in registers within a pass over a tile's keys. A pass
covers ``columns`` vectors of columns; every loaded value serves all rows of the group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.loads import Loader
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Fold, Plan, groups_of
from wattune.schedules.cpu.attention.scores import Operand, prefetch_row

Expr = Any

# Keys that a step unrolls where a vector of scores covers fewer.
LEAST_KEYS = 4


class Values(ABC):
    """Accumulates a tile of values for a group of rows."""

    def __init__(self, plan: Plan) -> None:
        """Choose how rows are loaded; sums keep the order of the loader's columns."""
        self.plan = plan
        self.loader = Loader.of(plan.problem.dtype, plan.lanes, plan.problem.value_dim)

    @property
    def starts(self) -> list[int]:
        """Return where the groups of columns start; the last two may overlap."""
        return groups_of(self.plan.problem.value_dim, self.loader.width)

    @property
    def total_lanes(self) -> int:
        """Return the fp32 sums of a row."""
        return self.loader.count(self.plan.problem.value_dim) * self.plan.lanes

    @abstractmethod
    def emit(
        self,
        fold: Fold,
        values: Operand,
        weights: Region,
        factors: Region,
        sums: Region,
        quanta: Expr,
    ) -> None:
        """Emit sums[row] = sums[row] * factors[row] + sum of weights times values.

        ``weights`` and ``factors`` are in the order of the fold's lanes; ``sums`` starts at the
        group's first row.
        """

    def natural(self, sums: Region, at: Expr, group: int) -> list[Expr]:
        """Return a group of columns of a row's sums, in order."""
        lanes, count = self.plan.lanes, self.loader.vectors
        parts = [T.bind(sums.load(at + (group * count + v) * lanes, lanes)) for v in range(count)]
        return self.loader.natural(parts)


class FmaValues(Values):
    """Products in fp32."""

    def emit(
        self,
        fold: Fold,
        values: Operand,
        weights: Region,
        factors: Region,
        sums: Region,
        quanta: Expr,
    ) -> None:
        """Emit passes over the tile's keys."""
        groups = max(1, self.plan.columns // self.loader.vectors)
        starts = self.starts
        whole = len(starts) if starts[-1] % self.loader.width == 0 else len(starts) - 1

        def run(first: Expr, start: Expr, count: int) -> None:
            self._pass(fold, values, weights, factors, sums, quanta, first, start, count)

        passes = whole // groups
        if passes:
            with T.serial(passes) as i:
                run(i * groups, i * (groups * self.loader.width), groups)
        if rest := whole % groups:
            run(T.int32(passes * groups), T.int32(starts[passes * groups]), rest)
        if whole < len(starts):
            run(T.int32(whole), T.int32(starts[whole]), 1)

    def _pass(
        self,
        fold: Fold,
        values: Operand,
        weights: Region,
        factors: Region,
        sums: Region,
        quanta: Expr,
        first: Expr,
        start: Expr,
        groups: int,
    ) -> None:
        """Emit one pass: ``groups`` groups of columns from column ``start`` on."""
        plan, lanes = self.plan, self.plan.lanes
        count = groups * self.loader.vectors
        held = vector.Registers(fold.rows * count, "float32")
        kind = math.kind("float32", lanes)
        places = [
            T.bind(r * self.total_lanes + first * self.loader.vectors * lanes)
            for r in range(fold.rows)
        ]
        for r in range(fold.rows):
            factor = T.bind(vector.splat(factors.load(r * fold.keys), lanes))
            for c in range(count):
                at = (r * count + c) * vector.LANES
                held.store(at, sums.load(places[r] + c * lanes, lanes) * factor)
        step = min(max(LEAST_KEYS, fold.keys), plan.block)
        with T.serial(quanta * (plan.quantum(fold) * fold.keys // step)) as at:
            for k in range(step):
                self._key(fold, values, weights, held, at * step, k, start, groups)
        for r in range(fold.rows):
            for c in range(count):
                slot = (r * count + c) * vector.LANES
                sums.store(places[r] + c * lanes, held.load(slot, kind))

    def _key(
        self,
        fold: Fold,
        values: Operand,
        weights: Region,
        held: vector.Registers,
        first: Expr,
        k: int,
        start: Expr,
        groups: int,
    ) -> None:
        """Add one key's values to the sums of every row."""
        plan, lanes = self.plan, self.plan.lanes
        width = plan.problem.value_dim
        base = T.bind(values.table.load(first + k) * width + start)
        if plan.prefetch:
            span = groups * self.loader.width
            prefetch_row(plan, values, first + k, width, start, span)
        loaded: list[Sequence[Expr]] = [
            self.loader.load(values.cache, base + g * self.loader.width) for g in range(groups)
        ]
        parts = [part for group in loaded for part in group]
        kind = math.kind("float32", lanes)
        for r in range(fold.rows):
            lane = first * fold.slots + k // fold.keys * lanes + r * fold.keys + k % fold.keys
            weight = T.bind(vector.splat(weights.load(lane), lanes))
            for c, part in enumerate(parts):
                slot = (r * len(parts) + c) * vector.LANES
                held.store(slot, vector.multiply_add(part, weight, held.load(slot, kind)))
