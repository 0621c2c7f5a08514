"""Copies of a tile's codes and params to a slot of the warp's ring, 16 bytes a lane at a time.

Codes lie in the slot as lanes read them: a lane reads what it has copied itself. Params are read by
other lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import LANES, QUAD
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.kernel import Block
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import HALF, PART, WIDE, QuantizedPlan
from wattune.schedules.cuda.quantized_attention.tiles import Tile

Expr = Any
Buffer = Any

# Bytes of a word of codes of 16 tokens, or 16 channels.
_LINE = 64


@dataclass(frozen=True)
class Copies:
    """Emits the copies of a warp.

    ``shared`` is the block's memory in bytes; ``quad`` is that of a part whose tokens lie in the
    lane's row.
    """

    plan: QuantizedPlan
    place: Place
    block: Block
    shared: Buffer
    quad: Expr

    def emit(self, tile: Tile, slot: Expr) -> None:
        """Emit the copies of a tile into the slot at a byte of shared memory."""
        plan, place = self.plan, self.place
        index = place.head_index(plan.problem.kv_heads) * self.block.integers["packed_blocks"]
        index = T.bind(index + tile.block)
        self._keys(tile, index, slot)
        self._values(tile, index, slot + plan.key_bytes)
        keys, values = plan.params_at
        if plan.cache.per_channel("k"):
            self._channel_params(tile, index, slot + keys)
        else:
            self._token_params("k", plan.cache.groups("k"), tile, index, slot + keys)
        self._token_params("v", plan.cache.groups("v"), tile, index, slot + values)

    def _copy(self, source: Buffer, at: Expr, into: Expr) -> None:
        ptx.copy(self.shared.ptr_to([into]), source.ptr_to([at]))

    def _codes(self, which: str, tile: Tile, index: Expr) -> tuple[Buffer, Expr]:
        """Return the codes in bytes, and where those of the tile begin."""
        size = self.plan.cache.block_bytes(which)
        token = size // self.plan.problem.block_tokens
        base = index * size + T.cast(tile.offset * token, "int64")
        return self.block.view(f"{which}_codes", "uint8"), base

    def _when(self, tile: Tile, first: Expr, count: int, emit: Any) -> None:
        """Emit where some of ``count`` tokens from ``first`` of the tile on are attended to."""
        if not self.plan.sparing:
            emit()
            return
        start = T.bind(tile.start + first)
        with T.If(T.And(start + count > tile.low, start < tile.high)), T.Then():
            emit()

    def _keys(self, tile: Tile, index: Expr, slot: Expr) -> None:
        plan, place = self.plan, self.place
        codes, base = self._codes("k", tile, index)
        words = plan.key_words
        line = (self.quad >> 2) * words * _LINE + (self.quad & 3) * WIDE
        lane = T.bind(base + T.cast(line, "int64"))
        for part in range(plan.tile // PART):
            at = lane + part * PART // LANES * words * _LINE

            def emit(part: int = part, at: Expr = at) -> None:
                for load in range(plan.key_loads):
                    word = place.column + 4 * load
                    if 4 * load + 3 >= words:
                        # Its products are with queries of 0.
                        word = T.min(word, words - 1)
                    number = part * plan.key_loads + load
                    self._copy_code(codes, at + T.cast(word * _LINE, "int64"), slot, number)

            self._when(tile, QUAD * self.quad + part * PART, QUAD, emit)

    def _values(self, tile: Tile, index: Expr, slot: Expr) -> None:
        plan, place = self.plan, self.place
        codes, base = self._codes("v", tile, index)
        # Words of four tokens of each field, of all channels.
        line = plan.problem.value_dim * QUAD
        tokens = QUAD * plan.cache.fields
        halved = plan.cache.fields > plan.value_fields
        word = T.bind(place.column & 1) if halved else place.column
        for part in range(plan.tile // PART):
            for copy in range(plan.value_copies):
                more, load = divmod(copy, plan.value_loads)
                channels: Any = load * 2 * _LINE
                if halved:
                    load = T.min(2 * copy + (place.column >> 1), plan.value_loads - 1)
                    channels = load * (2 * _LINE)
                number = T.bind(word + (4 * more + part * PART // tokens))
                at = base + T.cast(number * line + channels + place.row * WIDE, "int64")

                def emit(at: Expr = at, number: int = part * plan.value_copies + copy) -> None:
                    self._copy_code(codes, at, slot, number)

                self._when(tile, tokens * number, tokens, emit)

    def _copy_code(self, codes: Buffer, at: Expr, slot: Expr, number: int) -> None:
        self._copy(codes, at, slot + number * WARP * WIDE + self.place.lane * WIDE)

    def _each(self, count: int, emit: Any) -> None:
        """Emit ``count`` copies, dealt to the lanes."""
        for first in range(0, count, WARP):
            piece = T.bind(self.place.lane + first)
            if first + WARP <= count:
                emit(piece)
            else:
                with T.If(piece < count), T.Then():
                    emit(piece)

    def _params(self, which: str, index: Expr) -> tuple[Buffer, Expr]:
        """Return params in bytes, and where those of the block begin."""
        groups, two, n = self.plan.cache.params_shape(which)
        return self.block.view(f"{which}_params", "uint8"), index * (groups * two * n * HALF)

    def _channel_params(self, tile: Tile, index: Expr, slot: Expr) -> None:
        plan = self.plan
        params, base = self._params("k", index)
        size = 2 * plan.problem.head_dim * HALF
        first = T.bind(T.truncdiv(tile.offset, plan.problem.group_size))
        base = T.bind(base + T.cast(first * size, "int64"))

        def emit(piece: Expr) -> None:
            self._copy(params, base + T.cast(piece * WIDE, "int64"), slot + piece * WIDE)

        self._each(plan.token_groups * size // WIDE, emit)

    def _token_params(self, which: str, groups: int, tile: Tile, index: Expr, slot: Expr) -> None:
        plan = self.plan
        params, base = self._params(which, index)
        row = plan.problem.block_tokens * HALF
        pieces = plan.tile * HALF // WIDE

        def emit(piece: Expr) -> None:
            at = tile.offset * HALF + T.truncmod(piece, pieces) * WIDE
            at = at + T.truncdiv(piece, pieces) * row
            self._copy(params, base + T.cast(at, "int64"), slot + piece * WIDE)

        self._each(2 * groups * pieces, emit)
