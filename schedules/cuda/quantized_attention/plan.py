"""Sizes and places that a schedule of quantised attention on a GPU decides.

Tokens are taken 32 at a time, a *part*: eight *quads* of four. An *octet* is 8 rows of a product,
one of each lane / 4; octet x of a part holds token x of the quad that belongs to each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

from wattune.ops.dtypes import itemsize
from wattune.ops.kv_quantization import QUAD
from wattune.ops.quantized_decode_attention import QuantizedDecodeAttention
from wattune.ops.quantized_kv_cache import QuantizedKVCache
from wattune.schedules.areas import Areas
from wattune.schedules.cuda.attention import plan as attention
from wattune.schedules.cuda.base import WARP

PART = 32
# Rows of a product's right side: a query head and token each.
COLUMNS = attention.ROWS
# Channels, or tokens, that one product sums over.
DEPTH = 16
WIDE = 16
# Tokens of a tile of the residual, and the bytes between its rows that keep banks apart.
ROWS = 16
PAD = 16
HALF = 2


@dataclass(frozen=True)
class Step:
    """Products with the words of key codes ``word`` (of 4 neighbouring lanes), field ``field``.

    Only channels of ``group`` count; ``whole`` says that all of them are of that group.
    """

    word: int
    field: int
    group: int
    whole: bool


@dataclass(frozen=True)
class QuantizedPlan(attention.Shares):
    """One schedule of one problem; a team is a warp.

    Each warp reads tiles of ``tile`` packed tokens through its own ring of ``stages`` tiles; it
    scores ``step`` tokens before it takes their weights.
    """

    problem: QuantizedDecodeAttention
    stages: int
    tile: int
    step: int

    @property
    def block_keys(self) -> int:
        """Return the keys that all warps take at once."""
        return self.tile * self.teams

    @property
    def panels(self) -> int:
        """Return the products side by side that a warp's rows take, 8 rows each."""
        return self.rows // COLUMNS

    @cached_property
    def cache(self) -> QuantizedKVCache:
        """Return the geometry of the cache."""
        return self.problem.quantized

    @property
    def key_words(self) -> int:
        """Return the words of codes of a key."""
        return self.problem.head_dim // (QUAD * self.cache.fields)

    @property
    def key_loads(self) -> int:
        """Return the words of a key that each of 4 neighbouring lanes reads."""
        return -(-self.key_words // 4)

    @property
    def value_loads(self) -> int:
        """Return the words of a value that each lane's row reads: one of 32 channels."""
        return self.problem.value_dim // PART

    @property
    def value_fields(self) -> int:
        """Return the fields of a word of value codes that a lane takes.

        The words of a part's tokens are 8, 4 or 2; of 2 each is read by two lanes, which take
        half of its fields.
        """
        return min(2, self.cache.fields)

    @property
    def value_copies(self) -> int:
        """Return the copies of each lane of a part's value codes."""
        return -(-2 * self.value_loads // self.cache.fields)

    @property
    def token_groups(self) -> int:
        """Return the groups of tokens that a tile's keys are in."""
        return max(1, self.tile // self.problem.group_size) if self.cache.per_channel("k") else 1

    @property
    def block_tiles(self) -> int:
        """Return the tiles of a packed block."""
        return self.problem.block_tokens // self.tile

    @property
    def sparing(self) -> bool:
        """Say whether codes of a tile may be left out that nobody attends to."""
        return bool(self.problem.block_size % self.tile)

    @cached_property
    def entry_tiles(self) -> int:
        """Return the most tiles that a listed block overlaps."""
        size, tile = self.problem.block_size, self.tile
        starts = range(0, tile, gcd(size, tile)) if size else ()
        return max(((s + size - 1) // tile + 1 for s in starts), default=1)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Return the products that a key takes: each sums 16 channels of a field."""
        width = self.problem.head_dim // self.cache.fields
        size = self.problem.head_dim // self.cache.groups("k")
        found = []
        for word in range(self.key_loads):
            for field in range(self.cache.fields):
                first = field * width + DEPTH * word
                last = field * width + min(DEPTH * (word + 1), width) - 1
                groups = range(first // size, last // size + 1)
                found += [Step(word, field, group, len(groups) == 1) for group in groups]
        return tuple(found)

    # Bytes of a slot of the ring: codes and params of a tile.

    @property
    def key_bytes(self) -> int:
        """Return the bytes of a tile's key codes."""
        return self.tile // PART * self.key_loads * WARP * WIDE

    @property
    def value_bytes(self) -> int:
        """Return the bytes of a tile's value codes."""
        return self.tile // PART * self.value_copies * WARP * WIDE

    @property
    def key_params(self) -> int:
        """Return the numbers in a row of key params in a slot: scales, or zeros."""
        return self.problem.head_dim if self.cache.per_channel("k") else self.tile

    @property
    def key_param_rows(self) -> int:
        """Return the rows of key params in a slot: scales, zeros of each group."""
        return 2 * (self.token_groups if self.cache.per_channel("k") else self.cache.groups("k"))

    @property
    def params_at(self) -> tuple[int, int]:
        """Return where a slot's params of keys and of values begin."""
        keys = self.key_bytes + self.value_bytes
        return keys, keys + HALF * self.key_param_rows * self.key_params

    @property
    def slot_bytes(self) -> int:
        """Return the bytes of a slot."""
        return self.params_at[1] + HALF * 2 * self.cache.groups("v") * self.tile

    def row_bytes(self, which: str) -> int:
        """Return the bytes from row to row of a residual tile in shared memory."""
        return self.cache.width(which) * itemsize(self.problem.dtype) + PAD

    @property
    def residual_bytes(self) -> int:
        """Return the bytes of a residual tile."""
        return ROWS * (self.row_bytes("k") + self.row_bytes("v"))

    @property
    def warp_bytes(self) -> int:
        """Return the shared memory of a warp."""
        return max(self.stages * self.slot_bytes, self.residual_bytes)

    @property
    def shared(self) -> Areas:
        """Return the shared memory: rings, notes of their tiles; sums lie where the rings were."""
        return Areas.of(
            rings=max(self.teams * self.warp_bytes, self.sum_bytes),
            notes=self.teams * self.stages * WIDE,
            state=8 * self.teams * self.block_rows,
            last=4 if self.combine == "last" else 0,
        )
