"""Key codes: rows of bytes, sixteen tokens at a time, transposed into quads side by side.

for token of sixteen:                         # a row: 32-bit lanes of four channels
    bytes = codes of field 0 | codes of field 1 << bits | ...
for each quad j of the unit:
    out[j, sixteen tokens] = column j of the rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import LANES, QUAD
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.math import kind
from wattune.schedules.cpu.quantized_kv_cache.across import transpose
from wattune.schedules.cpu.quantized_kv_cache.numerics import Quantizer
from wattune.schedules.cpu.quantized_kv_cache.rows import Block
from wattune.schedules.cpu.quantized_kv_cache.units import Unit, quad_order

Expr = Any
# (zero, 1 / scale) of a vector: token of the tile, field, vector of the unit.
ParamsOf = Callable[[Expr, int, int], tuple[Expr, Expr]]

# Within a part, four even channels, four odd ones, and the same of another two vectors.
_PAIRED = (0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15)


@dataclass(frozen=True)
class KeyTiles:
    """Packs tiles of sixteen tokens; ``width`` is the channels of a field."""

    quantizer: Quantizer
    width: int

    def emit(self, block: Block, tile: Expr, unit: Unit, start: Expr, params: ParamsOf) -> None:
        """Quantise and store the unit of a tile whose fields begin at channel ``start``."""

        def row(token: Expr) -> Expr:
            at = T.bind(block.row(tile * LANES + token) + start)
            return self._row(block, at, unit, lambda f, v: params(token, f, v))

        quads = self.width // QUAD
        first = T.bind(
            block.codes_at + T.cast(tile * quads + start // QUAD, "int64") * (LANES * QUAD)
        )
        if unit.quads == 1:
            with T.serial(LANES) as token:
                vector.store_as(block.codes, first + token * QUAD, row(token))
            return
        scratch = vector.array(LANES * unit.quads, "int32")
        with T.serial(LANES) as token:
            vector.store(scratch, [token * unit.quads], row(token))
        wide = kind("int32", unit.quads)
        rows = [scratch.vload([t * unit.quads], wide) for t in range(LANES)]
        self._store(block, first, unit, rows)

    def _row(
        self, block: Block, start: Expr, unit: Unit, params: Callable[[int, int], tuple[Expr, Expr]]
    ) -> Expr:
        """Return a token's bytes as 32-bit lanes."""
        lanes = unit.lanes
        # Packs take four vectors; a rest of four channels is clipped and narrowed alone.
        rest = replace(self.quantizer, packs=False)
        quantizer = self.quantizer if unit.vectors > 1 else rest
        fields = []
        for f in range(quantizer.fields):
            at = start + f * self.width
            vectors = block.rows.several(block.source, at, lanes, unit.vectors)
            codes = [quantizer.codes(x, *params(f, v), lanes) for v, x in enumerate(vectors)]
            fields.append(quantizer.narrow(codes, lanes))
        merged = quantizer.merge(fields, unit.channels)
        if unit.vectors > 1 and block.rows.pairs:
            order = [at + i for at in range(0, unit.channels, 16) for i in _PAIRED]
            merged = T.Shuffle([merged], order)
        return T.reinterpret(kind("int32", unit.quads), merged)

    def _store(self, block: Block, first: Expr, unit: Unit, rows: Sequence[Expr]) -> None:
        """Transpose squares and store each quad of the tile."""
        lanes = unit.quads
        order = quad_order(unit, self.quantizer.packs, block.rows.pairs)
        for at in range(0, LANES, lanes):
            columns = transpose([T.bind(row) for row in rows[at : at + lanes]], lanes)
            for quad, column in zip(order, columns, strict=True):
                to = first + quad * LANES * QUAD + at * QUAD
                vector.store_as(block.codes, to, column, lanes)
