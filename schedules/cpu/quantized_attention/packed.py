"""Packed blocks of a cache: where a tile's codes and params lie, and the params in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.attention import Item
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.attention.memory import Region, flat
from wattune.schedules.cpu.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cpu.vector import BYTES, LANES
from wattune.schedules.program import Tensors

Expr = Any
# The bytes of a param.
HALF = 2


@dataclass(frozen=True)
class Codes:
    """A tile's codes and params, and the params to prefetch.

    Params are rows of scales and of zeros: of all channels, or of a tile's tokens.
    """

    codes: Region
    params: Region
    params_ahead: Region


@dataclass(frozen=True)
class Ahead:
    """Codes that will be read soon: ``points`` places of the code ask for a part of them each.

    Memory must stay at work all the time: a core has room for few lines on their way, and what
    does not fit waits and holds up the rest.
    """

    codes: Region
    lines: int
    points: int

    @property
    def count(self) -> int:
        """Return the lines of a point."""
        return -(-self.lines // self.points)

    def behind(self, point: Expr) -> Ahead:
        """Return the same with points counted from one on."""
        return Ahead(self.codes.part(point * (self.count * BYTES)), self.lines, self.points)

    def ask(self, point: Expr) -> None:
        """Prefetch the part of a point."""
        if self.lines:
            at = T.bind(self.codes.base + point * (self.count * BYTES))
            for i in range(self.count):
                vector.prefetch(self.codes.buffer, at + i * BYTES, 2)


class PackedCache:
    """The keys ("k") or values ("v") of all requests."""

    def __init__(self, plan: QuantizedPlan, tensors: Tensors, which: str) -> None:
        """Declare flat views."""
        self.plan = plan
        self.which = which
        self.blocks = tensors.sizes["packed_blocks"]
        self.codes, self.params = (flat(tensors[f"{which}_{name}"]) for name in ("codes", "params"))
        cache = plan.cache
        self.width, self.per_channel = cache.width(which), cache.per_channel(which)
        # Bytes of a token.
        self.size = self.width * cache.bits // 8
        self.groups = 1 if self.per_channel else self.width // cache.group_size
        # From a row of params to the next one.
        self.stride = self.width if self.per_channel else cache.block_tokens

    def tile(self, item: Item, start: Expr, ahead: Expr) -> Codes:
        """Return where the tile from token ``start`` on lies; tile ``ahead`` is prefetched."""
        plan, tokens = self.plan, self.plan.problem.block_tokens
        heads = T.cast(item.request, "int64") * plan.problem.kv_heads + item.head
        first = T.bind(heads * self.blocks * tokens)
        later = T.bind(ahead * plan.tile)
        # Params of a group of tokens are used by all its tiles.
        reuse = self.per_channel and plan.tile < plan.problem.group_size
        params_later = start + plan.problem.group_size if reuse else later
        if reuse and plan.inside:
            last = T.cast(self.blocks, "int32") * tokens - 1
            params_later = T.min(params_later, last)
        return Codes(
            self.codes.part((first + start) * self.size),
            self._params(first, start),
            self._params(first, params_later),
        )

    def ahead(self, item: Item, tile: Expr, points: int) -> Ahead:
        """Return what is to be asked for of a tile's codes, at so many points."""
        plan, tokens = self.plan, self.plan.problem.block_tokens
        heads = T.cast(item.request, "int64") * plan.problem.kv_heads + item.head
        first = heads * self.blocks * tokens + tile * plan.tile
        lines = plan.tile * self.size // BYTES if plan.ahead else 0
        return Ahead(self.codes.part(first * self.size), lines, points)

    def _params(self, first: Expr, start: Expr) -> Region:
        cache = self.plan.cache
        if self.per_channel:
            return self.params.part((first + start) // cache.group_size * (2 * self.width))
        tokens = cache.block_tokens
        block = first + start // tokens * tokens
        return self.params.part(block * (2 * self.groups) + start % tokens)

    def widen(self, tile: Codes, into: Region, skip: Expr) -> None:
        """Convert params to fp32, row by row, from ``skip`` elements on; ask for later ones."""
        length = self.width if self.per_channel else self.plan.tile
        with T.serial(2 * self.groups) as row:
            at = T.bind(row * self.stride + skip)
            for i in range(0, length, LANES):
                if self.plan.ahead and i * HALF % BYTES == 0:
                    later = tile.params_ahead
                    vector.prefetch(later.buffer, later.base + at + i)
                half = tile.params.load(at + i, LANES)
                into.store(row * length + i, T.cast(half, "float32x16"))
