"""Rows of numbers as tiles: where they lie, which tile holds what.

A block of ``block`` numbers (64, or 32 where groups or tiles are smaller) is one tile of all rows
of a pass: the low bytes of row r in tile row 2 r, the high bytes in row 2 r + 1. One product with
a tile of codes serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.areas import Areas
from wattune.schedules.cpu import amx, math, vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.quantized_attention.plan import QuantizedPlan
from wattune.schedules.cpu.quantized_attention.product import BLOCK, QUAD, ByteProduct
from wattune.schedules.cpu.vector import BYTES, LANES

Expr = Any

WORDS = BYTES // 4
# Tiles by number: sums of two vectors of columns; up to four blocks of numbers; codes.
SUMS = (0, 1)
NUMBERS = (2, 3, 4, 5)
CODES = (6, 7)
ALL_TILES = (*SUMS, *NUMBERS, *CODES)


@dataclass(frozen=True)
class TileProduct(ByteProduct):
    """Byte products in tiles: blocks of ``block`` numbers of all ``rows`` lie side by side."""

    rows: int
    block: int

    @property
    def row_words(self) -> int:
        """Return the words of a row of a block: its low bytes, then its high bytes."""
        return self.words(self.block)

    def words(self, count: int) -> int:
        """Return the words of a row of ``count`` numbers."""
        return -(-count // self.block) * self.block * self.width // 4

    def write(self, row: Region, at: Expr, values: Sequence[Expr]) -> Expr:
        """Scale, round and split into the rows of blocks."""
        bits, unit = self._integers(values)
        pairs = [self._split(bits[i : i + 2]) for i in range(0, len(bits), 2)]
        if self.block > BLOCK:
            halves = (range(8), range(8, 16))
            orders = [[word + side for side in (0, 16) for word in half] for half in halves]
            pairs = [
                T.Shuffle([T.bind(pairs[i]), T.bind(pairs[i + 1])], order)
                for i in range(0, len(pairs), 2)
                for order in orders
            ]
        vectors = self.row_words // WORDS
        for i, pair in enumerate(pairs):
            block, part = divmod(i, vectors)
            row.store(at + (block * self.rows * self.row_words + part * WORDS), pair)
        return unit


@dataclass(frozen=True)
class AmxPlan(QuantizedPlan):
    """A schedule on tiles: every pass over rows has ``rows`` of them."""

    product: TileProduct

    @property
    def block(self) -> int:
        """Return the numbers of a tile's row."""
        return self.product.block

    @property
    def quads(self) -> int:
        """Return the rows of a tile of codes."""
        return self.block // QUAD

    @property
    def value_steps(self) -> int:
        """Return the vectors of columns."""
        return self.problem.value_dim // LANES

    @property
    def areas(self) -> Areas:
        """Return a thread's scratch: configuration, unpacked codes twice, sums twice."""
        most = max(self.problem.head_dim, self.tile) // QUAD
        return Areas.of(
            configuration=amx.CONFIGURATION_BYTES,
            codes=len(SUMS) * (0 if self.fields == 1 else most * BYTES),
            sums=len(SUMS) * 2 * self.rows * BYTES,
        )

    def _own(self, rows: int) -> Iterator[tuple[str, int]]:
        yield from super()._own(rows)
        yield "tiles", self.areas.bytes

    def query_at(self, row: Expr, group: int) -> Expr:
        """Return the word at which the numbers of a query's group of channels start."""
        first = group * (self.problem.head_dim // self.key_groups) // self.block
        return (row + first * self.base.item_rows) * self.product.row_words

    def weight_at(self, row: Expr, group: Expr) -> Expr:
        """Return the word at which the numbers of a row's weights for a group start."""
        return (row + group * (self.tile // self.block) * self.base.item_rows) * (
            self.product.row_words
        )

    def area(self, tiles: Region, name: str, which: int = 0) -> Region:
        """Return the first or second half of an area of the scratch, in words."""
        half = {"codes": max(self.problem.head_dim, self.tile) // QUAD, "sums": 2 * self.rows}
        return tiles.part(T.int64(self.areas.starts[name] // 4 + which * half.get(name, 0) * WORDS))

    def begin(self, tiles: Region) -> None:
        """Emit the configuration of this thread's tiles."""
        rows = {
            **dict.fromkeys((*SUMS, *NUMBERS), 2 * self.rows),
            **dict.fromkeys(CODES, self.quads),
        }
        entries = amx.configuration(rows, dict.fromkeys(NUMBERS, self.block))
        place = self.area(tiles, "configuration")
        place.store(0, T.reinterpret("int32x16", vector.constant(entries)))
        amx.configure(place.buffer, place.base)

    def load_numbers(self, numbers: Region, block: int, tile: int) -> None:
        """Load a block of all rows of a pass."""
        at = block * self.base.item_rows * self.product.row_words
        amx.load(tile, numbers.buffer, numbers.base + at, self.block)

    def store_sums(self, tiles: Region, which: int) -> None:
        """Store the sums of a vector of columns."""
        area = self.area(tiles, "sums", which)
        amx.store(SUMS[which], area.buffer, area.base, BYTES)

    def total(self, tiles: Region, which: int, row: Expr) -> Expr:
        """Return a row of stored sums in fp32: 256 high + low."""
        area = self.area(tiles, "sums", which)
        low, high = (
            T.cast(area.load((2 * row + half) * WORDS, LANES), "float32x16") for half in (0, 1)
        )
        return T.bind(vector.multiply_add(high, math.real(256.0, LANES), low))
