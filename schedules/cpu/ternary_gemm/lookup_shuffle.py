"""The look-up kernel for every CPU with AVX2 or AVX-512BW: vpshufb on tables of one group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.lookup_kernel import LookupKernel, Place, nibble_of
from wattune.schedules.cpu.ternary_gemm.lookup_layout import CHUNK
from wattune.schedules.cpu.ternary_gemm.lookup_tables import ENTRIES, DigitTables, largest_sum
from wattune.schedules.cpu.vector import Registers
from wattune.schedules.program import Tensors

Expr = Any
I32 = "int32x16"
# 16-bit lanes of a register.
WORDS = 32


@dataclass(frozen=True)
class ShuffleKernel(LookupKernel):
    """Rows in bytes: vpshufb looks one group of every row up, as two digits.

    Digits of a few groups add up in bytes, those sums in 16 bits, those in 32 bits:

        for section: for chunk: for run of groups: digits -> bytes; bytes -> 16 bits; -> 32 bits
    """

    tables: DigitTables

    @property
    def _run(self) -> int:
        """Steps whose digits add up in a byte: the largest power of two that is safe."""
        return CHUNK if self.tables.safe_groups >= 2 * CHUNK else CHUNK // 2

    @property
    def _section(self) -> int:
        """Chunks whose sums add up in 16 bits."""
        return (2**15 - 1) // (2 * CHUNK * largest_sum(self.weight))

    @property
    def _negated(self) -> bool:
        """Say whether digit sums have the wrong sign: 512-bit masks negate what has no sign."""
        return self.weight.coding.mirror and self.weight.width == vector.BYTES

    @property
    def _parts(self) -> int:
        """Registers of 16 rows in a vector."""
        return self.weight.rows // vector.LANES

    def _multiply(self, tensors: Tensors, place: Place) -> Callable[[int, int, int], Expr]:
        vectors = self.token_block * self.row_vectors
        sums = Registers(vectors * self._parts, "int32")
        for i in range(vectors * self._parts):
            sums.store(i * vector.LANES, vector.splat(T.int32(0)))
        whole, rest = divmod(self.weight.steps, CHUNK)
        sections, chunks = divmod(whole, self._section)
        if sections:
            with T.serial(sections) as section:
                self._emit_section(tensors, sums, place, section * self._section, self._section, 0)
        if chunks or rest:
            first = T.int32(sections * self._section)
            self._emit_section(tensors, sums, place, first, chunks, rest)
        return lambda t, v, part: sums.load(self._slot(t, v, part), I32)

    def _slot(self, token: int, v: int, part: int) -> int:
        return ((token * self.row_vectors + v) * self._parts + part) * vector.LANES

    def _emit_section(
        self, tensors: Tensors, sums: Registers, place: Place, first: Expr, chunks: int, rest: int
    ) -> None:
        """Add whole chunks, and ``rest`` steps of one more, in 16 bits; then widen."""
        lanes = self.weight.width // 2
        vectors = self.token_block * self.row_vectors
        words = Registers(-(-2 * vectors * lanes // WORDS), "int16")
        for i in range(2 * vectors):
            words.store(i * lanes, vector.splat(T.int16(0), lanes))
        self._chunks(chunks, lambda k: self._chunk(tensors, words, place, first + k, CHUNK))
        if rest:
            self._chunk(tensors, words, place, first + chunks, rest)
        kind = f"int16x{lanes}"
        for at in range(vectors):
            low, high = (words.load((2 * at + i) * lanes, kind) for i in range(2))
            for part in range(self._parts):
                rows = [half * lanes + 8 * part + i for half in range(2) for i in range(8)]
                slot = (at * self._parts + part) * vector.LANES
                wide = T.cast(T.Shuffle([low, high], rows), I32)
                sums.store(slot, sums.load(slot, I32) + wide)

    def _chunk(
        self, tensors: Tensors, words: Registers, place: Place, chunk: Expr, steps: int
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
                    T.bind(T.reinterpret(f"int8x{width}", nibble_of(index, nibble, width)))
                    for index, _ in codes
                ]
                signs = [self._sign(bits, 2 * step + nibble) for _, bits in codes]
                for t, half in product(range(self.token_block), range(2)):
                    at = self._table(place, chunk, step, nibble, t) + half * ENTRIES
                    table = T.bind(vector.repeat16(work, at, width))
                    for v in range(self.row_vectors):
                        digit = signs[v](vector.lookup16(table, entries[v], 8 * width))
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

    def _add_words(self, words: Registers, at: int, low: Expr, high: Expr) -> None:
        """Add low + radix * high of the rows of a vector to two registers of 16-bit lanes."""
        width = self.weight.width
        lanes = width // 2
        factors = vector.constant([1, self.tables.radix] * lanes)
        for i, pairs in enumerate(vector.interleave_bytes(low, high, width)):
            slot = (2 * at + i) * lanes
            value = vector.dot_pairs_u8s8(factors, pairs, 8 * width)
            total = words.load(slot, f"int16x{lanes}")
            words.store(slot, total - value if self._negated else total + value)
