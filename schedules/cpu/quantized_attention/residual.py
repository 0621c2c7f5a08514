"""Attention to rows of the residual: fp32 products, one token at a time for all queries.

The residual is less than a block: what it costs is not worth more code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.loads import Loader
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.quantized_attention.keys import Queries
from wattune.schedules.cpu.quantized_attention.lanes import across, first, fold
from wattune.schedules.cpu.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cpu.quantized_attention.values import Weights
from wattune.schedules.cpu.vector import LANES

Expr = Any


@dataclass(frozen=True)
class Rows:
    """``count`` keys and values, the first of them key ``slot`` of a tile."""

    keys: Region
    values: Region
    slot: Expr
    count: Expr


@dataclass(frozen=True)
class Residual:
    """Emits scores and weighted sums of rows that lie one behind the other."""

    plan: QuantizedPlan

    def _load(self, rows: Region, at: Expr, width: int) -> list[Expr]:
        """Load a row as fp32 vectors."""
        loader = Loader(self.plan.problem.dtype, LANES, False)
        return [
            part for column in range(0, width, LANES) for part in loader.load(rows, at + column)
        ]

    def query(self, rows: Region, at: Expr, into: Region, row: Expr) -> None:
        """Emit the conversion of a query to fp32."""
        width = self.plan.problem.head_dim
        for i, part in enumerate(self._load(rows, at, width)):
            into.store(row * width + i * LANES, part)

    def scores(self, rows: Rows, queries: Queries, scores: Region) -> None:
        """Emit the scores of a tile: of its rows, -inf for others."""
        plan, width = self.plan, self.plan.problem.head_dim
        hidden = math.real(float("-inf"), LANES)
        with T.serial(plan.base.item_rows * plan.tile // LANES) as i:
            scores.store(i * LANES, hidden)
        with T.serial(rows.count) as i:
            key = self._load(rows.keys, T.bind(i * width), width)
            with T.serial(plan.base.item_rows) as row:
                base = T.bind(row * width)
                few = range(min(2, len(key)))
                sums = [queries.query.load(base + j * LANES, LANES) * key[j] for j in few]
                for j in range(2, len(key)):
                    query = queries.query.load(base + j * LANES, LANES)
                    sums[j % 2] = T.bind(vector.multiply_add(query, key[j], sums[j % 2]))
                total = across(fold(sums, lambda a, b: a + b), lambda a, b: a + b)
                scores.store(row * plan.tile + rows.slot + i, first(total))

    def values(self, rows: Rows, weights: Weights, sums: Region) -> None:
        """Emit the weighted sums of a tile's rows."""
        plan, width = self.plan, self.plan.problem.value_dim
        self._shrink(weights.factors, sums, width)
        # Products with zeros of packed values count from the same maximum.
        self._shrink(weights.factors, weights.zeros, plan.value_groups * LANES)
        with T.serial(rows.count) as i:
            value = self._load(rows.values, T.bind(i * width), width)
            with T.serial(plan.base.item_rows) as row:
                weight = weights.scores.load(row * plan.tile + rows.slot + i)
                weight = T.bind(vector.splat(weight, LANES))
                for j, part in enumerate(value):
                    at = T.bind(row * width + j * LANES)
                    sums.store(at, vector.multiply_add(part, weight, sums.load(at, LANES)))

    def _shrink(self, factors: Region, sums: Region, width: int) -> None:
        """Multiply every row's sums by its factor."""
        with T.serial(self.plan.base.item_rows) as row:
            factor = T.bind(vector.splat(factors.load(row * LANES), LANES))
            with T.serial(width // LANES) as i:
                at = T.bind(row * width + i * LANES)
                sums.store(at, sums.load(at, LANES) * factor)
