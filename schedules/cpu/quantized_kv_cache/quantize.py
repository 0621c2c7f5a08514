"""Templates of `kv_cache_quantize`: every row is read from memory once, blocks are independent.

for request, grain of blocks, head:                     # or blocks innermost: the knob `order`
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
from wattune.schedules.space import Constraint, Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

Expr = Any

_GRAINS = (1, 2, 4, 8, 16)
# Rows of prefetch that stand for those of the next head: they lie beside each other.
_NEXT_HEAD = 16


class Quantize(CacheTemplate):
    """What the templates of all CPUs share."""

    operator = "kv_cache_quantize"

    def space(self, problem: KVCacheQuantize, target: Target) -> Space:
        """Knobs: those of packing, blocks a task, whose turn is next, rows of prefetch."""
        knobs = (
            *self.packing_knobs(),
            Knob("grain", _GRAINS, 1),
            Knob("order", ("blocks", "heads"), "heads"),
            Knob("prefetch", (0, _NEXT_HEAD, 32, 64, 128), _NEXT_HEAD),
        )
        rule = Constraint(
            f"prefetch is 0 or {_NEXT_HEAD} (the next head) in the order of heads",
            lambda values: values["order"] == "blocks" or int(values["prefetch"]) <= _NEXT_HEAD,
        )
        return Space(self.name, knobs, (rule,))

    def body(
        self, problem: KVCacheQuantize, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        packer = self.packer(problem, target, values)
        return Kernel(
            problem=problem,
            threads=target.threads,
            packer=packer,
            grain=int(values["grain"]),
            by_heads=values["order"] == "heads",
            ahead=int(values["prefetch"]),
        ).emit

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
    by_heads: bool
    ahead: int

    def emit(self, tensors: Tensors) -> None:
        """Spread the tasks over threads, round robin: neighbours cost about the same."""
        views = [CacheViews.of(self.packer, tensors, which) for which in ("k", "v")]
        sources = [self.packer.rows.view(tensors[which]) for which in ("k", "v")]
        heads = self.problem.kv_heads
        tokens = tensors.sizes["tokens"]
        slots = T.cast(ceildiv(tokens, self.problem.block_tokens * self.grain), "int32")
        slots = T.bind(slots)
        count = T.bind(T.cast(tensors.sizes["batch"], "int32") * heads * slots)

        def one(task: Expr) -> None:
            request = T.bind(T.truncdiv(task, slots * heads))
            rest = T.bind(task - request * (slots * heads))
            if self.by_heads:
                slot = T.bind(T.truncdiv(rest, heads))
                head = T.bind(rest - slot * heads)
            else:
                head = T.bind(T.truncdiv(rest, slots))
                slot = T.bind(rest - head * slots)
            length = T.bind(tensors["seq_lens"][request])
            first = T.bind(slot * self.grain)
            row = T.bind(request * heads + head)
            for view, source in zip(views, sources, strict=True):
                start = T.cast(request, "int64") * tokens * (heads * view.width)
                at = T.bind(start + head * view.width)
                self._part(view, source, at, row, first, length, self._ahead(view.width, head))

        if self.threads == 1:
            with T.serial(count) as task:
                one(task)
            return
        with T.parallel(self.threads) as worker:
            rounds = T.truncdiv(count - worker + (self.threads - 1), self.threads)
            with T.serial(rounds) as step:
                one(T.bind(worker + step * self.threads))

    def _ahead(self, width: int, head: Expr) -> Expr | None:
        """Return how far ahead to prefetch: some rows, or the same rows of the thread's next head.

        After the last head come the first one's next blocks.
        """
        heads, stride = self.problem.kv_heads, self.problem.kv_heads * width
        if not self.ahead:
            return None
        if not self.by_heads:
            return T.int64(self.ahead * stride)
        beyond = self.threads * width
        blocks = self.problem.block_tokens * self.grain * stride
        last = T.int64(blocks + beyond - stride)
        return T.bind(T.Select(head + self.threads < heads, T.int64(beyond), last))

    def _part(
        self,
        view: CacheViews,
        source: Any,
        at: Expr,
        row: Expr,
        first: Expr,
        length: Expr,
        ahead: Expr | None,
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
            found = view.block(row, block, source, start, T.int64(stride), ahead)
            self.packer.emit(view.which, found)
        with T.If(T.And(whole >= first, whole < first + self.grain)), T.Then():
            start = T.bind(at + T.cast(whole, "int64") * (size * stride))
            to = view.residual_at(row)
            with T.serial(length - whole * size) as token:
                wide = T.cast(token, "int64")
                copy_row(
                    source, start + wide * stride, view.residual, to + wide * view.width, view.width
                )
