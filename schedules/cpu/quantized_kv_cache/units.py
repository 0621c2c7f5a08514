"""How the channels of a row of keys are taken apart: parts that fill vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd

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


def units_of(
    width: int, lanes: int, within: int = 0, apart: Callable[[int], object] = lambda _: None
) -> tuple[Unit, ...]:
    """Take ``width`` channels, a multiple of 4, apart; the widest units first.

    With ``within`` no unit of any field crosses a multiple of so many channels. Units that
    ``apart`` tells from each other by their first channel are not counted together.
    """
    found: list[Unit] = []
    start = 0
    # Where the fields begin decides how many channels are surely together.
    together = gcd(width, within) if within else width
    while start < width:
        most = min(width - start, together)
        while lanes > QUAD and QUAD * lanes > most:
            lanes //= 2
        unit = Unit(start, lanes, QUAD if QUAD * lanes <= most else 1)
        last = found[-1] if found else unit
        alike = (last.lanes, last.vectors, apart(last.start))
        if found and alike == (unit.lanes, unit.vectors, apart(start)):
            found[-1] = replace(last, count=last.count + 1)
        else:
            found.append(unit)
        start += unit.channels
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
