"""Sizes that a schedule of packing on a GPU decides.

A thread block takes a *piece*, ``tokens`` of a packed block of one head's keys or values: groups
and words of codes lie in one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from wattune.ops.kv_quantization import QUAD
from wattune.ops.quantized_kv_cache import QuantizedKVCache

# Tokens that words of codes of all formats divide.
LEAST = 32
# Static shared memory of a thread block.
STATIC_SHARED = 48 << 10


@dataclass(frozen=True)
class PackPlan:
    """One schedule of packing a cache."""

    cache: QuantizedKVCache
    threads: int
    tokens: int

    @property
    def fields(self) -> int:
        """Return the codes of a byte."""
        return self.cache.fields

    @property
    def levels(self) -> int:
        """Return the largest code."""
        return int(2**self.cache.bits - 1)

    @property
    def pieces(self) -> int:
        """Return the pieces of a packed block."""
        return self.cache.block_tokens // self.tokens

    def groups(self, which: str) -> int:
        """Return how many groups a piece has."""
        return self.tokens * self.cache.width(which) // self.cache.group_size

    @property
    def group_lanes(self) -> int:
        """Return how many lanes share a group of channels, four each."""
        return self.cache.group_size // QUAD

    @property
    def shared_bytes(self) -> int:
        """Return the shared memory: zero and 1 / scale of each group."""
        return 8 * max(self.groups("k"), self.groups("v"))


def piece_sizes(cache: QuantizedKVCache) -> tuple[int, ...]:
    """Return how many tokens a piece may have."""
    least = lcm(LEAST, cache.group_size)
    found = [least]
    while cache.block_tokens % (2 * found[-1]) == 0:
        found.append(2 * found[-1])
    return tuple(found)
