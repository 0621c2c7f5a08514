"""Templates of `quantized_kv_cache_append`: most calls copy a few rows, some pack a block.

for request, head:                            # few bytes: one thread unless there are many
    new rows up to the end of their block -> residual
if any residual is full:
    for request whose residual is full, head, keys or values:      # parallel
        pack the residual; new rows of the next block -> residual
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.ops.quantized_kv_cache_append import QuantizedKVCacheAppend
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.quantized_kv_cache.base import (
    AVX2,
    AVX512,
    CacheTemplate,
    CacheViews,
    Portable,
)
from wattune.schedules.cpu.quantized_kv_cache.packer import Packer
from wattune.schedules.cpu.quantized_kv_cache.rows import copy_row
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

Expr = Any
Buffer = Any

# Below so many bytes a thread starting another takes longer than the copy.
_WORTH_A_THREAD = 128 << 10


class Append(CacheTemplate):
    """What the templates of all CPUs share."""

    operator = "quantized_kv_cache_append"

    def space(self, problem: QuantizedKVCacheAppend, target: Target) -> Space:
        """Knobs: those of packing, whether the new rows are copied in parallel."""
        rows = problem.batch * problem.kv_heads * problem.query_tokens
        moved = rows * problem.quantized.residual_bytes()
        spread = target.threads > 1 and moved >= _WORTH_A_THREAD
        copies = ("serial", "parallel") if target.threads > 1 else ("serial",)
        copy = Knob("copy", copies, "parallel" if spread else "serial")
        return Space(self.name, (*self.packing_knobs(), copy))

    def body(
        self, problem: QuantizedKVCacheAppend, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        packer = self.packer(problem, target, values)
        return Kernel(problem, target.threads, packer, values["copy"] == "parallel").emit

    def counts(
        self, problem: QuantizedKVCacheAppend, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count the new rows, and a block's packing where the context is whole blocks."""
        rows = float(problem.batch * problem.kv_heads)
        width = problem.head_dim + problem.value_dim
        moved = 2.0 * rows * problem.query_tokens * problem.quantized.residual_bytes()
        full = float(problem.context % problem.block_tokens == 0)
        packed = full * rows * problem.block_tokens
        block = packed * (width * itemsize(problem.dtype) + problem.quantized.token_bytes())
        each = 10 if self.packs else 14
        vectors = int(values["together"])
        return Counts(
            bytes={"memory": moved + block, "l2": moved + 2 * block, "l1": moved + 2 * block},
            operations={"alu": packed * width / int(values["lanes"]) * each},
            tiles={"blocks": full * rows},
            parallelism=2 * rows if full else 1.0,
            registers=2.0 * vectors + 2.0,
            code=float(vectors * 3 * int(values["unroll"])),
        )


class AppendAVX512(AVX512, Append):
    """Vectors of 512 bits."""

    name = "kv_append_avx512"


class AppendAVX2(AVX2, Append):
    """Vectors of 256 bits."""

    name = "kv_append_avx2"


class AppendPortable(Portable, Append):
    """Any CPU."""

    name = "kv_append_portable"


@dataclass(frozen=True)
class New:
    """The new tokens of a request: ``first`` to ``length``, of which the block ``block`` is first.

    ``end`` is where that block's tokens end, ``before`` the token of row 0 of the inputs.
    """

    first: Expr
    length: Expr
    before: Expr
    block: Expr
    end: Expr

    @classmethod
    def of(cls, problem: QuantizedKVCacheAppend, length: Expr) -> New:
        """Take the tokens of a request apart; there is at most one boundary among them."""
        before = T.bind(length - problem.query_tokens)
        first = T.bind(T.max(before, 0))
        block = T.bind(T.truncdiv(first, problem.block_tokens))
        end = T.bind(T.min(length, (block + 1) * problem.block_tokens))
        return cls(first, length, before, block, end)

    def full(self, problem: QuantizedKVCacheAppend) -> Expr:
        """Say whether the first block becomes full."""
        boundary = (self.block + 1) * problem.block_tokens
        return T.And(self.end == boundary, self.first < self.length)


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel."""

    problem: QuantizedKVCacheAppend
    threads: int
    packer: Packer
    spread: bool

    def emit(self, tensors: Tensors) -> None:
        """Copy, then pack where a residual is full."""
        problem, heads = self.problem, self.problem.kv_heads
        views = [CacheViews.of(self.packer, tensors, which) for which in ("k", "v")]
        sources = [self.packer.rows.view(tensors[which]) for which in ("k", "v")]
        batch = T.bind(T.cast(tensors.sizes["batch"], "int32"))

        def new(row: Expr) -> tuple[Expr, New]:
            request = T.bind(T.truncdiv(row, heads))
            return request, New.of(problem, T.bind(tensors["seq_lens"][request]))

        with self._loop(self.spread)(batch * heads) as row:
            request, tokens = new(row)
            for view, source in zip(views, sources, strict=True):
                self._copy(view, source, request, row, tokens, tokens.first, tokens.end)

        any_full = vector.array(1, "int32")
        vector.store(any_full, [0], T.int32(0))
        with T.serial(batch) as request:
            tokens = New.of(problem, T.bind(tensors["seq_lens"][request]))
            with T.If(tokens.full(problem)), T.Then():
                vector.store(any_full, [0], T.int32(1))
        with (
            T.If(any_full[0] != 0),
            T.Then(),
            self._loop(True)(2 * batch * heads) as task,
        ):
            row = T.bind(T.truncdiv(task, 2))
            request, tokens = new(row)
            with T.If(tokens.full(problem)), T.Then(), T.If(task == 2 * row):
                with T.Then():
                    self._pack(views[0], sources[0], request, row, tokens)
                with T.Else():
                    self._pack(views[1], sources[1], request, row, tokens)

    def _loop(self, parallel: bool) -> Any:
        return T.parallel if parallel and self.threads > 1 else T.serial

    def _copy(
        self,
        view: CacheViews,
        source: Buffer,
        request: Expr,
        row: Expr,
        new: New,
        first: Expr,
        end: Expr,
    ) -> None:
        """Copy new tokens of one block to their rows of the residual."""
        heads, size, width = self.problem.kv_heads, self.problem.block_tokens, view.width
        tokens = self.problem.query_tokens
        to = view.residual_at(row)
        with T.serial(T.max(end - first, 0)) as i:
            token = T.bind(first + i)
            index = T.cast(request * tokens + token - new.before, "int64") * heads
            at = T.bind((index + (row - request * heads)) * width)
            into = T.bind(to + T.cast(T.truncmod(token, size), "int64") * width)
            copy_row(source, at, view.residual, into, width)

    def _pack(self, view: CacheViews, source: Buffer, request: Expr, row: Expr, new: New) -> None:
        """Pack the residual and begin the next block with what is left."""
        at = view.residual_at(row)
        # A cache that is too small drops the block.
        with T.If(T.cast(new.block, "int64") < view.packed_blocks), T.Then():
            block = view.block(row, new.block, view.residual, at, T.int64(view.width))
            self.packer.emit(view.which, block)
        self._copy(view, source, request, row, new, new.end, new.length)
