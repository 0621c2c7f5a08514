"""Templates of `kv_cache_quantize`: every row is read from memory once, blocks are independent.

for request, head, grain of blocks:
    for block:
        extremes of its groups -> params -> codes       # keys, then values
    copy the rest of the prompt to the residual         # by whoever has the last, partial block
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.ops.kv_cache_quantize import KVCacheQuantize
from wattune.schedules.cpu.quantized_kv_cache.base import (
    AVX2,
    AVX512,
    CacheTemplate,
    CacheViews,
    Portable,
    ceildiv,
)
from wattune.schedules.cpu.quantized_kv_cache.packer import Packer
from wattune.schedules.cpu.quantized_kv_cache.rows import copy_row
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

Expr = Any

# Tasks a thread: enough that ragged prompts even out.
_TASKS = 4
_GRAINS = (1, 2, 4, 8, 16)


class Quantize(CacheTemplate):
    """What the templates of all CPUs share."""

    operator = "kv_cache_quantize"

    def space(self, problem: KVCacheQuantize, target: Target) -> Space:
        """Knobs: those of packing, blocks a task, rows of prefetch."""
        rows = problem.batch * problem.kv_heads
        slots = -(-problem.context // problem.block_tokens)
        wanted = target.threads * _TASKS if target.threads > 1 else 1
        fitting = [g for g in _GRAINS if rows * -(-slots // g) >= wanted]
        knobs = (
            *self.packing_knobs(),
            Knob("grain", _GRAINS, fitting[-1] if fitting else 1),
            Knob("prefetch", (0, 8, 16, 32, 64, 128), 32),
        )
        return Space(self.name, knobs)

    def body(
        self, problem: KVCacheQuantize, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        packer = self.packer(problem, target, values)
        return Kernel(problem, target.threads, packer, int(values["grain"])).emit

    def counts(
        self, problem: KVCacheQuantize, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count the rows twice, once from memory; ten operations a vector of values."""
        rows = float(problem.batch * problem.context * problem.kv_heads)
        elements = rows * (problem.head_dim + problem.value_dim)
        moved = elements * itemsize(problem.dtype) + rows * problem.quantized.token_bytes()
        lanes, grain = int(values["lanes"]), int(values["grain"])
        slots = -(-problem.context // problem.block_tokens)
        each = 10 if self.packs else 14
        vectors = int(values["together"])
        return Counts(
            bytes={"memory": moved, "l2": 2 * moved, "l1": 2 * moved},
            operations={"alu": elements / lanes * each},
            tiles={"blocks": rows / problem.block_tokens},
            parallelism=problem.batch * problem.kv_heads * -(-slots // grain),
            registers=2.0 * vectors + 2.0,
            code=float(vectors * 3 * int(values["unroll"])),
        )


class QuantizeAVX512(AVX512, Quantize):
    """Vectors of 512 bits."""

    name = "kv_quantize_avx512"


class QuantizeAVX2(AVX2, Quantize):
    """Vectors of 256 bits."""

    name = "kv_quantize_avx2"


class QuantizePortable(Portable, Quantize):
    """Any CPU."""

    name = "kv_quantize_portable"


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel."""

    problem: KVCacheQuantize
    threads: int
    packer: Packer
    grain: int

    def emit(self, tensors: Tensors) -> None:
        """Spread the tasks over threads, round robin: neighbours cost about the same."""
        views = [CacheViews.of(self.packer, tensors, which) for which in ("k", "v")]
        sources = [self.packer.rows.view(tensors[which]) for which in ("k", "v")]
        size, heads = self.problem.block_tokens, self.problem.kv_heads
        tokens = tensors.sizes["tokens"]
        slots = T.cast(ceildiv(tokens, size * self.grain), "int32")
        count = T.bind(T.cast(tensors.sizes["batch"], "int32") * heads * slots)

        def one(task: Expr) -> None:
            row = T.bind(T.truncdiv(task, slots))
            request = T.bind(T.truncdiv(row, heads))
            length = T.bind(tensors["seq_lens"][request])
            first = T.bind((task - row * slots) * self.grain)
            for view, source in zip(views, sources, strict=True):
                width = view.width
                head = (row - request * heads) * width
                at = T.bind(T.cast(request, "int64") * tokens * (heads * width) + head)
                self._part(view, source, at, row, first, length)

        if self.threads == 1:
            with T.serial(count) as task:
                one(task)
            return
        with T.parallel(self.threads) as worker:
            rounds = T.truncdiv(count - worker + (self.threads - 1), self.threads)
            with T.serial(rounds) as step:
                one(T.bind(worker + step * self.threads))

    def _part(
        self, view: CacheViews, source: Any, at: Expr, row: Expr, first: Expr, length: Expr
    ) -> None:
        """Pack whole blocks, and copy the rest where it begins among these blocks."""
        size = self.problem.block_tokens
        stride = self.problem.kv_heads * view.width
        whole = T.bind(T.truncdiv(length, size))
        # A cache that is too small keeps what fits.
        room = T.cast(T.min(T.cast(whole, "int64"), view.packed_blocks), "int32")
        end = T.bind(T.min(first + self.grain, room))
        with T.serial(T.max(end - first, 0)) as i:
            block = T.bind(first + i)
            start = T.bind(at + T.cast(block, "int64") * (size * stride))
            self.packer.emit(view.which, view.block(row, block, source, start, T.int64(stride)))
        with T.If(T.And(whole >= first, whole < first + self.grain)), T.Then():
            start = T.bind(at + T.cast(whole, "int64") * (size * stride))
            to = view.residual_at(row)
            with T.serial(length - whole * size) as token:
                wide = T.cast(token, "int64")
                copy_row(
                    source, start + wide * stride, view.residual, to + wide * view.width, view.width
                )
