"""The kernels of `attn_gate_compress`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.attn_gate_compress import AttnGateCompress
from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import SLOTS, block_count
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.plain import Buffer, Expr, Place, ceildiv, for_each, view
from wattune.schedules.cuda.selection.gate_parts import finish_row
from wattune.schedules.cuda.selection.projection import Projection
from wattune.schedules.cuda.values import WORD, WORDS, load, rounded, store, values_of, widened
from wattune.schedules.program import Tensors

_START = {"max": float("-inf"), "min": float("inf"), "avg": 0.0}


def touched_blocks(problem: AttnGateCompress) -> int:
    """Return the most blocks that the new tokens of a request touch."""
    return (problem.query_tokens + problem.block_size - 2) // problem.block_size + 1


@dataclass(frozen=True)
class _Block:
    """A block of keys: whose, where its tokens start, which tokens of the request are new."""

    request: Expr
    head: Expr
    start: Expr
    old: Expr
    length: Expr


@dataclass(frozen=True)
class Compress:
    """Emits both kernels."""

    problem: AttnGateCompress
    projection: Projection

    @property
    def threads(self) -> int:
        """Return the threads of a block."""
        return self.projection.threads

    @property
    def pieces(self) -> int:
        """Return the accesses of a key."""
        return self.problem.head_dim // values_of(self.problem.dtype)

    @property
    def lanes(self) -> int:
        """Return the keys that a thread block pools side by side."""
        return self.threads // self.pieces

    @property
    def shared(self) -> int:
        """Return the bytes of shared memory."""
        exchanged = self.lanes * self.problem.head_dim
        sums = self.projection.parts * (self.projection.shared - 4 * self.projection.floats)
        return 4 * (exchanged + self.projection.floats + self.problem.gate_dim + 64) + sums

    def entries(self, sizes: Mapping[str, Expr]) -> Expr:
        """Return the thread blocks of the entries."""
        return sizes["batch"] * (self.problem.kv_heads * touched_blocks(self.problem))

    def emit(self, tensors: Tensors, place: Place) -> None:
        """Bring one block of keys up to date."""
        problem, size = self.problem, self.problem.block_size
        touched = touched_blocks(problem)
        row = T.bind(T.truncdiv(place.block, touched))
        request = T.bind(T.truncdiv(row, problem.kv_heads))
        head = T.bind(row - request * problem.kv_heads)
        length = T.bind(tensors["seq_lens"][request])
        old = T.bind(T.max(length - problem.query_tokens, 0))
        number = T.bind(T.truncdiv(old, size) + place.block - row * touched)
        block = _Block(request, head, T.bind(number * size), old, length)
        slot = T.cast(row, "int64") * tensors.sizes[SLOTS] + number
        entry = T.bind(slot * problem.gate_dim)
        with T.If(block.start + size <= length):
            with T.Then():
                self._fill(tensors, block, entry, place.thread)
            with T.Else(), T.If(T.And(block.start < length, block.start >= old)), T.Then():
                self._store(tensors, entry, place.thread, None)
        if touched == 1:
            with T.If(T.And(length > 0, place.thread < self.pieces)), T.Then():
                self._keep(tensors, block, length - 1, place.thread)

    def _fill(self, tensors: Tensors, block: _Block, entry: Expr, thread: Expr) -> None:
        """Compute the entry of a full block."""
        problem, projection = self.problem, self.projection
        pooled = T.alloc_shared((projection.depth,), "float32")
        row = T.alloc_shared((problem.gate_dim,), "float32")
        self._pool(tensors, pooled, block, thread)
        weight = view(tensors["wk"], "uint32")
        words = projection.depth * problem.gate_dim * itemsize(problem.dtype) // WORD
        start = T.bind(T.cast(block.head, "int64") * words)
        for part in range(projection.parts):
            first = part * projection.columns

            def take(r: int, column: Expr, value: Expr, first: int = first) -> None:
                ptx.put(row, first + column, value)

            projection.emit(pooled, weight, start, T.int32(part), thread, take)
        position = block.start + (0 if problem.position_rule == "first" else problem.block_size - 1)
        finish_row(problem, tensors, "k_norm", row, position, thread, self.threads)
        self._store(tensors, entry, thread, row)

    def _store(self, tensors: Tensors, entry: Expr, thread: Expr, row: Buffer | None) -> None:
        """Round a row into the entry, or clear the entry."""
        dtype = self.problem.dtype
        bits = view(tensors["k_compressed"], f"uint{8 * itemsize(dtype)}")

        def put(at: Expr) -> None:
            value = T.IntImm(bits.dtype, 0) if row is None else rounded(T.bind(row[at]), dtype)
            ptx.put(bits, entry + at, value)

        for_each(thread, self.threads, self.problem.gate_dim, put)

    def _pool(self, tensors: Tensors, pooled: Buffer, block: _Block, thread: Expr) -> None:
        """Pool the keys of a block into shared memory, one pooling after the other."""
        problem, each = self.problem, values_of(self.problem.dtype)
        found = {name: ptx.registers(each, "float32") for name in problem.pools}
        for name, values in found.items():
            for i in range(each):
                ptx.put(values, i, T.float32(_START[name]))
        lane, piece = T.truncdiv(thread, self.pieces), T.truncmod(thread, self.pieces)
        read = ptx.registers(WORDS, "uint32")
        with T.serial(block_count(problem.block_size, self.lanes)) as turn:
            token = T.bind(turn * self.lanes + lane)
            with T.If(T.And(lane < self.lanes, token < problem.block_size)), T.Then():
                self._load(tensors, read, block, token, piece)
                for word in range(WORDS):
                    values = [T.bind(v) for v in widened(read[word], problem.dtype)]
                    for i, value in enumerate(values):
                        self._join(found, word * len(values) + i, value)
        shared = T.alloc_shared((self.lanes * problem.head_dim,), "float32")
        for p, name in enumerate(problem.pools):
            with T.If(lane < self.lanes), T.Then():
                for i in range(each):
                    column = lane * problem.head_dim + piece * each + i
                    ptx.put(shared, column, found[name][i])
            ptx.block_barrier()

            def join(column: Expr, p: int = p, name: str = name) -> None:
                value = ptx.registers(1, "float32")
                ptx.put(value, 0, shared[column])
                with T.serial(self.lanes - 1) as other:
                    near = shared[(other + 1) * problem.head_dim + column]
                    ptx.put(value, 0, _pooled(name, value[0], near))
                factor = 1 / problem.block_size if name == "avg" else 1.0
                total = value[0] * T.float32(factor)
                ptx.put(pooled, p * problem.head_dim + column, total)

            for_each(thread, self.threads, problem.head_dim, join)
            ptx.block_barrier()

    def _join(self, found: Mapping[str, Buffer], i: int, value: Expr) -> None:
        """Take a value into every pooling."""
        for name, values in found.items():
            ptx.put(values, i, _pooled(name, values[i], value))

    def _load(
        self, tensors: Tensors, read: Buffer, block: _Block, token: Expr, piece: Expr
    ) -> None:
        """Load a piece of a token's key: a new one, or one that the ring kept."""
        new, ring = (view(tensors[name], "uint32") for name in ("k", "k_remainder"))
        with T.If(block.start + token >= block.old):
            with T.Then():
                place = self._new(block, block.start + token)
                load(read, 0, WORDS, new, (place * self.pieces + piece) * WORDS)
            with T.Else():
                place = self._kept(block, token)
                load(read, 0, WORDS, ring, (place * self.pieces + piece) * WORDS)

    def _new(self, block: _Block, position: Expr) -> Expr:
        """Return the row of a new token's key."""
        tokens = self.problem.query_tokens
        token = T.cast(block.request, "int64") * tokens + (position - block.length + tokens)
        return token * self.problem.kv_heads + block.head

    def _kept(self, block: _Block, slot: Expr) -> Expr:
        """Return the row of a slot of the ring."""
        line = T.cast(block.request, "int64") * self.problem.kv_heads + block.head
        return line * self.problem.block_size + slot

    def _keep(self, tensors: Tensors, block: _Block, position: Expr, piece: Expr) -> None:
        """Copy a piece of a new token's key into the ring."""
        new, ring = (view(tensors[name], "uint32") for name in ("k", "k_remainder"))
        read = ptx.registers(WORDS, "uint32")
        source = self._new(block, position)
        load(read, 0, WORDS, new, (source * self.pieces + piece) * WORDS)
        to = self._kept(block, T.truncmod(position, self.problem.block_size))
        store(ring, (to * self.pieces + piece) * WORDS, read, 0, WORDS)

    @property
    def _last(self) -> int:
        """Return the new tokens of a request that the ring keeps, at the most."""
        return min(self.problem.query_tokens, self.problem.block_size)

    def keeps(self, sizes: Mapping[str, Expr]) -> Expr:
        """Return the thread blocks of the ring."""
        each = self.problem.kv_heads * self._last * self.pieces
        return ceildiv(sizes["batch"] * each, self.threads)

    def emit_ring(self, tensors: Tensors, place: Place) -> None:
        """Keep a piece of a key a thread."""
        problem = self.problem
        item = T.bind(place.block * self.threads + place.thread)
        token = T.bind(T.truncdiv(item, self.pieces))
        row = T.bind(T.truncdiv(token, self._last))
        request = T.bind(T.truncdiv(row, problem.kv_heads))
        with T.If(request < T.cast(tensors.sizes["batch"], "int32")), T.Then():
            length = T.bind(tensors["seq_lens"][request])
            position = T.bind(length - self._last + token - row * self._last)
            block = _Block(request, row - request * problem.kv_heads, position, position, length)
            with T.If(position >= 0), T.Then():
                self._keep(tensors, block, position, item - token * self.pieces)


def _pooled(name: str, a: Expr, b: Expr) -> Expr:
    if name == "avg":
        return a + b
    return T.max(a, b) if name == "max" else T.min(a, b)
