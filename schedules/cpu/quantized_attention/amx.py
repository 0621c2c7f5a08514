"""Quantised attention on AMX tiles: the numbers of queries and weights meet codes in tiles.

    keys     C[rows, 16 tokens]   += A[rows, 32 channels] B[8 quads, 16 tokens]
    values   C[rows, 16 channels] += A[rows, 32 tokens]   B[8 quads, 16 channels]

twice, for the low and the high bytes of the numbers. Codes of 8 bits are tiles as they lie in the
cache; fields of fewer bits are unpacked into rows of a tile first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.areas import Areas
from wattune.schedules.cpu import amx, math, vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.quantized_attention.kernel import QuantizedKernel, QuantizedOwn
from wattune.schedules.cpu.quantized_attention.keys import Keys, Queries, field_of
from wattune.schedules.cpu.quantized_attention.packed import Codes
from wattune.schedules.cpu.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cpu.quantized_attention.product import BLOCK, QUAD
from wattune.schedules.cpu.quantized_attention.values import PackedValues, Weights
from wattune.schedules.cpu.vector import BYTES, LANES

Expr = Any

# Quads of a block of numbers: rows of a tile of codes.
QUADS = BLOCK // QUAD
WORDS = BYTES // 4
# Tiles by number: sums of low and of high bytes, of two vectors of columns; numbers; codes.
SUMS = ((0, 1), (2, 3))
LOW, HIGH = 4, 5
CODES = (6, 7)


@dataclass(frozen=True)
class AmxPlan(QuantizedPlan):
    """A schedule on tiles: every pass over rows has ``rows`` of them."""

    @property
    def areas(self) -> Areas:
        """Return a thread's scratch: configuration, unpacked codes of each field, sums."""
        return Areas.of(
            configuration=amx.CONFIGURATION_BYTES,
            codes=2 * self.fields * QUADS * BYTES,
            sums=len(SUMS) * 2 * self.rows * BYTES,
        )

    def _own(self, rows: int) -> Iterator[tuple[str, int]]:
        yield from super()._own(rows)
        yield "tiles", self.areas.bytes

    def area(self, tiles: Region, name: str) -> Region:
        """Return an area of the scratch, in words."""
        return tiles.part(T.int64(self.areas.starts[name] // 4))

    def begin(self, tiles: Region) -> None:
        """Emit the configuration of this thread's tiles."""
        sums = [tile for pair in SUMS for tile in pair]
        rows = {**dict.fromkeys((*sums, LOW, HIGH), self.rows), **dict.fromkeys(CODES, QUADS)}
        entries = amx.configuration(rows, dict.fromkeys((LOW, HIGH), BLOCK))
        place = self.area(tiles, "configuration")
        place.store(0, T.reinterpret("int32x16", vector.constant(entries)))
        amx.configure(place.buffer, place.base)


def load_numbers(numbers: Region, at: Expr, stride: int) -> None:
    """Load a block of 32 numbers of every row: low bytes, then high bytes."""
    amx.load(LOW, numbers.buffer, numbers.base + at, 4 * stride)
    amx.load(HIGH, numbers.buffer, numbers.base + at + QUADS, 4 * stride)


def multiply(sums: tuple[int, int], codes: int) -> None:
    """Add the products of a block of numbers with a tile of codes."""
    amx.dot_s8u8(sums[0], LOW, codes)
    amx.dot_s8u8(sums[1], HIGH, codes)


def totals(plan: AmxPlan, tiles: Region, which: int, row: Expr) -> Expr:
    """Return a row of stored sums in fp32: 256 high + low."""
    area = plan.area(tiles, "sums")
    low, high = (
        T.cast(area.load(((2 * which + half) * plan.rows + row) * WORDS, LANES), "float32x16")
        for half in (0, 1)
    )
    return T.bind(vector.multiply_add(high, math.real(256.0, LANES), low))


def store_sums(plan: AmxPlan, tiles: Region, which: int) -> None:
    """Store the sums of a vector of columns."""
    area = plan.area(tiles, "sums")
    for half, tile in enumerate(SUMS[which]):
        at = area.base + (2 * which + half) * plan.rows * WORDS
        amx.store(tile, area.buffer, at, BYTES)


@dataclass(frozen=True)
class AmxKeys(Keys):
    """Emits the scores of tiles; ``tiles`` is the thread's scratch."""

    plan: AmxPlan
    tiles: Region

    def emit(
        self, tile: Codes, queries: Queries, scores: Region, start: Expr, params: Region
    ) -> None:
        """Emit scores of ``span`` tokens of a tile from ``start`` on, for all rows."""
        plan = self.plan
        passes = plan.base.item_rows // plan.rows
        with T.serial(passes) as at, T.serial(plan.span // LANES) as step:
            row = T.bind(at * plan.rows)
            token = T.bind(start + step * LANES)
            line = tile.codes.part(token // LANES * (plan.key_vectors * BYTES))
            numbers = queries.numbers.part(row * plan.query_words)
            for group in range(plan.key_groups):
                self._products(tile, line, numbers, group)
                self._finish(queries.units, scores, params, row, token, group)

    def _products(self, tile: Codes, line: Region, numbers: Region, group: int) -> None:
        """Emit the products of a group of channels."""
        plan = self.plan
        for number in SUMS[0]:
            amx.zero(number)
        for segment in plan.segments(group):
            for first in range(segment.first, segment.end, QUADS):
                if plan.ahead and 0 in segment.fields:
                    for i in range(QUADS):
                        place = line.base + tile.ahead + (first + i) * BYTES
                        vector.prefetch(line.buffer, place)
                places = self._codes(line, first, segment.fields)
                for field, (buffer, at) in zip(segment.fields, places, strict=True):
                    amx.load(CODES[field % 2], buffer, at, BYTES)
                    quad = plan.product.quad(plan.channel(field, first))
                    load_numbers(numbers, T.int64(quad), plan.query_words)
                    multiply(SUMS[0], CODES[field % 2])

    def _codes(self, line: Region, first: int, fields: tuple[int, ...]) -> list[tuple[Any, Expr]]:
        """Return where the codes of each field of 8 vectors lie as tiles, unpacked if need be."""
        plan = self.plan
        if plan.fields == 1:
            return [(line.buffer, line.base + first * BYTES)]
        area = plan.area(self.tiles, "codes")
        for i in range(QUADS):
            value = T.bind(line.load((first + i) * BYTES, BYTES))
            for field in fields:
                codes = T.reinterpret("int32x16", field_of(plan, value, field))
                area.store((field * QUADS + i) * WORDS, codes)
        return [(area.buffer, area.base + field * QUADS * WORDS) for field in fields]

    def _finish(
        self, units: Region, scores: Region, params: Region, row: Expr, token: Expr, group: int
    ) -> None:
        """Emit the scores, or what a group of channels adds to them."""
        plan = self.plan
        store_sums(plan, self.tiles, 0)
        with T.serial(plan.rows) as r:
            at = T.bind(((row + r) * plan.key_groups + group) * 2)
            unit, zero = (T.bind(vector.splat(units.load(at + i), LANES)) for i in (0, 1))
            total = totals(plan, self.tiles, 0, r)
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
    """Emits the weighted sums of tiles; ``tiles`` is the thread's scratch."""

    plan: AmxPlan
    tiles: Region

    def emit(self, tile: Codes, weights: Weights, sums: Region) -> None:
        """Emit the products of a tile, for all rows, two vectors of channels at a time."""
        plan = self.plan
        vectors = plan.problem.value_dim // LANES
        columns = min(len(SUMS), vectors, self.per_group)
        with T.serial(plan.base.item_rows // plan.rows) as at:
            row = T.bind(at * plan.rows)
            with T.serial(vectors // columns) as part:
                self._columns(tile, weights, sums, row, T.bind(part * columns), columns)
            if vectors % columns:
                self._columns(tile, weights, sums, row, T.int32(vectors - 1), 1)

    def _columns(
        self, tile: Codes, weights: Weights, sums: Region, row: Expr, column: Expr, columns: int
    ) -> None:
        """Emit all tokens of a tile times some vectors of channels of one group."""
        plan = self.plan
        group = T.bind(column // self.per_group)
        slot = T.bind(row * plan.value_groups + group)
        numbers = weights.numbers.part(slot * plan.weight_words)
        for c in range(columns):
            for number in SUMS[c]:
                amx.zero(number)
        with T.serial(plan.tile // BLOCK) as step:
            words = T.bind(step * plan.product.words(BLOCK))
            load_numbers(numbers, words, plan.value_groups * plan.weight_words)
            for c in range(columns):
                buffer, at, stride = self._codes(tile, step, column + c, c)
                amx.load(CODES[c], buffer, at, stride)
                multiply(SUMS[c], CODES[c])
        for c in range(columns):
            store_sums(plan, self.tiles, c)
        with T.serial(plan.rows) as r:
            for c in range(columns):
                self._store(weights, sums, row + r, r, group, column + c, c)

    def _codes(self, tile: Codes, step: Expr, column: Expr, which: int) -> tuple[Any, Expr, int]:
        """Return where the codes of 32 tokens and 16 channels lie as a tile."""
        plan = self.plan
        size = plan.problem.value_dim // LANES * BYTES
        count = QUADS // plan.fields
        line = tile.codes.part(T.bind(step * count * size + column * BYTES))
        if plan.ahead:
            for i in range(count):
                vector.prefetch(line.buffer, line.base + tile.ahead + i * size)
        if plan.fields == 1:
            return line.buffer, line.base, size
        area = plan.area(self.tiles, "codes").part(T.int64(which * QUADS * WORDS))
        for i in range(count):
            value = T.bind(line.load(i * size, BYTES))
            for field in range(plan.fields):
                codes = T.reinterpret("int32x16", field_of(plan, value, field))
                area.store((plan.fields * i + field) * WORDS, codes)
        return area.buffer, area.base, BYTES

    def _store(
        self,
        weights: Weights,
        sums: Region,
        row: Expr,
        tile_row: Expr,
        group: Expr,
        column: Expr,
        which: int,
    ) -> None:
        """Emit sums = sums * shrink + total * unit for a vector of channels of a row."""
        plan = self.plan
        row = T.bind(row)
        shrink = T.bind(vector.splat(weights.factors.load(row * LANES), LANES))
        unit = T.bind(vector.splat(weights.units.load(row * plan.value_groups + group), LANES))
        at = T.bind(row * plan.problem.value_dim + column * LANES)
        before = T.bind(sums.load(at, LANES) * shrink)
        total = totals(plan, self.tiles, which, tile_row)
        sums.store(at, vector.multiply_add(total, unit, before))


class AmxQuantizedKernel(QuantizedKernel):
    """A kernel whose threads configure their tiles first and give them back at the end."""

    quantized: AmxPlan

    def own(self, thread: Expr) -> QuantizedOwn:
        """Return a thread's scratch, its tiles configured."""
        tiles = self.memory.own("tiles", thread, "int32")
        plan = self.quantized
        self.packed_keys, self.packed_values = AmxKeys(plan, tiles), AmxPackedValues(plan, tiles)
        plan.begin(tiles)
        return super().own(thread)

    def _share(self, thread: Expr) -> None:
        super()._share(thread)
        amx.release()
