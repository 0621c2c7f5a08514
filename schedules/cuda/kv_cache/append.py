"""Template of `kv_cache_append`: each thread copies pieces of rows, up to 16 bytes at once.

# a grid of pieces of keys, then of values
for piece of the thread:                                     # all loads, then all stores
    request, token, head, column = piece
    position = seq_lens[request] - query_tokens + token
    if position >= 0:
        cache[row of position, column] = new[request, token, head, column]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.ops.kv_cache_append import KVCacheAppend
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.cache import cache_row
from wattune.schedules.cuda.plain import (
    Expr,
    Kernel,
    Place,
    PlainTemplate,
    ceildiv,
    view,
)
from wattune.schedules.cuda.values import access, load, store
from wattune.schedules.program import WIDE_ACCESS, Tensors
from wattune.schedules.space import Knob, Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

# Bytes that keep an SM's memory pipeline busy: more of them a thread only where there is work.
_BYTES_A_CORE = 32 << 10


class KVCacheAppendGpu(PlainTemplate):
    """Rows of any width and dtype, as bits."""

    name = "kv_cache_append_gpu"
    operator = "kv_cache_append"

    def applies(self, problem: KVCacheAppend, target: Target) -> bool:
        """Say yes: bits can be copied everywhere."""
        return True

    def space(self, problem: KVCacheAppend, target: Target) -> Space:
        """Knobs: threads of a block, pieces that a thread copies at once."""
        busy = _bytes(problem) >= target.cores * _BYTES_A_CORE
        knobs = (
            Knob("threads", (64, 128, 256, 512), 128),
            Knob("pieces", (1, 2, 4, 8), 4 if busy else 1),
        )
        return Space(self.name, knobs)

    def kernels(
        self, problem: KVCacheAppend, target: Target, values: Mapping[str, Value]
    ) -> dict[str, Kernel]:
        """Return the only kernel."""
        copy = _Copy(problem, int(values["threads"]), int(values["pieces"]))
        return {"append": Kernel(copy.threads, copy.blocks, copy.emit)}

    def kernel_counts(
        self, problem: KVCacheAppend, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count a load, a store and the arithmetic of places a piece."""
        copy = _Copy(problem, int(values["threads"]), int(values["pieces"]))
        rows = problem.batch * problem.query_tokens * problem.kv_heads
        moved = 2.0 * _bytes(problem)
        pieces = rows * sum(part.pieces for part in copy.parts)
        return Counts(
            bytes={"memory": moved, "l2": moved, "l1": moved},
            operations={"alu": 30.0 * pieces / WARP},
            tiles={"threads": float(copy.threads), "pieces": float(copy.pieces)},
            parallelism=float(-(-pieces // (copy.threads * copy.pieces))),
            registers=8.0 * copy.pieces + 16,
            code=32.0 * copy.pieces,
        )


def _bytes(problem: KVCacheAppend) -> int:
    """Return the bytes of the new rows."""
    rows = problem.batch * problem.query_tokens * problem.kv_heads
    return rows * (problem.head_dim + problem.value_dim) * itemsize(problem.dtype)


@dataclass(frozen=True)
class _Part:
    """Keys or values: the argument's name and how a row is cut into pieces of one access."""

    name: str
    bytes: int

    @property
    def piece(self) -> int:
        """Bytes of a piece: the widest access that rows of this width are aligned to."""
        return min(WIDE_ACCESS, self.bytes & -self.bytes)

    @property
    def pieces(self) -> int:
        """Pieces of a row."""
        return self.bytes // self.piece


@dataclass(frozen=True)
class _Copy:
    """Emits the kernel."""

    problem: KVCacheAppend
    threads: int
    pieces: int

    @property
    def parts(self) -> tuple[_Part, ...]:
        """Keys, then values."""
        size = itemsize(self.problem.dtype)
        return _Part("k", self.problem.head_dim * size), _Part("v", self.problem.value_dim * size)

    def _blocks(self, part: _Part, batch: Expr) -> Expr:
        rows = batch * (self.problem.query_tokens * self.problem.kv_heads)
        return ceildiv(rows * part.pieces, self.threads * self.pieces)

    def blocks(self, sizes: Mapping[str, Expr]) -> Expr:
        """Return the blocks of keys and those of values."""
        return sum(self._blocks(part, sizes["batch"]) for part in self.parts)

    def emit(self, tensors: Tensors, place: Place) -> None:
        """Copy keys in the first blocks, values in the others."""
        keys, values = self.parts
        split = T.bind(T.cast(self._blocks(keys, tensors.sizes["batch"]), "int32"))
        with T.If(place.block < split):
            with T.Then():
                self._part(tensors, keys, Place(place.block, place.thread))
            with T.Else():
                self._part(tensors, values, Place(place.block - split, place.thread))

    def _part(self, tensors: Tensors, part: _Part, place: Place) -> None:
        """Copy the pieces of one thread."""
        kind, words = access(part.piece)
        source = view(tensors[part.name], kind)
        cache = view(tensors[f"{part.name}_cache"], kind)
        kept = ptx.registers(words * self.pieces, kind)
        rows = tensors.sizes["batch"] * (self.problem.query_tokens * self.problem.kv_heads)
        count = T.bind(T.cast(rows * part.pieces, "int32"))
        first = place.block * (self.threads * self.pieces) + place.thread
        indices = [T.bind(first + i * self.threads) for i in range(self.pieces)]
        for i, index in enumerate(indices):
            with T.If(index < count), T.Then():
                load(kept, i * words, words, source, T.cast(index, "int64") * words)
        for i, index in enumerate(indices):
            with T.If(index < count), T.Then():
                self._store(tensors, part, cache, index, (kept, i * words, words))

    def _store(
        self, tensors: Tensors, part: _Part, cache: Expr, index: Expr, kept: tuple[Expr, int, int]
    ) -> None:
        """Store a piece in the cache, unless it is of a token before the request's first."""
        problem = self.problem
        row = T.bind(T.truncdiv(index, part.pieces))
        token = T.bind(T.truncdiv(row, problem.kv_heads))
        request = T.bind(T.truncdiv(token, problem.query_tokens))
        offset = token - request * problem.query_tokens
        position = T.bind(tensors["seq_lens"][request] - problem.query_tokens + offset)
        with T.If(position >= 0), T.Then():
            head = row - token * problem.kv_heads
            to = cache_row(problem, tensors, request, head, position)
            column = index - row * part.pieces
            store(cache, (to * part.pieces + column) * kept[2], *kept)
