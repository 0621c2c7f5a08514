"""How rows of numbers meet codes in vector registers: products of bytes, of 16 bits, of fp32.

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
from wattune.schedules.cpu.vector import BYTES, LANES, Registers

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


# Lanes of each quad: the numbers of its even bytes, then those of its odd ones.
_NARROW = [lane + place for lane in range(0, LANES, QUAD) for place in (0, 2, 1, 3)]


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


def field_of(value: Expr, bits: int, field: int, size: int = BYTES) -> Expr:
    """Return one of the fields of so many bits in each of ``size`` bytes."""
    if bits == 8:
        return value
    shifted = vector.shift_fields(value, field * bits, size) if field else value
    return T.bind(T.bitwise_and(shifted, vector.splat_u8(2**bits - 1, size)))


@dataclass(frozen=True)
class Product(ABC):
    """Sums of codes times the numbers of rows, in registers of ``lanes`` 32-bit lanes."""

    lanes: int
    # The dtype of sums and of rows in memory, accumulators of a sum, bytes of a number.
    dtype: ClassVar[str]
    terms: ClassVar[int]
    width: ClassVar[int]
    # Registers beside sums and codes.
    spare: ClassVar[int] = 1
    # Instructions of a register of codes: products with a row and term, additions of each product,
    # and what widens the codes.
    adds: ClassVar[int] = 1
    sums_apart: ClassVar[int] = 0
    widening: ClassVar[int] = 0
    # Whether products are so fast that they wait for codes that the first cache does not hold.
    waits: ClassVar[bool] = True
    # The unit that may bind a kernel before memory does, by its field in `Limits`.
    unit: ClassVar[str] = ""

    def words(self, count: int) -> int:
        """Return the words of a row of ``count`` numbers."""
        return -(-count // BLOCK) * BLOCK * self.width // 4

    def registers(self, rows: int, vectors: int) -> int:
        """Return the registers that vectors of codes, their sums for rows and the rest take."""
        return LANES // self.lanes * vectors * (self.terms * rows + 1) + self.spare

    @abstractmethod
    def quad(self, number: int) -> int:
        """Return the word of a row at which the quad from this number on starts."""

    @abstractmethod
    def write(self, row: Region, at: Expr, values: Sequence[Expr]) -> Expr:
        """Write vectors of 16 as numbers; returns, in every lane, the unit that sums count in."""

    def codes(self, value: Expr, bits: int, field: int) -> list[Expr]:
        """Return what `add` takes of a field of so many bits of a register's bytes."""
        return self.unpack(field_of(value, bits, field, self.lanes * QUAD))

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


def _scale(values: Sequence[Expr], greatest: float) -> tuple[Expr, Expr]:
    """Return what brings a row's greatest number to ``greatest``, and its size, in all lanes."""
    peak = across(fold([magnitude(value) for value in values], T.max), T.max)
    # A row of zeros stays one.
    peak = T.bind(T.max(peak, math.real(1e-30, LANES)))
    # One division: that of a vector takes four times as long.
    scale = T.bind(vector.splat(T.bind(T.float32(greatest) / first(peak)), LANES))
    return scale, peak


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
        scale, peak = _scale(values, GREATEST)
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


class WordProduct(Product):
    """Products of 16-bit integers, two summed to a 32-bit lane (vpmaddwd, vpaddd; 256 bits).

    Codes are widened within their lanes: even bytes, then odd ones; the numbers of either make a
    word. Numbers are rounded to the row's greatest times 2^-16, and to more where the sum of so
    many products with bytes, beyond 256, would not fit 32 bits.
    """

    dtype = "int32"
    terms = 1
    width = 2
    # Even and odd bytes, a quad's half and a product.
    spare = 4
    adds = 2
    sums_apart = 1
    widening = 2
    waits = False
    unit = "words_gops"

    def quad(self, number: int) -> int:
        """Return the word of the numbers of even bytes; that of odd ones follows."""
        # vpackssdw brings quads of 16 numbers into this order.
        return number // LANES * (LANES // 2) + (0, 4, 2, 6)[number % LANES // QUAD]

    def write(self, row: Region, at: Expr, values: Sequence[Expr]) -> Expr:
        """Scale, round and narrow."""
        greatest = min(2**15 - 1, (2**31 - 1) // (255 * LANES * len(values)))
        scale, peak = _scale(values, greatest)
        for i, value in enumerate(values):
            scaled = T.bind(value * scale)
            halves = [
                vector.nearest_s32(T.bind(T.Shuffle([scaled], list(range(lane, lane + 8)))))
                for lane in (0, 8)
            ]
            narrow = T.Shuffle([vector.pack_s32(*halves)], _NARROW)
            row.store(at + i * (LANES // 2), T.reinterpret("int32x8", narrow))
        return T.bind(peak * math.real(1 / greatest, LANES))

    def codes(self, value: Expr, bits: int, field: int) -> list[Expr]:
        """Return the field of even bytes and of odd ones."""
        words = T.bind(T.reinterpret("uint16x16", value))
        found = []
        for shift in (field * bits, 8 + field * bits):
            part = words
            if shift:
                part = T.shift_right(part, vector.splat(T.uint16(shift), LANES))
            if shift + bits < 16:
                part = T.bitwise_and(part, vector.splat(T.uint16(2**bits - 1), LANES))
            found.append(T.bind(T.reinterpret("int16x16", part)))
        return found

    def unpack(self, codes: Expr) -> list[Expr]:
        """Return even bytes and odd ones."""
        return self.codes(codes, 8, 0)

    def add(
        self, sums: Sums, slot: int, row: Region, at: Expr, codes: Sequence[list[Expr]]
    ) -> None:
        """Add two products a register, of even bytes and of odd ones."""
        for half in range(2):
            word = vector.splat(row.load(at + half), self.lanes)
            numbers = T.bind(T.reinterpret("int16x16", word))
            for i, code in enumerate(codes):
                total = vector.add_pairs_s16(sums.values[slot + i], code[half], numbers)
                sums.values[slot + i] = T.bind(total)

    def total(self, sums: Sums, slot: int) -> Expr:
        """Return the sum."""
        return T.bind(T.cast(sums.values[slot], math.kind("float32", self.lanes)))


class RealProduct(Product):
    """Products of fp32: codes are widened, one byte of each lane at a time."""

    dtype = "float32"
    terms = 1
    width = 4
    adds = QUAD
    widening = 3 * QUAD

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
