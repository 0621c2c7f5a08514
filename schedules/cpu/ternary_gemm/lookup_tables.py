"""Tables of look-up kernels: for each group of columns, the sum that every index stands for.

    table[group][index] = sum of weights(index)[i] * q[group * size + i]

A sum needs more than a byte, so a table is two byte tables. They are written to the workspace
once per token and read by every block of rows, those of one token block beside each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.lookup_layout import LookupLayout
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace

ENTRIES = 16
Expr = Any
Buffer = Any


def largest_sum(layout: LookupLayout) -> int:
    """Return the largest magnitude of a table entry: the activation -128 times large weights."""
    return 128 * layout.coding.group * (layout.coding.levels // 2)


@dataclass(frozen=True)
class Tables(ABC):
    """Where the tables are in the workspace; a subclass says what they hold and builds them."""

    layout: LookupLayout
    token_block: int

    @property
    def bytes(self) -> int:
        """Bytes of both tables of one nibble of one step and token."""
        return 2 * ENTRIES * self.layout.lanes

    def scratch_bytes(self, tokens: int) -> int:
        """Bytes for all tokens, whole blocks of them."""
        blocks = -(-tokens // self.token_block)
        return blocks * self.token_block * self.layout.steps * 2 * self.bytes

    def at(self, block: Expr, step: Expr, nibble: int, token: Expr) -> Expr:
        """Return the offset of the low table; ``token`` counts within the token block."""
        run = (block * self.layout.steps + step) * 2 + nibble
        return (run * self.token_block + token) * self.bytes

    def emit(self, work: Buffer, workspace: Workspace, token: Expr) -> None:
        """Emit the tables of one token."""
        with T.serial(self.layout.steps) as step:
            for nibble in range(2):
                block, inner = token // self.token_block, token % self.token_block
                at = workspace.scratch + self.at(block, step, nibble, inner)
                self._emit_step(work, token * workspace.stride, step, nibble, at)

    @abstractmethod
    def _emit_step(self, work: Buffer, row: Expr, step: Expr, nibble: int, at: Expr) -> None:
        """Emit both tables of one nibble of a step at a byte offset."""

    def _weights(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the weights of each of 16 indices: [16, group]; indices without a value are 0."""
        values = self.layout.coding.table_values()
        return np.pad(values, ((0, ENTRIES - len(values)), (0, 0)))


@dataclass(frozen=True)
class BiasedTables(Tables):
    """Tables for vpermb: 4 groups of 16 entries, sums made positive by a bias, low and high byte.

    The codes of a 128-bit lane belong to one group while sums are made: lane g holds 4 copies of
    the activations of group g, so one dot product gives 4 entries of each of 4 groups.
    """

    @property
    def bias(self) -> int:
        """What makes every sum positive."""
        return largest_sum(self.layout)

    def _emit_step(self, work: Buffer, row: Expr, step: Expr, nibble: int, at: Expr) -> None:
        size = self.layout.coding.group
        columns = row + step * 2 * self.layout.lanes * size
        first = [(2 * group + nibble) * size for group in range(4)]
        spread = [first[i // 16] + min(i % 4, size - 1) for i in range(vector.BYTES)]
        q = T.reinterpret("int8x64", vector.load_bytes(work, columns))
        q = T.reinterpret("uint8x64", vector.lookup64(q, vector.constant(spread)))
        unsigned = T.bind(T.bitwise_xor(q, vector.splat_u8(128)))
        sums = [self._sums(unsigned, first) for first in range(0, ENTRIES, 4)]
        words = [vector.pack_u32(sums[0], sums[1]), vector.pack_u32(sums[2], sums[3])]
        words = [T.bind(word) for word in words]
        low = [T.bitwise_and(word, vector.splat(T.int16(255), 32)) for word in words]
        high = [T.shift_right(word, vector.splat(T.int16(8), 32)) for word in words]
        for i, (first_half, second_half) in enumerate((low, high)):
            packed = T.reinterpret("uint8x64", vector.pack_u16(first_half, second_half))
            vector.store(work, [at + i * vector.BYTES], packed)

    def _sums(self, unsigned: Expr, first: int) -> Expr:
        """Return the entries ``first`` to ``first + 3`` of each group, one group a 128-bit lane.

        The activations come as q + 128; what that adds is taken off the initial value.
        """
        weights = np.pad(self._weights(), ((0, 0), (0, 4 - self.layout.coding.group)))
        rows = weights[first : first + 4]
        start = vector.constant_i32([int(self.bias - 128 * row.sum()) for row in rows] * 4)
        codes = [int(w) % 256 for row in rows for w in row] * 4
        return vector.dot_u8s8(start, unsigned, vector.constant(codes))


@dataclass(frozen=True)
class DigitTables(Tables):
    """Tables for vpshufb: 16 entries, each sum as two small signed digits.

        sum = low + radix * high

    The radix is odd and keeps both digits small, so that ``safe_groups`` of them add up in a byte
    without overflow, whatever their signs.
    """

    @property
    def radix(self) -> int:
        """The odd radix whose larger digit is the smallest."""
        return min(range(3, 64, 2), key=self._largest_digit)

    @property
    def safe_groups(self) -> int:
        """How many groups add up in a byte."""
        return 127 // self._largest_digit(self.radix)

    def _largest_digit(self, radix: int) -> int:
        high = (2 * largest_sum(self.layout) + radix) // (2 * radix)
        return max(radix // 2, high)

    def _emit_step(self, work: Buffer, row: Expr, step: Expr, nibble: int, at: Expr) -> None:
        size, lanes = self.layout.coding.group, 16
        columns = row + (2 * step + nibble) * size
        weights = self._weights()
        total = vector.constant_i16([-128 * int(entry.sum()) for entry in weights])
        for i in range(0, size, 2):
            pair = T.reinterpret("int16", work.vload([columns + i], "uint8x2"))
            q = T.reinterpret("uint8x32", vector.splat(pair, lanes))
            unsigned = T.bitwise_xor(q, vector.splat_u8(128, 2 * lanes))
            part = np.pad(weights, ((0, 0), (0, 1)))[:, i : i + 2]
            codes = vector.constant([int(w) % 256 for w in part.reshape(-1)])
            total = total + vector.dot_pairs_u8s8(unsigned, codes)
        total = T.bind(total)
        # The rounded product is the rounded quotient: no quotient of an odd number is a tie.
        inverse = T.int16(round(2**15 / self.radix))
        high = T.bind(vector.round_product(total, vector.splat(inverse, lanes)))
        low = total - high * vector.splat(T.int16(self.radix), lanes)
        both = T.reinterpret("uint8x32", vector.pack_s16(low, high))
        vector.store(work, [at], both)
