"""The driver API of the emulated GPU: what measuring code asks of it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from tests.emulator.cuda import driver
from tests.emulator.cuda.image import host_image
from tests.emulator.cuda.run import LaunchError, check

COUNT = """extern "C" __global__ void kernel(int* x, int by) {
  atomicAdd(x + threadIdx.x, by); }"""
PIECES = 4


@contextmanager
def _function(source: str = COUNT) -> Iterator[ctypes.c_void_p]:
    cuda = driver.install()
    check(cuda.cuInit(0))
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    check(cuda.cuModuleLoadData(ctypes.byref(module), host_image(source)))
    check(cuda.cuModuleGetFunction(ctypes.byref(function), module, b"kernel"))
    yield function
    check(cuda.cuModuleUnload(module))


@contextmanager
def _memory(size: int) -> Iterator[ctypes.c_void_p]:
    cuda = driver.install()
    pointer = ctypes.c_void_p()
    check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)))
    yield pointer
    check(cuda.cuMemFree_v2(pointer))


def _launch(
    function: ctypes.c_void_p,
    pointer: ctypes.c_void_p,
    by: int,
    stream: ctypes.c_void_p | None = None,
    shared: int = 0,
    threads: int = PIECES,
) -> None:
    value = ctypes.c_int(by)
    parameters = (ctypes.c_void_p * 2)(ctypes.addressof(pointer), ctypes.addressof(value))
    sizes = [ctypes.c_uint(n) for n in (1, 1, 1, threads, 1, 1, shared)]
    check(driver.install().cuLaunchKernel(function, *sizes, stream, parameters, None))
    value.value = -1  # launches keep their parameters


def _read(pointer: ctypes.c_void_p) -> list[int]:
    values = np.zeros(PIECES, np.int32)
    size = ctypes.c_size_t(values.nbytes)
    check(driver.install().cuMemcpyDtoH_v2(ctypes.c_void_p(values.ctypes.data), pointer, size))
    return values.tolist()


def test_a_graph_replays_what_it_recorded() -> None:
    cuda = driver.install()
    stream, graph, ready = (ctypes.c_void_p() for _ in range(3))
    check(cuda.cuStreamCreate(ctypes.byref(stream), 1))
    with _function() as function, _memory(4 * PIECES) as pointer:
        check(cuda.cuMemsetD8Async(pointer, ctypes.c_ubyte(0), ctypes.c_size_t(16), stream))
        check(cuda.cuStreamBeginCapture_v2(stream, 2))
        _launch(function, pointer, 3, stream)
        _launch(function, pointer, 4, stream)
        with pytest.raises(LaunchError, match="recording"):
            check(cuda.cuStreamSynchronize(stream))
        check(cuda.cuStreamEndCapture(stream, ctypes.byref(graph)))
        assert _read(pointer) == [0] * PIECES
        check(cuda.cuGraphInstantiateWithFlags(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)))
        check(cuda.cuGraphDestroy(graph))
        for _ in range(3):
            check(cuda.cuGraphLaunch(ready, stream))
        check(cuda.cuStreamSynchronize(stream))
        assert _read(pointer) == [21] * PIECES
        check(cuda.cuGraphExecDestroy(ready))
    check(cuda.cuStreamDestroy_v2(stream))


def test_events_take_the_time_of_what_is_between() -> None:
    cuda = driver.install()
    before, after, elapsed = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_float()
    for event in (before, after):
        check(cuda.cuEventCreate(ctypes.byref(event), 0))
    with _function() as function, _memory(4 * PIECES) as pointer:
        check(cuda.cuEventRecord(before, None))
        _launch(function, pointer, 1)
        check(cuda.cuEventRecord(after, None))
        check(cuda.cuEventSynchronize(after))
    check(cuda.cuEventElapsedTime(ctypes.byref(elapsed), before, after))
    assert 0 < elapsed.value < 60e3
    for event in (before, after):
        check(cuda.cuEventDestroy_v2(event))


def test_memory_starts_as_nan_and_is_watched() -> None:
    cuda = driver.install()
    with _memory(12) as pointer:
        values = np.zeros(3, np.float32)
        data = ctypes.c_void_p(values.ctypes.data)
        check(cuda.cuMemcpyDtoH_v2(data, pointer, ctypes.c_size_t(12)))
        assert np.isnan(values).all()
    with pytest.raises(LaunchError, match="was not allocated"):
        check(cuda.cuMemFree_v2(ctypes.c_void_p(4096)))
    pointer = ctypes.c_void_p()
    check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(12)))
    check(cuda.cuMemsetD8_v2(pointer, ctypes.c_ubyte(1), ctypes.c_size_t(13)))
    with pytest.raises(LaunchError, match="wrote behind the memory"):
        check(cuda.cuMemFree_v2(pointer))


def test_the_device_describes_a_hopper() -> None:
    cuda, value = driver.install(), ctypes.c_int()
    found = {}
    for name, number in {"major": 75, "minor": 76, "cores": 16, "shared": 97, "warp": 10}.items():
        check(cuda.cuDeviceGetAttribute(ctypes.byref(value), number, 0))
        found[name] = value.value
    assert found == {"major": 9, "minor": 0, "cores": 132, "shared": 232448, "warp": 32}
    with pytest.raises(LaunchError, match="one device"):
        check(cuda.cuDeviceGet(ctypes.byref(value), 1))


def test_launches_the_device_refuses() -> None:
    cuda = driver.install()
    with _function() as function, _memory(4 * PIECES) as pointer:
        with pytest.raises(LaunchError, match="out of range"):
            _launch(function, pointer, 1, threads=1025)
        with pytest.raises(LaunchError, match="more dynamic shared memory"):
            _launch(function, pointer, 1, shared=49153)
        check(cuda.cuFuncSetAttribute(function, 8, 232448))
        check(cuda.cuMemsetD8_v2(pointer, ctypes.c_ubyte(0), ctypes.c_size_t(16)))
        _launch(function, pointer, 1, shared=232448)
        assert _read(pointer) == [1] * PIECES
        with pytest.raises(LaunchError, match="232448"):
            check(cuda.cuFuncSetAttribute(function, 8, 232449))


def test_what_is_no_image_is_refused() -> None:
    module = ctypes.c_void_p()
    with pytest.raises(LaunchError, match="not an emulator's image"):
        check(driver.install().cuModuleLoadData(ctypes.byref(module), b"\x7fELF" + bytes(64)))


def test_a_kernel_that_overlaps_must_wait() -> None:
    """launch attribute 6 is programmatic stream serialization."""
    source = """extern "C" __global__ void kernel(int* x, int by) {
      if (by) asm volatile("griddepcontrol.wait;"); }"""
    attribute = (ctypes.c_byte * 72)()
    attribute[0], attribute[8] = 6, 1
    config = np.zeros(7, np.uint32)
    config[:6] = 1
    launch = (ctypes.c_byte * 56)()
    ctypes.memmove(launch, config.ctypes.data, 28)
    ctypes.c_uint64.from_buffer(launch, 40).value = ctypes.addressof(attribute)
    ctypes.c_uint32.from_buffer(launch, 48).value = 1
    with _function(source) as function:
        nothing = ctypes.c_void_p()
        for by in (1, 0):
            value = ctypes.c_int(by)
            cells = (ctypes.addressof(nothing), ctypes.addressof(value))
            parameters = (ctypes.c_void_p * 2)(*cells)
            status = driver.install().cuLaunchKernelEx(launch, function, parameters, None)
            if by:
                check(status)
            else:
                with pytest.raises(LaunchError, match="no griddepcontrol"):
                    check(status)
