"""Quantised attention on AMX tiles: the numbers of queries and weights meet codes in tiles.

    keys     C[2 rows, 16 tokens]   += A[2 rows, 64 channels] B[16 quads, 16 tokens]
    values   C[2 rows, 16 channels] += A[2 rows, 64 tokens]   B[16 quads, 16 channels]

Tiles of numbers stay where they are while codes stream by. Codes of 8 bits are tiles as they lie
in the cache; fields of fewer bits are unpacked into rows of tiles first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import amx, vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.quantized_attention.amx_plan import CODES, NUMBERS, SUMS, WORDS, AmxPlan
from wattune.schedules.cpu.quantized_attention.kernel import QuantizedKernel, QuantizedOwn
from wattune.schedules.cpu.quantized_attention.keys import Keys, Queries
from wattune.schedules.cpu.quantized_attention.packed import Ahead, Codes
from wattune.schedules.cpu.quantized_attention.product import field_of
from wattune.schedules.cpu.quantized_attention.values import PackedValues, Weights
from wattune.schedules.cpu.vector import BYTES, LANES

Expr = Any


@dataclass(frozen=True)
class _Vectors:
    """``count`` vectors of codes, ``step`` bytes apart; the row of a tile that a field becomes."""

    line: Region
    step: int
    count: int
    row: Callable[[int, int], int]


@dataclass(frozen=True)
class _Numbers:
    """Blocks of numbers of the rows of a pass: in their tiles already, or in memory."""

    plan: AmxPlan
    region: Region
    count: int

    @property
    def fit(self) -> bool:
        """Say whether all blocks have a tile of their own."""
        return self.count <= len(NUMBERS)

    def begin(self) -> None:
        """Load all blocks, where they fit."""
        if self.fit:
            for block in range(self.count):
                self.plan.load_numbers(self.region, block, NUMBERS[block])

    def tile(self, block: int) -> int:
        """Return the tile that holds a block, loaded if need be."""
        tile = NUMBERS[block % len(NUMBERS)]
        if not self.fit:
            self.plan.load_numbers(self.region, block, tile)
        return tile


@dataclass(frozen=True)
class _Engine:
    """Multiplies blocks of numbers with codes; ``tiles`` is the thread's scratch."""

    plan: AmxPlan
    tiles: Region

    def codes(self, vectors: _Vectors, which: int) -> tuple[Any, Expr, int, int]:
        """Return buffer, place, bytes from row to row and of an element of codes as tiles."""
        plan, line = self.plan, vectors.line
        if plan.fields == 1:
            return line.buffer, line.base, vectors.step, 1
        area = plan.area(self.tiles, "codes", which)
        for at in range(vectors.count):
            value = T.bind(line.load(at * vectors.step, BYTES))
            for field in range(plan.fields):
                codes = T.reinterpret("int32x16", field_of(value, plan.cache.bits, field))
                area.store(vectors.row(field, at) * WORDS, codes)
        return area.buffer, area.base, BYTES, BYTES // WORDS

    def multiply(
        self, which: int, codes: tuple[Any, Expr, int, int], numbers: _Numbers, blocks: range
    ) -> None:
        """Store the sums of some blocks of numbers times their codes."""
        buffer, base, stride, size = codes
        amx.zero(SUMS[which])
        for block in blocks:
            tile = CODES[block % len(CODES)]
            amx.load(tile, buffer, base + block * self.plan.quads * stride // size, stride)
            amx.dot_s8u8(SUMS[which], numbers.tile(block), tile)
        self.plan.store_sums(self.tiles, which)


@dataclass(frozen=True)
class AmxKeys(Keys):
    """Emits the scores of tiles."""

    plan: AmxPlan
    engine: _Engine

    def emit(
        self,
        tile: Codes,
        queries: Queries,
        scores: Region,
        start: Expr,
        params: Region,
        ahead: Ahead,
    ) -> None:
        """Emit scores of ``span`` tokens of a tile from ``start`` on, for all rows."""
        plan = self.plan
        size, blocks = plan.key_vectors * BYTES, plan.problem.head_dim // plan.block
        per_group = blocks // plan.key_groups
        with T.serial(plan.base.item_rows // plan.rows) as at:
            row = T.bind(at * plan.rows)
            numbers = _Numbers(plan, queries.numbers.part(plan.query_at(row, 0)), blocks)
            numbers.begin()
            with T.serial(plan.span // (LANES * len(SUMS))) as step:
                for which in range(len(SUMS)):
                    token = T.bind(start + (step * len(SUMS) + which) * LANES)
                    place = T.bind(token // LANES * size)
                    ahead.ask(at * plan.key_steps + token // LANES)
                    vectors = _Vectors(tile.codes.part(place), BYTES, plan.key_vectors, self._row)
                    codes = self.engine.codes(vectors, which)
                    for group in range(plan.key_groups):
                        some = range(group * per_group, (group + 1) * per_group)
                        self.engine.multiply(which, codes, numbers, some)
                        self._finish(queries.units, scores, params, row, token, group, which)

    def _row(self, field: int, at: int) -> int:
        return field * self.plan.key_vectors + at

    def _finish(
        self,
        units: Region,
        scores: Region,
        params: Region,
        row: Expr,
        token: Expr,
        group: int,
        which: int,
    ) -> None:
        """Emit the scores, or what a group of channels adds to them."""
        plan = self.plan
        with T.serial(plan.rows) as r:
            at = T.bind(((row + r) * plan.key_groups + group) * 2)
            unit, zero = (T.bind(vector.splat(units.load(at + i), LANES)) for i in (0, 1))
            total = plan.total(self.engine.tiles, which, r)
            place = T.bind((row + r) * plan.tile + token)
            if plan.per_channel:
                scores.store(place, vector.multiply_add(total, unit, zero))
            else:
                lane = T.bind(token + group * 2 * plan.tile)
                base = params.load(lane + plan.tile, LANES) * zero
                if group:
                    base = base + scores.load(place, LANES)
                scaled = T.bind(total * unit)
                scale = params.load(lane, LANES)
                scores.store(place, vector.multiply_add(scaled, scale, base))


@dataclass(frozen=True)
class AmxPackedValues(PackedValues):
    """Emits the weighted sums of tiles."""

    plan: AmxPlan
    engine: _Engine

    def emit(self, tile: Codes, weights: Weights, sums: Region, ahead: Ahead) -> None:
        """Emit the products of a tile, for all rows, two vectors of channels at a time."""
        plan = self.plan
        with (
            T.serial(plan.base.item_rows // plan.rows) as at,
            T.serial(plan.value_groups) as group,
        ):
            row = T.bind(at * plan.rows)
            region = weights.numbers.part(plan.weight_at(row, group))
            numbers = _Numbers(plan, region, plan.tile // plan.block)
            numbers.begin()
            with T.serial(self.per_group // len(SUMS)) as pair:
                for which in range(len(SUMS)):
                    column = T.bind(group * self.per_group + pair * len(SUMS) + which)
                    ahead.ask(plan.base.item_rows + at * plan.value_steps + column)
                    self._column(tile, numbers, column, which)
                    self._finish(weights, sums, row, group, column, which)

    def _column(self, tile: Codes, numbers: _Numbers, column: Expr, which: int) -> None:
        """Emit the products of a tile with a vector of channels."""
        plan = self.plan
        size = plan.problem.value_dim // LANES * BYTES
        count = plan.tile * plan.cache.bits // 32
        line = tile.codes.part(T.bind(column * BYTES))
        vectors = _Vectors(line, size, count, lambda field, at: at * plan.fields + field)
        codes = self.engine.codes(vectors, which)
        self.engine.multiply(which, codes, numbers, range(numbers.count))

    def _finish(
        self, weights: Weights, sums: Region, row: Expr, group: Expr, column: Expr, which: int
    ) -> None:
        """Emit sums = sums * shrink + total * unit for a vector of channels."""
        plan = self.plan
        with T.serial(plan.rows) as r:
            at = T.bind(row + r)
            shrink = T.bind(vector.splat(weights.factors.load(at * LANES), LANES))
            unit = T.bind(vector.splat(weights.units.load(at * plan.value_groups + group), LANES))
            place = T.bind(at * plan.problem.value_dim + column * LANES)
            before = T.bind(sums.load(place, LANES) * shrink)
            total = plan.total(self.engine.tiles, which, r)
            sums.store(place, vector.multiply_add(total, unit, before))


class AmxQuantizedKernel(QuantizedKernel):
    """A kernel whose threads configure their tiles first and give them back at the end."""

    quantized: AmxPlan

    def own(self, thread: Expr) -> QuantizedOwn:
        """Return a thread's scratch, its tiles configured."""
        tiles = self.memory.own("tiles", thread, "int32")
        plan = self.quantized
        engine = _Engine(plan, tiles)
        self.packed_keys, self.packed_values = AmxKeys(plan, engine), AmxPackedValues(plan, engine)
        plan.begin(tiles)
        return super().own(thread)

    def _share(self, thread: Expr) -> None:
        super()._share(thread)
        amx.release()
