"""Sorting numbers in one thread block: a bitonic network, in shared memory or any other."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from wattune.ops.gate_parts import block_count
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.plain import Buffer, Expr


@dataclass(frozen=True)
class Area:
    """A part of a row of elements, from ``start`` on."""

    buffer: Buffer
    start: Expr

    def __getitem__(self, place: Expr) -> Expr:
        """Return an element."""
        return self.buffer[self.start + place]

    def put(self, place: Expr, value: Expr) -> None:
        """Store an element."""
        ptx.put(self.buffer, self.start + place, value)

    def pointer(self, place: Expr) -> Expr:
        """Return where an element is."""
        return self.buffer.ptr_to([self.start + place])


def network_size(count: int) -> int:
    """Return how many numbers a network for ``count`` of them sorts: a power of two."""
    return 1 << max(0, count - 1).bit_length()


def sort(area: Area, count: int, thread: Expr, threads: int) -> None:
    """Sort a power of two of numbers, the least first; barriers before and after.

    At each step numbers that differ in one bit of their places are put in order; which order, a
    higher bit says, until the last stage has but one.
    """
    stages = count.bit_length() - 1
    pairs = count // 2
    with T.serial(stages) as stage, T.serial(stage + 1) as step:
        ptx.block_barrier()
        apart = T.bind(T.shift_left(T.int32(1), stage - step))
        with T.serial(block_count(pairs, threads)) as turn:
            pair = T.bind(turn * threads + thread)
            with T.If(pair < pairs), T.Then():
                low = T.bitwise_and(pair, apart - 1)
                first = T.bind((pair - low) * 2 + low)
                _order(area, first, T.bind(first + apart), stage)
    ptx.block_barrier()


def _order(area: Area, first: Expr, second: Expr, stage: Expr) -> None:
    """Put two numbers in the order of their stage."""
    a, b = T.bind(area[first]), T.bind(area[second])
    turned = T.bitwise_and(T.shift_right(first, stage + 1), 1)
    with T.If(T.Select(turned == 1, a < b, b < a)), T.Then():
        area.put(first, b)
        area.put(second, a)
