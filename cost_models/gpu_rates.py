"""What GPUs do at most, by public figures: the rates of one that nobody has measured.

Instructions of a warp and clock on an SM: NVIDIA, CUDA C++ Programming Guide, "Throughput of Native
Arithmetic Instructions" (results of 32 lanes). Products: dense 16-bit rates of data sheets over SMs
and clock, an m16n8k16 being 4096 operations; Hopper's mma.sync reaches 0.6 of the rate of wgmma
(Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024). Memory and
clocks: data sheets of the A100 80GB SXM, A10, L40S and H200 SXM. L2: the A100's 5120 bytes a clock
by its white paper; the others by Chips and Cheese (2023) on the H100 PCIe and the RTX 4090.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuRates:
    """Rates of one architecture's best-known device.

    ``clock`` in Hz, ``memory`` in bytes a second of the device; the rest of an SM in a clock: bytes
    from ``l2`` and of shared memory (``l1``), and a warp's instructions: ``matrix`` (mma.m16n8k16
    of 16-bit floats), ``alu`` (FP32), ``special`` (ex2), ``shuffle``.
    """

    clock: float
    memory: float
    l2: float
    matrix: float
    alu: float
    l1: float = 128.0
    special: float = 0.5
    shuffle: float = 1.0


GPU_RATES = {
    "80": GpuRates(1.41e9, 2.04e12, l2=47.0, matrix=0.5, alu=2.0),
    "86": GpuRates(1.70e9, 0.60e12, l2=20.0, matrix=0.25, alu=4.0),
    "89": GpuRates(2.52e9, 0.86e12, l2=15.0, matrix=0.25, alu=4.0),
    "90": GpuRates(1.76e9, 4.80e12, l2=24.0, matrix=0.6, alu=4.0),
}
# Bytes a second of devices of these architectures that have other memory, by a part of their names.
MEMORY = {"H200": 4.80e12, "H100 PCIe": 2.04e12, "H100 NVL": 3.94e12, "H100": 3.35e12}
# Seconds of a kernel that does nothing, replayed from a graph: a guess until one is measured.
LAUNCH = 2.5e-6


def gpu_rates(arch: str) -> GpuRates | None:
    """Return the rates of an architecture (``sm_90a``); None where none are known."""
    return GPU_RATES.get(arch.removeprefix("sm_").rstrip("af"))


def memory_of(device: str, rates: GpuRates) -> float:
    """Return the bytes a second of a device's memory: its own where its name is known."""
    return next((speed for name, speed in MEMORY.items() if name in device), rates.memory)
