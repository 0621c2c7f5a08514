"""Sizes of the AMX loop nest and where its scratch lies in the workspace: plain arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from wattune.schedules.cpu import amx
from wattune.schedules.cpu.ternary_gemm.layout import VectorLayout
from wattune.schedules.cpu.ternary_gemm.workspace import LINE, Workspace, round_up


@dataclass(frozen=True)
class Plan:
    """How a problem is cut into tiles. ``tokens`` is the bucket's upper end.

    A *unit* is the least number of vectors whose columns fill whole tiles: 4 vectors are 1 tile
    with 4 digits a byte, 16 vectors are 5 tiles with 5 digits.
    """

    weight: VectorLayout
    tokens: int
    threads: int
    panel_groups: int
    token_tiles: int
    group_tiles: int
    k_block: int

    @cached_property
    def token_blocks(self) -> int:
        """Blocks of ``token_tiles`` tiles along the tokens."""
        return -(-self.tokens // (amx.TILE_ROWS * self.token_tiles))

    @cached_property
    def rows(self) -> int:
        """Tokens in a tile: tile products take time by the row, so blocks share them evenly."""
        return -(-self.tokens // (self.token_blocks * self.token_tiles))

    @property
    def token_block(self) -> int:
        """Tokens of one register block."""
        return self.rows * self.token_tiles

    @property
    def parts(self) -> int:
        """Register blocks along the rows of a panel."""
        return self.panel_groups // self.group_tiles

    @property
    def total_groups(self) -> int:
        """Groups of 16 rows in the weight's blob."""
        return self.weight.blocks * self.weight.groups

    @property
    def panels(self) -> int:
        """Panels along the rows; the last may reach beyond the blob."""
        return -(-self.total_groups // self.panel_groups)

    @property
    def unit_vectors(self) -> int:
        """Vectors of a unit."""
        return amx.TILE_ROWS // math.gcd(amx.TILE_ROWS, self.weight.digits)

    @property
    def unit_tiles(self) -> int:
        """Tiles of a unit."""
        return self.unit_vectors * self.weight.digits // amx.TILE_ROWS

    @property
    def k_tiles(self) -> int:
        """Tiles along the columns."""
        return -(-self.weight.steps * self.weight.digits // amx.TILE_ROWS)

    @property
    def columns(self) -> int:
        """Columns with padding: what the quantised activations are padded to."""
        return self.k_tiles * amx.ROW_BYTES

    @cached_property
    def block_units(self) -> int:
        """Units of a block of columns."""
        return -(-self.k_block // (self.unit_tiles * amx.ROW_BYTES))

    @property
    def k_blocks(self) -> int:
        """Blocks along the columns."""
        return -(-self.k_tiles // (self.block_units * self.unit_tiles))

    @property
    def block_tiles(self) -> int:
        """Tiles along the columns of a panel."""
        return min(self.k_tiles, self.block_units * self.unit_tiles)

    def span(self, block: int) -> tuple[int, int]:
        """Return the vectors and tiles of a block of columns: the last one has what is left."""
        vectors, tiles = self.block_units * self.unit_vectors, self.block_units * self.unit_tiles
        return (
            min(vectors, self.weight.steps - block * vectors),
            min(tiles, self.k_tiles - block * tiles),
        )

    @property
    def panel_bytes(self) -> int:
        """Bytes of the decoded panel."""
        return self.panel_groups * self.block_tiles * amx.TILE_BYTES

    @property
    def sum_tiles(self) -> int:
        """Tiles of sums in memory: one register block, or all where sums wait for columns."""
        if self.k_blocks == 1:
            return self.token_tiles * self.group_tiles
        return self.token_blocks * self.token_tiles * self.panel_groups

    @property
    def panel_at(self) -> int:
        """Offset of the panel in a thread's scratch, after the tile configuration."""
        return amx.CONFIGURATION_BYTES

    @property
    def sums_at(self) -> int:
        """Offset of the sums in a thread's scratch."""
        return self.panel_at + self.panel_bytes

    @property
    def scratch_bytes(self) -> int:
        """Bytes of one thread's scratch."""
        return self.sums_at + self.sum_tiles * amx.TILE_BYTES

    @property
    def workspace(self) -> Workspace:
        """Return the workspace: token rows an odd number of lines apart, then the scratch.

        With a power of two the rows of a tile would all fall into one set of the L1 cache.
        """
        lines = self.columns // LINE
        stride = (lines + 1 - lines % 2) * LINE
        tokens = round_up(self.tokens, self.token_block)
        return Workspace(tokens, stride, self.threads * self.scratch_bytes)

    @property
    def sums(self) -> int:
        """Number of the first tile after the sums of a register block."""
        return self.token_tiles * self.group_tiles

    @property
    def held(self) -> int:
        """Tiles of the operand that stays while the other one streams."""
        return min(self.token_tiles, self.group_tiles)

    def configuration(self) -> list[int]:
        """Return the tile configuration: sums and tokens have ``rows`` rows, weights 16."""
        rows = dict.fromkeys(range(self.sums), self.rows)
        tokens_held = self.token_tiles <= self.group_tiles
        for tile in range(self.sums, amx.TILES):
            is_held = tile < self.sums + self.held
            rows[tile] = self.rows if is_held == tokens_held else amx.TILE_ROWS
        return amx.configuration(rows)

    @property
    def dots(self) -> int:
        """Tile products of the whole problem."""
        tokens = self.token_blocks * self.token_tiles
        return self.panels * self.panel_groups * self.k_tiles * tokens

    @property
    def loads(self) -> int:
        """Tile loads of operands, without those of sums that wait."""
        return self.dots * (self.token_tiles + self.group_tiles) // self.sums
