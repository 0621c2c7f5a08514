"""Stable radix sort of 32-bit keys with a payload: eight bits a pass, the lowest first.

for digit of four:
    count the keys of every digit; starts = sums of the counts before
    for key, payload in order: to[starts[digit of key]++] = key, payload
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.lanes import Lanes

Expr = Any
Buffer = Any

BITS = 8
RADIX = 1 << BITS
PASSES = 32 // BITS


@dataclass(frozen=True)
class Pairs:
    """Keys and payloads: parts of one int32 buffer that start at these elements."""

    keys: Expr
    payloads: Expr


class Sorter:
    """Sorts pairs of an int32 buffer; ``counters`` is where it has ``RADIX`` elements to count."""

    def __init__(self, buffer: Buffer, counters: Expr) -> None:
        """Take the buffer."""
        self.buffer, self.counters = buffer, counters

    def sort(self, pairs: Pairs, spare: Pairs, count: Expr) -> None:
        """Sort by unsigned keys; the result is where the pairs are, ``spare`` is as large."""
        for digit in range(PASSES):
            self._pass(pairs, spare, count, digit)
            pairs, spare = spare, pairs

    def _digit(self, key: Expr, digit: int) -> Expr:
        shifted = T.shift_right(key, T.int32(BITS * digit))
        return T.bind(self.counters + T.bitwise_and(shifted, T.int32(RADIX - 1)))

    def _pass(self, pairs: Pairs, to: Pairs, count: Expr, digit: int) -> None:
        buffer = self.buffer
        with T.serial(RADIX) as i:
            vector.store(buffer, [self.counters + i], T.int32(0))
        with T.serial(count) as i:
            at = self._digit(buffer[pairs.keys + i], digit)
            vector.store(buffer, [at], buffer[at] + 1)
        before = vector.array(1, "int32")
        vector.store(before, [0], T.int32(0))
        with T.serial(RADIX) as i:
            number = vector.array(1, "int32")
            vector.store(number, [0], buffer[self.counters + i])
            vector.store(buffer, [self.counters + i], before[0])
            vector.store(before, [0], before[0] + number[0])
        found = vector.array(2, "int32")
        with T.serial(count) as i:
            vector.store(found, [0], buffer[pairs.keys + i])
            at = self._digit(found[0], digit)
            vector.store(found, [1], buffer[at])
            vector.store(buffer, [at], found[1] + 1)
            vector.store(buffer, [to.payloads + found[1]], buffer[pairs.payloads + i])
            vector.store(buffer, [to.keys + found[1]], found[0])


def descending(lanes: Lanes, scores: Buffer, at: Expr, keys: Buffer, to: Expr) -> None:
    """Write keys of a vector of scores: ascending as unsigned where the scores descend."""
    bits = T.bind(T.reinterpret(lanes.i32, scores.vload([at], lanes.f32)))
    size = T.bitwise_and(bits, lanes.each_int(0x7FFFFFFF))
    ordered = T.Select(bits >= lanes.each_int(0), bits, lanes.each_int(0) - size)
    vector.store(keys, [to], T.bitwise_xor(ordered, lanes.each_int(0x7FFFFFFF)))
