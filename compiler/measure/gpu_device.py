"""One GPU through the driver API: memory, a stream, graphs and events. Nothing else touches it.

No CUDA runtime and no torch: what measures on a GPU starts in a moment and runs wherever there is
a driver, an emulated one too.
"""

from __future__ import annotations

import contextlib
import ctypes
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.measure.ffi import stream_of_calls
from wattune.compiler.measure.place import DRAWN_BYTES, Fill, Region
from wattune.errors import DeviceError
from wattune.schedules.nvidia import NOT_READY, OUT_OF_MEMORY, Driver, driver

# Around watched memory; as floats of any width it is not a number, so a kernel that reads too far
# shows it.
GUARD = 0xFF
_GUARD_BYTES = 1024
# What cuMemAlloc aligns to at least.
_ALIGNED = 256
_CAPTURE_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
# Copies go through the default stream, which streams with this flag wait for and delay.
_BLOCKING = 0  # CU_STREAM_DEFAULT


class _Launch(ctypes.Structure):
    """A ``CUlaunchConfig``."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("num_attributes", ctypes.c_uint),
    ]


class GpuDevice:
    """The primary context of a GPU, current on the thread that made this object."""

    def __init__(self, index: int = 0) -> None:
        """Make the context and a stream; `DeviceError` says what is missing."""
        self.index = index
        self.driver: Driver = driver()
        self.device = self.driver.device(index)
        context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        device = ctypes.c_int(self.device)
        self.driver("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.driver("cuCtxSetCurrent", context)
        self.driver("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_BLOCKING))
        self.stream = stream

    def uuid(self) -> str:
        """Return the device's UUID as NVML writes it."""
        found = (ctypes.c_ubyte * 16)()
        self.driver("cuDeviceGetUuid_v2", found, ctypes.c_int(self.device))
        return f"GPU-{uuid.UUID(bytes=bytes(found))}"

    def watched(self, size: int, writable: bool, alignment: int) -> DeviceMemory:
        """Return memory with guard bytes on both sides, aligned to no more than asked."""
        return DeviceMemory(self, size, alignment)

    def region(self, size: int, fill: Fill) -> Region:
        """Return memory filled with what ``fill(count)`` draws, again and again."""
        memory = Allocation(self, size)
        drawn = fill(min(size, DRAWN_BYTES))
        self.upload(memory.address, drawn)
        done = len(drawn)
        while done < size:
            count = min(done, size - done)
            self.copy(memory.address + done, memory.address, count)
            done += count
        self.finish()
        return Region(memory.address, size, memory)

    def finish(self) -> None:
        """Wait for the stream; what a kernel did wrong is raised here."""
        self.driver("cuStreamSynchronize", self.stream)

    def free_memory(self) -> tuple[int, int]:
        """Return the bytes that are free, and all."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.driver("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def upload(self, address: int, data: NDArray[np.uint8]) -> None:
        """Copy bytes to the device, after everything on the stream."""
        self.finish()
        source = ctypes.c_void_p(int(data.ctypes.data))
        size = ctypes.c_size_t(data.nbytes)
        self.driver("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, size)

    def download(self, address: int, size: int) -> NDArray[np.uint8]:
        """Copy bytes from the device, after everything on the stream."""
        self.finish()
        found = np.empty(size, np.uint8)
        target = ctypes.c_void_p(int(found.ctypes.data))
        self.driver("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return found

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes within the device, in the order of the stream."""
        addresses = ctypes.c_uint64(target), ctypes.c_uint64(source)
        self.driver("cuMemcpyDtoDAsync_v2", *addresses, ctypes.c_size_t(size), self.stream)

    def kernel(self, image: bytes, name: str) -> ctypes.c_void_p:
        """Load an image and return one of its kernels; both stay for good."""
        module, found = ctypes.c_void_p(), ctypes.c_void_p()
        self.driver("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image))
        self.driver("cuModuleGetFunction", ctypes.byref(found), module, name.encode())
        return found

    def launch(
        self, kernel: ctypes.c_void_p, blocks: int, threads: int, arguments: Sequence[Any]
    ) -> None:
        """Start a kernel of so many blocks on the stream."""
        pointers = [ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in arguments]
        passed = (ctypes.c_void_p * len(pointers))(*pointers)
        launch = _Launch((blocks, 1, 1), (threads, 1, 1), 0, self.stream, None, 0)
        self.driver("cuLaunchKernelEx", ctypes.byref(launch), kernel, passed, None)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Have exported libraries launch on this device's stream."""
        with stream_of_calls(self.index, self.stream.value or 0):
            yield

    def capture(self, body: Callable[[], None]) -> Graph:
        """Return the graph of what ``body`` starts on the stream; nothing of it runs yet."""
        found = ctypes.c_void_p()
        mode = ctypes.c_int(_CAPTURE_THREAD)
        self.driver("cuStreamBeginCapture_v2", self.stream, mode)
        try:
            with self.current():
                body()
        except BaseException:
            # What went wrong is known; that the capture is spoilt is no news.
            self.driver.status("cuStreamEndCapture", self.stream, ctypes.byref(found))
            raise
        self.driver("cuStreamEndCapture", self.stream, ctypes.byref(found))
        return Graph(self, found)


class Allocation:
    """Device memory, given back with this object."""

    def __init__(self, device: GpuDevice, size: int) -> None:
        """Allocate; `DeviceError` says how much there was."""
        self._device = device
        found = ctypes.c_uint64()
        status = device.driver.status(
            "cuMemAlloc_v2", ctypes.byref(found), ctypes.c_size_t(max(1, size))
        )
        if status == OUT_OF_MEMORY:
            free, total = device.free_memory()
            raise DeviceError(
                f"out of device memory: {size / 1e9:.3g} GB asked for, {free / 1e9:.3g} of "
                f"{total / 1e9:.3g} GB are free",
                status,
            )
        if status:
            raise DeviceError(f"cuMemAlloc_v2: {device.driver.describe(status)}", status)
        self.address = found.value

    def __del__(self) -> None:
        """Give the memory back; a lost device has none."""
        if address := getattr(self, "address", 0):
            with contextlib.suppress(DeviceError, TypeError):
                self._device.driver("cuMemFree_v2", ctypes.c_uint64(address))


class DeviceMemory:
    """Watched memory of one argument on a device."""

    def __init__(self, device: GpuDevice, size: int, alignment: int) -> None:
        """Allocate with guard bytes around; the alignment is kept, and hardly more."""
        shift = alignment if alignment < _ALIGNED else 0
        self._device, self._start = device, _GUARD_BYTES + shift
        self._end = self._start + size
        self._memory = Allocation(device, self._end + _GUARD_BYTES)
        self.address, self.size = self._memory.address + self._start, size
        for start, count in self._around():
            device.upload(start, np.full(count, GUARD, np.uint8))

    def _around(self) -> tuple[tuple[int, int], tuple[int, int]]:
        base = self._memory.address
        return (base, self._start), (base + self._end, _GUARD_BYTES)

    def write(self, data: NDArray[np.uint8]) -> None:
        """Fill the memory."""
        self._device.upload(self.address, np.ascontiguousarray(data).reshape(-1).view(np.uint8))

    def read(self) -> NDArray[np.uint8]:
        """Return a copy of the bytes."""
        return self._device.download(self.address, self.size)

    def intact(self) -> bool:
        """Say whether the bytes around the memory are as they were."""
        return all((self._device.download(*part) == GUARD).all() for part in self._around())


class Graph:
    """Work that was captured and is started as a whole."""

    def __init__(self, device: GpuDevice, graph: ctypes.c_void_p) -> None:
        """Make the graph executable; the description of it is given back."""
        self._device = device
        self._exec = ctypes.c_void_p()
        made = ctypes.byref(self._exec)
        try:
            device.driver("cuGraphInstantiateWithFlags", made, graph, ctypes.c_uint64(0))
        finally:
            device.driver("cuGraphDestroy", graph)

    def launch(self) -> None:
        """Start the work on the device's stream."""
        self._device.driver("cuGraphLaunch", self._exec, self._device.stream)

    def __del__(self) -> None:
        """Give the graph back."""
        if getattr(self, "_exec", None):
            with contextlib.suppress(DeviceError, TypeError):
                self._device.driver("cuGraphExecDestroy", self._exec)


class Event:
    """A mark in the stream."""

    def __init__(self, device: GpuDevice) -> None:
        """Make an event that keeps its time."""
        self._device, self._event = device, ctypes.c_void_p()
        device.driver("cuEventCreate", ctypes.byref(self._event), ctypes.c_uint(0))

    def record(self) -> None:
        """Put the mark behind what was started so far."""
        self._device.driver("cuEventRecord", self._event, self._device.stream)

    def passed(self) -> bool:
        """Say whether the device has reached the mark."""
        driver = self._device.driver
        status = driver.status("cuEventQuery", self._event)
        if status not in (0, NOT_READY):
            raise DeviceError(f"cuEventQuery: {driver.describe(status)}", status)
        return status == 0

    def wait(self) -> None:
        """Wait until the device has reached the mark."""
        self._device.driver("cuEventSynchronize", self._event)

    def seconds_since(self, start: Event) -> float:
        """Return the seconds between two marks that were reached."""
        found = ctypes.c_float()
        name = "cuEventElapsedTime"
        self._device.driver(name, ctypes.byref(found), start._event, self._event)
        return 1e-3 * found.value

    def __del__(self) -> None:
        """Give the event back."""
        event: Any = getattr(self, "_event", None)
        if event:
            with contextlib.suppress(DeviceError, TypeError):
                self._device.driver("cuEventDestroy_v2", event)
