"""Template of `kv_cache_append`: rows are copied as bits.

for request, token, head:                                # NHD: all heads are one row
    position = seq_lens[request] - query_tokens + token
    if position >= 0:
        k_cache[row of position, :] = k[request, token, head, :]
        v_cache[row of position, :] = v[request, token, head, :]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.ops.kv_cache_append import KVCacheAppend
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.kv_cache.base import (
    Buffer,
    Expr,
    fitting,
    flat,
    grain_knob,
    spread,
    starts,
)
from wattune.schedules.cpu.plain import PlainTemplate
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts


class KVCacheAppendCopy(PlainTemplate):
    """Vectors of bits, for any target."""

    name = "kv_cache_append_copy"
    operator = "kv_cache_append"

    def applies(self, problem: KVCacheAppend, target: Target) -> bool:
        """Say yes: bits can be copied everywhere."""
        return True

    def space(self, problem: KVCacheAppend, target: Target) -> Space:
        """Knobs: bytes of a vector, vectors copied at once, rows a task."""
        widest = 64 if target.has("avx512f") else 32 if target.has("avx2") else 16
        sizes = tuple(size for size in (16, 32, 64) if size <= widest)
        knobs = (
            Knob("vector_bytes", sizes, widest),
            Knob("unroll", (2, 4, 8), 4),
            grain_knob(_row_bytes(problem)),
        )
        return Space(self.name, knobs)

    def body(
        self, problem: KVCacheAppend, target: Target, values: Mapping[str, Value]
    ) -> Callable[[Tensors], None]:
        """Return what emits the kernel."""
        lanes = int(values["vector_bytes"]) // itemsize(problem.dtype)
        return Kernel(
            problem, target.threads, lanes, int(values["unroll"]), int(values["grain"])
        ).emit

    def counts(self, problem: KVCacheAppend, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count a load and a store a vector."""
        rows = _rows(problem)
        moved = float(2 * rows * _row_bytes(problem))
        return Counts(
            bytes={"memory": moved, "l2": moved, "l1": moved},
            operations={"alu": moved / int(values["vector_bytes"])},
            tiles={"unroll": float(int(values["unroll"]))},
            parallelism=-(-rows // int(values["grain"])),
            registers=float(int(values["unroll"])),
            code=2.0 * int(values["unroll"]),
        )


def _row_bytes(problem: KVCacheAppend) -> int:
    """Return the bytes of keys and values that lie together."""
    heads = problem.kv_heads if problem.layout == "NHD" else 1
    return heads * (problem.head_dim + problem.value_dim) * itemsize(problem.dtype)


def _rows(problem: KVCacheAppend) -> int:
    """Return how many such rows a call writes."""
    heads = problem.kv_heads if problem.layout == "HND" else 1
    return problem.batch * problem.query_tokens * heads


@dataclass(frozen=True)
class Kernel:
    """Emits one kernel."""

    problem: KVCacheAppend
    threads: int
    lanes: int
    unroll: int
    grain: int

    def emit(self, tensors: Tensors) -> None:
        """Copy every new row of keys and of values."""
        problem = self.problem
        bits = f"uint{8 * itemsize(problem.dtype)}"
        together = problem.kv_heads if problem.layout == "NHD" else 1
        heads = problem.kv_heads // together
        copies = [
            (flat(tensors[name], bits), flat(tensors[f"{name}_cache"], bits), together * width)
            for name, width in (("k", problem.head_dim), ("v", problem.value_dim))
        ]

        def row(index: Expr) -> None:
            token = T.bind(T.truncdiv(index, heads))
            head = T.bind(index - token * heads)
            request = T.bind(T.truncdiv(token, problem.query_tokens))
            offset = token - request * problem.query_tokens
            length = tensors["seq_lens"][request]
            position = T.bind(length - problem.query_tokens + offset)
            with T.If(position >= 0), T.Then():
                to = T.bind(self._slot(tensors, request, head, position))
                for source, cache, width in copies:
                    self._copy(source, T.cast(index, "int64") * width, cache, to * width, width)

        rows = tensors.sizes["batch"] * (problem.query_tokens * heads)
        spread(self.threads, _rows(problem), rows, self.grain, row)

    def _slot(self, tensors: Tensors, request: Expr, head: Expr, position: Expr) -> Expr:
        """Return which row of the cache a position is, in rows of what is copied together."""
        size = self.problem.page_size
        if size:
            table = tensors["page_table"]
            lead = T.cast(table[request, T.truncdiv(position, size)], "int64")
            at, extent = T.truncmod(position, size), T.int64(size)
        else:
            lead, at, extent = T.cast(request, "int64"), position, tensors.sizes["capacity"]
        if self.problem.layout == "HND":
            lead = lead * self.problem.kv_heads + head
        return lead * extent + at

    def _copy(self, source: Buffer, at: Expr, cache: Buffer, to: Expr, width: int) -> None:
        """Copy a row: a loop over blocks of ``unroll`` vectors, then what is left."""
        lanes = fitting(width, self.lanes)
        at, to = T.bind(at), T.bind(to)
        block = lanes * self.unroll
        whole = width // block

        def vectors(places: list[int], base: Expr) -> None:
            kind = str(source.dtype) if lanes == 1 else f"{source.dtype}x{lanes}"
            # All loads first: the stores could overlap them for all that LLVM knows.
            parts = [T.bind(source.vload([at + base + place], kind)) for place in places]
            for place, part in zip(places, parts, strict=True):
                vector.store(cache, [to + base + place], part)

        if whole > 1:
            with T.serial(whole) as step:
                vectors(list(range(0, block, lanes)), T.bind(step * block))
        first = whole * block if whole > 1 else 0
        if width > first:
            vectors([p for p in starts(width, lanes) if p + lanes > first], T.int64(0))
