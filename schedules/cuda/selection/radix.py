"""Radix selection in one thread block: which key the n best of a range reach down to.

    bound, left = 0, n
    for digit from the highest:
        count the digits of the keys that agree with the bound so far      # a histogram, shared
        from the greatest digit down: take whole bins while they fit in what is left
        bound's digit = the bin that does not fit; left = what is taken of it

Everything above the bound is selected, and of what equals it the first ``left`` places.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.plain import Buffer, Expr, for_each
from wattune.schedules.cuda.selection.keys import NO_KEY_ABOVE, KeyOf

_KEY_BITS = 32
# More than there are places: all that equal the bound.
_ALL = 0x7FFFFFFF


@dataclass(frozen=True)
class Radix:
    """The shape of a selection: threads, bits of a digit, histograms that warps take in turn."""

    threads: int
    bits: int
    copies: int

    @property
    def bins(self) -> int:
        """Return the bins of a histogram."""
        return 1 << self.bits

    @property
    def passes(self) -> int:
        """Return the digits of a key."""
        return -(-_KEY_BITS // self.bits)

    @property
    def shared(self) -> int:
        """Return the bytes of shared memory."""
        return 4 * (self.bins * self.copies + 3)


class Selection:
    """Emits selections over keys; ``bound`` and ``left`` are in shared memory, for all threads."""

    def __init__(self, radix: Radix, thread: Expr) -> None:
        """Allocate shared memory."""
        self._radix, self._thread = radix, thread
        self._histogram = T.alloc_shared((radix.bins * radix.copies,), "int32")
        self._bound = T.alloc_shared((1,), "uint32")
        self._state = T.alloc_shared((2,), "int32")

    @property
    def bound(self) -> Expr:
        """Return the key that the selection reaches down to."""
        return self._bound[0]

    @property
    def left(self) -> Expr:
        """Return how many of the keys that equal the bound are selected."""
        return self._state[0]

    def set(self, bound: Expr, left: Expr) -> None:
        """Store a bound that is known; a barrier before, and one after it."""
        ptx.block_barrier()
        with T.If(self._thread == 0), T.Then():
            ptx.put(self._bound, 0, bound)
            ptx.put(self._state, 0, left)
        ptx.block_barrier()

    def select(self, key: KeyOf, first: Expr, end: Expr, wanted: Expr) -> None:
        """Select the ``wanted`` best of the places from ``first`` up to ``end``."""
        radix, thread = self._radix, self._thread
        # Without a bound none is selected, or all: no key is 0 or above all.
        none = T.Select(wanted <= 0, T.uint32(NO_KEY_ABOVE), T.uint32(0))
        some = T.And(wanted > 0, wanted < end - first)
        ptx.block_barrier()
        with T.If(thread == 0), T.Then():
            ptx.put(self._bound, 0, none)
            ptx.put(self._state, 0, T.Select(some, wanted, 0))
            ptx.put(self._state, 1, T.Select(some, 1, 0))
        agreed = T.alloc_local((1,), "uint32")
        ptx.put(agreed, 0, T.uint32(0))
        with T.serial(radix.passes) as step:
            ptx.block_barrier()
            with T.If(self._state[1] == 1), T.Then():
                shift = T.bind(T.cast((radix.passes - 1 - step) * radix.bits, "uint32"))
                self._count(key, first, end, agreed, shift)
                ptx.block_barrier()
                with T.If(thread < WARP), T.Then():
                    self._choose(shift, step == radix.passes - 1)
                ones = T.shift_left(T.uint32(0xFFFFFFFF), shift)
                ptx.put(agreed, 0, ones)
        ptx.block_barrier()

    def _count(self, key: KeyOf, first: Expr, end: Expr, agreed: Buffer, shift: Expr) -> None:
        """Fill the histograms with the digits of keys that agree with the bound."""
        radix, thread, histogram = self._radix, self._thread, self._histogram
        total = radix.bins * radix.copies
        for_each(thread, radix.threads, total, lambda at: ptx.put(histogram, at, T.int32(0)))
        ptx.block_barrier()
        bound = T.bind(self._bound[0])
        start = T.bind(T.truncmod(T.truncdiv(thread, WARP), radix.copies) * radix.bins)

        def count(at: Expr) -> None:
            found = T.bind(key(T.bind(first + at)))
            differ = T.bitwise_and(T.bitwise_xor(found, bound), agreed[0])
            with T.If(differ == T.uint32(0)), T.Then():
                digit = T.bitwise_and(T.shift_right(found, shift), T.uint32(radix.bins - 1))
                place = histogram.ptr_to([start + T.cast(digit, "int32")])
                T.evaluate(ptx.add_to(place, T.int32(1)))

        for_each(thread, radix.threads, end - first, count)

    def _choose(self, shift: Expr, last: Expr) -> None:
        """Find the bound's next digit; a lane sums some bins, the greatest digits in lane 0."""
        radix, lane, state = self._radix, self._thread, self._state
        each = radix.bins // WARP
        top = T.bind(radix.bins - 1 - lane * each)
        total = T.alloc_local((2,), "int32")
        ptx.put(total, 0, T.int32(0))
        with T.serial(each) as i:
            ptx.put(total, 0, total[0] + self._bin(top - i))
        ptx.put(total, 1, total[0])
        for power in range(5):
            above = T.bind(ptx.from_below(total[1], 1 << power))
            ptx.put(total, 1, total[1] + T.Select(lane >= 1 << power, above, 0))
        left = T.bind(state[0])
        # Before the lanes that find nothing go on, all must have read what is left.
        ptx.warp_barrier()
        before = T.bind(total[1] - total[0])
        with T.If(T.And(before < left, left <= total[1])), T.Then():
            self._split(top, each, T.bind(left - before), shift, last)

    def _split(self, top: Expr, each: int, left: Expr, shift: Expr, last: Expr) -> None:
        """Walk a lane's bins down to the one that what is left ends in."""
        rest = T.alloc_local((3,), "int32")
        for i, value in enumerate((left, T.int32(-1), T.int32(0))):
            ptx.put(rest, i, value)
        with T.serial(each) as i, T.If(rest[1] < 0), T.Then():
            size = T.bind(self._bin(top - i))
            with T.If(rest[0] <= size):
                with T.Then():
                    ptx.put(rest, 1, top - i)
                    ptx.put(rest, 2, size)
                with T.Else():
                    ptx.put(rest, 0, rest[0] - size)
        digit = T.shift_left(T.cast(rest[1], "uint32"), shift)
        ptx.put(self._bound, 0, T.bitwise_or(self._bound[0], digit))
        # A bin that is taken as a whole needs no further digit.
        whole = T.bind(rest[0] == rest[2])
        ptx.put(self._state, 0, T.Select(whole, T.int32(_ALL), rest[0]))
        ptx.put(self._state, 1, T.Select(T.Or(whole, last), T.int32(0), T.int32(1)))

    def _bin(self, digit: Expr) -> Expr:
        """Return how many keys have a digit."""
        radix = self._radix
        return sum(self._histogram[digit + i * radix.bins] for i in range(radix.copies))
