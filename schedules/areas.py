"""Named areas of one piece of memory: of a workspace, of a block's shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LINE = 64


def round_up(value: int, step: int) -> int:
    """Return the next multiple of ``step``."""
    return -(-value // step) * step


@dataclass(frozen=True)
class Areas:
    """Byte offsets of named areas, each at a cache line, and their end."""

    starts: Mapping[str, int]
    bytes: int

    @classmethod
    def of(cls, **sizes: int) -> Areas:
        """Lay areas of these sizes one behind the other."""
        at, starts = 0, {}
        for name, size in sizes.items():
            starts[name] = at
            at += round_up(size, LINE)
        return cls(starts, at)
