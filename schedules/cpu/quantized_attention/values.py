"""Weighted sums of a tile of packed values: sums[row] += p[row, t] (codes[t] scale[t] + zero[t]).

The scales of a group of channels go into the weights, which become numbers; the products with the
zeros are summed by token in lanes, and added to the sums of the group when all tiles are done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.quantized_attention.lanes import across, first
from wattune.schedules.cpu.quantized_attention.packed import Ahead, Codes
from wattune.schedules.cpu.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cpu.quantized_attention.product import BLOCK, QUAD, Sums
from wattune.schedules.cpu.vector import BYTES, LANES

Expr = Any


@dataclass(frozen=True)
class Weights:
    """A tile's weights: in fp32, as numbers, the units of these; factors of earlier sums.

    ``zeros`` are sums of weights times zeros.
    """

    scores: Region
    numbers: Region
    units: Region
    factors: Region
    zeros: Region


@dataclass(frozen=True)
class _Pass:
    """``rows`` rows from ``row`` on, ``columns`` vectors of 16 channels from ``column`` on."""

    rows: int
    row: Expr
    columns: int
    column: Expr
    group: Expr
    # Vectors that share a group of channels lie side by side.
    together: int


@dataclass(frozen=True)
class PackedValues:
    """Emits the weighted sums of tiles."""

    plan: QuantizedPlan

    @property
    def per_group(self) -> int:
        """Return the vectors of a group of channels."""
        return self.plan.problem.group_size // LANES

    def numbers(self, weights: Weights, row: Expr, params: Region) -> None:
        """Emit the numbers of a row's weights and add to the sums of its zeros."""
        plan, tile = self.plan, self.plan.tile
        shrink = T.bind(vector.splat(weights.factors.load(row * LANES), LANES))
        base = T.bind(row * tile)
        for group in range(plan.value_groups):
            slot = T.bind(row * plan.value_groups + group)
            total = T.bind(weights.zeros.load(slot * LANES, LANES) * shrink)
            scaled = []
            for token in range(0, tile, LANES):
                at = group * 2 * tile + token
                weight = T.bind(weights.scores.load(base + token, LANES))
                scaled.append(T.bind(weight * params.load(at, LANES)))
                total = T.bind(vector.multiply_add(weight, params.load(at + tile, LANES), total))
            weights.zeros.store(slot * LANES, total)
            at = T.bind(plan.weight_at(row, group))
            weights.units.store(slot, first(plan.product.write(weights.numbers, at, scaled)))

    def emit(self, tile: Codes, weights: Weights, sums: Region, ahead: Ahead) -> None:
        """Emit the products of a tile, for all rows."""
        plan = self.plan
        vectors = plan.problem.value_dim // LANES
        columns = min(plan.columns, vectors)
        whole, rest = divmod(vectors, columns)
        for rows, row, count in plan.passes():
            with T.serial(count) as at:
                base = T.bind(row + at * rows)
                point = plan.base.item_rows + (row // plan.rows + at) * plan.value_steps
                later = ahead.behind(point)
                with T.serial(whole) as part:
                    this = self._some(rows, base, columns, T.bind(part * columns))
                    later_part = later.behind(part * plan.value_blocks)
                    self._pass(tile, weights, sums, this, later_part)
                if rest:
                    this = self._some(rows, base, rest, T.int32(vectors - rest))
                    self._pass(tile, weights, sums, this, later.behind(whole * plan.value_blocks))

    def _some(self, rows: int, row: Expr, columns: int, column: Expr) -> _Pass:
        group = T.bind(column // self.per_group)
        return _Pass(rows, row, columns, column, group, min(columns, self.per_group))

    def _pass(self, tile: Codes, weights: Weights, sums: Region, this: _Pass, ahead: Ahead) -> None:
        """Emit one pass over the tokens of a tile."""
        plan, product = self.plan, self.plan.product
        numbers = {}
        for r in range(this.rows):
            for c in range(0, this.columns, this.together):
                at = plan.weight_at(this.row + r, this.group + c // self.per_group)
                numbers[r, c] = weights.numbers.part(at)
        held = product.sums(this.rows * this.columns * plan.parts)
        unroll = min(plan.tile, BLOCK) // (QUAD * plan.fields)
        with held.loop(plan.value_blocks) as step:
            ahead.ask(step)
            words = T.bind(step * product.words(BLOCK))
            parts = {place: row.part(words) for place, row in numbers.items()}
            size = plan.problem.value_dim // LANES
            line = tile.codes.part((step * (unroll * size) + this.column) * BYTES)
            for u in range(unroll):
                self._vector(this, held, u, line, parts)
        self._add(weights, this, held, sums)

    def _vector(
        self,
        this: _Pass,
        held: Sums,
        at: int,
        line: Region,
        rows: dict[tuple[int, int], Region],
    ) -> None:
        """Add the products of the ``at``-th vectors of tokens of a block of numbers."""
        plan, product = self.plan, self.plan.product
        size = BYTES // plan.parts
        loaded: list[Expr] = []
        for c in range(this.columns):
            start = (at * (plan.problem.value_dim // LANES) + c) * BYTES
            loaded += [T.bind(line.load(start + part * size, size)) for part in range(plan.parts)]
        count = this.together * plan.parts
        for field in range(plan.fields):
            quad = product.quad(QUAD * (plan.fields * at + field))
            codes = [product.codes(value, plan.cache.bits, field) for value in loaded]
            for r in range(this.rows):
                for c in range(0, this.columns, this.together):
                    slot = c * plan.parts
                    several = codes[slot : slot + count]
                    product.add(held, r * len(loaded) + slot, rows[r, c], quad, several)

    def _add(self, weights: Weights, this: _Pass, held: Sums, sums: Region) -> None:
        """Add a pass's products to the sums."""
        plan, product = self.plan, self.plan.product
        lanes = product.lanes
        slot = 0
        for r in range(this.rows):
            row = T.bind(this.row + r)
            shrink = T.bind(vector.splat(weights.factors.load(row * LANES), lanes))
            for c in range(this.columns):
                group = row * plan.value_groups + this.group + c // self.per_group
                unit = T.bind(vector.splat(weights.units.load(group), lanes))
                for part in range(plan.parts):
                    at = row * plan.problem.value_dim + (this.column + c) * LANES + part * lanes
                    at = T.bind(at)
                    before = T.bind(sums.load(at, lanes) * shrink)
                    total = product.total(held, slot)
                    sums.store(at, vector.multiply_add(total, unit, before))
                    slot += 1

    def finish(self, weights: Weights, sums: Region) -> None:
        """Add the products with zeros to the sums of their channels."""
        plan, size = self.plan, self.plan.problem.group_size
        with T.serial(plan.base.item_rows) as row, T.serial(plan.value_groups) as group:
            lanes = weights.zeros.load((row * plan.value_groups + group) * LANES, LANES)
            total = across(lanes, lambda a, b: a + b)
            for channel in range(0, size, LANES):
                at = T.bind(row * plan.problem.value_dim + group * size + channel)
                sums.store(at, sums.load(at, LANES) + total)
