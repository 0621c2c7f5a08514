"""How rows of numbers meet codes in vector registers: products of bytes, or of fp32.

A *row* is a query's channels, or the weights of a query's tokens: numbers that are multiplied with
codes and summed. `write` brings them into the order in which `add` takes them: *quads* of four
numbers that meet the four bytes of each 32-bit lane. Rows lie in memory as 4-byte words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm.script import tirx as T

from wattune.schedules.cpu import math, vector
from wattune.schedules.cpu.attention.memory import Region
from wattune.schedules.cpu.quantized_attention.lanes import across, first, fold, magnitude
from wattune.schedules.cpu.vector import LANES, Registers

Expr = Any

# Numbers are written in blocks of so many: what rows are padded to, and a step of loops.
BLOCK = 32
QUAD = 4
# The greatest 16-bit integer whose nearest multiple of 256 has a signed byte as factor.
GREATEST = 32639.0
# Added to |x| <= GREATEST this leaves x + 128 in the low 16 bits: byte 1 is the high part of x,
# byte 0 the low part with its top bit flipped.
_ROUNDER = 12582912.0 + 128.0
_FLIPPED = 0x80


class Sums:
    """Accumulators: registers between iterations of a loop, named values within one.

    TVM's passes take a millisecond for each access to an array.
    """

    def __init__(self, count: int, dtype: str, lanes: int) -> None:
        """Declare so many sums of zero."""
        self.registers = Registers(count, dtype)
        self.kind = math.kind(dtype, lanes)
        zero = vector.splat(T.int32(0) if dtype == "int32" else T.float32(0), lanes)
        self.values: list[Expr] = [zero] * count

    @contextmanager
    def loop(self, count: Expr) -> Iterator[Expr]:
        """Emit a loop whose body works on the named values."""
        self._store()
        with T.serial(count) as i:
            self._load()
            yield i
            self._store()
        self._load()

    def _load(self) -> None:
        at = range(len(self.values))
        self.values = [T.bind(self.registers.load(i * LANES, self.kind)) for i in at]

    def _store(self) -> None:
        for i, value in enumerate(self.values):
            self.registers.store(i * LANES, value)


@dataclass(frozen=True)
class Product(ABC):
    """Sums of codes times the numbers of rows, in registers of ``lanes`` 32-bit lanes."""

    lanes: int
    # The dtype of sums and of rows in memory, accumulators of a sum, bytes of a number.
    dtype: ClassVar[str]
    terms: ClassVar[int]
    width: ClassVar[int]

    def words(self, count: int) -> int:
        """Return the words of a row of ``count`` numbers."""
        return -(-count // BLOCK) * BLOCK * self.width // 4

    @abstractmethod
    def quad(self, number: int) -> int:
        """Return the word of a row at which the quad from this number on starts."""

    @abstractmethod
    def write(self, row: Region, at: Expr, values: Sequence[Expr]) -> Expr:
        """Write vectors of 16 as numbers; returns, in every lane, the unit that sums count in."""

    @abstractmethod
    def unpack(self, codes: Expr) -> list[Expr]:
        """Return what `add` takes of a register of bytes."""

    @abstractmethod
    def add(
        self, sums: Sums, slot: int, row: Region, at: Expr, codes: Sequence[list[Expr]]
    ) -> None:
        """Add products with the quad at a word to sums, one a register of codes, from a slot on."""

    @abstractmethod
    def total(self, sums: Sums, slot: int) -> Expr:
        """Return a sum in fp32, in the row's unit."""

    def sums(self, count: int) -> Sums:
        """Declare so many sums of zero."""
        return Sums(count * self.terms, self.dtype, self.lanes)


class ByteProduct(Product):
    """Products of bytes (vpdpbusd); numbers are 16-bit integers: a high and a low signed byte.

    They are rounded to the row's greatest number times 2^-16. A block of 32 is 32 low bytes, then
    32 high bytes.
    """

    dtype = "int32"
    terms = 2
    width = 2

    def quad(self, number: int) -> int:
        """Return the word of the low bytes."""
        return (number // BLOCK * 2 * BLOCK + number % BLOCK) // 4

    def write(self, row: Region, at: Expr, values: Sequence[Expr]) -> Expr:
        """Scale, round and split."""
        bits, unit = self._integers(values)
        for i in range(0, len(bits), 2):
            # The second half of a block that is not full is never read.
            pair = bits[i : i + 2] if i + 1 < len(bits) else [bits[i]] * 2
            row.store(at + i * (LANES * self.width // 4), self._split(pair))
        return unit

    @staticmethod
    def _integers(values: Sequence[Expr]) -> tuple[list[Expr], Expr]:
        """Return vectors as integers, `_FLIPPED` in the low byte flipped, and their unit."""
        peak = across(fold([magnitude(value) for value in values], T.max), T.max)
        # A row of zeros stays one.
        peak = T.bind(T.max(peak, math.real(1e-30, LANES)))
        # One division: that of a vector takes four times as long.
        scale = T.bind(vector.splat(T.bind(T.float32(GREATEST) / first(peak)), LANES))
        rounder = math.real(_ROUNDER, LANES)
        bits = [
            T.reinterpret("uint8x64", T.bind(vector.multiply_add(value, scale, rounder)))
            for value in values
        ]
        return bits, T.bind(peak * math.real(1 / GREATEST, LANES))

    @staticmethod
    def _split(pair: Sequence[Expr]) -> Expr:
        """Return the low bytes of two vectors of integers, then the high ones."""
        order = [4 * number + byte for byte in (0, 1) for number in range(BLOCK)]
        flip = T.reinterpret("uint8x64", vector.constant([_FLIPPED] * BLOCK + [0] * BLOCK))
        return T.reinterpret("int32x16", T.bitwise_xor(T.Shuffle(pair, order), flip))

    def unpack(self, codes: Expr) -> list[Expr]:
        """Return the bytes."""
        return [T.reinterpret(f"int8x{self.lanes * QUAD}", codes)]

    def add(
        self, sums: Sums, slot: int, row: Region, at: Expr, codes: Sequence[list[Expr]]
    ) -> None:
        """Add two products a register."""
        for term in range(self.terms):
            word = vector.splat(row.load(at + term * BLOCK // 4), self.lanes)
            numbers = T.reinterpret(f"int8x{self.lanes * QUAD}", T.bind(word))
            for i, (unsigned,) in enumerate(codes):
                total = (slot + i) * self.terms + term
                sums.values[total] = T.bind(self.dot(sums.values[total], unsigned, numbers))

    def dot(self, total: Expr, unsigned: Expr, signed: Expr) -> Expr:
        """Add four products of bytes to each lane."""
        return vector.dot_u8s8(total, unsigned, signed, 32 * self.lanes)

    def total(self, sums: Sums, slot: int) -> Expr:
        """Return 256 high + low."""
        low, high = (
            T.cast(sums.values[slot * self.terms + term], math.kind("float32", self.lanes))
            for term in range(self.terms)
        )
        return T.bind(vector.multiply_add(high, math.real(256.0, self.lanes), low))


class PairProduct(ByteProduct):
    """Products of bytes by way of 16-bit pairs (vpmaddubsw, vpmaddwd): codes of at most 6 bits."""

    def dot(self, total: Expr, unsigned: Expr, signed: Expr) -> Expr:
        """Add four products of bytes to each lane, in three instructions."""
        pairs = vector.dot_pairs_u8s8(unsigned, signed, 32 * self.lanes)
        ones = vector.splat(T.int16(1), 2 * self.lanes)
        return total + vector.dot_pairs_s16(pairs, ones)


class RealProduct(Product):
    """Products of fp32: codes are widened, one byte of each lane at a time."""

    dtype = "float32"
    terms = 1
    width = 4

    def quad(self, number: int) -> int:
        """Return the word of the first number."""
        return number

    def write(self, row: Region, at: Expr, values: Sequence[Expr]) -> Expr:
        """Store the numbers as they are."""
        for i, value in enumerate(values):
            row.store(at + i * LANES, value)
        return math.real(1.0, LANES)

    def unpack(self, codes: Expr) -> list[Expr]:
        """Return the four bytes of each lane in fp32."""
        words = T.bind(T.reinterpret(math.kind("int32", self.lanes), codes))
        found = []
        for byte in range(QUAD):
            shifted = T.shift_right(words, math.integer(8 * byte, self.lanes))
            code = T.bitwise_and(shifted, math.integer(255, self.lanes))
            found.append(T.bind(T.cast(code, math.kind("float32", self.lanes))))
        return found

    def add(
        self, sums: Sums, slot: int, row: Region, at: Expr, codes: Sequence[list[Expr]]
    ) -> None:
        """Add four products a register."""
        for byte in range(QUAD):
            number = T.bind(vector.splat(row.load(at + byte), self.lanes))
            for i, code in enumerate(codes):
                total = vector.multiply_add(code[byte], number, sums.values[slot + i])
                sums.values[slot + i] = T.bind(total)

    def total(self, sums: Sums, slot: int) -> Expr:
        """Return the sum."""
        return sums.values[slot]
