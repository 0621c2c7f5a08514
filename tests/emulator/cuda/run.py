"""Launch a kernel from its CUDA source, with arrays as its arguments: for tests of the emulator."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from tests.emulator.cuda import driver
from tests.emulator.cuda.image import host_image

from wattune.compiler.measure.memory import Guarded

_MAX_DYNAMIC_SHARED = 8
_WIDEST = 16  # bytes of one access


class LaunchError(Exception):
    """A launch that failed: the driver's status and words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status}: {words}")
        self.status = status


def check(status: int) -> None:
    """Raise what the driver says of a status that is not 0."""
    if status:
        words = ctypes.c_char_p()
        driver.install().cuGetErrorString(status, ctypes.byref(words))
        raise LaunchError(status, (words.value or b"").decode())


def launch(
    source: str,
    kernel: str,
    arguments: Sequence[Any],
    blocks: int | tuple[int, int, int] = 1,
    threads: int | tuple[int, int, int] = 32,
    shared: int = 0,
) -> None:
    """Run a kernel; arrays are changed in place, scalars are numpy's, of the parameter's type.

    Memory behind each array is inaccessible.
    """
    cuda = driver.install()
    check(cuda.cuInit(0))
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    check(cuda.cuModuleLoadData(ctypes.byref(module), host_image(source)))
    try:
        check(cuda.cuModuleGetFunction(ctypes.byref(function), module, kernel.encode()))
        check(cuda.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared))
        cells, memories = [], []
        for value in arguments:
            if isinstance(value, np.ndarray):
                memory = Guarded(value.nbytes, writable=True, alignment=_WIDEST)
                memory.data[:] = value.reshape(-1).view(np.uint8)
                memories.append((value, memory))
                value = np.uint64(memory.address)
            cells.append(ctypes.create_string_buffer(value.tobytes(), 8))
        passed = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
        sizes = [ctypes.c_uint(n) for n in (*_three(blocks), *_three(threads), shared)]
        check(cuda.cuLaunchKernel(function, *sizes, None, passed, None))
        for value, memory in memories:
            if not memory.intact():
                raise LaunchError(0, "something wrote behind an array")
            value.reshape(-1).view(np.uint8)[:] = memory.data
    finally:
        check(cuda.cuModuleUnload(module))


def _three(sizes: int | tuple[int, int, int]) -> tuple[int, int, int]:
    return (sizes, 1, 1) if isinstance(sizes, int) else sizes
