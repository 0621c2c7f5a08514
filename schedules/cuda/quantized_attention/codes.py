"""Codes as float16 without arithmetic: a word of codes becomes operands of matrix products.

The bits of a code, all others cleared, are a subnormal float16: code * 2^(place - 24), with the
place of its lowest bit in the half word. Products take subnormals exactly. Of a word's four bytes
one mask takes bytes 0 and 2 of a field, after a shift by 8 bytes 1 and 3: two pairs of the values
that are summed over, for one row of the left side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.quantized_attention.plan import WIDE

Expr = Any
Buffer = Any

# What a code is multiplied by when its bits are taken for a float16: the least subnormal.
CODE_UNIT = 2.0**-24


@dataclass(frozen=True)
class Codes:
    """Four words of a lane, one for each octet of rows, in registers."""

    bits: int
    words: Buffer
    shifted: Buffer

    @classmethod
    def declare(cls, bits: int) -> Codes:
        """Declare the registers."""
        return cls(bits, ptx.registers(4, "uint32"), ptx.registers(4, "uint32"))

    def load(
        self, shared: Buffer, slot: Expr, number: Expr, lane: Expr, skip: Expr | None = None
    ) -> None:
        """Load what a lane has copied as its copy of this number; ``shared`` is of words.

        Codes ``skip`` bits further up become those of the first fields.
        """
        at = T.shift_right(slot + number * (WARP * WIDE) + lane * WIDE, T.int32(2))
        ptx.load_wide(self.words, 0, shared, at, 4)
        for i in range(4):
            if skip is not None:
                bits = T.cast(skip, "uint32")
                ptx.put(self.words, i, T.shift_right(self.words[i], bits))
            ptx.put(self.shifted, i, T.shift_right(self.words[i], T.uint32(8)))

    def left(self, field: int, pair: int) -> list[Expr]:
        """Return the left side of a product, 16 x 16: octets 2 pair and 2 pair + 1."""
        mask = T.uint32(((1 << self.bits) - 1 << self.bits * field) * 0x00010001)
        octets = (2 * pair, 2 * pair + 1)
        return [
            *(T.bind(self.words[x] & mask) for x in octets),
            *(T.bind(self.shifted[x] & mask) for x in octets),
        ]
