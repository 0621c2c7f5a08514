"""What a GPU's memory can do at most: read, and copied, from far outside of its caches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wattune.compiler.measure.gpu_device import Allocation, GpuDevice
from wattune.compiler.measure.gpu_timing import CACHES, replay

SOURCE = Path(__file__).with_name("gpu_limits.cu")
THREADS = 512
# Blocks of a multiprocessor that are tried: enough to hide memory, few enough to start quickly.
BLOCKS = (2, 4)
LEAST_BYTES = 1 << 30
REPLAYS = 15


def gpu_limits(device: GpuDevice, image: bytes, size: int = 0) -> dict[str, float]:
    """Return ``read_gbps`` by a kernel that only reads, and ``copy_gbps``, both ways counted.

    ``image`` is `SOURCE` compiled; ``size`` bytes are read, by default a GB or more.
    """
    cache = device.driver.attribute(device.device, 38)
    size = size or max(LEAST_BYTES, CACHES * cache)
    data, target = Allocation(device, size), Allocation(device, size)
    # Zeros would be read faster than data.
    drawn = np.random.default_rng(0).integers(0, 256, min(size, 1 << 24), dtype=np.uint8)
    for start in range(0, size, len(drawn)):
        device.upload(data.address + start, drawn[: size - start])
    kernel = device.kernel(image, "read_kernel")
    processors = device.driver.attribute(device.device, 16)

    def read(blocks: int) -> Callable[[], None]:
        arguments = (
            ctypes.c_uint64(data.address),
            ctypes.c_int64(size // 16),
            ctypes.c_uint64(target.address),
        )
        return lambda: device.launch(kernel, blocks * processors, THREADS, arguments)

    def fastest(body: Callable[[], None]) -> float:
        return float(np.median(replay(device, device.capture(body), REPLAYS)[3:]))

    return {
        "read_gbps": max(size / fastest(read(blocks)) for blocks in BLOCKS) * 1e-9,
        "copy_gbps": 2e-9 * size / fastest(lambda: device.copy(target.address, data.address, size)),
    }
