"""What a GPU's memory can do at most: read, and copied, from far outside of its caches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from wattune.compiler.measure.gpu_device import Allocation, GpuDevice
from wattune.compiler.measure.gpu_timing import CACHES, replay
from wattune.schedules.nvidia import CACHE_BYTES, PROCESSORS

THREADS = 512
# Blocks of a multiprocessor that are tried: enough to hide memory, few enough to start quickly.
BLOCKS = (2, 4)
LEAST_BYTES = 1 << 30
# A first pass over little says how much can be read in a moment.
PROBE_BYTES = 1 << 20
PASS_SECONDS = 0.02
REPLAYS = 15
DROPPED = 3


class LimitsMeter:
    """Two regions of device memory and the kernel that reads; ``image``: gpu_limits.cu."""

    def __init__(self, device: GpuDevice, image: bytes) -> None:
        """Load the kernel, and fill memory: as much as is read in a moment."""
        self._device = device
        self._kernel = device.kernel(image, "read_kernel")
        self._processors = device.driver.attribute(device.device, PROCESSORS)
        cache = device.driver.attribute(device.device, CACHE_BYTES)
        self._allocate(PROBE_BYTES)
        probe = self._seconds(self._read(BLOCKS[0]), replays=2)
        room = PROBE_BYTES * round(PASS_SECONDS / probe)
        self._allocate(max(PROBE_BYTES, min(max(LEAST_BYTES, CACHES * cache), room)))

    def _allocate(self, size: int) -> None:
        # Zeros would be read faster than data.
        rng = np.random.default_rng(0)
        self.size = size
        self._data = self._device.region(size, lambda n: rng.integers(0, 256, n, dtype=np.uint8))
        self._target = Allocation(self._device, size)

    def _read(self, blocks: int) -> Callable[[], None]:
        arguments = (
            ctypes.c_uint64(self._data.address),
            ctypes.c_int64(self.size // 16),
            ctypes.c_uint64(self._target.address),
        )
        grid = blocks * self._processors
        return lambda: self._device.launch(self._kernel, grid, THREADS, arguments)

    def _copy(self) -> None:
        self._device.copy(self._target.address, self._data.address, self.size)

    def _seconds(self, body: Callable[[], None], replays: int = 0) -> float:
        graph = self._device.capture(body)
        times = replay(self._device, graph, replays or REPLAYS + DROPPED)
        return float(np.median(times if replays else times[DROPPED:]))

    def limits(self) -> dict[str, float]:
        """Return ``read_gbps`` by a kernel that only reads; ``copy_gbps`` counts both ways."""
        read = min(self._seconds(self._read(blocks)) for blocks in BLOCKS)
        copied = self._seconds(self._copy)
        return {"read_gbps": 1e-9 * self.size / read, "copy_gbps": 2e-9 * self.size / copied}
