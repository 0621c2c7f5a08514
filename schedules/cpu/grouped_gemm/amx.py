"""Engines on AMX tiles: 16 rows of an expert times 16 rows of its weights at once.

    sums[m, g] = 0                                    # tiles, held over all columns
    for 64 bytes of columns:
        x[m] = 16 rows of activations; w[g] = 16 vectors of the stream
        sums[m, g] += x[m] * w[g]

The packed weights are operands as they lie: a vector is a row of a tile.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import amx, vector
from wattune.schedules.cpu.grouped_gemm.engines import int8_value
from wattune.schedules.cpu.grouped_gemm.layout import VECTOR, ExpertLayout
from wattune.schedules.cpu.grouped_gemm.plan import Memory, Plan
from wattune.schedules.cpu.grouped_gemm.tile import LANES, Engine, Tile

Expr = Any

# Tiles of sums; the others hold operands.
MOST_SUMS = 4


class AmxEngine(Engine):
    """What the engines of both formats share."""

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

    def products(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Emit the products; return what loads the lanes of a row and a group, as bytes lie."""
        memory, product, plan = tile.memory, tile.product, tile.plan
        count, groups = tile.rows // amx.TILE_ROWS, tile.groups
        sums = count * groups
        stride = plan.stride(product)
        start = T.bind(memory.at("activations", T.cast(tile.first, "int64") * stride))
        for i in range(sums):
            amx.zero(i)
        with T.serial(product.steps // amx.TILE_ROWS) as k:
            step = T.bind(T.cast(k, "int64"))
            column = start + step * amx.ROW_BYTES
            at = T.bind(tile.base + step * (amx.TILE_ROWS * product.step_bytes))
            for m in range(count):
                row = column + m * amx.TILE_ROWS * stride
                amx.load(sums + m, memory.activations, row, stride)
            for g in range(groups):
                # Operands take turns in the tiles that are left.
                streamed = sums + count + g % (amx.TILES - sums - count)
                if plan.prefetch:
                    for line in range(amx.TILE_ROWS):
                        ahead = at + (line * groups + g) * VECTOR + plan.prefetch
                        vector.prefetch(tile.weights, ahead)
                amx.load(streamed, tile.weights, at + g * VECTOR, product.step_bytes)
                for m in range(count):
                    self.dot(m * groups + g, sums + m, streamed)
        scratch = T.bind(memory.scratch(plan, tile.worker) + amx.CONFIGURATION_BYTES)
        for i in range(sums):
            to = scratch + i * amx.TILE_BYTES
            amx.store(i, memory.activations, to, amx.ROW_BYTES)

        def place(r: int, g: int) -> Expr:
            number = r // amx.TILE_ROWS * groups + g
            return scratch + number * amx.TILE_BYTES + r % amx.TILE_ROWS * amx.ROW_BYTES

        return place


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

    def dot(self, total: int, left: int, right: int) -> None:
        """Emit one product of tiles."""
        amx.dot_s8u8(total, left, right)

    def emit(self, tile: Tile) -> Callable[[int, int], Expr]:
        """Emit the product."""
        place = self.products(tile)
        raw = tile.memory.activations

        def value(r: int, g: int) -> Expr:
            total = vector.load_as(raw, place(r, g), "int32", LANES)
            return int8_value(tile, total, r, g, biased=True)

        return value
