"""Engines on AMX tiles: 16 rows of an expert times 16 rows of its weights at once.

    sums[m, g] = 0                                    # tiles, held over all columns
    for 64 bytes of columns:
        x[m] = 16 rows of activations; w[g] = 16 vectors of the stream
        sums[m, g] += x[m] * w[g]

The packed weights are operands as they lie: a vector is a row of a tile. Those of int4 are two: a
thread's own memory takes the low and the high halves, and tiles are loaded from there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from wattune.ops.expert_weights import GROUP
from wattune.schedules.cpu import amx, math, vector
from wattune.schedules.cpu.grouped_gemm.engines import group_scales, int8_value, nibbles
from wattune.schedules.cpu.grouped_gemm.layout import ExpertLayout
from wattune.schedules.cpu.grouped_gemm.plan import Memory, Plan
from wattune.schedules.cpu.grouped_gemm.tile import F32, LANES, Engine, Tile

Expr = Any

# Tiles of sums; the others hold operands.
MOST_SUMS = 4
# Steps of int4 whose halves are the rows of a tile.
STEPS = amx.TILE_ROWS // 2


class AmxEngine(Engine):
    """What the engines of all formats share."""

    @abstractmethod
    def dot(self, total: int, left: int, right: int) -> None:
        """Emit one product of tiles."""

    @staticmethod
    def whole(product: ExpertLayout) -> bool:
        """Say whether the columns are whole tiles."""
        return product.columns % (amx.TILE_ROWS * product.lane_columns) == 0

    def row_sizes(self, most: int) -> tuple[int, ...]:
        """Return whole tiles."""
        return tuple(range(amx.TILE_ROWS, most + 1, amx.TILE_ROWS))

    def scratch_bytes(self, plan: Plan) -> int:
        """Return the configuration and the tiles of sums."""
        return amx.CONFIGURATION_BYTES + MOST_SUMS * amx.TILE_BYTES

    def begin(self, plan: Plan, memory: Memory, worker: Expr) -> None:
        """Configure a thread's tiles."""
        at = T.bind(memory.scratch(plan, worker))
        entries = amx.configuration(dict.fromkeys(range(amx.TILES), amx.TILE_ROWS))
        packed = T.reinterpret(f"uint8x{len(entries)}", vector.constant(entries))
        vector.store(memory.activations, [at], packed)
        amx.configure(memory.activations, at)

    def end(self) -> None:
        """Give a thread's tiles back."""
        amx.release()

    @staticmethod
    def _fetch(tile: Tile, at: Expr) -> None:
        """Ask for what comes later than a tile; only a block's first rows find it in memory."""
        if not tile.plan.prefetch:
            return
        with T.If(tile.chunk == 0), T.Then():
            for step in range(amx.TILE_ROWS):
                tile.fetch(at + step * tile.product.step_bytes)

    def products(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Emit the products; return what loads the lanes of a row and a group, as bytes lie."""
        tiles, product = Tiles(tile), tile.product
        tiles.begin()
        columns = amx.TILE_ROWS * product.lane_columns
        first, count = tile.span(product.steps // amx.TILE_ROWS, columns)
        with T.serial(count) as k:
            step = T.bind(T.cast(k, "int64") + first)
            at = T.bind(tile.base + step * (amx.TILE_ROWS * product.step_bytes))
            self._fetch(tile, at)
            tiles.load_activations(step * amx.ROW_BYTES)
            for g in range(tile.groups):
                vectors = at + tile.stage.offset(g)
                amx.load(tiles.weights(g), tile.weights, vectors, product.step_bytes)
                tiles.multiply(g, self.dot)
        tiles.store()
        return lambda r, g: tiles.place(r // amx.TILE_ROWS, g) + r % amx.TILE_ROWS * amx.ROW_BYTES


class Tiles:
    """The registers of one product: sums [rows / 16, groups], then activations, then weights."""

    def __init__(self, tile: Tile) -> None:
        """Bind where activations and a thread's own memory start."""
        self.tile = tile
        self.count = tile.rows // amx.TILE_ROWS
        self.sums = self.count * tile.groups
        self.raw = tile.memory.activations
        self.stride = tile.plan.stride(tile.product)
        first = T.cast(tile.first, "int64") * self.stride
        self.start = T.bind(tile.memory.at("activations", first))
        self.scratch = T.bind(tile.memory.scratch(tile.plan, tile.worker) + amx.CONFIGURATION_BYTES)

    def zero(self) -> None:
        """Clear the sums."""
        for i in range(self.sums):
            amx.zero(i)

    def begin(self) -> None:
        """Clear the sums, or load what the slices before left."""
        slice = self.tile.slice
        if slice is None:
            self.zero()
            return
        with T.If(slice.index == 0):
            with T.Then():
                self.zero()
            with T.Else():
                self.copy_before(self.scratch)
                for i in range(self.sums):
                    amx.load(i, self.raw, self.scratch + i * amx.TILE_BYTES, amx.ROW_BYTES)

    def copy_before(self, to: Expr) -> None:
        """Copy what the slices before left to a thread's own memory."""
        with T.serial(amx.TILE_ROWS) as line:
            for m in range(self.count):
                for g in range(self.tile.groups):
                    at = to + (m * self.tile.groups + g) * amx.TILE_BYTES + line * amx.ROW_BYTES
                    value = self.tile.before(m * amx.TILE_ROWS + line, g)
                    vector.store_as(self.raw, at, value, LANES)

    def load_activations(self, at: Expr) -> None:
        """Load 64 bytes of each row, from a byte of the row on."""
        column = T.bind(self.start + at)
        for m in range(self.count):
            row = column + m * amx.TILE_ROWS * self.stride
            amx.load(self.sums + m, self.raw, row, self.stride)

    def weights(self, group: int) -> int:
        """Return the tile of a group's weights: they take turns in what is left."""
        used = self.sums + self.count
        return used + group % (amx.TILES - used)

    def multiply(self, group: int, dot: Callable[[int, int, int], None]) -> None:
        """Add the products of all rows with a group's weights."""
        for m in range(self.count):
            dot(m * self.tile.groups + group, self.sums + m, self.weights(group))

    def store(self) -> None:
        """Store the sums to a thread's own memory."""
        for i in range(self.sums):
            amx.store(i, self.raw, self.scratch + i * amx.TILE_BYTES, amx.ROW_BYTES)

    def place(self, m: int, group: int) -> Expr:
        """Return the byte where `store` leaves the sums of 16 rows and a group."""
        return self.scratch + (m * self.tile.groups + group) * amx.TILE_BYTES


class AmxBf16(AmxEngine):
    """Pairs of bfloat16 (tdpbf16ps)."""

    activation = "bf16"

    def dot(self, total: int, left: int, right: int) -> None:
        """Emit one product of tiles."""
        amx.dot_bf16(total, left, right)

    def emit(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Emit the product."""
        place = self.products(tile)
        raw = tile.memory.activations
        return lambda r, g: vector.load_as(raw, place(r, g), "float32", LANES)


class AmxInt8(AmxEngine):
    """Quads of signed activations and codes + 128 (tdpbsud)."""

    activation = "int8"
    sums = "int32"

    def dot(self, total: int, left: int, right: int) -> None:
        """Emit one product of tiles."""
        amx.dot_s8u8(total, left, right)

    def emit(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Emit the product."""
        place = self.products(tile)
        raw = tile.memory.activations

        return lambda r, g: vector.load_as(raw, place(r, g), "int32", LANES)

    def finish(self, tile: Tile, value: Expr, row: int, group: int) -> Expr:
        """Scale the int32 sums."""
        return int8_value(tile, value, row, group, biased=True)


class AmxInt4(AmxEngine):
    """Quads of signed activations and codes (tdpbsud), scaled after each group of columns."""

    activation = "int8"

    def __init__(self, half: Callable[[Expr], Expr]) -> None:
        """Take the conversion of 16 float16 (as bits) to float32."""
        super().__init__()
        self.half = half

    @staticmethod
    def whole(product: ExpertLayout) -> bool:
        """Say whether groups of columns are whole tiles: they are."""
        return product.scale_groups > 0

    def scratch_bytes(self, plan: Plan) -> int:
        """Return those of the others, as many sums in float32, and a tile of codes."""
        return super().scratch_bytes(plan) + (MOST_SUMS + 1) * amx.TILE_BYTES

    def dot(self, total: int, left: int, right: int) -> None:
        """Emit one product of tiles."""
        amx.dot_s8u8(total, left, right)

    def emit(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Emit the product."""
        tiles, product, raw = Tiles(tile), tile.product, tile.memory.activations
        floats = T.bind(tiles.scratch + MOST_SUMS * amx.TILE_BYTES)
        codes = T.bind(floats + MOST_SUMS * amx.TILE_BYTES)
        self._begin(tiles, floats)
        first, count = tile.span(product.scale_groups, GROUP)
        with T.serial(count) as index:
            group = T.bind(T.cast(index, "int64") + first)
            start = T.bind(tile.base + group * product.group_bytes)
            tile.fetch(start)
            tiles.zero()
            for half in range(product.group_steps // STEPS):
                columns = half * amx.ROW_BYTES
                tiles.load_activations(
                    group * (product.group_steps * product.lane_columns) + columns
                )
                for g in range(tile.groups):
                    vectors = start + (1 + half * STEPS) * product.step_bytes
                    self._unpack(tile, vectors, g, codes)
                    amx.load(tiles.weights(g), raw, codes, amx.ROW_BYTES)
                    tiles.multiply(g, self.dot)
            tiles.store()
            self._add_scaled(tiles, floats, start, group)

        def value(r: int, g: int) -> Expr:
            line = (r // amx.TILE_ROWS * tile.groups + g) * amx.TILE_ROWS + r % amx.TILE_ROWS
            return vector.load_as(raw, floats + line * amx.ROW_BYTES, "float32", LANES)

        return value

    def finish(self, tile: Tile, value: Expr, row: int, group: int) -> Expr:
        """Scale by the row of activations."""
        del group
        return value * tile.scale(row)

    @staticmethod
    def _begin(tiles: Tiles, floats: Expr) -> None:
        """Clear the float32 sums, or copy what the slices before left."""

        def clear() -> None:
            with T.serial(tiles.sums * amx.TILE_ROWS) as line:
                zero = math.real(0.0, LANES)
                vector.store_as(tiles.raw, floats + line * amx.ROW_BYTES, zero, LANES)

        if tiles.tile.slice is None:
            clear()
            return
        with T.If(tiles.tile.slice.index == 0):
            with T.Then():
                clear()
            with T.Else():
                tiles.copy_before(floats)

    @staticmethod
    def _unpack(tile: Tile, first: Expr, group: int, codes: Expr) -> None:
        """Write the 16 vectors of a group's codes that 8 steps hold."""
        raw = tile.memory.activations
        for step in range(STEPS):
            at = T.bind(first + step * tile.product.step_bytes)
            tile.ahead.fetch(tile, at, group)
            packed = T.bind(vector.load_bytes(tile.weights, at + tile.stage.offset(group)))
            for high in range(2):
                line = codes + (2 * step + high) * amx.ROW_BYTES
                vector.store(raw, [line], nibbles(packed, high))

    def _add_scaled(self, tiles: Tiles, floats: Expr, start: Expr, group: Expr) -> None:
        """Add scale * (sum - zero * total) of a group of columns to the float32 sums."""
        tile, raw = tiles.tile, tiles.raw
        for g in range(tile.groups):
            scale, shift = group_scales(tile, start, g, self.half)
            for m in range(tiles.count):
                place = T.bind(tiles.place(m, g))
                to = T.bind(floats + (m * tile.groups + g) * amx.TILE_BYTES)
                with T.serial(amx.TILE_ROWS) as r:
                    line = T.bind(T.cast(r, "int64") * amx.ROW_BYTES)
                    whole = T.cast(vector.load_as(raw, place + line, "int32", LANES), F32)
                    before = vector.load_as(raw, to + line, "float32", LANES)
                    total = T.cast(tile.total(m * amx.TILE_ROWS + r, group), F32)
                    added = vector.multiply_add(whole, scale, before)
                    vector.store_as(raw, to + line, added - shift * total, LANES)
