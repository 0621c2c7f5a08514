"""Products on CPUs whose widest vectors have 256 bits, of which there are 16.

vpmaddubsw multiplies unsigned by signed bytes and adds two products in 16 bits, where it saturates.

int8  |w| by x with w's sign: two products of at most 128 * 127 fit, then vpmaddwd adds to 32 bits
int4  codes of at most 15: eight times two products of at most 15 * 127 fit before that addition
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.grouped_gemm.engines import ByteDot, Int4, nibbles
from wattune.schedules.cpu.grouped_gemm.layout import INT8_OFFSET, LANE, VECTOR
from wattune.schedules.cpu.grouped_gemm.tile import Tile
from wattune.schedules.cpu.vector import Registers

Expr = Any

BYTES = 32
WORDS = BYTES // 2
# Memory is as fast as a few rows of an expert: none of them should be one that is not there.
FEW_ROWS = (1, 2, 3, 4)
# Steps of low and high codes whose pairs of products fit 16 bits: 2 * 4 * 2 * 15 * 127 < 2^15.
NARROW_STEPS = 4


class Int4Narrow(Int4):
    """Sums of products in 16 bits, as many as fit."""

    # A step is of many vectors.
    unroll = 1

    def add_group(
        self, tile: Tile, start: Expr, columns: Expr, rows: list[Expr]
    ) -> list[Registers]:
        """Emit the sums of a group of columns."""
        sums, step_columns = tile.zeros("int32"), tile.product.lane_columns

        def steps(number: Expr) -> None:
            narrow = Registers(tile.rows * tile.groups, "int16")
            for step in range(NARROW_STEPS):
                at = T.bind(number * NARROW_STEPS + step)
                packed = tile.load(start + (at + 1) * tile.product.step_bytes)
                for high in range(2):
                    codes = [T.bind(nibbles(codes, high)) for codes in packed]
                    place = columns + at * step_columns + high * LANE
                    first = step == 0 and high == 0
                    _add_narrow(tile, narrow, codes, [row + place for row in rows], first)
            _widen(tile, sums, narrow)

        tile.steps(0, tile.product.group_steps // NARROW_STEPS, steps)
        return [sums]


def _add_narrow(
    tile: Tile, sums: Registers, codes: list[Expr], at: list[Expr], first: bool
) -> None:
    """Add the pairs of products of each row's four activations; the first ones are the sums."""
    for r, place in enumerate(at):
        x = vector.splat_quad(tile.memory.activations, place, BYTES // LANE)
        for g, vectors in enumerate(codes):
            for part in range(VECTOR // BYTES):
                slot = (r * tile.groups + g) * (VECTOR // 2) + part * WORDS
                half = T.Shuffle([vectors], list(range(part * BYTES, (part + 1) * BYTES)))
                pairs = vector.dot_pairs_u8s8(T.reinterpret(f"int8x{BYTES}", half), x)
                if not first:
                    pairs = sums.load(slot, f"int16x{WORDS}") + pairs
                sums.store(slot, pairs)


def _widen(tile: Tile, sums: Registers, narrow: Registers) -> None:
    """Add the two 16-bit sums of each lane to its sum."""
    ones, lanes = vector.splat(T.int16(1), WORDS), BYTES // 4
    for part in range(tile.rows * tile.groups * (VECTOR // BYTES)):
        pairs = vector.dot_pairs_s16(narrow.load(part * WORDS, f"int16x{WORDS}"), ones)
        sums.store(part * lanes, sums.load(part * lanes, f"int32x{lanes}") + pairs)


def _signed_pairs(total: Expr, codes: Expr, x: Expr) -> Expr:
    """Add products of |w| and x with w's sign."""
    offset = vector.splat_u8(INT8_OFFSET, BYTES)
    w = T.bind(T.reinterpret(f"int8x{BYTES}", T.bitwise_xor(codes, offset)))
    size = vector.apply_sign(w, w)
    pairs = vector.dot_pairs_u8s8(size, vector.apply_sign(x, w))
    return total + vector.dot_pairs_s16(pairs, vector.splat(T.int16(1), WORDS))


def _pairs(total: Expr, codes: Expr, x: Expr) -> Expr:
    """Add by way of 16-bit lanes, which hold two products of codes up to 15."""
    pairs = vector.dot_pairs_u8s8(T.reinterpret(f"int8x{BYTES}", codes), x)
    return total + vector.dot_pairs_s16(pairs, vector.splat(T.int16(1), WORDS))


AVX2 = ByteDot(BYTES // LANE, _pairs, _signed_pairs, biased=False)
