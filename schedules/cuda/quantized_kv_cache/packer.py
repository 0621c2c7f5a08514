"""Packs a piece of a block: extremes of its groups, params, codes.

Rows are read twice; the second time they come from the caches of the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import LANES, LARGEST, QUAD
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.plain import for_each, view
from wattune.schedules.cuda.quantized_kv_cache.numerics import Params, code_of, params_of
from wattune.schedules.cuda.quantized_kv_cache.plan import PackPlan
from wattune.schedules.cuda.quantized_kv_cache.rows import Rows
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Piece:
    """Where a piece lies: block ``index`` of all of the cache, from token ``offset`` on."""

    rows: Rows
    index: Expr
    offset: Expr


@dataclass(frozen=True)
class Packer:
    """Emits packing of keys ("k") or values ("v") by all threads of a thread block.

    ``reals`` is shared memory: zero and 1 / scale of each group of the piece.
    """

    plan: PackPlan
    tensors: Tensors
    thread: Expr
    reals: Buffer

    @classmethod
    def of(cls, plan: PackPlan, tensors: Tensors, thread: Expr) -> Packer:
        """Declare the thread block's shared memory."""
        return cls(plan, tensors, thread, T.alloc_shared((plan.shared_bytes // 4,), "float32"))

    def emit(self, which: str, piece: Piece) -> None:
        """Emit packing; all threads come here."""
        if self.plan.cache.per_channel(which):
            self._channel_params(piece)
        else:
            self._token_params(which, piece)
        ptx.block_barrier()
        if which == "k":
            self._key_codes(piece)
        else:
            self._value_codes(piece)
        ptx.block_barrier()

    def _each(self, count: int, emit: Callable[[Expr], None]) -> None:
        """Emit work items, dealt to the threads."""
        for_each(self.thread, self.plan.threads, count, emit)

    def _keep(self, which: str, piece: Piece, at: Expr, step: int, params: Params) -> None:
        """Store a group's scale and, ``step`` numbers further, its zero."""
        groups, two, n = self.plan.cache.params_shape(which)
        found = self.tensors[f"{which}_params"]
        at = T.bind(piece.index * (groups * two * n) + T.cast(at, "int64"))
        ptx.put(found, at, params.scale)
        ptx.put(found, at + step, params.zero)

    def _share(self, group: Expr, params: Params) -> None:
        """Leave what quantising takes to the threads of the second pass."""
        ptx.put(self.reals, group * 2, params.real_zero)
        ptx.put(self.reals, group * 2 + 1, params.inverse)

    def _channel_params(self, piece: Piece) -> None:
        """Emit params of groups of tokens: two channels a thread."""
        plan, cache = self.plan, self.plan.cache
        width, size = cache.head_dim, cache.group_size
        pairs = width // 2

        def emit(item: Expr) -> None:
            group = T.bind(T.truncdiv(item, pairs))
            channel = T.bind(T.truncmod(item, pairs) * 2)
            extremes = _extremes(2)
            with T.serial(size) as token:
                reals = piece.rows.load(piece.offset + group * size + token, channel, 2)
                for i in range(2):
                    _widen(extremes, i, reals[i], 2)
            first = T.truncdiv(piece.offset, size) + group
            for i in range(2):
                params = params_of(extremes[i], extremes[2 + i], plan.levels)
                self._keep("k", piece, first * 2 * width + channel + i, width, params)
                self._share(group * width + channel + i, params)

        self._each(plan.tokens // size * pairs, emit)

    def _token_params(self, which: str, piece: Piece) -> None:
        """Emit params of groups of channels: four of a token a thread, groups across lanes."""
        plan, cache = self.plan, self.plan.cache
        quads = cache.width(which) // QUAD
        lanes = plan.group_lanes

        def emit(item: Expr) -> None:
            token = T.bind(T.truncdiv(item, quads))
            quad = T.bind(T.truncmod(item, quads))
            reals = piece.rows.load(piece.offset + token, quad * QUAD, QUAD)
            extremes = _extremes(1)
            for i in range(QUAD):
                _widen(extremes, 0, reals[i], 1)
            distance = 1
            while distance < lanes:
                for i, choose in enumerate((T.min, T.max)):
                    other = ptx.across(extremes[i], distance)
                    ptx.put(extremes, i, choose(extremes[i], other))
                distance *= 2
            with T.If(T.truncmod(quad, lanes) == 0), T.Then():
                params = params_of(extremes[0], extremes[1], plan.levels)
                group = T.bind(T.truncdiv(quad, lanes))
                at = group * 2 * cache.block_tokens + piece.offset + token
                self._keep(which, piece, at, cache.block_tokens, params)
                self._share(token * (quads // lanes) + group, params)

        self._each(plan.tokens * quads, emit)

    def _code(self, group: Expr, x: Expr) -> Expr:
        return code_of(x, self.reals[group * 2], self.reals[group * 2 + 1], self.plan.levels)

    def _codes_at(self, which: str, piece: Piece) -> tuple[Buffer, Expr]:
        """Return the words of the cache's codes, and where the piece's begin."""
        cache = self.plan.cache
        token = cache.block_bytes(which) // cache.block_tokens
        first = piece.index * cache.block_bytes(which) + T.cast(piece.offset * token, "int64")
        first = T.bind(T.shift_right(first, T.int64(2)))
        return view(self.tensors[f"{which}_codes"], "uint32"), first

    def _key_codes(self, piece: Piece) -> None:
        """Emit words of keys: four channels of a token in each field."""
        plan, cache = self.plan, self.plan.cache
        words, width = cache.head_dim // (QUAD * plan.fields), cache.head_dim // plan.fields
        codes, first = self._codes_at("k", piece)
        groups = cache.head_dim // cache.group_size

        def emit(item: Expr) -> None:
            lane = T.truncmod(item, LANES)
            word = T.bind(T.truncmod(T.truncdiv(item, LANES), words))
            token = T.bind(T.truncdiv(item, LANES * words) * LANES + lane)
            found = ptx.registers(1, "uint32")
            ptx.put(found, 0, T.uint32(0))
            for field in range(plan.fields):
                channel = T.bind(word * QUAD + field * width)
                reals = piece.rows.load(piece.offset + token, channel, QUAD)
                for i in range(QUAD):
                    if cache.per_channel("k"):
                        row = T.truncdiv(token, cache.group_size) * cache.head_dim
                        group = row + channel + i
                    else:
                        group = token * groups + T.truncdiv(channel, cache.group_size)
                    code = self._code(group, reals[i])
                    _insert(found, 0, code, 8 * i + cache.bits * field)
            ptx.put(codes, first + T.cast(item, "int64"), found[0])

        self._each(plan.tokens * words, emit)

    def _value_codes(self, piece: Piece) -> None:
        """Emit words of values, two at a time: a channel of four tokens in each field."""
        plan, cache = self.plan, self.plan.cache
        pairs = cache.value_dim // 2
        codes, first = self._codes_at("v", piece)
        groups = cache.value_dim // cache.group_size

        def emit(item: Expr) -> None:
            channel = T.bind(T.truncmod(item, pairs) * 2)
            start = T.bind(T.truncdiv(item, pairs) * (QUAD * plan.fields))
            group = T.bind(T.truncdiv(channel, cache.group_size))
            found = ptx.registers(2, "uint32")
            for i in range(2):
                ptx.put(found, i, T.uint32(0))
            for field in range(plan.fields):
                for row in range(QUAD):
                    token = T.bind(start + (QUAD * field + row))
                    reals = piece.rows.load(piece.offset + token, channel, 2)
                    for i in range(2):
                        code = self._code(token * groups + group, reals[i])
                        _insert(found, i, code, 8 * row + cache.bits * field)
            for i in range(2):
                ptx.put(codes, first + T.cast(item * 2 + i, "int64"), found[i])

        self._each(plan.tokens // (QUAD * plan.fields) * pairs, emit)


def _extremes(count: int) -> Buffer:
    """Declare least values, then greatest ones: both are clipped later."""
    found = ptx.registers(2 * count, "float32")
    for i in range(count):
        ptx.put(found, i, T.float32(LARGEST))
        ptx.put(found, count + i, T.float32(-LARGEST))
    return found


def _widen(extremes: Buffer, at: int, value: Expr, count: int) -> None:
    ptx.put(extremes, at, T.min(extremes[at], value))
    ptx.put(extremes, count + at, T.max(extremes[count + at], value))


def _insert(found: Buffer, at: int, code: Expr, bit: int) -> None:
    ptx.put(found, at, found[at] | (code << T.uint32(bit)))
