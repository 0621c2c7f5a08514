"""Engines on bfloat16 dot products (vdpbf16ps): two products a lane, no conversions.

Scores are exact products of unrounded queries and keys, summed in fp32. For weighted sums the
weights are rounded to bfloat16, and the values of two keys are interleaved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.loads import join_rows, joined_order
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.attention.plan import Fold
from wattune.schedules.cpu.attention.scores import RegisterScores
from wattune.schedules.cpu.attention.values import RegisterValues

Expr = Any

LANES = vector.LANES
# bfloat16 of a vector.
WIDTH = 2 * LANES


class DotScores(RegisterScores):
    """Keys and queries as they lie."""

    width = WIDTH
    vectors = 1

    @property
    def query_bytes(self) -> int:
        """Return the bytes of a query row."""
        return 2 * WIDTH * len(self.starts)

    def prepare(self, query: Region, at: Expr, into: Region, row: Expr) -> None:
        """Copy a query row; columns of the last group that come twice are zero once."""
        base = T.bind(row * (len(self.starts) * LANES))
        for i, start in enumerate(self.starts):
            bits = self._bits(query, at + start)
            if twice := i * WIDTH - start:
                kept = [-(column >= twice) for column in range(WIDTH)]
                mask = T.reinterpret(f"int32x{LANES}", vector.constant_i16(kept))
                bits = T.bitwise_and(bits, mask)
            into.store(base + i * LANES, math.as_real(bits, LANES))

    @staticmethod
    def _bits(rows: Region, at: Expr) -> Expr:
        return T.reinterpret(f"int32x{LANES}", rows.load(at, WIDTH))

    def load(self, keys: Region, at: Expr) -> list[Expr]:
        """Load pairs of columns."""
        return [T.bind(self._bits(keys, at))]

    def load_query(self, query: Region, at: Expr) -> Expr:
        """Load pairs of columns of a query."""
        return math.as_integer(query.load(at, LANES), LANES)

    def product(self, total: Expr | None, key: Expr, query: Expr) -> Expr:
        """Multiply and add pairs."""
        total = math.real(0.0, LANES) if total is None else total
        return vector.dot_pairs_bf16(total, key, query)


class DotValues(RegisterValues):
    """Values of two keys at a time."""

    keys = 2
    in_place = False

    def keep(self, weights: Region, at: Expr, weight: Expr) -> None:
        """Round to bfloat16: the weights of two neighbouring keys share a lane."""
        weights.store(at // 2, vector.round_bf16(weight))

    def load(self, cache: Region, bases: Sequence[Expr], start: int) -> list[Expr]:
        """Interleave two keys' columns."""
        return join_rows([T.bind(cache.load(base + start, WIDTH)) for base in bases])

    def natural(self, sums: Region, at: Expr, group: int) -> list[Expr]:
        """Undo the interleaving."""
        return joined_order(sums, at, group)

    def weight(self, fold: Fold, weights: Region, first: Expr, key: int, row: int) -> Expr:
        """Repeat a pair of weights."""
        lane = key // fold.keys * LANES + row * fold.keys + key % fold.keys
        return vector.splat(weights.load((first * fold.slots + lane) // 2), LANES)

    def product(self, total: Expr, value: Expr, weight: Expr) -> Expr:
        """Multiply and add pairs."""
        return vector.dot_pairs_bf16(total, value, weight)
