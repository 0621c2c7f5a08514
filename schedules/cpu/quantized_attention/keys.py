"""Scores of a tile of packed keys: s[row, token] = q[row] . (codes[token] * scale + zero).

Per channel, the scales of a group of tokens go into the query: sum (q scale) code + q . zero. Per
token they meet the sums over a group of channels: sum scale (q . codes) + zero sum(q).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.quantized_attention.lanes import across, first
from wattune.schedules.cpu.quantized_attention.packed import Ahead, Codes
from wattune.schedules.cpu.quantized_attention.plan import STEP, QuantizedPlan, Segment
from wattune.schedules.cpu.quantized_attention.product import BLOCK, Sums
from wattune.schedules.cpu.vector import BYTES, LANES

Expr = Any


@dataclass(frozen=True)
class Queries:
    """An item's queries: in fp32, as numbers, and the units and zero sums of these."""

    query: Region
    numbers: Region
    units: Region

    def part(self, plan: QuantizedPlan, span: Expr) -> Queries:
        """Return the numbers and units for a span of a tile."""
        rows = plan.base.item_rows
        return Queries(
            self.query,
            self.numbers.part(span * (rows * plan.query_words)),
            self.units.part(span * (2 * rows * plan.key_groups)),
        )


@dataclass(frozen=True)
class _Step:
    """A pass of rows over ``unroll`` vectors of 16 tokens, the first of them ``token``."""

    rows: int
    row: Expr
    token: Expr
    numbers: list[Region]
    lines: list[Region]


@dataclass(frozen=True)
class Keys:
    """Emits the scores of tiles."""

    plan: QuantizedPlan

    def numbers(self, queries: Queries, row: Expr, params: Region | None) -> None:
        """Emit the numbers of a query; ``params``: fp32 scales, then zeros, of every channel."""
        plan, width = self.plan, self.plan.problem.head_dim
        size = width // plan.key_groups
        for group in range(plan.key_groups):
            values = []
            sums = [math.real(0.0, LANES)] * 2
            for i, channel in enumerate(range(group * size, (group + 1) * size, LANES)):
                value = T.bind(queries.query.load(row * width + channel, LANES))
                if params is None:
                    values.append(value)
                    sums[i % 2] = T.bind(sums[i % 2] + value)
                else:
                    values.append(T.bind(value * params.load(channel, LANES)))
                    zero = params.load(width + channel, LANES)
                    sums[i % 2] = T.bind(vector.multiply_add(value, zero, sums[i % 2]))
            at = T.bind(plan.query_at(row, group))
            unit = plan.product.write(queries.numbers, at, values)
            total = across(sums[0] + sums[1], lambda a, b: a + b)
            at = T.bind((row * plan.key_groups + group) * 2)
            queries.units.store(at, first(unit))
            queries.units.store(at + 1, first(total))

    def emit(
        self,
        tile: Codes,
        queries: Queries,
        scores: Region,
        start: Expr,
        params: Region,
        ahead: Ahead,
    ) -> None:
        """Emit scores of ``span`` tokens of a tile from ``start`` on, for all rows.

        ``params``: where scales are per token, fp32 scales and zeros of each group of channels.
        """
        plan = self.plan
        size = LANES * plan.unroll
        for rows, row, count in plan.passes():
            with T.serial(count) as at, T.serial(plan.span // size) as step:
                ahead.ask((row // plan.rows + at) * plan.key_steps + start // size + step)
                base = row + at * rows
                numbers = [queries.numbers.part(plan.query_at(base + r, 0)) for r in range(rows)]
                token = T.bind(start + step * size)
                line = plan.key_vectors * BYTES
                lines = [tile.codes.part((token // LANES + u) * line) for u in range(plan.unroll)]
                this = _Step(rows, base, token, numbers, lines)
                self._step(this, queries.units, scores, params)

    def _step(self, step: _Step, units: Region, scores: Region, params: Region) -> None:
        """Emit the scores of a step."""
        plan, product = self.plan, self.plan.product
        registers = plan.unroll * plan.parts
        places = [(r, i) for r in range(step.rows) for i in range(registers)]
        totals: dict[tuple[int, int], Expr] = {}
        for group in range(plan.key_groups):
            sums = product.sums(len(places))
            for segment in plan.segments(group):
                self._segment(step, sums, segment)
            pairs = []
            for r in range(step.rows):
                at = T.bind(((step.row + r) * plan.key_groups + group) * 2)
                both = (T.bind(vector.splat(units.load(at + i), product.lanes)) for i in (0, 1))
                pairs.append(tuple(both))
            for slot, (r, i) in enumerate(places):
                unit, zero = pairs[r]
                total = product.total(sums, slot)
                if plan.per_channel:
                    totals[r, i] = T.bind(vector.multiply_add(total, unit, zero))
                    continue
                lane = T.bind(step.token + group * 2 * plan.tile + i * product.lanes)
                base = params.load(lane + plan.tile, product.lanes)
                before = totals.get((r, i))
                base = base * zero if before is None else vector.multiply_add(base, zero, before)
                scale = params.load(lane, product.lanes)
                totals[r, i] = T.bind(vector.multiply_add(T.bind(total * unit), scale, base))
        for (r, i), total in totals.items():
            at = (step.row + r) * plan.tile + step.token + i * product.lanes
            scores.store(at, total)

    def _segment(self, step: _Step, sums: Sums, segment: Segment) -> None:
        """Add the products of some fields of a run of vectors."""
        plan = self.plan
        rest, count = segment.first, segment.end - segment.first
        # A loop takes quads of whole blocks of numbers, or the halves of one block. Without a
        # loop, LLVM loads every number before the loop over steps, and spills them all.
        size = STEP if count > STEP else STEP // 2
        whole = count // size if size == STEP or count == STEP else 0
        if whole and segment.first % STEP == 0 and plan.channel(1, 0) % BLOCK == 0:
            words = plan.product.quad(BLOCK) if size == STEP else plan.product.quad(BLOCK // 2)
            with sums.loop(whole) as block:
                rows = [row.part(block * words) for row in step.numbers]
                lines = [line.part(block * (size * BYTES)) for line in step.lines]
                for i in range(segment.first, segment.first + size):
                    self._vector(lines, rows, sums, segment.fields, i)
            rest += whole * size
        for i in range(rest, segment.end):
            self._vector(step.lines, step.numbers, sums, segment.fields, i)

    def _vector(
        self,
        lines: list[Region],
        rows: list[Region],
        sums: Sums,
        fields: tuple[int, ...],
        at: int,
    ) -> None:
        """Add the products of the ``at``-th vector of each 16 tokens."""
        plan, product = self.plan, self.plan.product
        loaded: list[Expr] = []
        size = BYTES // plan.parts
        for line in lines:
            loaded += [
                T.bind(line.load(at * BYTES + part * size, size)) for part in range(plan.parts)
            ]
        for field in fields:
            codes = [product.codes(value, plan.cache.bits, field) for value in loaded]
            quad = product.quad(plan.channel(field, at))
            for r, row in enumerate(rows):
                product.add(sums, r * len(loaded), row, quad, codes)
