"""Memory for measuring: watched buffers for verification, huge pages for timing."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wattune.ops import Problem, operator
from wattune.ops.dtypes import itemsize

# Written around watched buffers; as a value it is improbable in results.
GUARD = 0xA7
_GUARD_BYTES = 1024
_HUGE = 2 << 20
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@cache
def huge_pages_available() -> bool:
    """Say whether the kernel gives huge pages to memory that asks for them."""
    try:
        return "[never]" not in _THP.read_text()
    except OSError:
        return False


def pages(size: int, huge: bool) -> NDArray[np.uint8]:
    """Map zeroed memory, aligned to a huge page; on huge pages where asked and available."""
    # Whole huge pages: a part of one would lie on small ones.
    mapping = _private(-(-size // _HUGE) * _HUGE + _HUGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    whole = np.frombuffer(mapping, dtype=np.uint8)
    skip = -int(whole.ctypes.data) % _HUGE
    return whole[skip : skip + size]


def _private(size: int) -> mmap.mmap:
    # Python's default is shared memory, which gets no huge pages.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def state_bytes(problem: Problem) -> int:
    """Return the bytes of a problem's states: the caches of attention."""
    return sum(
        math.prod(argument.concrete(problem.extents)) * itemsize(argument.dtype)
        for argument in operator(problem.operator).arguments(problem)
        if argument.role == "state"
    )


def packed_bytes(problem: Problem, sizes: Mapping[str, int]) -> int:
    """Return the bytes of a problem's packed arguments; ``sizes`` are those of the layout."""
    return sum(
        math.prod(argument.concrete(sizes)) * itemsize(argument.dtype)
        for argument in operator(problem.operator).arguments(problem)
        if argument.role == "packed"
    )


class Guarded:
    """A buffer whose surroundings are watched.

    The page after it survives no access: a kernel that reads or writes past the end crashes here
    and not in a user's process. Writable buffers have guard bytes in front of that page, so that a
    kernel that writes a little too far is found by `intact` and told what it did.
    """

    def __init__(self, size: int, writable: bool, alignment: int = 64) -> None:
        """Map ``size`` bytes as near to the page as the alignment lets them be."""
        page = mmap.PAGESIZE
        guard = _GUARD_BYTES if writable else 0
        used = -(-size // alignment) * alignment + guard
        start = -used % page
        end = start + used
        self._mapping = _private(end + page)
        whole = np.frombuffer(self._mapping, dtype=np.uint8)
        base = int(whole.ctypes.data)
        self.address, self.size = base + start, size
        self.data = whole[start : start + size]
        self._around = (whole[:start], whole[start + size : end])
        for part in self._around:
            part[:] = GUARD
        _protect(base + end, page)

    def write(self, data: NDArray[np.uint8]) -> None:
        """Fill the buffer."""
        self.data[:] = data

    def read(self) -> NDArray[np.uint8]:
        """Return the buffer itself."""
        return self.data

    def intact(self) -> bool:
        """Say whether the bytes around the buffer are as they were."""
        return all(bool((part == GUARD).all()) for part in self._around)


def _protect(address: int, size: int) -> None:
    """Make pages inaccessible."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
