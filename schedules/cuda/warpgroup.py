"""Products of a warpgroup: four warps whose first one's number is a multiple of 4 (sm_90a).

More words of the vocabulary in `ptx`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda.ptx import SHORT, emit, from_lane

Expr = Any


def slab_descriptor(pointer: Expr, between: int) -> Expr:
    """Return the lower half of a descriptor for `multiply_add_group`, a uint32.

    It describes rows of 128 bytes in shared memory, swizzled by 128, 8 of which begin at a multiple
    of 1024. ``between``: bytes from 64 columns to the next 64. What lies 16 bytes further is
    described by 1 more. All lanes must ask for the same: the first one's is known to be uniform.
    """
    start = T.shift_right(T.cuda.cvta_generic_to_shared(pointer), T.uint32(4))
    return from_lane(start + T.uint32(between // 16 << 16), 0)


def group_begins() -> None:
    """Order registers that were written before the products that follow (wgmma.fence)."""
    emit("wgmma.fence.sync.aligned")


def group_ends() -> None:
    """End a batch of the warpgroup's products, and wait for all (commit_group, wait_group)."""
    # Nothing ties reads of the accumulators to the wait: that they follow it is left to the
    # compiler. Where they do not, the assembler puts in a wait of its own and says so, and
    # `compiler.cuda.rules` refuses the kernel.
    emit("wgmma.commit_group.sync.aligned")
    emit("wgmma.wait_group.sync.aligned", 0)


def multiply_add_group(
    total: Sequence[Expr],
    left: Sequence[Expr],
    right: Expr,
    dtype: str,
    adds: bool,
    turned: bool,
) -> None:
    """Begin total[64, n] (+)= left[64, 16] right[16, n] of 16-bit floats (wgmma.m64nNk16).

    Each warp has 16 rows, in the lanes of `multiply_add`, 8 columns after the other. ``right`` is
    described by `slab_descriptor`: n rows of 16 values, or, where it is ``turned``, 16 rows of n
    values. Without ``adds`` nothing is added to. Registers are not to be touched until
    `group_ends`.
    """
    # Swizzled by 128 bytes; 8 rows are 1024 bytes from the next 8.
    high = T.uint64(1 << 62 | (8 * 128 // 16) << 32)
    right = T.bitwise_or(T.cast(right, "uint64"), high)
    short = SHORT[dtype]
    name = f"wgmma.mma_async.sync.aligned.m64n{2 * len(total)}k16.f32.{short}.{short}"
    emit(name, *total, *left, right, T.bool(adds), 1, 1, int(turned))
