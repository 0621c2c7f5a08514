"""Template of `block_minmax`: a team of threads bounds one block of keys.

    # thread (token r of R, piece c of a row) of a team; a thread block has several teams
    low, high = inf, -inf                                   # 16 bytes of values
    for token = r, r + R, ... of the block:                 # several loads at once
        low, high = min(low, key[token, c]), max(high, key[token, c])
    k_min[c], k_max[c] = over the R threads, in shared memory

A block's last tokens may be missing: the last one is read again, which changes no bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.block_minmax import BlockMinmax
from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import SLOTS, block_count
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.cache import cache_row
from wattune.schedules.cuda.plain import Buffer, Expr, Kernel, Place, ceildiv, view
from wattune.schedules.cuda.selection.base import STATIC_SHARED, RowTemplate, slot_count
from wattune.schedules.cuda.values import WORD, WORDS, load, store, values_of
from wattune.schedules.program import Tensors
from wattune.schedules.space import Constraint, Knob, Space, Value, powers_of_two
from wattune.schedules.target import Target
from wattune.schedules.template import Counts

_MOST_THREADS = 1024
# Words of infinity, and of minus infinity.
_INFINITIES = {
    "float32": (0x7F800000, 0xFF800000),
    "bfloat16": (0x7F807F80, 0xFF80FF80),
    "float16": (0x7C007C00, 0xFC00FC00),
}


class BlockMinmaxGpu(RowTemplate):
    """Teams of threads, packed comparisons."""

    name = "block_minmax_gpu"
    operator = "block_minmax"

    def space(self, problem: BlockMinmax, target: Target) -> Space:
        """Knobs: tokens that a team reads side by side, teams of a thread block, loads at once."""
        pieces = problem.head_dim // values_of(problem.dtype)
        beside = powers_of_two(1, min(problem.block_size, 16))
        # Few blocks are latency: all their tokens at once.
        blocks = problem.batch * problem.kv_heads * len(problem.changed(problem.context))
        few = blocks < 4 * target.cores
        fitting = [t for t in beside if t * pieces <= _MOST_THREADS] or [1]
        knobs = (
            Knob("tokens", beside, fitting[-1] if few else fitting[0]),
            Knob("teams", (1, 2, 4, 8, 16), 1 if few else 8),
            Knob("loads", (2, 4, 8, 16), 8),
        )
        rules = (
            Constraint(
                f"tokens x teams must be at most {_MOST_THREADS} threads",
                lambda v: int(v["tokens"]) * int(v["teams"]) * pieces <= _MOST_THREADS,
            ),
            Constraint(
                "what the threads of a team exchange must fit in static shared memory",
                lambda v: _Bounds.of(problem, v).shared <= STATIC_SHARED,
            ),
        )
        return Space(self.name, knobs, rules)

    def kernels(
        self, problem: BlockMinmax, target: Target, values: Mapping[str, Value]
    ) -> dict[str, Kernel]:
        """Return the only kernel."""
        bounds = _Bounds.of(problem, values)
        return {"minmax": Kernel(bounds.threads, bounds.blocks, bounds.emit, shared=bounds.shared)}

    def kernel_counts(
        self, problem: BlockMinmax, target: Target, values: Mapping[str, Value]
    ) -> Counts:
        """Count a load, its place and two comparisons a word of keys."""
        bounds = _Bounds.of(problem, values)
        work = problem.changed(problem.context)
        keys = problem.context - work.start * problem.block_size
        rows = float(problem.batch * problem.kv_heads)
        row_bytes = problem.head_dim * itemsize(problem.dtype)
        accesses = rows * keys * bounds.pieces / WARP
        exchanged = rows * len(work) * row_bytes * 2 * (bounds.tokens - 1)
        moved = rows * row_bytes * (keys + 2 * len(work))
        return Counts(
            bytes={"memory": moved, "l2": moved, "l1": moved + 2 * exchanged},
            operations={"alu": accesses * (4 + 2 * WORDS) + exchanged / (WORD * WARP)},
            tiles={"teams": float(bounds.teams), "tokens": float(bounds.tokens)},
            parallelism=float(-(-rows * len(work) // bounds.teams)),
            registers=float(WORDS * (bounds.loads + 2) + 56),
            code=float(bounds.loads * (4 + 2 * WORDS)),
        )


@dataclass(frozen=True)
class _Item:
    """What a thread works on: a block of keys, one of its first tokens, a piece of the row."""

    request: Expr
    head: Expr
    block: Expr
    token: Expr
    piece: Expr
    length: Expr


@dataclass(frozen=True)
class _Bounds:
    """Emits the kernel."""

    problem: BlockMinmax
    tokens: int
    teams: int
    loads: int

    @classmethod
    def of(cls, problem: BlockMinmax, values: Mapping[str, Value]) -> _Bounds:
        """Return the kernel of these knob values; no more loads than a thread has."""
        tokens, teams, loads = (int(values[name]) for name in ("tokens", "teams", "loads"))
        return cls(problem, tokens, teams, min(loads, block_count(problem.block_size, tokens)))

    @property
    def pieces(self) -> int:
        """Return the accesses of a row."""
        return self.problem.head_dim // values_of(self.problem.dtype)

    @property
    def team(self) -> int:
        """Return the threads of a team."""
        return self.pieces * self.tokens

    @property
    def threads(self) -> int:
        """Return the threads of a block, whole warps."""
        return block_count(self.team * self.teams, WARP) * WARP

    @property
    def shared(self) -> int:
        """Return the bytes that threads exchange."""
        return 2 * WORDS * WORD * self.threads if self.tokens > 1 else 0

    def _most(self, slots: Expr) -> Expr:
        """Return the most blocks of a request that change."""
        tokens, size = self.problem.query_tokens, self.problem.block_size
        return (tokens + size - 2) // size + 1 if tokens else slots

    def blocks(self, sizes: Mapping[str, Expr]) -> Expr:
        """Return one team for each block that may change."""
        each = self.problem.kv_heads * self._most(sizes[SLOTS])
        return ceildiv(sizes["batch"] * each, self.teams)

    def emit(self, tensors: Tensors, place: Place) -> None:
        """Bound a block a team."""
        problem = self.problem
        slots = slot_count(tensors)
        most = self._most(slots)
        team = T.truncdiv(place.thread, self.team)
        inside = T.bind(place.thread - team * self.team)
        token = T.bind(T.truncdiv(inside, self.pieces))
        piece = inside - token * self.pieces
        item = T.bind(place.block * self.teams + team)
        row = T.bind(T.truncdiv(item, most))
        request = T.bind(T.truncdiv(row, problem.kv_heads))
        requests = T.cast(tensors.sizes["batch"], "int32")
        real = T.And(team < self.teams, request < requests)
        length = T.bind(tensors["seq_lens"][T.min(request, requests - 1)])
        since = T.max(length - problem.query_tokens, 0) if problem.query_tokens else T.int32(0)
        block = T.bind(T.truncdiv(since, problem.block_size) + item - row * most)
        used = T.min(ceildiv(length, problem.block_size), slots)
        active = T.bind(T.And(real, block < used))
        head = row - request * problem.kv_heads
        bounds = ptx.registers(2 * WORDS, "uint32")
        with T.If(active), T.Then():
            self._scan(tensors, bounds, _Item(request, head, block, token, piece, length))
        slot = T.cast(row, "int64") * slots + block
        self._finish(tensors, bounds, place.thread, token, active, slot * self.pieces + piece)

    def _scan(self, tensors: Tensors, bounds: Buffer, item: _Item) -> None:
        """Bound every ``tokens``-th key of a block."""
        problem = self.problem
        first = T.bind(item.block * problem.block_size)
        count = T.bind(T.min(item.length - first, problem.block_size))
        keys = view(tensors["k_cache"], "uint32")
        find = self._rows(tensors, item, first)
        for i, bits in enumerate(_INFINITIES[problem.dtype]):
            for word in range(WORDS):
                ptx.put(bounds, i * WORDS + word, T.uint32(bits))
        step = self.tokens * self.loads
        read = ptx.registers(WORDS * self.loads, "uint32")
        with T.serial(ceildiv(count, step)) as turn:
            for i in range(self.loads):
                at = T.min(turn * step + i * self.tokens + item.token, count - 1)
                place = (find(T.bind(at)) * self.pieces + item.piece) * WORDS
                load(read, i * WORDS, WORDS, keys, place)
            for i in range(WORDS * self.loads):
                self._join(bounds, i % WORDS, read[i], read[i])

    def _rows(self, tensors: Tensors, item: _Item, first: Expr) -> Callable[[Expr], Expr]:
        """Return what finds the row of a token of the block that starts at ``first``."""
        problem, place = self.problem, (item.request, item.head)
        if problem.page_size and problem.page_size % problem.block_size:
            return lambda token: cache_row(problem, tensors, *place, first + token)
        start = T.bind(cache_row(problem, tensors, *place, first))
        stride = problem.kv_heads if problem.layout == "NHD" else 1
        return lambda token: start + token * stride

    def _join(self, bounds: Buffer, word: int, low: Expr, high: Expr) -> None:
        """Take a word of lower and one of upper bounds in."""
        dtype = self.problem.dtype
        if dtype == "float32":
            bounds = bounds.view(dtype)
            low, high = (T.reinterpret(dtype, value) for value in (low, high))
        ptx.lesser(bounds[word], bounds[word], low, dtype)
        ptx.greater(bounds[WORDS + word], bounds[WORDS + word], high, dtype)

    def _finish(
        self, tensors: Tensors, bounds: Buffer, thread: Expr, token: Expr, active: Expr, at: Expr
    ) -> None:
        """Join the bounds of a team in its first token's threads, which store them."""
        if self.tokens > 1:
            shared = T.alloc_shared((2 * WORDS * self.threads,), "uint32")
            for word in range(2 * WORDS):
                ptx.put(shared, word * self.threads + thread, bounds[word])
            ptx.block_barrier()
        with T.If(T.And(active, token == 0)), T.Then():
            for other in range(1, self.tokens):
                for word in range(WORDS):
                    near = thread + other * self.pieces + word * self.threads
                    self._join(bounds, word, shared[near], shared[near + WORDS * self.threads])
            for i, name in enumerate(("k_min", "k_max")):
                store(view(tensors[name], "uint32"), at * WORDS, bounds, i * WORDS, WORDS)
