"""Packs one block of one head: the part that both kernels share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import LANES
from wattune.ops.quantized_kv_cache import QuantizedKVCache
from wattune.schedules.cpu.quantized_kv_cache.keys import KeyTiles
from wattune.schedules.cpu.quantized_kv_cache.numerics import Quantizer
from wattune.schedules.cpu.quantized_kv_cache.params import ChannelParams, TokenParams
from wattune.schedules.cpu.quantized_kv_cache.rows import Block, Rows
from wattune.schedules.cpu.quantized_kv_cache.units import Unit, units_of
from wattune.schedules.cpu.quantized_kv_cache.values import ValueTiles

Expr = Any


@dataclass(frozen=True)
class Packer:
    """How blocks of a cache are packed.

    ``lanes`` fp32 lanes a vector at most; ``packs`` and ``halves`` as in `Quantizer`; ``together``
    and ``unroll`` as in `ChannelParams`.
    """

    cache: QuantizedKVCache
    lanes: int
    packs: bool
    halves: bool
    together: int
    unroll: int

    @property
    def quantizer(self) -> Quantizer:
        """Return the quantiser."""
        return Quantizer(self.cache.bits, self.packs, self.halves)

    @property
    def rows(self) -> Rows:
        """Return how rows are read."""
        return Rows.of(self.cache.dtype, self.packs, self.halves)

    def emit(self, which: str, block: Block) -> None:
        """Pack a block of keys ("k") or values ("v")."""
        if which == "v":
            self._values(block)
        elif self.cache.per_channel("k"):
            self._keys_per_channel(block)
        else:
            self._keys_per_token(block)

    def _key_tiles(self) -> KeyTiles:
        return KeyTiles(self.quantizer, self.cache.head_dim // self.quantizer.fields)

    def _token_params(self, width: int) -> TokenParams:
        cache = self.cache
        return TokenParams(self.quantizer, cache.group_size, width, cache.block_tokens, self.lanes)

    def _keys_per_channel(self, block: Block) -> None:
        """Take a group of tokens at a time: a unit of channels for its params, then its codes."""
        cache, tiles = self.cache, self._key_tiles()
        size = cache.group_size
        channels = ChannelParams(self.quantizer, size, tiles.width, self.together, self.unroll)
        with T.serial(cache.block_tokens // size) as group:
            for unit in units_of(tiles.width, self.lanes):
                with T.serial(unit.count) as n:
                    start = T.bind(unit.start + n * unit.channels)
                    params = channels.emit(block, group, unit, start)

                    def of(token: Expr, f: int, v: int, params: Any = params) -> Any:
                        return params[f][v]

                    with T.serial(size // LANES) as tile:
                        tiles.emit(block, group * (size // LANES) + tile, unit, start, of)

    def _keys_per_token(self, block: Block) -> None:
        """Take sixteen tokens at a time; a unit lies in one group of channels."""
        cache, tiles = self.cache, self._key_tiles()
        size = cache.group_size
        fields = range(self.quantizer.fields)

        def shares_of(start: int) -> list[int]:
            return [(f * tiles.width + start) // size // LANES for f in fields]

        # Which share a group is in must be known here.
        units = units_of(tiles.width, self.lanes, within=size, apart=shares_of)
        with T.serial(cache.block_tokens // LANES) as tile:
            shares = self._token_params(cache.head_dim).emit(block, tile)
            for unit in units:
                with T.serial(unit.count) as n:
                    start = T.bind(unit.start + n * unit.channels)

                    def of(
                        token: Expr, f: int, v: int, unit: Unit = unit, start: Expr = start
                    ) -> Any:
                        share = shares[shares_of(unit.start)[f]]
                        group = T.truncdiv(f * tiles.width + start, size)
                        pair = share.of(group - share.first, token)
                        return [T.broadcast(one, unit.lanes) for one in pair]

                    tiles.emit(block, tile, unit, start, of)

    def _values(self, block: Block) -> None:
        cache = self.cache
        tiles = ValueTiles(self.quantizer, cache.value_dim, cache.group_size, self.lanes)
        with T.serial(cache.block_tokens // LANES) as tile:
            tiles.emit(block, tile, self._token_params(cache.value_dim).emit(block, tile))
