"""The look-up kernel for CPUs with VBMI: vpermb on tables of four groups, sums by vpdpbusd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.lookup_kernel import LookupKernel, Place, nibble_of
from wattune.schedules.cpu.ternary_gemm.lookup_layout import CHUNK
from wattune.schedules.cpu.ternary_gemm.lookup_tables import largest_sum
from wattune.schedules.cpu.vector import Registers
from wattune.schedules.program import Tensors

Expr = Any
I32 = "int32x16"


@dataclass(frozen=True)
class PermuteKernel(LookupKernel):
    """Rows in 32-bit lanes: vpermb looks 4 groups of a row up, vpdpbusd adds them with signs.

    Both byte tables are unsigned; the bias of the sums is taken off at the end, once for every
    positive and back for every negative sign.
    """

    def _multiply(self, tensors: Tensors, place: Place) -> Callable[[int, int, int], Expr]:
        count = 2 * self.token_block * self.row_vectors
        sums = Registers(count, "int32")
        for i in range(count):
            sums.store(i * vector.LANES, vector.splat(T.int32(0)))
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

    def _step(
        self, tensors: Tensors, sums: Registers, place: Place, chunk: Expr, step: int
    ) -> None:
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
        half = T.reinterpret("int8x64", nibble_of(index, nibble, vector.BYTES))
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
        self, sums: Registers, t: int, v: int, tables: list[Expr], entries: Expr, signs: Expr
    ) -> None:
        for half, table in enumerate(tables):
            slot = self._slot(t, v, half)
            looked = vector.lookup64(table, entries)
            sums.store(slot, vector.dot_u8s8(sums.load(slot, I32), looked, signs))

    def _total(self, tensors: Tensors, sums: Registers, place: Place, token: int, v: int) -> Expr:
        """Combine both bytes and take the bias off."""
        low, high = (sums.load(self._slot(token, v, half), I32) for half in range(2))
        total = low + T.shift_left(high, vector.splat(T.int32(8)))
        bias = largest_sum(self.weight)
        if not self.weight.sign_sums:
            return total - vector.splat(T.int32(bias * self.weight.groups))
        row = (place.first_vector + v) * self.weight.rows
        at = self.weight.sign_sums_at(place.block, row)
        signs = vector.load_as(tensors["weight"], at, "int32", vector.LANES)
        return total - signs * vector.splat(T.int32(bias))
