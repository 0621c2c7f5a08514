"""Launch a kernel from its CUDA source, with arrays as its arguments: for tests of the emulator."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.emulator.cuda import driver
from tests.emulator.cuda.image import host_image

from wattune.compiler.measure.memory import Guarded

_MAX_DYNAMIC_SHARED = 8
_FLOAT16 = 6  # CU_TENSOR_MAP_DATA_TYPE_FLOAT16
_WIDEST = 16  # bytes of one access


class LaunchError(Exception):
    """A launch that failed: the driver's status and words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status}: {words}")
        self.status = status


@dataclass(frozen=True)
class TensorMap:
    """A kernel's tensor map of an array of 16-bit values: tiles of ``box``, outer sizes first."""

    array: NDArray[Any]
    box: tuple[int, ...]
    swizzle: int = 0

    def encode(self, address: int) -> bytes:
        """Return what the driver makes of the map, for the array at an address."""
        rank = self.array.ndim
        sizes = (ctypes.c_uint64 * rank)(*self.array.shape[::-1])
        strides = (ctypes.c_uint64 * rank)(*self.array.strides[-2::-1])
        box = (ctypes.c_uint32 * rank)(*self.box[::-1])
        steps = (ctypes.c_uint32 * rank)(*[1] * rank)
        made = ctypes.create_string_buffer(128)
        pointer = ctypes.c_void_p(address)
        layout = (0, self.swizzle, 0, 0)
        encode = driver.install().cuTensorMapEncodeTiled
        check(encode(made, _FLOAT16, rank, pointer, sizes, strides, box, steps, *layout))
        return made.raw


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

    A `TensorMap` becomes a parameter of type CUtensorMap. Memory behind each array is inaccessible.
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
            array = value.array if isinstance(value, TensorMap) else value
            if not isinstance(array, np.ndarray):
                cells.append(ctypes.create_string_buffer(value.tobytes(), 8))
                continue
            memory = Guarded(array.nbytes, writable=True, alignment=_WIDEST)
            memory.data[:] = array.reshape(-1).view(np.uint8)
            memories.append((array, memory))
            if isinstance(value, TensorMap):
                cells.append(ctypes.create_string_buffer(value.encode(memory.address), 128))
            else:
                cells.append(ctypes.create_string_buffer(np.uint64(memory.address).tobytes(), 8))
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
