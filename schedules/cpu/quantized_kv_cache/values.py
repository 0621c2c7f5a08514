"""Value codes: four tokens of a channel side by side, channels along the lanes.

for part of 4 x fields tokens, for vector n of channels:
    out[part, n] = codes of tokens 0, 1, 2, 3 in the bytes of a lane,  | next four << bits | ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import LANES, QUAD
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.math import kind
from wattune.schedules.cpu.quantized_kv_cache.numerics import Quantizer
from wattune.schedules.cpu.quantized_kv_cache.params import Share
from wattune.schedules.cpu.quantized_kv_cache.rows import Block

Expr = Any

# Four lanes of four tokens become four tokens of four lanes.
_TURNED = tuple(QUAD * token + lane for lane in range(QUAD) for token in range(QUAD))


@dataclass(frozen=True)
class ValueTiles:
    """Packs tiles of sixteen tokens, ``lanes`` channels at a time; groups are ``group_size``."""

    quantizer: Quantizer
    width: int
    group_size: int
    lanes: int

    def emit(self, block: Block, tile: Expr, shares: Sequence[Share]) -> None:
        """Quantise and store a tile with the params of its groups."""
        each = QUAD * self.quantizer.fields
        with T.serial(LANES // each) as part:
            row = T.cast(tile * (LANES // each) + part, "int64") * (self.width * QUAD)
            to = T.bind(block.codes_at + row)
            for share in shares:
                with T.serial(share.count) as i:
                    spread = [
                        tuple(
                            T.bind(T.broadcast(one, self.lanes))
                            for one in share.of(i, part * each + t)
                        )
                        for t in range(each)
                    ]
                    with T.serial(self.group_size // self.lanes) as n:
                        at = T.bind((share.first + i) * self.group_size + n * self.lanes)
                        quads = self._quads(block, tile * LANES + part * each, at, spread)
                        vector.store(block.codes, [to + at * QUAD], quads)

    def _quads(self, block: Block, token: Expr, at: Expr, params: list[Any]) -> Expr:
        """Return the bytes of a vector of channels."""
        lanes, fields = self.lanes, []
        for f in range(self.quantizer.fields):
            codes = []
            for t in range(QUAD * f, QUAD * f + QUAD):
                x = block.rows.natural(block.source, block.row(token + t) + at, lanes)
                codes.append(self.quantizer.codes(x, params[t][0], params[t][1], lanes))
            fields.append(self.quantizer.narrow(codes, lanes))
        merged = self.quantizer.merge(fields, QUAD * lanes)
        if self.quantizer.packs:
            order = [at + i for at in range(0, QUAD * lanes, 16) for i in _TURNED]
        else:
            order = [t * lanes + lane for lane in range(lanes) for t in range(QUAD)]
        return T.reinterpret(kind("uint8", QUAD * lanes), T.Shuffle([merged], order))
