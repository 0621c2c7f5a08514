"""Extremes of groups, and the params that follow: per channel, or per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import LANES
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.math import kind, real
from wattune.schedules.cpu.quantized_kv_cache.across import fold
from wattune.schedules.cpu.quantized_kv_cache.halves import kept
from wattune.schedules.cpu.quantized_kv_cache.numerics import LIMITS, Params, Quantizer
from wattune.schedules.cpu.quantized_kv_cache.rows import Block
from wattune.schedules.cpu.quantized_kv_cache.units import Unit

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class ChannelParams:
    """Groups of ``group_size`` tokens of a channel; ``width`` is the channels of a field.

    ``together`` vectors have their extremes in registers, ``unroll`` tokens a step.
    """

    quantizer: Quantizer
    group_size: int
    width: int
    together: int
    unroll: int

    def emit(
        self, block: Block, group: Expr, unit: Unit, start: Expr
    ) -> list[list[tuple[Expr, Expr]]]:
        """Emit one group of tokens of a unit whose fields begin at channel ``start``.

        Return zero and 1 / scale of each field's vectors.
        """
        fields = self.quantizer.fields
        step = max(1, self.together // unit.vectors)
        found: list[list[tuple[Expr, Expr]]] = []
        for first in range(0, fields, step):
            starts = [f * self.width + start for f in range(fields)[first : first + step]]
            extremes = self._extremes(block, group, unit, starts)
            for at, (lows, highs) in zip(starts, extremes, strict=True):
                # The vectors as one: TVM's passes take long for many statements.
                joined = [_join(vectors, unit.lanes) for vectors in (lows, highs)]
                params = self.quantizer.params(joined[0], joined[1], unit.channels)
                self._store(block, group, unit, at, params)
                found.append(
                    [
                        (_part(params.zero, v, unit.lanes), _part(params.inverse, v, unit.lanes))
                        for v in range(unit.vectors)
                    ]
                )
        return found

    def _extremes(
        self, block: Block, group: Expr, unit: Unit, starts: list[Expr]
    ) -> list[tuple[list[Expr], list[Expr]]]:
        """Return least and greatest values of the vectors from each start on."""
        lanes, float32 = unit.lanes, kind("float32", unit.lanes)
        sides = [
            [[vector.array(lanes, "float32") for _ in range(unit.vectors)] for _ in starts]
            for _ in LIMITS
        ]
        for side, limit in zip(sides, LIMITS, strict=True):
            for register in (r for vectors in side for r in vectors):
                vector.store(register, [0], real(limit, lanes))
        with T.serial(self.group_size // self.unroll) as step:
            for u in range(self.unroll):
                row = T.bind(block.row(group * self.group_size + step * self.unroll + u))
                for s, start in enumerate(starts):
                    values = block.rows.several(block.source, row + start, lanes, unit.vectors)
                    for v, value in enumerate(T.bind(value) for value in values):
                        for side, combine in zip(sides, (T.min, T.max), strict=True):
                            register = side[s][v]
                            both = combine(register.vload([0], float32), value)
                            vector.store(register, [0], both)
                    block.prefetch(row + start, unit.channels)
        found = [[[r.vload([0], float32) for r in vectors] for vectors in side] for side in sides]
        return list(zip(*found, strict=True))

    def _store(self, block: Block, group: Expr, unit: Unit, start: Expr, params: Params) -> None:
        """Store scales and zeros in the order of channels."""
        lanes, row = unit.lanes, self.width * self.quantizer.fields
        for which, bits in enumerate((params.scale_bits, params.zero_bits)):
            if block.rows.pairs and unit.vectors > 1:
                pair = [i // 2 + i % 2 * lanes for i in range(2 * lanes)]
                order = [at + i for at in range(0, unit.channels, 2 * lanes) for i in pair]
                bits = T.Shuffle([bits], order)
            at = block.params_at + T.cast(group * 2 + which, "int64") * row + start
            vector.store(block.params, [at], bits)


def _join(vectors: list[Expr], lanes: int) -> Expr:
    return kept(T.Shuffle(vectors, list(range(lanes * len(vectors)))))


def _part(value: Expr, which: int, lanes: int) -> Expr:
    return kept(T.Shuffle([value], [which * lanes + i for i in range(lanes)]))


@dataclass(frozen=True)
class Share:
    """Params of a tile's tokens for ``count`` groups from ``first`` on.

    Only arrays of up to a kilobyte lie on the stack, so there may be several.
    """

    first: int
    count: int
    zeros: Buffer
    inverses: Buffer

    def of(self, index: Expr, token: Expr) -> tuple[Expr, Expr]:
        """Return zero and 1 / scale of the group ``first + index`` and a token of the tile."""
        at = index * LANES + token
        return self.zeros[at], self.inverses[at]


@dataclass(frozen=True)
class TokenParams:
    """Groups of ``group_size`` channels of a token, sixteen tokens at a time.

    ``tokens`` is the length of a row of params: a block.
    """

    quantizer: Quantizer
    group_size: int
    width: int
    tokens: int
    lanes: int

    def emit(self, block: Block, tile: Expr) -> list[Share]:
        """Emit a tile; return the params of all groups."""
        groups = self.width // self.group_size
        shares = [
            Share(
                first,
                min(LANES, groups - first),
                vector.array(LANES * min(LANES, groups - first), "float32"),
                vector.array(LANES * min(LANES, groups - first), "float32"),
            )
            for first in range(0, groups, LANES)
        ]
        sides = [vector.array(LANES * self.lanes, "float32") for _ in LIMITS]
        for share in shares:
            with T.serial(share.count) as i:
                with T.serial(LANES) as token:
                    self._extremes(block, tile, share.first + i, token, sides)
                with T.serial(LANES // self.lanes) as vector_at:
                    at = T.bind(vector_at * self.lanes)
                    params = self._params(block, tile, share.first + i, at, sides)
                    vector.store(share.zeros, [i * LANES + at], params.zero)
                    vector.store(share.inverses, [i * LANES + at], params.inverse)
        return shares

    def _extremes(
        self, block: Block, tile: Expr, group: Expr, token: Expr, sides: list[Buffer]
    ) -> None:
        """Store the least and the greatest value of each lane's share of a token's group."""
        start = T.bind(block.row(tile * LANES + token) + group * self.group_size)
        count = self.group_size // self.lanes
        values = block.rows.several(block.source, start, self.lanes, count)
        values = [T.bind(value) for value in values]
        block.prefetch(start, self.group_size)
        for side, combine in zip(sides, (T.min, T.max), strict=True):
            total = values[0]
            for value in values[1:]:
                total = T.bind(combine(total, value))
            vector.store(side, [token * self.lanes], total)

    def _params(
        self, block: Block, tile: Expr, group: Expr, at: Expr, sides: list[Buffer]
    ) -> Params:
        """Return the params of the tokens from ``at`` on, and store their bits."""
        low, high = (
            self._across(combine, side, at)
            for combine, side in zip((T.min, T.max), sides, strict=True)
        )
        params = self.quantizer.params(low, high, self.lanes)
        row = block.params_at + group * (2 * self.tokens) + tile * LANES + at
        vector.store(block.params, [row], params.scale_bits)
        vector.store(block.params, [row + self.tokens], params.zero_bits)
        return params

    def _across(self, combine: Callable[[Expr, Expr], Expr], side: Buffer, first: Expr) -> Expr:
        """Return a vector of the tokens from ``first`` on."""
        float32 = kind("float32", self.lanes)
        return fold(combine, lambda i: side.vload([(first + i) * self.lanes], float32), self.lanes)
