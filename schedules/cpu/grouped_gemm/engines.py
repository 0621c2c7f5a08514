"""Products of vectors of weights with activations: bfloat16, int8 and int4, wide and portable."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from tvm.script import tirx as T

from wattune.ops.expert_weights import GROUP
from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.grouped_gemm.layout import LANE, ROWS
from wattune.schedules.cpu.grouped_gemm.tile import F32, I32, LANES, ROW_SIZES, Engine, Tile
from wattune.schedules.cpu.vector import Registers

Expr = Any
Buffer = Any

_MASK = 15
# Sums below which int4 has two of each: a dot product takes five cycles, two start in each.
FEW_SUMS = 4


class DotBf16(Engine):
    """Two products of bfloat16 a lane and instruction (vdpbf16ps)."""

    activation = "bf16"

    def emit(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Multiply pairs of columns."""
        rows, sums = tile.row_starts(), tile.begin("float32")

        def step(at: Expr) -> None:
            loaded = tile.load(tile.base + at * tile.product.step_bytes)
            pairs = [T.reinterpret(I32, codes) for codes in loaded]
            for r, row in enumerate(rows):
                x = vector.splat(vector.load_as(tile.memory.activations, row + at * LANE, "int32"))
                for g, pair in enumerate(pairs):
                    slot = tile.slot(r, g)
                    sums.store(slot, vector.dot_pairs_bf16(sums.load(slot, F32), pair, x))

        tile.steps(*tile.span(tile.product.steps, tile.product.lane_columns), step)
        return lambda r, g: sums.load(tile.slot(r, g), F32)


class FloatBf16(Engine):
    """bfloat16 widened to float32 by a shift or a mask, then multiplied."""

    activation = "f32"

    def emit(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Multiply the lower column of each lane, then the upper one."""
        rows, sums = tile.row_starts(), tile.begin("float32")

        def step(at: Expr) -> None:
            loaded = tile.load(tile.base + at * tile.product.step_bytes)
            for column in range(2):
                wide = [T.bind(_half(T.reinterpret(I32, codes), column)) for codes in loaded]
                for r, row in enumerate(rows):
                    place = row + (at * 2 + column) * 4
                    x = vector.splat(vector.load_as(tile.memory.activations, place, "float32"))
                    for g, w in enumerate(wide):
                        slot = tile.slot(r, g)
                        sums.store(slot, vector.multiply_add(w, x, sums.load(slot, F32)))

        tile.steps(*tile.span(tile.product.steps, tile.product.lane_columns), step)
        return lambda r, g: sums.load(tile.slot(r, g), F32)


def _half(pairs: Expr, column: int) -> Expr:
    """Return one of the two bfloat16 of each lane as float32."""
    if column == 0:
        return math.as_real(T.shift_left(pairs, math.integer(16, LANES)), LANES)
    return math.as_real(T.bitwise_and(pairs, math.integer(-0x10000, LANES)), LANES)


@dataclass(frozen=True)
class ByteDot:
    """Sums of four products of bytes in ``lanes`` 32-bit lanes.

    ``codes(total, codes, x)`` takes codes of at most 15, ``offset(total, codes, x)`` codes + 128;
    x is four activations in every lane. ``biased``: whether sums of the latter count the 128 too.
    """

    lanes: int
    codes: Callable[[Expr, Expr, Expr], Expr]
    offset: Callable[[Expr, Expr, Expr], Expr]
    biased: bool

    def add(
        self, tile: Tile, sums: Registers, codes: list[Expr], at: list[Expr], wide: bool
    ) -> None:
        """Add the vectors' products with the four activations at each row's byte."""
        dot = self.offset if wide else self.codes
        for r, place in enumerate(at):
            x = vector.splat_quad(tile.memory.activations, place, self.lanes)
            for g, vectors in enumerate(codes):
                for part in range(0, LANES, self.lanes):
                    slot = tile.slot(r, g) + part
                    total = sums.load(slot, f"int32x{self.lanes}")
                    sums.store(slot, dot(total, self._part(vectors, part), x))

    def _part(self, codes: Expr, part: int) -> Expr:
        if self.lanes == LANES:
            return codes
        first, count = part * LANE, self.lanes * LANE
        return T.Shuffle([codes], list(range(first, first + count)))


class Integer(Engine):
    """What the engines of int8 and int4 share: activations in int8, products of bytes."""

    activation = "int8"

    def __init__(
        self,
        dot: ByteDot,
        half: Callable[[Expr], Expr],
        tile_rows: tuple[int, ...] = ROW_SIZES,
    ) -> None:
        """Take the products, and the conversion of 16 float16 (as bits) to float32."""
        super().__init__(tile_rows)
        self.dot = dot
        self.half = half

    @abstractmethod
    def emit(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Emit the product."""


class Int8(Integer):
    """One int32 sum of all columns, scaled at the end."""

    sums = "int32"

    def emit(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Multiply quads of columns."""
        rows, sums = tile.row_starts(), tile.begin("int32")

        def step(at: Expr) -> None:
            codes = tile.load(tile.base + at * tile.product.step_bytes)
            self.dot.add(tile, sums, codes, [row + at * LANE for row in rows], wide=True)

        tile.steps(*tile.span(tile.product.steps, tile.product.lane_columns), step)
        return lambda r, g: sums.load(tile.slot(r, g), I32)

    def finish(self, tile: Tile, value: Expr, row: int, group: int) -> Expr:
        """Scale the int32 sums."""
        return int8_value(tile, value, row, group, self.dot.biased)


def int8_value(tile: Tile, total: Expr, row: int, group: int, biased: bool) -> Expr:
    """Scale the int32 sums of a row and a group; ``biased``: codes were taken with their 128."""
    if biased:
        total = total - tile.total(row, T.int64(0))
    scale = tile.floats(tile.base + tile.product.codes_bytes, group)
    return T.cast(total, F32) * (scale * tile.scale(row))


class Int4(Integer):
    """An int32 sum of each group of columns, scaled and added to float32 sums."""

    def emit(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Multiply group after group."""
        product = tile.product
        rows, sums = tile.row_starts(), tile.begin("float32")
        first, count = tile.span(product.scale_groups, GROUP)
        with T.serial(count) as index:
            group = T.bind(T.cast(index, "int64") + first)
            start = T.bind(tile.base + group * product.group_bytes)
            columns = T.bind(group * (product.group_steps * product.lane_columns))
            tile.fetch(start)
            parts = self.add_group(tile, start, columns, rows)
            self._add_scaled(tile, sums, parts, start, group)
        return lambda r, g: sums.load(tile.slot(r, g), F32)

    def add_group(
        self, tile: Tile, start: Expr, columns: Expr, rows: list[Expr]
    ) -> list[Registers]:
        """Emit int32 sums of the group of columns at a byte; what is to be added up of each."""
        # Few sums would wait for each other: the halves get sums of their own.
        few = tile.rows * tile.groups <= FEW_SUMS
        parts = [tile.zeros("int32") for _ in range(2 if few else 1)]

        def step(at: Expr) -> None:
            packed = tile.load(start + (at + 1) * tile.product.step_bytes)
            for high in range(2):
                codes = [T.bind(nibbles(codes, high)) for codes in packed]
                place = columns + at * tile.product.lane_columns + high * LANE
                half_sums = parts[high % len(parts)]
                self.dot.add(tile, half_sums, codes, [row + place for row in rows], wide=False)

        tile.steps(0, tile.product.group_steps, step)
        return parts

    def finish(self, tile: Tile, value: Expr, row: int, group: int) -> Expr:
        """Scale by the row of activations."""
        del group
        return value * tile.scale(row)

    def _add_scaled(
        self, tile: Tile, sums: Registers, parts: list[Registers], start: Expr, group: Expr
    ) -> None:
        """Add scale * (sum - zero * total) of a group of columns."""
        for g in range(tile.groups):
            scale, shift = group_scales(tile, start, g, self.half)
            for r in range(tile.rows):
                slot = tile.slot(r, g)
                found = reduce(operator.add, (part.load(slot, I32) for part in parts))
                whole = T.cast(found, F32)
                total = T.cast(tile.total(r, group), F32)
                added = vector.multiply_add(whole, scale, sums.load(slot, F32))
                sums.store(slot, added - shift * total)


def nibbles(codes: Expr, high: int) -> Expr:
    """Return the low or the high halves of bytes."""
    if high:
        codes = vector.shift_fields(codes, 4)
    return T.bitwise_and(codes, vector.splat_u8(_MASK))


def group_scales(
    tile: Tile, start: Expr, group: int, half: Callable[[Expr], Expr]
) -> tuple[Expr, Expr]:
    """Bind the scales of 16 rows for the group of columns at a byte, and scale * zero."""
    params = start + tile.stage.offset(group)
    scale = T.bind(half(vector.load_bytes(tile.weights, params, 2 * ROWS)))
    zero = half(vector.load_bytes(tile.weights, params + 2 * ROWS, 2 * ROWS))
    return scale, T.bind(scale * zero)


def half_by_cast(raw: Expr) -> Expr:
    """Convert 16 float16 on CPUs that can."""
    return T.cast(T.reinterpret(f"float16x{LANES}", raw), F32)


def half_by_bits(raw: Expr) -> Expr:
    """Convert 16 finite float16 by moving the exponent."""
    bits = T.bind(T.cast(T.reinterpret(f"uint16x{LANES}", raw), I32))
    size = T.shift_left(T.bitwise_and(bits, math.integer(0x7FFF, LANES)), math.integer(13, LANES))
    scaled = T.bind(math.as_real(size, LANES) * math.real(2.0**112, LANES))
    sign = T.shift_left(T.bitwise_and(bits, math.integer(0x8000, LANES)), math.integer(16, LANES))
    return math.as_real(T.bitwise_or(math.as_integer(scaled, LANES), sign), LANES)


def _signed(codes: Expr) -> Expr:
    return T.reinterpret(str(codes.ty.dtype).replace("uint8", "int8"), codes)


def _vnni(bits: int) -> Callable[[Expr, Expr, Expr], Expr]:
    return lambda total, codes, x: vector.dot_u8s8(total, _signed(codes), x, bits)


def _plain(total: Expr, codes: Expr, x: Expr) -> Expr:
    """Add in 32-bit arithmetic, a byte of each lane after the other."""
    words, quads = T.bind(T.reinterpret(I32, codes)), T.bind(T.reinterpret(I32, x))
    for byte in range(LANE):
        shift = math.integer(8 * byte, LANES)
        code = T.bitwise_and(T.shift_right(words, shift), math.integer(255, LANES))
        up = T.shift_left(quads, math.integer(24 - 8 * byte, LANES))
        total = total + code * T.shift_right(up, math.integer(24, LANES))
    return total


VNNI = ByteDot(16, _vnni(512), _vnni(512), biased=True)
VNNI_256 = ByteDot(8, _vnni(256), _vnni(256), biased=True)
PLAIN = ByteDot(16, _plain, _plain, biased=True)
