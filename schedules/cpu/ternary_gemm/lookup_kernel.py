"""Kernels of look-up templates: `PermuteKernel` (vpermb) and `ShuffleKernel` (vpshufb)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.base import quantize_tokens
from wattune.schedules.cpu.ternary_gemm.lookup_layout import CHUNK, LookupLayout
from wattune.schedules.cpu.ternary_gemm.lookup_tables import (
    BiasedTables,
    DigitTables,
    largest_sum,
)
from wattune.schedules.cpu.ternary_gemm.store import Storer
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any
I32 = "int32x16"


@dataclass(frozen=True)
class Place:
    """Where a kernel works: a row block, its first vector, a token block."""

    block: Expr
    first_vector: Expr
    token_block: Expr


@dataclass(frozen=True)
class LookupKernel:
    """Emits quantisation, tables and the loops over row blocks; a subclass multiplies."""

    problem: TernaryGemm
    threads: int
    weight: LookupLayout
    workspace: Workspace
    tables: BiasedTables | DigitTables
    row_vectors: int
    k_unroll: int
    prefetch: int
    token_block: int
    grain: int

    def emit(self, tensors: Tensors) -> None:
        """Emit the kernel's three phases."""
        columns = self.weight.padded_columns
        quantize_tokens(self.problem, self.workspace, columns, self.threads, tensors)
        loop = T.parallel if self.threads > 1 and self.problem.tokens > 1 else T.serial
        with loop(T.cast(tensors.sizes["tokens"], "int32")) as token:
            self.tables.emit(tensors["workspace"], self.workspace, token)
        parallel = T.parallel if self.threads > 1 else T.serial
        blocks = self.weight.blocks
        with parallel(-(-blocks // self.grain)) as task, T.serial(self.grain) as inner:
            block = task * self.grain + inner
            if blocks % self.grain:
                with T.If(block < blocks), T.Then():
                    self._block(tensors, block)
            else:
                self._block(tensors, block)

    def _block(self, tensors: Tensors, block: Expr) -> None:
        """Multiply one block of rows with all tokens."""
        tokens = tensors.sizes["tokens"]
        count = T.cast((tokens + self.token_block - 1) // self.token_block, "int32")
        parts = self.weight.vectors // self.row_vectors
        with T.serial(parts) as part, T.serial(count) as at:
            place = Place(block, part * self.row_vectors, at)
            totals = self._multiply(tensors, place)
            self._store(tensors, place, totals)

    def _multiply(self, tensors: Tensors, place: Place) -> Callable[[int, int, int], Expr]:
        """Emit the sums; return what reads those of (token, vector, 16 rows of the vector)."""
        raise NotImplementedError

    def _store(
        self, tensors: Tensors, place: Place, totals: Callable[[int, int, int], Expr]
    ) -> None:
        storer = Storer(self.problem, self.workspace)
        for t in range(self.token_block):
            token = place.token_block * self.token_block + t
            with T.If(token < tensors.sizes["tokens"]), T.Then():
                for v in range(self.row_vectors):
                    vec = place.block * self.weight.vectors + place.first_vector + v
                    for part in range(self.weight.rows // vector.LANES):
                        storer.emit(
                            totals(t, v, part),
                            tensors["workspace"],
                            tensors.get("weight_scale"),
                            tensors["y"],
                            token,
                            vec * self.weight.rows + part * vector.LANES,
                            offset=False,
                        )

    def _chunks(self, count: int, body: Callable[[Expr], None]) -> None:
        """Emit a loop over chunks, unrolled, and what the unrolling leaves."""
        whole = count // self.k_unroll
        if whole:
            with T.serial(whole) as at:
                for k in range(self.k_unroll):
                    body(at * self.k_unroll + k)
        for k in range(whole * self.k_unroll, count):
            body(T.int32(k))

    def _codes(
        self, tensors: Tensors, place: Place, chunk: Expr, step: int, v: int
    ) -> tuple[Expr, Expr | None]:
        """Load an index vector and, of formats with signs, the chunk's sign vector."""
        blob, width = tensors["weight"], self.weight.width
        vec = place.first_vector + v
        at = self.weight.index_at(place.block, chunk, step, vec)
        if self.prefetch:
            vector.prefetch(blob, at + self.prefetch)
        index = T.bind(vector.load_bytes(blob, at, width))
        if not self.weight.coding.mirror:
            return index, None
        at = self.weight.signs_at(place.block, chunk, vec)
        if self.prefetch and step == 0:
            vector.prefetch(blob, at + self.prefetch)
        return index, vector.load_bytes(blob, at, width)

    def _table(self, place: Place, chunk: Expr, step: int, nibble: int, t: int) -> Expr:
        """Return the offset of the low byte table."""
        return self.workspace.scratch + self.tables.at(
            place.token_block, chunk * CHUNK + step, nibble, t
        )


def _nibble(index: Expr, nibble: int, lanes: int) -> Expr:
    """Return one half of each byte."""
    half = vector.shift_fields(index, 4, lanes) if nibble else index
    return T.bitwise_and(half, vector.splat_u8(15, lanes))


@dataclass(frozen=True)
class PermuteKernel(LookupKernel):
    """Rows in 32-bit lanes: vpermb looks 4 groups of a row up, vpdpbusd adds them with signs.

    Both byte tables are unsigned; the bias of the sums is taken off at the end, once for every
    positive and back for every negative sign.
    """

    def _multiply(self, tensors: Tensors, place: Place) -> Callable[[int, int, int], Expr]:
        count = 2 * self.token_block * self.row_vectors
        sums = T.alloc_buffer((count * vector.LANES,), "int32", scope="local")
        for i in range(count):
            vector.store(sums, [i * vector.LANES], vector.splat(T.int32(0)))
        whole, rest = divmod(self.weight.steps, CHUNK)

        def body(chunk: Expr) -> None:
            for step in range(CHUNK):
                self._step(tensors, sums, place, chunk, step)

        self._chunks(whole, body)
        for step in range(rest):
            self._step(tensors, sums, place, T.int32(whole), step)
        return lambda t, v, part: self._total(tensors, sums, place, t, v)

    def _slot(self, token: int, v: int, half: int) -> int:
        return ((token * self.row_vectors + v) * 2 + half) * vector.LANES

    def _step(self, tensors: Tensors, sums: Buffer, place: Place, chunk: Expr, step: int) -> None:
        """Add one index vector of every row vector, whichever way keeps fewer registers alive.

        With many row vectors the tables stay and indices pass by; with many tokens the other way.
        """
        vectors, tokens = range(self.row_vectors), range(self.token_block)
        if self.row_vectors >= 2 * self.token_block:
            pairs = [
                [self._tables(tensors, place, chunk, step, n, t) for t in tokens] for n in (0, 1)
            ]
            for v in vectors:
                index, bits = self._codes(tensors, place, chunk, step, v)
                for nibble in range(2):
                    codes = self._decode(index, bits, step, nibble)
                    for t in tokens:
                        self._add(sums, t, v, pairs[nibble][t], *codes)
            return
        loaded = [self._codes(tensors, place, chunk, step, v) for v in vectors]
        for nibble in range(2):
            decoded = [self._decode(index, bits, step, nibble) for index, bits in loaded]
            for t in tokens:
                tables = self._tables(tensors, place, chunk, step, nibble, t)
                for v in vectors:
                    self._add(sums, t, v, tables, *decoded[v])

    def _decode(self, index: Expr, bits: Expr | None, step: int, nibble: int) -> tuple[Expr, Expr]:
        """Return the entries of one nibble in the table of 4 groups, and their signs."""
        lane = vector.constant([16 * (i % 4) for i in range(vector.BYTES)])
        half = T.reinterpret("int8x64", _nibble(index, nibble, vector.BYTES))
        entries = T.bind(T.bitwise_or(half, lane))
        if bits is None:
            return entries, vector.splat(T.int8(1), vector.BYTES)
        return entries, T.bind(vector.signs(bits, 2 * step + nibble))

    def _tables(
        self, tensors: Tensors, place: Place, chunk: Expr, step: int, nibble: int, t: int
    ) -> list[Expr]:
        """Load the low and the high byte table."""
        at = self._table(place, chunk, step, nibble, t)
        loads = [
            vector.load_bytes(tensors["workspace"], at + half * vector.BYTES) for half in range(2)
        ]
        return [T.bind(T.reinterpret("int8x64", load)) for load in loads]

    def _add(
        self, sums: Buffer, t: int, v: int, tables: list[Expr], entries: Expr, signs: Expr
    ) -> None:
        for half, table in enumerate(tables):
            slot = [self._slot(t, v, half)]
            looked = vector.lookup64(table, entries)
            vector.store(sums, slot, vector.dot_u8s8(sums.vload(slot, I32), looked, signs))

    def _total(self, tensors: Tensors, sums: Buffer, place: Place, token: int, v: int) -> Expr:
        """Combine both bytes and take the bias off."""
        low, high = (sums.vload([self._slot(token, v, half)], I32) for half in range(2))
        total = low + T.shift_left(high, vector.splat(T.int32(8)))
        bias = largest_sum(self.weight)
        if not self.weight.sign_sums:
            return total - vector.splat(T.int32(bias * self.weight.groups))
        row = (place.first_vector + v) * self.weight.rows
        at = self.weight.sign_sums_at(place.block, row)
        signs = vector.load_as(tensors["weight"], at, "int32", vector.LANES)
        return total - signs * vector.splat(T.int32(bias))


@dataclass(frozen=True)
class ShuffleKernel(LookupKernel):
    """Rows in bytes: vpshufb looks one group of every row up, as two digits.

    Digits of a few groups add up in bytes, those sums in 16 bits, those in 32 bits:

        for section: for chunk: for run of groups: digits -> bytes; bytes -> 16 bits; -> 32 bits
    """

    @property
    def _run(self) -> int:
        """Steps whose digits add up in a byte: the largest power of two that is safe."""
        tables = self.tables
        assert isinstance(tables, DigitTables)
        return CHUNK if tables.safe_groups >= 2 * CHUNK else CHUNK // 2

    @property
    def _section(self) -> int:
        """Chunks whose sums add up in 16 bits."""
        return (2**15 - 1) // (2 * CHUNK * largest_sum(self.weight))

    @property
    def _negated(self) -> bool:
        """Say whether digit sums have the wrong sign: 512-bit masks negate what has no sign."""
        return self.weight.coding.mirror and self.weight.width == vector.BYTES

    @property
    def _quarters(self) -> int:
        """Registers of 16 rows in a vector."""
        return self.weight.rows // vector.LANES

    def _multiply(self, tensors: Tensors, place: Place) -> Callable[[int, int, int], Expr]:
        vectors = self.token_block * self.row_vectors
        sums = T.alloc_buffer((vectors * self._quarters * vector.LANES,), "int32", scope="local")
        for i in range(vectors * self._quarters):
            vector.store(sums, [i * vector.LANES], vector.splat(T.int32(0)))
        whole, rest = divmod(self.weight.steps, CHUNK)
        sections, chunks = divmod(whole, self._section)
        if sections:
            with T.serial(sections) as section:
                self._emit_section(tensors, sums, place, section * self._section, self._section, 0)
        if chunks or rest:
            first = T.int32(sections * self._section)
            self._emit_section(tensors, sums, place, first, chunks, rest)
        return lambda t, v, part: sums.vload([self._slot(t, v, part)], I32)

    def _slot(self, token: int, v: int, quarter: int) -> int:
        return ((token * self.row_vectors + v) * self._quarters + quarter) * vector.LANES

    def _emit_section(
        self, tensors: Tensors, sums: Buffer, place: Place, first: Expr, chunks: int, rest: int
    ) -> None:
        """Add whole chunks, and ``rest`` steps of one more, in 16 bits; then widen."""
        lanes = self.weight.width // 2
        vectors = self.token_block * self.row_vectors
        words = T.alloc_buffer((2 * vectors * lanes,), "int16", scope="local")
        for i in range(2 * vectors):
            vector.store(words, [i * lanes], vector.splat(T.int16(0), lanes))
        self._chunks(chunks, lambda k: self._chunk(tensors, words, place, first + k, CHUNK))
        if rest:
            self._chunk(tensors, words, place, first + chunks, rest)
        kind = f"int16x{lanes}"
        for at in range(vectors):
            low, high = (words.vload([(2 * at + i) * lanes], kind) for i in range(2))
            for quarter in range(self._quarters):
                rows = [half * lanes + 8 * quarter + i for half in range(2) for i in range(8)]
                slot = [(at * self._quarters + quarter) * vector.LANES]
                wide = T.cast(T.Shuffle([low, high], rows), I32)
                vector.store(sums, slot, sums.vload(slot, I32) + wide)

    def _chunk(
        self, tensors: Tensors, words: Buffer, place: Place, chunk: Expr, steps: int
    ) -> None:
        for first in range(0, steps, self._run):
            run = range(first, min(first + self._run, steps))
            digits = self._digits(tensors, place, chunk, run)
            for at, (low, high) in enumerate(digits):
                self._add_words(words, at, low, high)

    def _digits(
        self, tensors: Tensors, place: Place, chunk: Expr, steps: range
    ) -> list[tuple[Expr, Expr]]:
        """Return the low and high digit sums of (token, vector) over some steps."""
        width, work = self.weight.width, tensors["workspace"]
        sums: dict[tuple[int, int, int], Expr] = {}
        for step in steps:
            codes = [self._codes(tensors, place, chunk, step, v) for v in range(self.row_vectors)]
            for nibble in range(2):
                entries = [
                    T.bind(T.reinterpret(f"int8x{width}", _nibble(index, nibble, width)))
                    for index, _ in codes
                ]
                signs = [self._sign(bits, 2 * step + nibble) for _, bits in codes]
                for t in range(self.token_block):
                    at = self._table(place, chunk, step, nibble, t)
                    for half in range(2):
                        table = T.bind(vector.repeat16(work, at + half * 16, width))
                        for v in range(self.row_vectors):
                            looked = vector.lookup16(table, entries[v], 8 * width)
                            digit = signs[v](looked)
                            key = (t, v, half)
                            sums[key] = T.bind(sums[key] + digit if key in sums else digit)
        return [
            (sums[t, v, 0], sums[t, v, 1])
            for t in range(self.token_block)
            for v in range(self.row_vectors)
        ]

    def _sign(self, bits: Expr | None, which: int) -> Callable[[Expr], Expr]:
        """Return what gives looked-up digits their signs, or the opposite: see `_negated`."""
        if bits is None:
            return lambda value: value
        if self._negated:
            return lambda value: vector.negate_unless(bits, which, T.bind(value))
        # The bit moves to the top of its byte; bit 0 keeps the byte from being zero.
        wide = T.reinterpret("uint16x16", bits)
        moved = T.shift_left(wide, vector.splat(T.uint16(7 - which)))
        sign = T.bitwise_or(T.reinterpret("uint8x32", moved), vector.splat_u8(1, 32))
        sign = T.bind(T.reinterpret("int8x32", sign))
        return lambda value: vector.apply_sign(value, sign)

    def _add_words(self, words: Buffer, at: int, low: Expr, high: Expr) -> None:
        """Add low + radix * high of the rows of a vector to two registers of 16-bit lanes."""
        tables = self.tables
        assert isinstance(tables, DigitTables)
        width = self.weight.width
        lanes = width // 2
        factors = vector.constant([1, tables.radix] * lanes)
        for i, pairs in enumerate(vector.interleave_bytes(low, high, width)):
            slot = [(2 * at + i) * lanes]
            value = vector.dot_pairs_u8s8(factors, pairs, 8 * width)
            total = words.vload(slot, f"int16x{lanes}")
            vector.store(words, slot, total - value if self._negated else total + value)
