"""The shared memory of a warp: its ring and notes of what is in it, later residual tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.kernel import Shared
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import WIDE, QuantizedPlan
from wattune.schedules.cuda.quantized_attention.tiles import Tile

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Memory:
    """Views of the shared memory, and where a warp's part of it begins."""

    plan: QuantizedPlan
    place: Place
    bytes: Buffer
    words: Buffer
    notes: Buffer
    begin: Expr

    @classmethod
    def of(cls, plan: QuantizedPlan, place: Place, shared: Shared) -> Memory:
        """View a block's shared memory."""
        count = plan.teams * plan.stages * WIDE // 4
        return cls(
            plan,
            place,
            shared.view(0, shared.count, "uint8"),
            shared.view(0, shared.count // 4, "uint32"),
            shared.view(plan.shared.starts["notes"], count, "int32"),
            T.bind(place.warp * plan.warp_bytes),
        )

    def load(self, into: Buffer, at: Expr, count: int) -> None:
        """Load ``count`` words from a byte on."""
        ptx.load_wide(into, 0, self.words, T.shift_right(at, T.int32(2)), count)

    def slot(self, stage: Expr) -> Expr:
        """Return the byte where a slot of the warp's ring begins."""
        return self.begin + stage * self.plan.slot_bytes

    def _note_at(self, stage: Expr) -> Expr:
        return (self.place.warp * self.plan.stages + stage) * (WIDE // 4)

    def note(self, stage: Expr, tile: Tile) -> None:
        """Note what the tile of a slot is: its start, low, high."""
        at = T.bind(self._note_at(stage))
        with T.If(self.place.lane == 0), T.Then():
            for i, value in enumerate((tile.start, tile.low, tile.high)):
                ptx.put(self.notes, at + i, value)

    def tile(self, stage: Expr) -> Tile:
        """Return what was noted; nobody asks for its block any more."""
        note = ptx.registers(4, "int32")
        ptx.load_wide(note, 0, self.notes, self._note_at(stage), 4)
        start, low, high = (T.bind(note[i]) for i in range(3))
        return Tile(block=None, offset=None, start=start, low=low, high=high)
