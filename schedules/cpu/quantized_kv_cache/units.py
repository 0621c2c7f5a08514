"""How the channels of a row of keys are taken apart: parts that fill vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wattune.ops.kv_quantization import QUAD


@dataclass(frozen=True)
class Unit:
    """``vectors`` vectors of ``lanes`` channels of every field, ``count`` times from ``start`` on.

    Four vectors become quads in as many 32-bit lanes as a vector has.
    """

    start: int
    lanes: int
    vectors: int
    count: int = 1

    @property
    def channels(self) -> int:
        """Return the channels of a field."""
        return self.lanes * self.vectors

    @property
    def quads(self) -> int:
        """Return the 32-bit lanes of codes of a token."""
        return self.channels // QUAD


def units_of(width: int, lanes: int, loops: bool = True) -> tuple[Unit, ...]:
    """Take ``width`` channels, a multiple of 4, apart; the widest units first.

    With ``loops`` equal units are one with a count.
    """
    found, start = [], 0
    while start < width:
        left = width - start
        while lanes > QUAD and QUAD * lanes > left:
            lanes //= 2
        unit = Unit(start, lanes, QUAD if QUAD * lanes <= left else 1)
        if loops:
            unit = replace(unit, count=left // unit.channels)
        found.append(unit)
        start += unit.count * unit.channels
    return tuple(found)


def quad_order(unit: Unit, packs: bool, pairs: bool) -> list[int]:
    """Return which quad of the unit each 32-bit lane of its bytes holds.

    Packs fill a 128-bit part with four lanes of each vector in turn. Of pairs, vectors 0 and 1 hold
    the even and the odd channels of the first half, and their bytes are then put in order.
    """
    parts = unit.lanes // QUAD
    if not packs or unit.vectors == 1:
        return list(range(unit.quads))
    if not pairs:
        return [parts * slot + k for k in range(parts) for slot in range(QUAD)]
    return [
        2 * parts * (slot // 2) + 2 * k + slot % 2 for k in range(parts) for slot in range(QUAD)
    ]
