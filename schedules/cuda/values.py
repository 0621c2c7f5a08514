"""Values of 32-bit words, two of half precision or one float32; what threads make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.base import WARP
from wattune.schedules.program import WIDE_ACCESS

Expr = Any
Buffer = Any

WORD = 4
WORDS = WIDE_ACCESS // WORD
_HIGH = 0xFFFF0000
_LOW = 0xFFFF


def values_of(dtype: str) -> int:
    """Return how many values one access of 16 bytes holds."""
    return WIDE_ACCESS // itemsize(dtype)


def widened(word: Expr, dtype: str) -> list[Expr]:
    """Return the values of a uint32 word in float32, in the order of memory."""
    if dtype == "float32":
        return [T.reinterpret("float32", word)]
    if dtype == "bfloat16":
        bits = T.shift_left(word, T.uint32(16)), T.bitwise_and(word, T.uint32(_HIGH))
        return [T.reinterpret("float32", half) for half in bits]
    halves = T.bitwise_and(word, T.uint32(_LOW)), T.shift_right(word, T.uint32(16))
    return [T.cast(T.reinterpret("float16", T.cast(h, "uint16")), "float32") for h in halves]


def rounded(value: Expr, dtype: str) -> Expr:
    """Return the bits of a float32 value rounded to a dtype, to nearest, ties to even."""
    if dtype == "float32":
        return T.reinterpret("uint32", value)
    return T.reinterpret("uint16", T.cast(value, dtype))


def access(size: int) -> tuple[str, int]:
    """Return the dtype and number of the words that an access of 2, 4, 8 or 16 bytes is of."""
    return ("uint16", 1) if size == 2 else ("uint32", size // WORD)


def load(into: Buffer, first: int, words: int, source: Buffer, at: Expr) -> None:
    """Load words of global memory that nothing writes meanwhile into registers."""
    if words == 1:
        ptx.put(into, first, source[at])
    else:
        ptx.load_once([into[first + i] for i in range(words)], source.ptr_to([at]))


def store(target: Buffer, at: Expr, source: Buffer, first: int, words: int) -> None:
    """Store words from registers to global memory."""
    if words == 1:
        ptx.put(target, at, source[first])
    else:
        ptx.store_wide(target.ptr_to([at]), [source[first + i] for i in range(words)])


def reduce_lanes(register: Buffer, lanes: int, join: Callable[[Expr, Expr], Expr]) -> None:
    """Join a register's value over each aligned group of lanes; all lanes get the result."""
    step = lanes // 2
    while step:
        other = ptx.across(register[0], step)
        ptx.put(register, 0, join(register[0], other))
        step //= 2


def reduce_block(
    register: Buffer,
    scratch: Buffer,
    thread: Expr,
    threads: int,
    join: Callable[[Expr, Expr], Expr],
) -> None:
    """Join a register's value over the thread block; all threads get the result.

    ``scratch`` is shared memory for one value a warp. All threads must come here, and `scratch` is
    free again after the next barrier.
    """
    reduce_lanes(register, WARP, join)
    with T.If(thread % WARP == 0), T.Then():
        ptx.put(scratch, thread // WARP, register[0])
    ptx.block_barrier()
    ptx.put(register, 0, scratch[0])
    for warp in range(1, threads // WARP):
        ptx.put(register, 0, join(register[0], scratch[warp]))
